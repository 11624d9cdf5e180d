"""SIGKILL at several moments: what is committed stays, and in the end nothing tells of it."""

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from builds import config_of, file_hashes, write_config
from commands import kill_session, run_infineg, session_processes, start_infineg, wait_until
from conftest import Built

from pipeline import manifest, storage
from pipeline.commits import PartRecord
from pipeline.verify import verify_dataset

NUM_PARTS = 12  # 8 of squares, 1 of each other source: their partitions are small


@contextlib.contextmanager
def running_build(config: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A build that is killed at the end of the block, with all its processes."""
    process = start_infineg("build", config, log=log)
    try:
        yield process
    finally:
        kill_session(process)


def part_records(root: Path) -> list[Path]:
    return sorted(root.glob("parts/*/*/*.json"))


def has_new_shard(root: Path, garbage: list[Path]) -> bool:
    return bool(set(root.glob("shards/*/*.tar")) - set(garbage))


def kill_one_worker(leader: int) -> None:
    """A process that Ray has given a task."""
    workers = [pid for pid, cmd in session_processes(leader).items() if "ray::MapBatches" in cmd]
    assert workers, session_processes(leader)
    os.kill(workers[0], signal.SIGKILL)


def stamps_of_sound_parts(root: Path) -> dict[Path, tuple[int, int]]:
    """Inode and time of each part record, whose counts and data are checked."""
    stamps = {}
    for path in part_records(root):
        part = PartRecord.model_validate_json(path.read_bytes())
        assert part.counts.adds_up()
        assert storage.sha256_of(str(root / part.path)) == part.sha256
        stamps[path] = (path.stat().st_ino, path.stat().st_mtime_ns)
    return stamps


def leave_garbage(root: Path) -> list[Path]:
    """What a crash may leave: data without its record, half-written files, shards in no list."""
    unfinished = root / f"{manifest.part_stem('squares', 1, 3, 1)}.parquet"
    assert not unfinished.with_suffix(".json").exists(), "the last part was built too early"
    garbage = [
        unfinished,
        unfinished.parent / ".tmp-half",
        root / "shards/train/.tmp-half",
        root / "shards/train/squares-000099.tar",
        root / "ledger/squares-000002.parquet",
    ]
    for path in garbage:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half a file")
    return garbage


def num_resumed(log: Path) -> int:
    """Parts that a run found committed, over its sources."""
    return sum(map(int, re.findall(r"resuming: (\d+) parts are committed", log.read_text())))


@pytest.mark.timeout(240)
def test_killed_build_resumes_to_the_same_bytes(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "data"
    config = write_config(tmp_path / "config.yaml", config_of(root, built.entries))
    logs = [tmp_path / f"log-{number}" for number in (1, 2, 3)]

    with running_build(config, logs[0]) as first:
        wait_until(lambda: len(part_records(root)) >= 3, first, logs[0])
        first.kill()  # the driver alone: its workers find themselves without it
        first.wait()
    committed = stamps_of_sound_parts(root)
    garbage = leave_garbage(root)

    with running_build(config, logs[1]) as second:
        wait_until(lambda: len(part_records(root)) > len(committed), second, logs[1])
        kill_one_worker(second.pid)  # which the run survives: it comes to write shards
        wait_until(lambda: has_new_shard(root, garbage), second, logs[1])
    assert manifest.latest_generation_number(str(root)) == 0, "the kill came too late"
    assert num_resumed(logs[1]) == len(committed)
    everything = stamps_of_sound_parts(root)
    assert len(everything) == NUM_PARTS
    assert committed.items() <= everything.items(), "a committed part was written again"

    code, output = run_infineg("build", config, log=logs[2])
    assert code == 0, output
    assert num_resumed(logs[2]) == NUM_PARTS
    assert not re.search(r"embed positives|committed \w+ round", output), "work was done again"
    assert file_hashes(root) == file_hashes(built.root)
    assert verify_dataset(str(root)).problems == []
    left = [p for p in [*garbage, *root.rglob(".tmp-*"), *part_records(root)] if p.exists()]
    assert left == [], "garbage was not swept"
