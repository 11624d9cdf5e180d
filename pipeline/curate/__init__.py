"""What is done to a data set once it is built: verify, take down, review."""
