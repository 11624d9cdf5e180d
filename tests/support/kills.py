"""Builds that are killed at moments and in processes chosen by a seed, and resumed.

A moment is recognised by what the build writes: a folder is polled, an S3 server lists its
requests. SIGKILL leaves no process a chance to clean up.
"""

import contextlib
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import NO_GENERATION, Generation
from support.processes import Command, kill_session, parent_of, session_processes, start_infineg
from support.servers import S3Server

# Ray reports the death of a node to its driver immediately; it gives up on its head after 60 s.
_MAX_WAIT_FOR_END_S = 30
_MAX_WAIT_S = 180


class Target(StrEnum):
    DRIVER = "driver"
    WORKER = "worker"  # a process that runs tasks
    RAYLET = "raylet"
    GCS = "gcs_server"
    OTHER = "other"  # actors and agents of Ray, its logs, its dashboard


class Phase(StrEnum):
    """What a build was doing, by the files of its data set."""

    PLANNING = "planning"
    READING = "reading"
    PACKING = "packing"
    SWEEPING = "sweeping"
    BETWEEN = "between rounds"


# Events of a build: it wrote "+path" or removed "-path".
MOMENTS_OF_PLANNING = {
    "reference": r"\+reference\.",
    "plan": r"\+plans/",
}
MOMENTS = {
    **MOMENTS_OF_PLANNING,
    "half a file": r"\+(.*/)?\.tmp-",  # only on a disk
    "data of a part": r"\+parts/.*\.parquet",
    "part": r"\+parts/.*\.json",
    "hardest chosen": r"\+parts/.*/hardest-.*\.parquet",
    "hardest read": r"\+parts/.*/\d{6}-\d{6}\.[0-9a-f]{16}-.*\.parquet",
    "ledger": r"\+(ledger|hashes)/.*\.parquet",
    "shard": r"\+(shards|quarantine)/.*\.tar",
    "sidecar": r"\+(shards|quarantine)/.*\.parquet",
    "generation": r"\+generations/.*\.json",
    "removal": r"-(?!.*\.tmp-|lease)",
}


@dataclass(frozen=True)
class Kill:
    """Kill `target`, `delay_s` after `moment` has come for the `count`-th time in a run."""

    target: Target
    moment: str
    count: int = 1
    delay_s: float = 0.0


@dataclass(frozen=True)
class Struck:
    """A kill that was done: what it hit, and when."""

    kill: Kill
    phase: Phase
    victim: str


class Events(Protocol):
    """What has happened to the files of a data set."""

    root: str

    def poll(self, folder: str = "") -> Sequence[str]:
        """All events so far, in order; looks for new ones only in `folder`, which may be faster."""
        ...


@dataclass
class LocalEvents:
    """Polls a folder; a part record must never be written twice."""

    root: str
    _events: list[str] = field(default_factory=list)
    _stamps: dict[str, tuple[int, int]] = field(default_factory=dict)

    def poll(self, folder: str = "") -> Sequence[str]:
        now: dict[str, tuple[int, int]] = {}
        for directory, below, names in os.walk(f"{self.root}/{folder}"):
            if "embeddings" in below:
                below.remove("embeddings")  # many, and no kill waits for one
            for name in names:
                path = os.path.relpath(f"{directory}/{name}", self.root)
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    stat = os.stat(f"{directory}/{name}")
                    now[path] = (stat.st_ino, stat.st_mtime_ns)
        for name, stamp in now.items():
            before = self._stamps.get(name)
            if before is None:
                self._events.append(f"+{name}")
            elif re.fullmatch(r"parts/.*\.json", name):
                assert before == stamp, f"{name} was committed and was written again"
        gone = {n for n in self._stamps.keys() - now.keys() if n.startswith(folder)}
        self._events += [f"-{name}" for name in sorted(gone)]
        self._stamps = {n: s for n, s in self._stamps.items() if n not in gone} | now
        return self._events


@dataclass
class S3Events:
    """Reads the requests to a server that succeeded."""

    root: str
    server: S3Server
    _events: list[str] = field(default_factory=list)
    _num_read: int = 0

    def poll(self, folder: str = "") -> Sequence[str]:
        del folder  # listing one is no faster
        root = "/" + self.root.removeprefix("s3://") + "/"
        end = len(self.server.writes)
        for request in self.server.writes[self._num_read : end]:
            method, _, path = request.partition(" ")
            if path.startswith(root):
                sign = {"PUT": "+", "DELETE": "-"}[method]
                self._events.append(sign + path.removeprefix(root))
            elif method == "POST" and path.endswith("?delete"):
                self._events.append("-many")
        self._num_read = end
        return self._events


def draw_kill(seed: str, targets: Sequence[Target], moments: Sequence[str]) -> Kill:
    draw = random.Random(seed)
    return Kill(
        target=draw.choice(targets),
        moment=draw.choice(moments),
        count=draw.choice([1, 1, 2, 3]),
        delay_s=draw.choice([0.0, 0.0, 0.03, 0.3]) * draw.random(),
    )


class KilledBuild:
    """A build of one config that is killed and started again until it is finished."""

    def __init__(self, config: Path, events: Events, folder: Path) -> None:
        self._config, self._events, self._folder = config, events, folder
        self._process: Command | None = None
        self._started: list[Command] = []
        self.struck: list[Struck] = []
        self.is_finished = False
        # Of the running build; found before they are needed, because the search takes a moment.
        self._node: dict[Target, list[tuple[int, str]]] = {}
        self._num_excused = 0  # kills that already excused a failed run

    @property
    def logs(self) -> list[Path]:
        """One per run."""
        return [self._folder / f"log-{number}" for number in range(len(self._started))]

    @property
    def output(self) -> str:
        return "\n".join(log.read_text() for log in self.logs)

    def strike(self, kill: Kill) -> None:
        """Runs a build until the moment and kills, unless the build ends first."""
        while not self.is_finished and self._wait_for(kill):
            time.sleep(kill.delay_s)
            leader = self._process.pid
            if victims := self._node.get(kill.target) or _find_victims(leader, kill.target):
                victim, name = random.Random(str(kill)).choice(victims)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                phase = phase_of(self._events.root)
                self.struck.append(Struck(kill, phase, name))
                self._wait_for_end(kill.target)
                return

    def finish(self) -> None:
        """Lets the build finish."""
        code = 1
        while code:
            process = self._running()
            deadline = time.monotonic() + _MAX_WAIT_S
            while process.poll() is None:
                assert time.monotonic() < deadline, f"hangs:\n{self.output}"
                self._events.poll()
                time.sleep(0.02)
            code = process.returncode
            # The loss of a process beside the workers may end a run; the next one continues.
            is_excused = len(self.struck) > self._num_excused
            assert code == 0 or (is_excused and self.struck[-1].kill.target == Target.OTHER), (
                f"exit code {code}:\n{self.output}"
            )
            self._num_excused = len(self.struck)
            self._process = None
        self._events.poll()
        self.is_finished = True

    def close(self) -> None:
        """Ends all processes of all runs."""
        for process in self._started:
            kill_session(process)

    def _running(self) -> Command:
        if self._process is None:
            log = self._folder / f"log-{len(self._started)}"
            self._process = start_infineg("build", self._config, log=log)
            self._node = {}
            self._started.append(self._process)
        return self._process

    def _wait_for(self, kill: Kill) -> bool:
        """False if the build ends first."""
        process, seen = self._running(), len(self._events.poll())
        deadline = time.monotonic() + _MAX_WAIT_S
        # On a disk the clean-up after a commit takes milliseconds.
        folder = "generations" if kill.moment == "generation" else ""
        count = 0
        while count < kill.count:
            if kill.target in (Target.RAYLET, Target.GCS) and not self._node.get(kill.target):
                self._node[kill.target] = _find_victims(process.pid, kill.target)
            if process.poll() is not None:
                self.finish()
                return False
            assert time.monotonic() < deadline, f"{kill} never came:\n{self.output}"
            events = self._events.poll(folder)
            count += sum(1 for event in events[seen:] if re.match(MOMENTS[kill.moment], event))
            seen = len(events)
            time.sleep(0.0002 if folder else 0.002)
        return True

    def _wait_for_end(self, target: Target) -> None:
        """A driver ends with its node or head, and survives the death of a worker."""
        if target in (Target.WORKER, Target.OTHER):
            return
        code = self._process.wait(_MAX_WAIT_FOR_END_S)
        # It may have finished at that moment.
        assert code in ((-signal.SIGKILL,) if target == Target.DRIVER else (0, 1)), self.output
        self._process = None


def worker_processes(leader: int) -> set[int]:
    """Of a build without Ray; not the one that they are forked from."""
    processes = session_processes(leader).items()
    found = {pid for pid, command in processes if "pipeline.cluster.process " in command}
    return {pid for pid in found if parent_of(pid) in found}


def _find_victims(leader: int, target: Target) -> list[tuple[int, str]]:
    if target == Target.DRIVER:
        return [(leader, "driver")]
    processes = session_processes(leader)
    named = {
        pid: (command.split() or [""])[0].rpartition("/")[2] for pid, command in processes.items()
    }
    tasks = {pid for pid, name in named.items() if name.startswith("ray::MapBatches")}
    tasks |= worker_processes(leader)
    workers = tasks or {pid for pid, name in named.items() if name.startswith("ray::IDLE")}
    chosen = {
        Target.WORKER: workers,
        Target.RAYLET: {pid for pid, name in named.items() if name == "raylet"},
        Target.GCS: {pid for pid, name in named.items() if name == "gcs_server"},
    }
    others = set(named) - set().union(*chosen.values()) - {leader}
    return [(pid, named[pid]) for pid in sorted(chosen.get(target, others))]


def phase_of(root: str) -> Phase:
    """The phase of a build that was just killed."""
    files = set(storage.list_files(root))
    generation = _latest_generation(root, files)
    parts = [name for name in files if name.startswith("parts/")]
    done = {source.name: source.num_rounds for source in generation.sources}
    if any(int(part.split("/")[2]) <= done.get(part.split("/")[1], 0) for part in parts):
        return Phase.SWEEPING
    if unlisted_outputs(root, files):
        return Phase.PACKING
    if parts:
        return Phase.READING
    return Phase.BETWEEN if generation.number else Phase.PLANNING


def unlisted_outputs(root: str, files: set[str]) -> set[str]:
    """Shards and tables that the latest generation does not list."""
    listed = _latest_generation(root, files).paths()
    folders = ("shards/", "quarantine/", "ledger/", "hashes/")
    return {name for name in files if name.startswith(folders)} - listed


def _latest_generation(root: str, files: set[str]) -> Generation:
    """The latest of `files`: a build that goes on may commit another meanwhile."""
    numbers = [int(Path(name).stem) for name in files if re.match(MOMENTS["generation"][2:], name)]
    return Dataset(root).read_generation(max(numbers)) if numbers else NO_GENERATION


def garbage_in(root: str) -> list[str]:
    """Files that a finished build must not leave. The lease of a killed process may stay."""
    files = set(storage.list_files(root))
    rest = {name for name in files if re.search(r"(^|/)\.tmp-|^parts/", name)}
    return sorted(rest | unlisted_outputs(root, files))


def repeated_work(build: KilledBuild, events: Sequence[str]) -> list[str]:
    """Parts, and references, that were committed more than once."""
    logged = re.findall(r"committed (\w+ round \d+ span \d+ part \d+|reference bank)", build.output)
    written = [e for e in events if re.match(r"\+parts/.*\.json", e)]
    return [what for what, number in Counter([*logged, *written]).items() if number > 1]
