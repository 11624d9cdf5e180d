"""SIGKILL at several moments: what is committed stays, and in the end nothing tells of it."""

import os
import re
import signal
from pathlib import Path

import pytest
from builds import (
    config_of,
    file_hashes,
    kill_session,
    run_infineg,
    session_processes,
    start_infineg,
    wait_until,
    write_config,
)
from conftest import Built

from pipeline import manifest, storage
from pipeline.verify import verify_dataset


def part_records(root: Path) -> set[Path]:
    return set(root.glob("parts/*/*.json"))


def kill_one_worker(leader: int) -> None:
    """One process that Ray has given a task."""
    workers = [pid for pid, cmd in session_processes(leader).items() if "ray::MapBatches" in cmd]
    assert workers, session_processes(leader)
    os.kill(workers[0], signal.SIGKILL)


def leave_garbage(root: Path) -> list[Path]:
    """What a crash leaves: data without its record, half-written files, a shard in no list."""
    stem = manifest.part_stem("squares", "000000003", 1)
    unfinished = root / f"{stem}.parquet"
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


@pytest.mark.timeout(240)
def test_killed_build_resumes_to_the_same_bytes(built: Built, tmp_path: Path) -> None:
    root = tmp_path / "data"
    path = write_config(tmp_path / "config.yaml", config_of(root, built.entries))
    logs = [tmp_path / f"log-{number}" for number in (1, 2, 3)]

    # A worker is killed, which the run survives; then the driver alone, its workers still there.
    first = start_infineg("build", path, log=logs[0])
    try:
        wait_until(lambda: len(part_records(root)) >= 3, first, logs[0])
        kill_one_worker(first.pid)
        num_then = len(part_records(root))
        wait_until(lambda: len(part_records(root)) >= num_then + 3, first, logs[0])
        first.kill()
        first.wait()
    finally:
        kill_session(first)
    garbage = leave_garbage(root)
    committed = {record: record.stat() for record in part_records(root)}
    for record in committed:
        part = manifest.read_part_record(str(root), record.parent.name, *_place(root, record))
        assert part is not None
        assert part.counts.adds_up()
        assert storage.sha256_of(str(root / part.path)) == part.sha256
    assert manifest.latest_generation_number(str(root)) == 0

    # Everything is killed while shards are being written.
    second = start_infineg("build", path, log=logs[1])
    try:
        wait_until(
            lambda: any(p not in garbage for p in root.glob("shards/*/*.tar")), second, logs[1]
        )
    finally:
        kill_session(second)
    assert manifest.latest_generation_number(str(root)) == 0, "the kill came too late"
    assert f"resuming: {len(committed)} parts are committed" in logs[1].read_text()
    for record, then in committed.items():
        now = record.stat()
        assert (now.st_ino, now.st_mtime_ns) == (then.st_ino, then.st_mtime_ns), record

    code, output = run_infineg("build", path, log=logs[2])
    assert code == 0, output
    assert re.search(r"resuming: 17 parts are committed already", output), output
    assert "embed positives" not in output
    assert not re.search(r"committed \w+/", output), "a part was built again"
    assert file_hashes(root) == file_hashes(built.root)
    assert verify_dataset(str(root)).problems == []
    assert not [path for path in garbage if path.exists()]
    assert not list(root.rglob(".tmp-*"))
    assert not part_records(root)


def _place(root: Path, record: Path) -> tuple[str, int]:
    """Partition and number of a part, by its record."""
    records = manifest.read_part_records(str(root), record.parent.name)
    stem = str(record.relative_to(root).with_suffix(""))
    return next(
        place for place in records if manifest.part_stem(record.parent.name, *place) == stem
    )
