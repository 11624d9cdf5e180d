"""Calibrate, measure and predict with a finished run."""
