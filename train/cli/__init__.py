"""The command line of infineg."""

from pipeline.cli.commands import app
from train.cli.main import main

__all__ = ["app", "main"]
