"""Predictions of a finished run, for pictures wherever they are. Starts without torch."""
