"""All settings of a run and of its evaluation."""
