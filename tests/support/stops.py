"""Builds that stop themselves (SIGSTOP) at a moment, as a suspended machine does, and go on later.

On a disk Python's audit events tell the moment to the system call. On S3 it is the worst one:
between the answer that this process still holds the lease and the request that relies on it.
"""

import contextlib
import json
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pipeline.storage.conditional
import pipeline.storage.files
import pipeline.storage.uploads
from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset.lease import lease_uri
from pipeline.errors import InfinegError
from support.builds import build_inline
from support.crashes import signal_at
from support.forks import fork
from support.kills import MOMENTS

_MAX_WAIT_S = 100


@dataclass(frozen=True)
class Stopped:
    """A build that is stopped."""

    process: ForkServerProcess
    log: Path

    def go_on(self) -> str:
        """Until it ends; returns the error that it ends with, "" for none."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGCONT)
        self.process.join(_MAX_WAIT_S)
        assert self.process.exitcode == 0, self.log.read_text()
        return self.log.read_text()


@contextlib.contextmanager
def stopped_build(config: Config, moment: str, log: Path, *, before: bool) -> Iterator[Stopped]:
    """A build that has come to `moment`, one of `kills.MOMENTS`; its lease has expired since."""
    arguments = (config.model_dump_json(), moment, before, str(log))
    process = fork(_build, *arguments, dict(os.environ))
    try:
        _wait_until_stopped(process, log)
        expire_lease(config.output.path)
        yield Stopped(process, log)
    finally:
        process.kill()
        process.join()


def expire_lease(root: str) -> None:
    """As if the time had passed."""
    record = json.loads(storage.read_bytes(lease_uri(root)))
    content = json.dumps(record | {"expires_at": "2026-01-01T00:00:00Z"}).encode()
    storage.write_atomic(lease_uri(root), content)


def _wait_until_stopped(process: ForkServerProcess, log: Path) -> None:
    deadline = time.monotonic() + _MAX_WAIT_S
    stat = Path(f"/proc/{process.pid}/stat")
    while stat.exists() and time.monotonic() < deadline:
        if stat.read_text().rpartition(")")[2].split()[0] == "T":
            return
        time.sleep(0.01)
    raise AssertionError(f"it did not come to that moment: {log.read_text()}")


def _build(config: str, moment: str, before: bool, log: str, env: dict[str, str]) -> None:
    os.environ.update(env)
    parsed = Config.model_validate_json(config)
    Path(log).touch()
    logging.disable(logging.WARNING)
    if parsed.output.path.startswith("s3://"):
        _stop_after_the_answer(parsed.output.path, moment)
    else:
        signal_at(parsed.output.path, moment, signal.SIGSTOP, before=before)
    try:
        build_inline(parsed)
    except InfinegError as error:
        Path(log).write_text(str(error))


def _stop_after_the_answer(root: str, moment: str) -> None:
    place = root.removeprefix("s3://") + "/"
    ask: Callable[[Any, str], None] = pipeline.storage.uploads.ask_fence
    is_over = False

    def ask_and_stop(sign: str, fs: Any, path: str) -> None:
        nonlocal is_over
        ask(fs, path)
        if not is_over and re.match(MOMENTS[moment], sign + path.removeprefix(place)):
            is_over = True
            os.kill(os.getpid(), signal.SIGSTOP)

    for module, sign in (
        (pipeline.storage.uploads, "+"),
        (pipeline.storage.conditional, "+"),
        (pipeline.storage.files, "-"),
    ):
        module.ask_fence = lambda fs, path, sign=sign: ask_and_stop(sign, fs, path)
