"""Progress, log format, Prometheus metrics and a stopwatch."""
