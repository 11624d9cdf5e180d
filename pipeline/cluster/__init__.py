"""Ray: the only folder that knows it."""
