"""Numbers from predictions: rates, intervals, calibration."""
