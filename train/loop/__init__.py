"""The run: job, trainer, step, optimizer, checkpoints, validation, log."""
