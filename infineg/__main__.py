"""The command `infineg`, also as `python -m infineg`."""

import os
import sys
from pathlib import Path


def main() -> None:
    _open_closed_streams()
    # Threads of torch that wait for work sleep. By default (libgomp's) they spin, and on cores that
    # other processes use too, a step of a small head then takes ten times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    from train.cli import main

    main()


def _open_closed_streams() -> None:
    """Gives a command that was started without stdin, stdout or stderr (`>&-`) the null device.

    Python has None for them, and a file or pipe opened later would take their number.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


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
