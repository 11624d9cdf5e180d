"""Shared by the kinds of sources: readers of tars, tables and images, label rules, patterns."""
