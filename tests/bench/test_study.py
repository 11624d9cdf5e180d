"""The study: its splits, its arms, its counts, and a whole study on drawings."""

import contextlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import pipeline.build.driver
import pipeline.mine.driver
from pipeline.dataset import Dataset
from pipeline.dataset.keys import split_of
from pipeline.errors import ConfigError
from study import running
from study.baselines import BASELINES, Material
from study.datasets import Choice, DataSets
from study.figure import draw_study
from study.page import markdown
from study.photos import (
    Photo,
    assign_splits,
    find_photos,
    strata_of,
    take_positives,
    thin_out,
    write_table,
)
from study.pooling import pool_rate, pool_ratio
from study.running import run_study
from study.runs import plan_runs
from study.settings import NEGATIVE_SHARES, Settings, quick
from study.table import write_tables
from support.builds import ENCODER, InlineCluster
from support.inputs import CAT_WNIDS, TIGER_WNID, drawings, things, write_folder

SMALL = replace(
    quick(Settings()),
    positives=(20,),
    common_positives=(20,),
    budgets=(20,),
    has_mined=True,
    finetune_steps=1,
    finetune_batch_size=8,
    finetune_positives=(20,),
    pilot=100,
    steps=10,
    batch_size=32,
    near_share=0.1,
    encoder=ENCODER,
    image_size=64,
)


@pytest.fixture(scope="module")
def photos_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_folder(root / "cats", drawings("cat", 60))
    write_folder(root / "near" / "tiger", drawings("tiger", 24))
    write_folder(root / "near" / "dog", drawings("dog", 24))
    write_folder(root / "random" / "things", things(80))
    write_folder(root / "imagenet_sample" / TIGER_WNID, drawings("tiger", 4, seed=9))
    write_folder(root / "imagenet_sample" / CAT_WNIDS[0], drawings("cat", 4, seed=9))
    return root


def photos_of(kind: str, number: int) -> list[Photo]:
    return [Photo(f"/{kind}/{n}.jpg", kind, f"{kind}{n:04d}") for n in range(number)]


def test_cats_of_imagenet_are_no_negatives(photos_root: Path) -> None:
    photos = find_photos(str(photos_root))
    assert Counter(photo.kind for photo in photos.negatives) == {
        "near/tiger": 24, "near/dog": 24, "random/things": 80, f"imagenet_sample/{TIGER_WNID}": 4,
    }  # fmt: skip
    assert len(photos.positives) == 60


def test_missing_folder_is_told_and_missing_positives_are_an_error(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "random" / "things", things(3))
    with pytest.raises(ConfigError, match="no image below cats/"):
        find_photos(str(tmp_path))
    write_folder(tmp_path / "cats", drawings("cat", 3))
    assert len(find_photos(str(tmp_path)).negatives) == 3
    assert "no image below near/" in caplog.text


def test_strata_tell_felids_from_other_look_alikes() -> None:
    assert strata_of("near/tiger") == ("near", "near_felids")
    assert strata_of("near/dog") == ("near", "near_others")
    assert strata_of("random/weather") == ("far",)
    assert strata_of("imagenet_sample/n01440764") == ("imagenet",)


def test_every_kind_is_split_in_the_same_shares_and_every_seed_otherwise() -> None:
    photos = [*photos_of("near/dog", 40), *photos_of("random/x", 200)]
    first, second = (assign_splits(photos, seed=s, shares=NEGATIVE_SHARES) for s in (0, 1))
    for kind, number in (("near/dog", 40), ("random/x", 200)):
        counts = Counter(first[photo.content_hash] for photo in photos if photo.kind == kind)
        assert counts == {"train": number * 0.5, "val": number * 0.15, "test": number * 0.35}
    assert first != second


def test_more_positives_keep_fewer_and_all_that_are_held_out() -> None:
    photos = photos_of("cats", 100)
    splits = assign_splits(photos, seed=0, shares={"val": 0.1, "test": 0.2})
    fewer, more = (set(take_positives(photos, splits, seed=0, number=n)) for n in (10, 50))
    assert fewer < more
    assert Counter(splits[photo.content_hash] for photo in fewer) == {
        "train": 10, "val": 10, "test": 20,
    }  # fmt: skip


def test_thinned_stream_has_the_share_of_look_alikes_that_is_asked_for() -> None:
    photos = [*photos_of("near/dog", 50), *photos_of("random/x", 98)]
    stream, left = thin_out(photos, seed=0, near_share=0.02)
    assert Counter(photo.kind for photo in stream) == {"near/dog": 2, "random/x": 98}
    assert len(left) == 48
    assert not set(stream) & set(left)
    assert thin_out(photos, seed=0, near_share=None) == (photos, [])


def test_pipeline_splits_a_table_as_the_study_does(tmp_path: Path) -> None:
    photos = photos_of("random/x", 50)
    splits = assign_splits(photos, seed=3, shares=NEGATIVE_SHARES)
    fractions = {"train": 0.5, **NEGATIVE_SHARES}
    write_table(tmp_path / "a.parquet", photos, splits, fractions=fractions)
    rows = pq.read_table(tmp_path / "a.parquet").to_pylist()
    by_path = {photo.path: splits[photo.content_hash] for photo in photos}
    assert {row["image"]: split_of(row["group"], fractions) for row in rows} == by_path


def test_budget_over_the_stream_leaves_nothing_to_choose() -> None:
    with pytest.raises(ConfigError, match="nothing to choose"):
        plan_runs(Settings(), num_train_positives=300, num_train_negatives=90)


def test_runs_differ_in_their_keys_and_not_by_what_else_a_study_varies() -> None:
    settings = Settings()
    runs = plan_runs(settings, num_train_positives=350, num_train_negatives=1000)
    keys = [run.key(settings, "p") for run in runs]
    assert len(set(keys)) == len(runs)
    more_seeds = replace(settings, seeds=(0, 1, 2, 3), finetune_steps=99)
    head = next(run for run in runs if run.arm.mode == "head")
    assert head.key(more_seeds, "p") == head.key(settings, "p")
    assert head.key(replace(settings, steps=1), "p") != head.key(settings, "p")


@pytest.mark.parametrize("name", BASELINES)
def test_baseline_ranks_the_target_above_the_rest(name: str) -> None:
    rng = np.random.default_rng(0)

    def around(axis: int, number: int) -> Any:
        embedding_ND = np.eye(16)[axis] + 0.1 * rng.normal(size=(number, 16))
        norm_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        return (embedding_ND / norm_N1).astype(np.float32)

    logits_M = BASELINES[name](
        Material(
            positive_ND=around(0, 40),
            negative_ND=around(1, 40),
            others={"near/dog": around(1, 20), "near/lion": around(2, 20)},
            held_out_MD=np.concatenate([around(0, 30), around(1, 30)]),
            seed=0,
        )
    )
    assert logits_M.dtype == np.float32
    assert logits_M[:30].min() > logits_M[30:].max()


def result(seed: int, alarms: int, *, tested: int = 100, **fields: Any) -> dict[str, Any]:
    names = [f"image{n}" for n in range(tested)]
    return {
        "seed": seed, "alarms": {"near": names[:alarms]}, "tested": {"near": names}, **fields,
    }  # fmt: skip


def test_pooled_rate_is_alarms_over_tests_and_its_interval_holds_it() -> None:
    rate = pool_rate([result(0, 4), result(1, 8)], "near")
    assert (rate.value, rate.num_alarms, rate.n, rate.num_images) == (0.06, 12, 200, 100)
    assert 0 < rate.low < 0.04 < 0.08 < rate.high < 0.2


def test_no_alarm_has_the_exact_interval_of_the_different_pictures() -> None:
    rate = pool_rate([result(0, 0), result(1, 0)], "near")
    assert (rate.low, rate.num_images) == (0.0, 100)
    assert rate.high == pytest.approx(1 - 0.025 ** (1 / 100))


def test_ratio_of_an_arm_to_itself_is_one_without_width() -> None:
    runs = [result(0, 4), result(1, 8)]
    ratio = pool_ratio(runs, runs, "near")
    assert (ratio.value, ratio.low, ratio.high) == (1.0, 1.0, 1.0)


def test_ratio_needs_the_same_seeds() -> None:
    assert pool_ratio([result(0, 4)], [result(1, 4)], "near") is None


def test_study_on_drawings(
    photos_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (pipeline.build.driver, pipeline.mine.driver):
        monkeypatch.setattr(
            module, "open_cluster", lambda _: contextlib.nullcontext(InlineCluster())
        )
    photos = find_photos(str(photos_root))
    results = run_study(SMALL, photos, tmp_path)
    both = {
        "uniform", "logistic regression, uniform", "weighted, exp(20 s)",
        "nearest positives, no negatives", "one-class SVM, no negatives",
        "mined, half by exp(20 s)",
    }  # fmt: skip
    finetuned = {f"{arm}, finetuned" for arm in both if arm.startswith(("uni", "wei", "min"))}
    rare = [each for each in results if each["near_share"] is not None]
    common = [each for each in results if each["near_share"] is None]
    assert {each["arm"] for each in rare} == both | finetuned
    known = {"multi-label, no background", *(arm for arm in both if not arm.startswith("mined"))}
    assert {each["arm"] for each in common} == known
    for some in (rare, common):
        assert all(each["tested"] == some[0]["tested"] for each in some)
    assert rare[0]["fpr_at_tpr95"]["near"]["n"] > common[0]["fpr_at_tpr95"]["near"]["n"] > 10
    check_images_of_arms(SMALL, photos, tmp_path)
    # What is done is not done again.
    monkeypatch.setattr(running, "_do", None)
    assert run_study(SMALL, photos, tmp_path) == results
    with pytest.raises(ConfigError, match="other photographs or settings"):
        run_study(replace(SMALL, pilot=50), photos, tmp_path)
    write_tables(tmp_path, results, SMALL)
    draw_study(tmp_path, results)
    assert json.loads((tmp_path / "study.json").read_text())["runs"][0]["arm"] == "uniform"
    assert len((tmp_path / "study.csv").read_text().splitlines()) == len(results) + 1
    assert (tmp_path / "study.md").read_text() == markdown(results, SMALL)
    assert "| weighted, exp(20 s) | 20 |" in markdown(results, SMALL)
    assert (tmp_path / "study.svg").read_text().count("<svg") == 1
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")


def check_images_of_arms(settings: Settings, photos: Any, out: Path) -> None:
    """Arms only differ in their training negatives, and are not tested on them."""
    data_sets = DataSets(settings, photos, out)
    hashes: dict[float, dict[str, set[str]]] = {}
    for beta in (0.0, 20.0):
        built = data_sets.get(
            Choice(seed=0, near_share=0.1, num_positives=20, beta=beta, budget=20)
        )
        hashes[beta] = {}
        for shard in Dataset(built.root).read_generation(built.generation).shards:
            part = f"{shard.split}/{shard.label}"
            rows = Dataset(built.root).read_sidecar(shard, ("content_hash",))
            hashes[beta].setdefault(part, set()).update(rows["content_hash"].to_pylist())
    uniform, weighted = hashes[0.0], hashes[20.0]
    assert uniform.pop("train/") != weighted["train/"]
    held_out = weighted["test/"] | weighted["val/"]
    assert not held_out & weighted.pop("train/")
    assert uniform == weighted
    assert len(uniform["train/cat"]) == 20
