"""Processes forked from one that has imported everything, which takes a new one 3 to 8 s."""

import atexit
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from ray._raylet import Config

_IMPORTED = [
    "infineg.__main__",
    "pipeline.build.driver",
    "pipeline.mine.driver",
    "support.crashes",
    "timm",
    "train.evaluate.run",
    "train.loop.ray_launcher",
    "train.loop.trainer",
]


def fork(function: Callable[..., None], *arguments: Any) -> ForkServerProcess:
    """A running process; what it is given is pickled."""
    processes = _processes()
    process = processes.Process(target=function, args=arguments)
    process.start()
    return process


@functools.cache
def _processes() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_IMPORTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # Python 3.11 does not pass it on
        forkserver.ensure_running()
    return context


class ForkedCommand:
    """`infineg` in a session of its own, with the methods of `subprocess.Popen`."""

    def __init__(
        self, arguments: list[str], *, log: Path, cwd: Path | None, env: Mapping[str, str]
    ) -> None:
        log.touch()
        self._process = fork(_run_command, arguments, str(log), cwd and str(cwd), dict(env))
        self.pid: int = self._process.pid or 0

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("infineg", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _run_command(arguments: list[str], log: str, cwd: str | None, env: Mapping[str, str]) -> None:
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with open(os.devnull) as nothing, open(log, "ab") as file:
        for opened, descriptor in ((nothing, 0), (file, 1), (file, 2)):
            os.dup2(opened.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(env)
    Config.initialize("")  # Ray has read the environment of the process that this is forked from
    if cwd is not None:
        os.chdir(cwd)
    sys.argv = [str(Path(sys.executable).with_name("infineg")), *arguments]
    from infineg.__main__ import main

    try:
        main()
    finally:
        atexit._run_exitfuncs()  # which multiprocessing leaves out
