"""`infineg`, called here or as a real process with all that it starts: to run, watch, kill."""

import contextlib
import functools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from support.forks import ForkedCommand
from train.cli import main

Command = subprocess.Popen[bytes] | ForkedCommand


def call_infineg(capture: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a command in this process."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capture.readouterr()
    return int(end.value.code or 0), out, err


def start_infineg(
    *arguments: object,
    log: Path,
    prefix: Sequence[str] = (),
    cwd: Path | None = None,
    **env: str,
) -> Command:
    """The command in a session of its own, so that all that it starts can be found and killed.

    `prefix` goes before it, such as that of a `Host`.
    """
    words = [str(argument) for argument in arguments]
    environment = {**os.environ, **env}
    if not prefix and "PYTHONPATH" not in env:
        return ForkedCommand(words, log=log, cwd=cwd, env=environment)
    with log.open("ab") as file:
        return subprocess.Popen(
            [*prefix, sys.executable, "-m", "infineg", *words],
            stdout=file,
            stderr=file,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            # Children of a shell in the background, as under some CI, ignore SIGINT by default.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )


@contextlib.contextmanager
def running_infineg(*arguments: object, log: Path, **options: Any) -> Iterator[Command]:
    """The same, which ends with the block, as does all that it has started."""
    process = start_infineg(*arguments, log=log, **options)
    try:
        yield process
    finally:
        kill_session(process)


def run_infineg(
    *arguments: object, log: Path, cwd: Path | None = None, **env: str
) -> tuple[int, str]:
    """Exit code and output."""
    with running_infineg(*arguments, log=log, cwd=cwd, **env) as process:
        return process.wait(timeout=400), log.read_text()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def session_processes(leader: int) -> dict[int, str]:
    """Command lines of the processes of a session, by process id."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with contextlib.suppress(OSError):  # ended meanwhile
                if _stat(int(folder.name))[3] == str(leader):
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace")
    return found


def parent_of(pid: int) -> int | None:
    """None if the process has ended."""
    try:
        return int(_stat(pid)[1])
    except OSError:
        return None


def _stat(pid: int) -> list[str]:
    """State, parent, group, session and more, which follow the name, which may hold spaces."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def write_impostors(folder: Path) -> None:
    """Files of a user that have the names of our packages, and end a process that imports them."""
    text = "import os\nprint('IMPOSTOR', __file__, flush=True)\nos._exit(0)\n"
    (folder / "pipeline").mkdir()
    for name in ("train.py", "pipeline/__init__.py"):
        (folder / name).write_text(text)


def kill_session(process: Command) -> None:
    """SIGKILL to a command and to all that it started, the raylet and workers of Ray included."""
    if process.poll() is None:
        process.kill()  # at once: the search for the others takes a moment
    for _ in range(100):
        alive = session_processes(process.pid)
        for pid in alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.poll() is not None and not alive:
            return
        time.sleep(0.05)
    raise AssertionError(f"still alive: {session_processes(process.pid)}")


def wait_until(claim: Callable[[], bool], process: Command, log: Path) -> None:
    """Polls often, because what is waited for is a moment in which to strike."""
    while not claim():
        assert process.poll() is None, f"ended too early:\n{log.read_text()}"
        time.sleep(0.005)


@dataclass(frozen=True)
class Host:
    address: str
    prefix: tuple[str, ...] = ()  # goes before a command that is to run there
    interface: str = "lo"


@dataclass(frozen=True)
class Network:
    outside: str  # this machine itself, as the hosts see it
    hosts: list[Host]
    is_real: bool


@contextlib.contextmanager
def network(number: int) -> Iterator[Network]:
    """So many hosts; where this machine allows no namespaces, all of them are its loopback."""
    ip = shutil.which("ip", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    name = f"inf{os.getpid()}"
    if ip is None or not _succeeds(ip, "link", "add", "name", name, "type", "bridge"):
        yield Network("127.0.0.1", [Host("127.0.0.1")] * number, is_real=False)
        return
    # Of this process alone: two networks of the same addresses would share their routes.
    subnet = f"10.{64 + os.getpid() % 128}.{os.getpid() // 128 % 256}"
    hosts = []
    try:
        for words in (
            ["address", "add", f"{subnet}.254/24", "dev", name],
            ["link", "set", name, "up"],
        ):
            subprocess.run([ip, *words], check=True)
        for i in range(1, number + 1):
            space, address = f"{name}-{i}", f"{subnet}.{i}"
            _add_host(ip, bridge=name, space=space, address=address)
            hosts.append(Host(address, (ip, "netns", "exec", space), "eth0"))
        yield Network(f"{subnet}.254", hosts, is_real=True)
    finally:
        for i in range(1, number + 1):  # its end of the cable goes with it
            _succeeds(ip, "netns", "delete", f"{name}-{i}")
        subprocess.run([ip, "link", "delete", name], check=True)


def _add_host(ip: str, *, bridge: str, space: str, address: str) -> None:
    cable = space.replace("-", "v")
    peer = ["type", "veth", "peer", "name", "eth0", "netns", space]
    for words in (
        ["netns", "add", space],
        ["link", "add", cable, *peer],
        ["link", "set", cable, "master", bridge, "up"],
        ["-n", space, "address", "add", f"{address}/24", "dev", "eth0"],
        ["-n", space, "link", "set", "eth0", "up"],
        ["-n", space, "link", "set", "lo", "up"],
    ):
        subprocess.run([ip, *words], check=True)


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
