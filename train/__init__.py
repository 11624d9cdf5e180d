"""Trains, calibrates and evaluates a classifier on a data set that `pipeline` has built."""
