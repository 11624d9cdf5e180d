"""Trains, calibrates and evaluates a detector on a built data set. Internal: import `infineg`."""
