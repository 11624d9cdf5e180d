"""Mined data sets under later builds, mining, takedowns and verdicts; and what mining refuses."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.config.build import BuildConfig
from pipeline.curate.takedown import take_down
from pipeline.curate.verdicts import apply_verdicts
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.metadata import TakenDown
from pipeline.errors import ConfigError, InfinegError
from pipeline.mine.driver import mine
from pipeline.sources.kinds import image_folder
from support.builds import build_inline, file_hashes, sidecar_rows, squares, write_config
from support.damage import change_sidecar
from support.mined_world import (
    BUDGET,
    FILES,
    World,
    at,
    generations,
    ledger_rows,
    mine_inline,
    scores_of,
    shard_samples,
    world_config,
)
from support.processes import run_infineg
from train.mining.scorer import prepare_scorer
from train.model.info import read_model_info, write_model_info


def test_mining_again_does_nothing_and_another_budget_makes_a_generation(
    world: World, mined_copy: Path
) -> None:
    config = at(world.config, mined_copy)
    before = file_hashes(mined_copy, FILES)
    again = mine_inline(config, world.scorer, budget=BUDGET)
    assert not again.is_new
    assert file_hashes(mined_copy, FILES) == before
    more = mine_inline(config, world.scorer, budget=20)
    assert more.is_new
    assert before.items() <= file_hashes(mined_copy, FILES).items()
    assert verify_dataset(str(mined_copy)).problems == []
    first, second = more.generation.mined
    assert second.num_expected == pytest.approx(20, rel=1e-6)
    assert second.num_suspected == 0 < first.num_suspected, "the same guard finds nothing new"
    was, now = (
        {row["key"]: row["inclusion_probability"] for row in shard_samples(mined_copy, g)}
        for g in (generations(mined_copy)[1], more.generation)
    )
    assert was.keys() < now.keys()
    assert all(now[key] >= probability for key, probability in was.items())


def test_build_after_mining_keeps_what_was_mined(world: World, mined_copy: Path) -> None:
    _, mined = generations(mined_copy)
    before = file_hashes(mined_copy, FILES)
    later = squares("later", num_pictures=60, seed=9)
    config = world_config(mined_copy, [*world.entries, later])
    generation = build_inline(config)
    assert generation.number == 3
    assert generation.mined == mined.mined
    assert set(mined.shards) < set(generation.shards)
    assert before.items() <= file_hashes(mined_copy, FILES).items()
    assert verify_dataset(str(mined_copy)).problems == []


def test_sidecars_of_earlier_minings_outlive_a_sweep(world: World, mined_copy: Path) -> None:
    """A changed source is drawn anew, and the sweep checks all of its files."""
    mine_inline(at(world.config, mined_copy), world.scorer, budget=20)
    before = file_hashes(mined_copy, FILES)
    stray = mined_copy / "shards/train/drawn-000000.g000009.parquet"
    stray.write_bytes(b"of a run that was interrupted")
    entries = [{**world.entries[0], "weight": 1.5}, *world.entries[1:]]
    config = world_config(mined_copy, entries)
    generation = build_inline(config)
    assert generation.number == 4
    assert all("drawn" not in record.sources for record in generation.mined)
    assert before.items() <= file_hashes(mined_copy, FILES).items()
    assert not stray.exists()
    assert verify_dataset(str(mined_copy)).problems == []
    assert mine_inline(config, world.scorer, budget=20).is_new, (
        "a source that is drawn anew is not mined yet"
    )
    assert verify_dataset(str(mined_copy)).problems == []


def test_verdict_on_a_mined_suspect_draws_it_with_its_own_probability(
    world: World, mined_copy: Path
) -> None:
    _, mined = generations(mined_copy)
    suspects = {
        row["key"]: row
        for file in mined.quarantine
        for row in Dataset(str(mined_copy)).read_table(file.sidecar_path).to_pylist()
    }
    generation = apply_verdicts(str(mined_copy), dict.fromkeys(suspects, "negative"), target="cat")
    assert not generation.quarantine
    assert generation.mined == mined.mined
    assert verify_dataset(str(mined_copy)).problems == []
    scores, scales = scores_of(world), mined.mined[0].log_scales
    before = {
        row["key"]: row for row in ledger_rows(world.root, generations(mined_copy)[0]).to_pylist()
    }
    for row in ledger_rows(mined_copy, generation).to_pylist():
        if row["key"] in suspects and row["reject_reason"] is None:
            log_p, _, fold = scores[row["content_hash"]]
            pi2 = np.exp(min(0.0, log_p + scales[fold]))
            pi1 = before[row["key"]]["inclusion_probability"]
            assert row["inclusion_probability"] == pytest.approx(max(pi1, pi2), rel=1e-5)
            is_drawn = unit_hash(0, row["content_hash"]) < row["inclusion_probability"]
            assert row["selected"] == is_drawn


def test_takedown_of_a_mined_sample_and_its_purge(mined_copy: Path) -> None:
    first, mined = generations(mined_copy)
    old = {shard.path: shard for shard in first.shards}
    shard = next(s for s in mined.shards if s.path in old and s != old[s.path])
    key = Dataset(str(mined_copy)).read_sidecar(shard, ("key",))["key"][0].as_py()
    generation, number = take_down(str(mined_copy), TakenDown(keys=frozenset([key])), purge=True)
    assert number == 1
    assert verify_dataset(str(mined_copy)).problems == []
    assert key not in set(sidecar_rows(mined_copy, generation)["key"].to_pylist())
    now = {
        row["key"]: row["inclusion_probability"] for row in shard_samples(mined_copy, generation)
    }
    for row in ledger_rows(mined_copy, generation).to_pylist():
        if row["key"] in now:
            assert now[row["key"]] == row["inclusion_probability"]
    gone = (shard.path, shard.sidecar_path, old[shard.path].sidecar_path)
    assert not [path for path in gone if (mined_copy / path).exists()], "no sidecar lists it"


@pytest.mark.parametrize(
    ("column", "value"), [("inclusion_probability", 2**-20), ("uri", "elsewhere")]
)
def test_verify_accepts_a_risen_probability_and_nothing_else(
    mined_copy: Path, column: str, value: object
) -> None:
    _, mined = generations(mined_copy)
    shard = next(s for s in mined.shards if s.sidecar_path.endswith(".g000002.parquet"))
    key = change_sidecar(mined_copy, shard, column, value)
    problems = verify_dataset(str(mined_copy)).problems
    assert any(f"{key}: {column} is {value}" in problem for problem in problems), problems


def test_verify_finds_a_probability_that_rose_without_mining(mined_copy: Path) -> None:
    first, mined = generations(mined_copy)
    shard = next(s for s in mined.shards if s in first.shards and s.split == "val" and not s.label)
    key = change_sidecar(mined_copy, shard, "inclusion_probability", 1.0)
    problems = verify_dataset(str(mined_copy)).problems
    assert any(f"{key}: inclusion_probability is 1.0, but" in each for each in problems)
    assert any(f"{key}: inclusion_probability is 1.0 in the sidecar" in each for each in problems)


def test_deleted_embeddings_are_made_again(
    world: World, mined_root: Path, world_copy: Path
) -> None:
    shutil.rmtree(world_copy / "embeddings/drawn")
    mine_inline(at(world.config, world_copy), world.scorer, budget=BUDGET)
    assert file_hashes(world_copy, FILES) == file_hashes(mined_root, FILES)
    assert not (world_copy / "embeddings/drawn").exists()


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_deleted_embeddings_are_made_again_by_actors(
    world: World, mined_root: Path, world_copy: Path
) -> None:
    shutil.rmtree(world_copy / "embeddings/drawn")
    config = at(world.config, world_copy)
    build = {"workers": 1, "embed_on": "actors", "gpus_per_actor": 0}
    mine(
        config.model_copy(update={"build": BuildConfig.model_validate(build)}),
        world.scorer,
        budget=BUDGET,
    )
    assert file_hashes(world_copy, FILES) == file_hashes(mined_root, FILES)


def test_a_changed_source_is_refused_and_nothing_changes(world: World, world_copy: Path) -> None:
    config = at(world.config, world_copy)
    with pytest.MonkeyPatch.context() as patch:
        read = image_folder.read_image
        patch.setattr(image_folder, "read_image", lambda uri: read(uri) + b"\0")
        with pytest.raises(InfinegError, match=r"source 'strays': .* has changed since"):
            mine_inline(config, world.scorer, budget=BUDGET)
    assert Dataset(str(world_copy)).latest_number() == 1
    assert verify_dataset(str(world_copy)).problems == []


def test_each_refusal_to_mine_names_its_reason(
    world: World, world_copy: Path, tmp_path: Path
) -> None:
    config = at(world.config, world_copy)
    with pytest.raises(ConfigError, match="no finished run there"):
        prepare_scorer(config, tmp_path)
    run = Path(shutil.copytree(world.run, tmp_path / "run"))
    info = read_model_info(run)
    write_model_info(run, info.model_copy(update={"calibration": None}))
    with pytest.raises(ConfigError, match="not calibrated yet; run `infineg evaluate"):
        prepare_scorer(config, run)
    write_model_info(run, info.model_copy(update={"dataset": "0" * 64}))
    with pytest.raises(ConfigError, match=r"trained on another data set than .*data"):
        prepare_scorer(config, run)
    with pytest.raises(ConfigError, match="--source nothing: the config has cats"):
        mine_inline(config, world.scorer, only=["nothing"])
    with pytest.raises(ConfigError, match="--source cats: no source of negatives"):
        mine_inline(config, world.scorer, only=["cats"])
    entries = [{**world.entries[0], "weight": 9.0}, *world.entries[1:]]
    with pytest.raises(ConfigError, match="'drawn' is not built as the config says"):
        mine_inline(world_config(world_copy, entries), world.scorer)
    assert Dataset(str(world_copy)).latest_number() == 1


def test_only_the_named_source_is_mined_and_others_keep_their_files(
    world: World, world_copy: Path
) -> None:
    mined = mine_inline(at(world.config, world_copy), world.scorer, budget=10, only=["drawn"])
    assert set(mined.tallies) == {"drawn"}
    before, after = generations(world_copy)
    assert [s for s in after.sources if s.name != "drawn"] == [
        s for s in before.sources if s.name != "drawn"
    ]
    assert {s for s in before.shards if s.source != "drawn"} <= set(after.shards)
    assert after.mined[0].sources == ("drawn",)
    assert verify_dataset(str(world_copy)).problems == []


def test_the_command_mines_the_same_bytes(
    world: World, mined_root: Path, world_copy: Path, tmp_path: Path
) -> None:
    path = write_config(tmp_path / "config.yaml", at(world.config, world_copy))
    arguments = ("mine", path, "--run", world.run, "--budget", BUDGET)
    code, output = run_infineg(*arguments, log=tmp_path / "log")
    assert code == 0, output
    assert "committed generation 2" in output
    assert f"--set train.run={world.run}-2" in output
    assert file_hashes(world_copy, FILES) == file_hashes(mined_root, FILES)
