"""A build adds the hardest negatives by a first head: which, from where, and with what bytes."""

from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation
from pipeline.errors import ConfigError
from support.builds import (
    Built,
    build_inline,
    built_inline,
    config_of,
    file_hashes,
    sidecar_rows,
    squares,
    write_config,
)
from support.crashes import crash_build
from support.kills import Kill, KilledBuild, LocalEvents, Target

FILES = ("shards/", "quarantine/", "ledger/", "hashes/", "generations/")
SECTIONS = {"output": {"candidates_per_round": 1000}}
ENDLESS = {"name": "endless", "kind": "squares", "params": {"image_size": 32, "seed": 1}}


def drawn(name: str, content: str, number: int) -> dict[str, Any]:
    params = {"content": [content], "image_size": 64, "num_pictures": number}
    return {"name": name, "kind": "shapes", "params": {**params, "pictures_per_partition": 40}}


ENTRIES = [squares(num_pictures=1600, per_partition=200), drawn("drawn", "near", 480)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return built_inline(tmp_path_factory.mktemp("hardest") / "data", ENTRIES, **SECTIONS)


def train_negatives(root: Path | str, generation: Generation | None = None) -> pa.Table:
    rows = sidecar_rows(root, generation)
    return rows.filter(pc.and_(pc.equal(rows["split"], "train"), pc.equal(rows["label"], "")))


def num_hardest(rows: pa.Table) -> int:
    return int(pc.sum(pc.equal(rows["inclusion_probability"], 1)).as_py())


def test_half_of_every_round_is_certain_and_the_budget_is_met(built: Built) -> None:
    assert built.generation.number > 1
    numbers = range(1, built.generation.number + 1)
    generations = [Dataset(str(built.root)).read_generation(number) for number in numbers]
    before = 0
    for generation in generations:
        rows = train_negatives(built.root, generation)
        assert num_hardest(rows) > before, "each has some of its own"
        before = num_hardest(rows)
    for name in ("squares", "drawn"):
        own = rows.filter(pc.equal(rows["source"], name))
        assert own.num_rows == pytest.approx(60, abs=20)
        assert num_hardest(own) == pytest.approx(30, abs=8)
    assert verify_dataset(str(built.root)).problems == []


def test_what_is_added_is_as_if_it_had_been_drawn(built: Built, tmp_path: Path) -> None:
    build = {"embeddings_from": str(built.root)}
    selection = {"budget": 100_000}
    everything = built_inline(tmp_path / "data", ENTRIES, build=build, selection=selection)
    wanted = {row["key"]: row for row in samples(everything.root)}
    own = [row for row in samples(built.root) if row["inclusion_probability"] == 1]
    assert len(own) > 80
    for row in own:
        assert row == wanted[row["key"]], row["key"]


def samples(root: Path) -> list[dict[str, Any]]:
    """Rows of all shards with their images."""
    found = []
    generation = Dataset(str(root)).read_generation()
    for shard in generation.shards:
        for row in Dataset(str(root)).read_sidecar(shard).to_pylist():
            place = (row.pop("tar_offset"), row.pop("tar_size"))
            image = storage.read_range(str(root / shard.path), *place)
            found.append({**row, "image": image})
    return found


@pytest.mark.parametrize(
    "build", [{"keep_embeddings": False}, {"embeddings_from": "there"}], ids=str
)
def test_bytes_do_not_depend_on_where_embeddings_come_from(
    built: Built, tmp_path: Path, build: dict[str, Any]
) -> None:
    if "embeddings_from" in build:
        build = {"embeddings_from": str(built.root)}
    built_inline(tmp_path / "data", ENTRIES, **SECTIONS, build=build)
    assert file_hashes(tmp_path / "data", FILES) == file_hashes(built.root, FILES)
    assert not storage.list_files(str(tmp_path / "data/parts"))
    if "keep_embeddings" in build:
        assert not storage.list_files(str(tmp_path / "data/embeddings"))


@pytest.mark.timeout(240)
def test_killed_while_the_hardest_are_read_it_resumes_to_the_same_bytes(
    built: Built, tmp_path: Path
) -> None:
    events = LocalEvents(str(tmp_path / "data"))
    path = write_config(tmp_path / "config.yaml", config_of(events.root, ENTRIES, **SECTIONS))
    kills = [
        Kill(Target.DRIVER, "hardest chosen"),
        Kill(Target.WORKER, "hardest read"),  # which the run survives
        Kill(Target.DRIVER, "hardest read", count=3),
    ]
    with closing(KilledBuild(path, events, tmp_path)) as build:
        for kill in kills:
            build.strike(kill)
        build.finish()
    assert [struck.kill for struck in build.struck] == kills
    assert file_hashes(events.root, FILES) == file_hashes(built.root, FILES)
    assert verify_dataset(events.root).problems == []


def test_uniform_and_similarity_add_nothing(tmp_path: Path) -> None:
    for mode in ("uniform", "similarity"):
        root = tmp_path / mode
        build_inline(config_of(root, [squares(num_pictures=600)], selection={"mode": mode}))
        assert num_hardest(train_negatives(root)) == 0


def test_raised_budgets_keep_what_a_first_head_chose(tmp_path: Path) -> None:
    root = tmp_path / "data"
    kept: set[str] = set()
    for budget in (40, 60, 140):
        config = config_of(root, [*ENTRIES, ENDLESS], selection={"budget": budget}, **SECTIONS)
        generation = build_inline(config)
        rows = train_negatives(root, generation)
        now = set(rows["uri"].to_pylist())
        assert kept <= now, f"{len(kept - now)} of {len(kept)} are lost at {budget}"
        for name in ("squares", "drawn", "endless"):
            own = rows.filter(pc.equal(rows["source"], name))
            assert own.num_rows == pytest.approx(budget, abs=4 * budget**0.5)
        certain = rows.filter(pc.equal(rows["inclusion_probability"], 1))
        kept = set(certain["uri"].to_pylist())


def pooled(root: Path, entries: list[dict[str, Any]], **selection: Any) -> Any:
    return config_of(root, entries, selection={"pool": "all", **selection})


def test_sources_of_a_pool_share_one_budget_which_goes_to_the_hardest(tmp_path: Path) -> None:
    root = tmp_path / "data"
    build_inline(pooled(root, ENTRIES, budget=80))
    rows = train_negatives(root)
    assert rows.num_rows == pytest.approx(80, abs=25)
    shares = [
        rows.filter(pc.equal(rows["source"], name)).num_rows / number
        for name, number in (("squares", 1600), ("drawn", 480))
    ]
    assert shares[1] > 1.5 * shares[0], "drawn animals are more like drawn cats"
    evals = sidecar_rows(root).filter(pc.equal(sidecar_rows(root)["split"], "val"))
    negatives = evals.filter(pc.equal(evals["label"], ""))
    assert len(pc.unique(negatives["inclusion_probability"])) == 1, "uniform over the pool"


def test_pool_of_two_is_the_same_however_it_came_about(tmp_path: Path) -> None:
    together = tmp_path / "together"
    entries = [{**ENTRIES[0], "weight": 0.7}, {**ENTRIES[1], "weight": 1.3}]
    build_inline(pooled(together, entries))
    killed = pooled(tmp_path / "killed", entries)
    for moment in ("plan", "hardest chosen", "hardest read"):
        assert crash_build(killed, moment, before=False)
    build_inline(killed)
    kept = ("shards/", "ledger/", "hashes/")
    assert file_hashes(tmp_path / "killed", FILES) == file_hashes(together, FILES)
    # A source that is added later shares the budget: all are drawn anew, under other numbers.
    later = tmp_path / "later"
    build_inline(pooled(later, entries[:1]))
    build_inline(pooled(later, entries))
    assert [contents(later, kind) for kind in kept] == [contents(together, kind) for kind in kept]


def contents(root: Path, prefix: str) -> set[str]:
    """sha256 of the files of the latest generation."""
    listed = Dataset(str(root)).read_generation().sha256_by_path()
    return {sha256 for path, sha256 in listed.items() if path.startswith(prefix)}


def test_one_source_of_a_pool_is_not_built_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--source: with selection"):
        build_inline(pooled(tmp_path / "data", ENTRIES), only=["drawn"])
