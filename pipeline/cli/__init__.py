"""The pipeline's commands, and their tables for a terminal."""
