"""Builds and purges that kill themselves at a moment of their own choice, without Ray's start.

SIGKILL leaves them no chance to clean up; Python's audit events tell the moment to the system call.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.schema import Config
from pipeline.curate.takedown import take_down
from pipeline.dataset.metadata import TakenDown
from support.builds import build_inline, fill_pool_inline
from support.forks import fork
from support.kills import MOMENTS


def crash_build(config: Config, moment: str, *, before: bool, accept_changes: bool = False) -> bool:
    """Builds until just before or just after `moment`; False if that never comes.

    moment: one of `kills.MOMENTS`.
    """
    return _dies(_build, config.model_dump_json(), moment, before, accept_changes)


def crash_purge(root: Path, wanted: TakenDown, *, runs: Sequence[str], number: int) -> bool:
    """Purges until just before its `number`-th change of a file; False if there are fewer."""
    return _dies(_purge, str(root), wanted.model_dump_json(), list(runs), number)


def crash_pool(config: Config, number: int) -> bool:
    """Fills a pool until just before its `number`-th new file; False if there are fewer."""
    return _dies(_fill_pool, config.model_dump_json(), number)


def _dies(function: Callable[..., None], *arguments: object) -> bool:
    process = fork(function, *arguments)
    process.join(100)
    process.kill()
    assert process.exitcode in (0, -signal.SIGKILL), process.exitcode
    return process.exitcode != 0


def _fill_pool(config: str, number: int) -> None:
    _die_at(number)
    fill_pool_inline(Config.model_validate_json(config))


def _purge(root: str, wanted: str, runs: Sequence[str], number: int) -> None:
    _die_at(number)
    take_down(root, TakenDown.model_validate_json(wanted), purge=True, runs=runs)


def _die_at(number: int) -> None:
    """Kills this process just before its `number`-th change of a file."""
    num_left, is_dying = number, False

    def hook(event: str, _: tuple[Any, ...]) -> None:
        nonlocal num_left, is_dying
        if event in ("os.rename", "os.link", "os.remove") and not is_dying:
            num_left -= 1
            if num_left == 0:
                is_dying = True
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _build(config: str, moment: str, before: bool, accept_changes: bool) -> None:
    parsed = Config.model_validate_json(config)
    signal_at(parsed.output.path, moment, signal.SIGKILL, before=before)
    build_inline(parsed, accept_changes=accept_changes)


def signal_at(root: str, moment: str, number: signal.Signals, *, before: bool) -> None:
    """This process sends itself a signal, once, just before or just after a moment."""
    has_come = is_sent = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal has_come, is_sent
        if is_sent:
            return  # `os.kill` is an event, too
        is_sent = has_come  # at the first event after the moment
        if not has_come:
            has_come = _is_moment(event, arguments, root, moment)
            is_sent = has_come and before
        if is_sent:
            os.kill(os.getpid(), number)

    sys.addaudithook(hook)


def _is_moment(event: str, arguments: tuple[Any, ...], root: str, moment: str) -> bool:
    match event, arguments:
        case ("os.rename" | "os.link", (_, path, *_)):
            sign = "+"
        case ("os.remove", (path, *_)):
            sign = "-"
        case ("open", (str(path), _, int(flags))) if flags & os.O_CREAT:
            sign = "+" if ".tmp-" in os.fsdecode(path) else "opened "
        case _:
            return False
    name = os.fsdecode(path)
    if os.path.isabs(name) and not Path(name).is_relative_to(root):
        return False
    name = os.path.relpath(name, root) if os.path.isabs(name) else name
    return re.match(MOMENTS[moment], sign + name) is not None
