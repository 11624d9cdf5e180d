"""Calibrate and measure a finished run."""
