"""The YAML config: its models, and how a file is loaded."""
