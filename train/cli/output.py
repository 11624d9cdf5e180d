"""Standard output that may be full, or whose reader may have ended."""

import os
import sys

from pipeline.errors import InfinegError


def flush_output() -> None:
    """Raises InfinegError if the output cannot be written, e.g. to a full disk."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise InfinegError(f"the output cannot be written: {error.strerror}") from None


def discard_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
