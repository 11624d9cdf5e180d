"""Backbone and head, and their files."""
