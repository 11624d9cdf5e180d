"""The commands of the pipeline, and their tables for a terminal."""
