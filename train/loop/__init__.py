"""The run: its state, phases, steps, checkpoints, validation and log."""
