"""Exactly once: builds that are killed at random end in the bytes of one that was not."""

import re
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.lease import lease_uri
from pipeline.dataset.metadata import PartRecord
from pipeline.dataset.records import decode_record
from support.builds import (
    Built,
    build_inline,
    built_inline,
    config_of,
    file_hashes,
    squares,
    write_config,
    write_inputs,
)
from support.crashes import crash_build
from support.kills import (
    MOMENTS,
    MOMENTS_OF_PLANNING,
    Events,
    Kill,
    KilledBuild,
    LocalEvents,
    Phase,
    S3Events,
    Struck,
    Target,
    draw_kill,
    garbage_in,
    repeated_work,
)
from support.servers import S3Server

SECTIONS = {"output": {"candidates_per_round": 600}}
SHORT = 600  # squares: with all else 2 generations
RAY = {"address": "local"}
LONG = 6000  # 13


def undisturbed(folder: Path, num_squares: int) -> Built:
    """Four sources of negatives, and one that has again what the first one has; nobody kills it."""
    _, *others = write_inputs(folder / "inputs")
    entries = [
        squares(num_pictures=num_squares, per_partition=600),
        squares("again", num_pictures=120, per_partition=60),
        *others,
    ]
    built = built_inline(folder / "data", entries, **SECTIONS)
    rejected = {source.name: source.counts.rejected for source in built.generation.sources}
    assert rejected["again"]["duplicate"] > 5
    assert rejected["strays"]["suspected_positive"] > 5
    return built


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return undisturbed(tmp_path_factory.mktemp("short"), SHORT)


@pytest.fixture(params=["local", "s3"])
def new_events(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Events]:
    """Makes places for data sets, on a disk and on S3, that tell what happens there."""
    if request.param == "local":
        return lambda: LocalEvents(str(tmp_path / f"data-{len(list(tmp_path.iterdir()))}"))
    request.getfixturevalue("s3_root")  # for the environment
    server: S3Server = request.getfixturevalue("s3_server")
    return lambda: S3Events(server.new_root(), server)


def assert_as_undisturbed(root: str, expected: Built) -> None:
    assert file_hashes(root) == file_hashes(expected.root)
    assert verify_dataset(root).problems == []
    assert garbage_in(root) == []
    assert Dataset(root).read_info().latest_generation > 1


def leave_garbage(root: Path) -> None:
    """What a crash may leave: half-written files, data without its record, shards in no list."""
    for name in (
        ".tmp-half",
        "plans/.tmp-half",
        "generations/.tmp-half",
        "embeddings/strays/000001/.tmp-half",
        "parts/strays/000001/000000-000000.parquet",
        "shards/train/.tmp-half",
        "shards/train/strays-000099.tar",
        "ledger/strays-000002.parquet",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"half a file")


def assert_parts_are_sound(root: str) -> None:
    """What is committed is whole, at any moment."""
    paths = storage.list_files(f"{root}/parts", (".json",))
    assert paths
    for path in paths:
        part = decode_record(path, storage.read_bytes(f"{root}/parts/{path}"), PartRecord)
        assert part.counts.adds_up()
        assert storage.sha256_of(f"{root}/{part.path}") == part.sha256


@pytest.mark.timeout(240)
def test_build_that_dies_at_every_kind_of_write_resumes_to_the_same_bytes(
    short: Built, tmp_path: Path
) -> None:
    events = LocalEvents(str(tmp_path / "data"))
    config = config_of(events.root, short.entries, **SECTIONS)
    leave_garbage(tmp_path / "data")
    events.poll()
    num_deaths = 0
    for moment in MOMENTS:
        for before in (True, False):
            num_deaths += crash_build(config, moment, before=before)
            events.poll()  # it fails if a part is committed twice
    build_inline(config)
    assert num_deaths == 2 * len(MOMENTS)
    assert_as_undisturbed(events.root, short)


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_build_with_killed_processes_of_ray_resumes_to_the_same_bytes(
    short: Built, tmp_path: Path
) -> None:
    events = LocalEvents(str(tmp_path / "data"))
    config = config_of(events.root, short.entries, **SECTIONS, build=RAY)
    path = write_config(tmp_path / "config.yaml", config)
    kills = [
        Kill(Target.WORKER, "part"),  # which the run survives
        Kill(Target.RAYLET, "shard"),
    ]
    with closing(KilledBuild(path, events, tmp_path)) as build:
        for kill in kills:
            build.strike(kill)
        assert_parts_are_sound(events.root)
        build.finish()
    assert [struck.kill for struck in build.struck] == kills
    first, second = (log.read_text() for log in build.logs)
    assert "Run the same command again: it resumes" in first
    num_resumed = sum(map(int, re.findall(r"resuming: (\d+) parts are committed", second)))
    assert num_resumed == 3, "cats have one part, 600 squares have two"
    assert not storage.exists(lease_uri(events.root))
    assert repeated_work(build, events.poll()) == []
    assert_as_undisturbed(events.root, short)


@pytest.mark.timeout(240)
def test_build_killed_on_s3_resumes_to_the_same_bytes(
    s3_root: str, s3_server: S3Server, short: Built, tmp_path: Path
) -> None:
    events = S3Events(s3_root, s3_server)
    path = write_config(tmp_path / "config.yaml", config_of(s3_root, short.entries, **SECTIONS))
    kills = [
        Kill(Target.DRIVER, "part"),
        Kill(Target.WORKER, "part"),  # which the run survives
        Kill(Target.DRIVER, "generation"),
    ]
    with closing(KilledBuild(path, events, tmp_path)) as build:
        for kill in kills:
            build.strike(kill)
        build.finish()
    assert [struck.kill for struck in build.struck] == kills
    assert [log for log in build.logs if "took over the lease" in log.read_text()] == build.logs[1:]
    assert repeated_work(build, events.poll()) == []
    assert_as_undisturbed(s3_root, short)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_fifty_kills_leave_no_trace(
    new_events: Callable[[], Events], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    expected = undisturbed(tmp_path / "undisturbed", LONG)
    struck: list[Struck] = []
    num_sets = 0
    while len(struck) < 50:
        events = new_events()
        folder = tmp_path / f"run-{num_sets}"
        folder.mkdir()
        # Without Ray two of three targets are not there.
        build_on = RAY if num_sets % 3 else {}
        config = config_of(events.root, expected.entries, **SECTIONS, build=build_on)
        path = write_config(folder / "config.yaml", config)
        later = set(MOMENTS) - set(MOMENTS_OF_PLANNING)
        if isinstance(events, S3Events):
            later -= {"half a file"}
        with closing(KilledBuild(path, events, folder)) as build:
            for number in range(5):
                is_early = number == 0 and num_sets % 3 == 0  # planning comes but once
                moments = sorted(MOMENTS_OF_PLANNING if is_early else later)
                build.strike(draw_kill(f"{num_sets} {number}", list(Target), moments))
            if not build.is_finished:
                build.finish()
        assert repeated_work(build, events.poll()) == []
        assert_as_undisturbed(events.root, expected)
        struck += build.struck
        num_sets += 1
        with capfd.disabled():
            for each in build.struck:
                print(
                    f"data set {num_sets}: {each.victim} killed when {each.phase}, "
                    f"{each.kill.delay_s:.3f} s after {each.kill.moment} {each.kill.count}"
                )
    table = Counter((each.kill.target.value, each.phase.value) for each in struck)
    with capfd.disabled():
        print(f"{len(struck)} kills of {num_sets} data sets:", dict(sorted(table.items())))
    assert {each.phase for each in struck} == set(Phase)
    assert {each.kill.target for each in struck} == set(Target)
