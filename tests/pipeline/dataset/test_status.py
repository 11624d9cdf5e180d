"""`infineg status` tells how far a build has come, from what lies in the data set alone."""

import contextlib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from typer.testing import CliRunner

import pipeline.build.driver
from pipeline import storage
from pipeline.cli.commands import app
from pipeline.config.build import BuildConfig
from pipeline.config.schema import Config
from pipeline.dataset import lease
from pipeline.dataset.lease import LeaseRecord, ProcessId, lease_uri
from pipeline.dataset.status import Running, read_running
from support.builds import InlineCluster, build_inline, config_of, squares

SOURCES = [squares(num_pictures=1600, per_partition=400), squares("more", num_pictures=40, seed=1)]


class Watched(InlineCluster):
    """Lets the test look, or stop everything, after each table that a task yields."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look

    def map(self, *arguments: Any, **options: Any) -> Iterator[pa.Table]:
        for table in super().map(*arguments, **options):
            self._look()
            yield table


def build_watched(config: Config, look: Callable[[], None]) -> None:
    @contextlib.contextmanager
    def open_watched(_: BuildConfig) -> Iterator[Watched]:
        yield Watched(look)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.build.driver, "open_cluster", open_watched)
        pipeline.build.driver.build(config)


def told(root: str) -> str:
    # Names and numbers, whatever the width of the table.
    return " ".join(CliRunner().invoke(app, ["status", root]).stdout.split())


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_running_build_shows_its_progress_rate_and_holder(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "data") if place == "disk" else request.getfixturevalue("s3_root")
    seen: list[Running] = []
    lines: list[str] = []
    tables = itertools.count(1)

    def look() -> None:
        if next(tables) % 3 == 0:  # on S3 a look takes half a second
            seen.append(read_running(root))
            if seen[-1].seconds_left == 0:
                lines.append(told(root))

    build_watched(config_of(root, SOURCES), look)
    assert all(running.is_alive for running in seen)
    reads = [sum(source.num_read for source in running.sources) for running in seen]
    assert reads == sorted(reads), "what is committed is not taken back"
    last = {source.name: source for source in seen[-1].sources}
    assert last["squares"].num_read == last["squares"].num_planned == 1600
    assert last["squares"].num_partitions == last["squares"].num_partitions_planned == 4
    assert any(0 < s.num_partitions < 4 for r in seen for s in r.sources if s.name == "squares")

    working = [running for running in seen if running.candidates_per_second]
    assert working, "a rate, once something is committed"
    assert all(running.seconds_left is not None for running in working)
    assert seen[-1].seconds_left == 0
    assert re.search(r"built by \S+, process \d+", lines[-1])
    assert re.search(r"last heartbeat \d+ s ago; [\d,.]+ candidates/s .* 0 s left", lines[-1])
    assert read_running(root) is None
    assert "built by" not in told(root)


def test_build_that_has_just_begun_is_told_before_it_has_written_anything(tmp_path: Path) -> None:
    with lease.hold_lease(str(tmp_path)):
        line = told(str(tmp_path))
        assert "started, no generation is committed yet" in line
        assert "planning" in line


def test_interrupted_build_says_what_is_left_and_that_it_resumes(tmp_path: Path) -> None:
    config = config_of(tmp_path, SOURCES)
    num_tables = 0

    def stop() -> None:
        nonlocal num_tables
        num_tables += 1
        running = read_running(str(tmp_path))
        if running and sum(source.num_read for source in running.sources) >= 800:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_watched(config, stop)
    running = read_running(str(tmp_path))
    assert not running.is_alive
    assert running.seconds_left is None
    assert running.num_left >= 400
    assert "no build is running; `infineg build` continues" in told(str(tmp_path))
    build_inline(config)
    assert read_running(str(tmp_path)) is None


def test_build_that_crashed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    with lease.hold_lease(str(tmp_path)):
        held = storage.read_bytes(lease_uri(str(tmp_path)))
    record = LeaseRecord.model_validate_json(held)
    gone = ProcessId(pid=2**22 + 1, started=1, boot=record.process.boot)
    content = record.model_copy(update={"process": gone}).model_dump_json()
    storage.write_atomic(lease_uri(str(tmp_path)), content.encode())
    assert "has ended" in told(str(tmp_path))
    status = json.loads(CliRunner().invoke(app, ["status", str(tmp_path), "--json"]).stdout)
    assert status["generation"] is None
    assert status["building"]["alive"] is False
    assert status["building"]["holder"]["pid"] == 2**22 + 1


def test_build_waits_for_the_lease_as_long_as_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    with lease.hold_lease(str(tmp_path)) as held:

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 2:
                held.release()

        monkeypatch.setattr("pipeline.dataset.lease.time.sleep", sleep)
        with pytest.raises(lease.Held, match="is being built by"), lease.hold_lease(str(tmp_path)):
            pass
        assert waits == [], "without a wait it refuses at once"
        with lease.hold_lease(str(tmp_path), wait_s=60):
            assert len(waits) == 2
