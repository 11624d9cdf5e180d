"""`infineg mine` adds negatives that a trained model chooses, and changes nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import pipeline.mine.driver
import pipeline.mine.pack
from pipeline import storage
from pipeline.curate.verify import verify_dataset
from pipeline.dataset import Dataset
from pipeline.dataset.keys import unit_hash
from pipeline.dataset.schema import embedding_matrix
from pipeline.mine.worker import MineWorker
from pipeline.selection.mining import log_probability
from support.builds import build_inline, file_hashes, sidecar_rows
from support.mined_world import (
    BUDGET,
    FILES,
    World,
    at,
    generations,
    ledger_rows,
    mine_inline,
    negatives_of,
    scores_of,
    shard_samples,
    world_config,
)
from train.mining.scorer import prepare_scorer
from train.model.detector import load_model
from train.model.info import read_model_info, write_model_info


def test_every_row_has_the_larger_of_both_probabilities_and_is_drawn_by_it(
    world: World, mined_root: Path
) -> None:
    before, after = generations(mined_root)
    scores, scales = scores_of(world), after.mined[0].log_scales
    then = {row["key"]: row for row in ledger_rows(mined_root, before).to_pylist()}
    num_risen = num_new = 0
    expected = 0.0
    for row in ledger_rows(mined_root, after).to_pylist():
        old = then[row["key"]]
        if row["split"] != "train" or row["label"] or old["reject_reason"]:
            assert row == old, "mining leaves val, test, positives and rejects as they are"
            continue
        log_p, margin, fold = scores[row["content_hash"]]
        pi2 = np.float32(np.exp(min(0.0, log_p + scales[fold])))
        if row["label_state"] == "unknown" and margin > 0:
            assert (row["selected"], row["reject_reason"]) == (False, "suspected_positive")
            continue
        pi = max(np.float32(old["inclusion_probability"]), pi2)
        assert row["inclusion_probability"] == pytest.approx(pi, rel=1e-5)
        expected += pi - old["inclusion_probability"]
        is_drawn = unit_hash(0, row["content_hash"]) < row["inclusion_probability"]
        assert row["selected"] == (is_drawn and row["reject_reason"] is None)
        num_risen += row["inclusion_probability"] > old["inclusion_probability"]
        num_new += row["selected"] and not old["selected"]
    assert expected == pytest.approx(BUDGET, rel=1e-4), "c is solved for exactly"
    assert after.mined[0].num_expected == pytest.approx(BUDGET, rel=1e-6)
    assert after.mined[0].num_selected == num_new > 0
    assert abs(num_new - BUDGET) < 4 * BUDGET**0.5
    assert num_risen > num_new


def test_suspects_go_to_quarantine_whether_they_were_selected_or_not(
    world: World, mined_root: Path
) -> None:
    before, after = generations(mined_root)
    suspects = pa.concat_tables(
        Dataset(str(mined_root)).read_table(file.sidecar_path) for file in after.quarantine
    )
    assert not before.quarantine
    keys = set(suspects["key"].to_pylist())
    assert len(keys) == suspects.num_rows == after.mined[0].num_suspected
    assert set(suspects["source"].to_pylist()) == {"strays"}
    then = {row["key"]: row for row in ledger_rows(mined_root, before).to_pylist()}
    assert {then[key]["selected"] for key in keys} == {True, False}
    assert not keys & set(sidecar_rows(mined_root, after)["key"].to_pylist())
    # Verified negatives may be as likely; they are the hard negatives that mining is for.
    scores = scores_of(world)
    states = {
        row["label_state"]
        for row in sidecar_rows(mined_root, after).to_pylist()
        if row["split"] == "train" and not row["label"] and scores[row["content_hash"]][1] > 0
    }
    assert states == {"verified_absent"}
    for file in after.quarantine:
        rows = Dataset(str(mined_root)).read_table(file.sidecar_path)
        offset, size = rows["tar_offset"][0].as_py(), rows["tar_size"][0].as_py()
        image = storage.read_range(str(mined_root / file.path), offset, size)
        assert image.startswith(b"\xff\xd8")


def test_a_risen_probability_is_in_a_new_sidecar_of_the_same_tar_and_no_file_changes(
    world: World, mined_root: Path
) -> None:
    before, after = generations(mined_root)
    assert file_hashes(world.root, FILES).items() <= file_hashes(mined_root, FILES).items()
    assert verify_dataset(str(mined_root)).problems == []
    old = {shard.path: shard for shard in before.shards}
    risen = [s for s in after.shards if s.path in old and s != old[s.path]]
    assert risen, "some probability has risen"
    for shard in risen:
        assert shard.sidecar_path == shard.path.replace(".tar", ".g000002.parquet")
        assert shard.sha256 == old[shard.path].sha256
        now, then = (Dataset(str(mined_root)).read_sidecar(s) for s in (shard, old[shard.path]))
        name = "inclusion_probability"
        assert now.drop_columns([name]).equals(then.drop_columns([name]))
        assert (now[name].to_numpy() >= then[name].to_numpy()).all()
    for shard in after.shards:
        if shard.split != "train" or shard.label:
            assert shard in before.shards, "val, test and positives stay as they were"


def test_mined_samples_are_the_same_as_if_a_build_had_selected_them(
    world: World, mined_root: Path, tmp_path: Path
) -> None:
    _, after = generations(mined_root)
    entries = [{**entry, "weight": 1.0} for entry in world.entries]
    selection = {"quarantine": "off", "budget": 100_000}
    build = {"embeddings_from": str(world.root)}
    whole = tmp_path / "whole"
    generation = build_inline(world_config(whole, entries, selection=selection, build=build))
    wanted = {row["key"]: row for row in shard_samples(whole, generation)}
    own = {"inclusion_probability"}
    for row in shard_samples(mined_root, after):
        if row["key"] in wanted:
            other = wanted[row["key"]]
            assert {n for n in row if row[n] != other[n]} <= own, row["key"]
    new = {row["key"] for row in shard_samples(mined_root, after)}
    assert new <= set(wanted)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (MineWorker, "_score_files"),
        (MineWorker, "fetch"),
        (pipeline.mine.pack, "pack_shards"),
        (pipeline.mine.driver, "commit"),
    ],
    ids=lambda each: getattr(each, "__name__", each),
)
def test_interrupted_mining_leaves_nothing_half_done_and_ends_the_same(
    world: World,
    mined_root: Path,
    world_copy: Path,
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
) -> None:
    config = at(world.config, world_copy)
    whole, num_calls = getattr(module, name), 0

    def second_call_fails(*arguments: object, **options: object) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 2 or name not in ("_score_files", "fetch"):
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, name, second_call_fails)
        with pytest.raises(KeyboardInterrupt):
            mine_inline(config, world.scorer, budget=BUDGET)
    assert Dataset(str(world_copy)).latest_number() == 1
    assert verify_dataset(str(world_copy)).problems == []
    mine_inline(config, world.scorer, budget=BUDGET)
    assert file_hashes(world_copy, FILES) == file_hashes(mined_root, FILES)
    assert not (world_copy / "mining").exists() or not list(
        (world_copy / "mining").rglob("*.parquet")
    )


def test_a_detector_that_reads_pixels_mines_what_its_head_would(
    world: World, world_copy: Path, tmp_path: Path
) -> None:
    """The run is marked as finetuned, so that the whole detector reads every image."""
    run = Path(shutil.copytree(world.run, tmp_path / "run"))
    info = read_model_info(run)
    write_model_info(run, info.model_copy(update={"mode": "finetune"}))
    config = at(world.config, world_copy)
    scorer = prepare_scorer(config, run)
    assert (scorer.reads, scorer.num_folds) == ("pixels", 1)
    mined = mine_inline(config, scorer, budget=BUDGET)
    assert verify_dataset(str(world_copy)).problems == []
    record = mined.generation.mined[0]
    assert record.num_expected == pytest.approx(BUDGET, rel=1e-6)
    detector, _ = load_model(run)
    own, before = info.calibration["cat"], generations(world_copy)[0]
    then = ledger_rows(world_copy, before).to_pylist()
    pi1 = {row["key"]: row["inclusion_probability"] for row in then}
    rows = pa.concat_tables(
        Dataset(str(world_copy)).read_sidecar(shard) for shard in negatives_of(mined.generation)
    )
    with torch.inference_mode():
        logits = detector.head_logits(torch.from_numpy(embedding_matrix(rows))).numpy()[:, 0]
    log_p_N = log_probability((own.scale * logits + own.bias).astype(np.float32))
    pi2_N = np.exp(np.minimum(log_p_N + record.log_scales[0], 0))
    wanted = np.maximum(pi2_N, [pi1[key] for key in rows["key"].to_pylist()])
    np.testing.assert_allclose(rows["inclusion_probability"].to_numpy(), wanted, rtol=0.01)
    assert (wanted > [pi1[key] for key in rows["key"].to_pylist()]).any()
