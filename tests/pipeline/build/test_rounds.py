"""Long and endless sources: rounds, budgets, and a build that follows."""

import itertools
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.schema import Config
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.errors import ConfigError
from support.builds import (
    build_inline,
    config_of,
    file_hashes,
    squares,
    write_config,
)
from support.processes import running_infineg, wait_until
from support.servers import S3Server

FILES = ("shards/", "ledger/", "hashes/")
STREAM = squares(num_pictures=1500, per_partition=50)
ENDLESS = {"name": "endless", "kind": "squares", "params": {"image_size": 32}}


def rounds_config(out: Path, *sources: dict[str, Any]) -> Config:
    return config_of(
        out,
        sources or [STREAM],
        selection={"budget": 300},
        output={"candidates_per_round": 500},
    )


def record_of(generation: Generation, name: str) -> Any:
    return next(source for source in generation.sources if source.name == name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of the long source. Not to be changed."""
    root = tmp_path_factory.mktemp("rounds") / "data"
    build_inline(rounds_config(root))
    return root


def test_long_source_ends_a_generation_every_so_many_candidates(whole: Path) -> None:
    root = str(whole)
    generation = Dataset(root).read_generation()
    reads = [
        record_of(Dataset(root).read_generation(n), "squares").counts.read
        for n in range(1, generation.number + 1)
    ]
    assert reads[0] == 500
    assert all(0 < later - earlier <= 500 for earlier, later in itertools.pairwise(reads))
    assert reads[-1] == 1500
    assert verify_dataset(root).problems == []
    assert not any("/parts/" in name for name in file_hashes(root, ("parts/",)))


def test_shards_of_a_source_do_not_depend_on_what_is_built_beside_it(tmp_path: Path) -> None:
    other = squares("other", num_pictures=200, per_partition=100, seed=1)
    long = squares(num_pictures=1000, per_partition=50)
    together = rounds_config(tmp_path / "together", other, long)
    assert build_inline(together).number > 1, "it has rounds"
    apart = [rounds_config(tmp_path / "apart", *sources) for sources in ([other], [other, long])]
    for config in apart:
        build_inline(config)
    assert file_hashes(tmp_path / "apart", FILES) == file_hashes(tmp_path / "together", FILES)


def test_interrupted_rounds_go_on_with_the_next_one(whole: Path, tmp_path: Path) -> None:
    """The process ends between two generations, with an error that a later run does not meet."""
    config = rounds_config(tmp_path / "data")
    with pytest.MonkeyPatch.context() as patch:
        commit = Dataset.commit_generation

        def stop_after_two(dataset: Dataset, generation: Generation) -> None:
            commit(dataset, generation)
            if generation.number == 2:
                raise KeyboardInterrupt

        patch.setattr(Dataset, "commit_generation", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            build_inline(config)
    assert Dataset(config.output.path).latest_number() == 2
    build_inline(config)
    kept = (*FILES, "generations/")
    assert file_hashes(tmp_path / "data", kept) == file_hashes(whole, kept)


@pytest.mark.parametrize(
    ("source", "budget", "num_read"),
    [
        (ENDLESS, {"selected": 100}, 1024),
        (ENDLESS, {"candidates": 2000}, 2048),
        (STREAM, {"candidates": 500}, 500),  # which ends by itself, after 1,500
    ],
    ids=["selected", "candidates", "finite"],
)
def test_source_is_read_as_far_as_its_budget_asks(
    tmp_path: Path, source: dict[str, Any], budget: dict[str, int], num_read: int
) -> None:
    generation = build_inline(config_of(tmp_path / "data", [source], selection={"budget": budget}))
    assert record_of(generation, source["name"]).counts.read == num_read


def test_budget_in_bytes_is_met(tmp_path: Path) -> None:
    budget = {"bytes": 300_000}
    config = config_of(
        tmp_path / "data", [ENDLESS], selection={"budget": budget, "min_probability": 0.001}
    )
    generation = build_inline(config)
    shards = [s for s in generation.shards if (s.source, s.split) == ("endless", "train")]
    rows = [
        size
        for shard in shards
        for size in Dataset(config.output.path).read_sidecar(shard)["tar_size"].to_pylist()
    ]
    assert sum(rows) == pytest.approx(300_000, rel=0.15)


@pytest.mark.parametrize(
    ("budget", "message"),
    [({}, "give one of selected, candidates, bytes"), ({"bytes": 0}, "equal to 1"),
     ({"hours": 1}, "hours"), ({"candidates": 1, "bytes": 5}, "give one of")],
)  # fmt: skip
def test_budget_that_is_none_is_refused(
    tmp_path: Path, budget: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        config_of(tmp_path, [ENDLESS], selection={"budget": budget})


@pytest.mark.timeout(120)
def test_followed_source_makes_generations_until_it_is_interrupted(tmp_path: Path) -> None:
    root = tmp_path / "data"
    config = config_of(root, [STREAM, ENDLESS], selection={"budget": 60})
    path, log = write_config(tmp_path / "config.yaml", config), tmp_path / "log"
    with running_infineg("build", path, "--follow", log=log) as process:
        wait_until(lambda: (root / "generations/000004.json").exists(), process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130, log.read_text()
    generation = Dataset(str(root)).read_generation()
    assert record_of(generation, "endless").counts.read > 3 * 600
    assert record_of(generation, "squares").counts.read == 1500, "what ends is read once"
    assert verify_dataset(str(root)).problems == []
    # A plain build finishes what was begun, and comes to what one budget more would have given.
    finished = build_inline(config)
    plan = Dataset(str(root)).read_plan("endless")
    assert record_of(finished, "endless").num_partitions == plan.num_partitions
    assert plan.num_partitions % plan.partitions_per_budget == 0


def test_nothing_to_follow_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--follow: every source ends by itself"):
        build_inline(config_of(tmp_path / "data", [squares(num_pictures=60)]), follow=True)


def test_hashes_of_earlier_rounds_are_not_read_again(s3_root: str, s3_server: S3Server) -> None:
    """Else a build of n rounds would read n (n - 1) / 2 tables."""
    entries = [squares(num_pictures=1800, per_partition=600)]
    config = config_of(s3_root, entries, output={"candidates_per_round": 600})
    generation = build_inline(config)
    assert generation.number >= 3
    folder = "/" + s3_root.removeprefix("s3://") + "/hashes/"
    assert not [request for request in s3_server.reads if request.startswith(f"GET {folder}")]
    assert sum(request.startswith(f"PUT {folder}") for request in s3_server.writes) >= 3
