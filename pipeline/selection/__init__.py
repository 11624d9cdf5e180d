"""Which candidates become negatives, and with what probability."""
