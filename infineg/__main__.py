"""The command `infineg`, also as `python -m infineg`."""

import os
import sys
from pathlib import Path


def main() -> None:
    from train.cli import main

    main()


def _leave_working_folder() -> None:
    """Takes back that `python -m` puts the working folder first on the path of imports.

    A file there, such as a `yaml.py`, would be imported in place of a library. In a checkout, the
    working folder is where this package lies.
    """
    try:
        here = os.getcwd()
    except FileNotFoundError:  # it was deleted; nothing can be imported from it
        return
    if not sys.flags.safe_path and sys.path[0] == here != str(Path(__file__).parents[1]):
        del sys.path[0]


if __name__ == "__main__":
    _leave_working_folder()
    main()
