import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.stats import binomtest

from pipeline.dataset import Dataset
from pipeline.dataset.metadata import ReferenceInfo
from pipeline.dataset.schema import with_columns
from pipeline.errors import ConfigError
from support.damage import replace_sidecar
from support.train_runs import EVAL_PROBABILITY
from train.evaluate import run as evaluate
from train.evaluate.run import evaluate_run
from train.metrics.predictions import of_target
from train.model.detector import load_model

RATE = {"value", "low", "high", "n"}


def _metrics(run: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    content: dict[str, Any] = json.loads((run / "metrics.json").read_text(), parse_constant=refuse)
    return content


def _numbers(content: Any) -> list[float]:
    if isinstance(content, dict):
        return [number for value in content.values() for number in _numbers(value)]
    return [content] if isinstance(content, float) else []


def test_metrics_have_the_documented_fields(run: Path) -> None:
    metrics = _metrics(run)
    assert metrics["generation"] == 1
    assert metrics["samples_seen"] == 60 * 32
    cat = metrics["target"]["cat"]
    assert set(cat["tpr"]) == RATE
    for level in ("fpr_at_tpr95", "fpr_at_tpr99", "fpr"):
        assert {"near", "far", "generated", "all"} <= set(cat[level])
        assert all(set(rate) == RATE for rate in cat[level].values())
    scalars = ("threshold", "alpha", "delta", "auroc", "average_precision", "ece", "brier",
               "false_positives_per_million")  # fmt: skip
    assert all(isinstance(cat[name], float) for name in scalars)
    assert all(math.isfinite(number) for number in _numbers(metrics))
    assert set(metrics["strata"]) == {"my_cat", "near_animals", "scenes", "noise"}


def test_metrics_agree_with_a_count_of_the_predictions(run: Path) -> None:
    cat = _metrics(run)["target"]["cat"]
    rows = pq.read_table(run / "predictions.parquet").to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    positives = [row["logit"] for row in test if row["label"] == "cat"]
    for stratum in ("near", "far", "generated"):
        logits = [row["logit"] for row in test if row["stratum"] == stratum]
        num_detected = sum(logit >= cat["threshold"] for logit in logits)
        low, high = binomtest(num_detected, len(logits)).proportion_ci(method="exact")
        wanted = {"value": num_detected / len(logits), "low": low, "high": high, "n": len(logits)}
        assert cat["fpr"][stratum] == pytest.approx(wanted)
    assert cat["tpr"]["n"] == len(positives) == 20
    assert cat["tpr"]["value"] == np.mean([logit >= cat["threshold"] for logit in positives])
    assert cat["fpr"]["all"]["n"] == len(test) - len(positives)
    assert 0 < cat["fpr"]["all"]["value"] < 1, "a test of counting needs something to count"
    assert cat["false_positives_per_million"] == 1e6 * cat["fpr"]["all"]["value"]


def test_each_rate_has_its_evidence(run: Path) -> None:
    cat = _metrics(run)["target"]["cat"]
    for stratum, rate in cat["fpr"].items():
        basis = cat["evidence"][stratum]
        assert basis["n"] == rate["n"]
        assert basis["n_effective"] == pytest.approx(rate["n"]), "drawn evenly"
        assert basis["num_detected"] == round(rate["value"] * rate["n"])
        bound = binomtest(basis["num_detected"], rate["n"]).proportion_ci(0.9).high
        assert basis["below"] == pytest.approx(bound)
    assert cat["negatives_needed"]["0.0001"] == 29_956


def test_precision_is_bayes_rule_at_the_deployment_prior(run: Path) -> None:
    cat = _metrics(run)["target"]["cat"]
    prior, tpr, fpr = cat["deploy_prior"], cat["tpr"], cat["fpr"]["all"]
    right = prior * tpr["value"]
    assert cat["precision"]["value"] == pytest.approx(right / (right + (1 - prior) * fpr["value"]))
    assert cat["precision"]["low"] < cat["precision"]["value"] < cat["precision"]["high"]


def test_probabilities_are_measured_in_three_mixes(run: Path) -> None:
    """The rarer the target, the less a constant error weighs; the same model, three priors."""
    cat = _metrics(run)["target"]["cat"]
    assert cat["train_mix"]["prior"] == 0.25
    assert cat["test_mix"]["brier"] < cat["train_mix"]["brier"] < cat["brier"]


def test_dataset_block_adds_up(run: Path) -> None:
    dataset = _metrics(run)["dataset"]
    rows = pq.read_table(run / "predictions.parquet")
    near = next(source for source in dataset["sources"] if source["name"] == "near_animals")
    assert near["splits"] == {"train": 100, "val": 50, "test": 50}
    assert near["strata"] == {"near": 200}
    assert near["label_states"] == {"verified_absent": 200}
    assert near["licenses"] == {"not stated": 200}
    wanted = pytest.approx({"min": 0.8, "median": 0.8, "max": 0.8})
    assert near["inclusion_probability"] == wanted
    assert near["n_effective"] == pytest.approx(100)
    assert near["eval_probabilities"] == [EVAL_PROBABILITY]
    test = dataset["splits"]["test"]
    assert test == {"positive": 20, "near": 50, "far": 50, "generated": 50}
    assert sum(test.values()) == pc.sum(pc.equal(rows["split"], "test")).as_py()


def test_predictions_say_where_each_picture_lies(run: Path) -> None:
    rows = pq.read_table(run / "predictions.parquet")
    assert rows.column_names == [
        "key", "source", "stratum", "split", "label", "logit", "similarity",
        "inclusion_probability", "shard", "tar_offset", "tar_size", "uri", "stratum_by_similarity",
    ]  # fmt: skip
    assert set(rows["split"].to_pylist()) == {"train", "val", "test"}
    row = rows.slice(5, 1).to_pylist()[0]
    with (run.parent / "data" / row["shard"]).open("rb") as tar:
        tar.seek(row["tar_offset"])
        assert tar.read(row["tar_size"])[:2] == b"\xff\xd8"


def test_model_carries_the_calibration_that_metrics_name(run: Path) -> None:
    cat = _metrics(run)["target"]["cat"]
    _, info = load_model(run)
    assert info.thresholds == {"cat": cat["threshold"]}
    assert info.calibration["cat"].num_negatives == cat["num_held_out_negatives"] == 450


@pytest.mark.parametrize(("split", "moves"), [("test", False), ("val", True), ("train", True)])
def test_threshold_and_calibration_depend_on_all_but_test(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: str, moves: bool
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    predict_splits = evaluate.predict_splits

    def shift(*args: Any, **kwargs: Any) -> pa.Table:
        table = predict_splits(*args, **kwargs)
        moved = pc.add(table["logit"], pa.scalar(1.0, pa.float32()))
        logits = pc.if_else(pc.equal(table["split"], split), moved, table["logit"])
        return with_columns(table, logit=logits)

    monkeypatch.setattr(evaluate, "predict_splits", shift)
    evaluate_run(copy)
    before, after = (load_model(folder)[1].calibration for folder in (run, copy))
    assert (before != after) == moves
    assert _metrics(run)["target"]["cat"]["fpr"] != _metrics(copy)["target"]["cat"]["fpr"]


def test_evaluating_twice_gives_equal_files(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    evaluate_run(copy)
    for name in ("metrics.json", "predictions.parquet", "model.json", "report.html"):
        assert (copy / name).read_bytes() == (run / name).read_bytes(), name


def test_overrides_reach_the_operating_point(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    cat = evaluate_run(copy, overrides=["evaluate.alpha=0.001"])["target"]["cat"]
    assert cat["alpha_wanted"] == 0.001
    assert cat["alpha"] == pytest.approx(1 - 0.05 ** (1 / 450))
    assert "450 held-out negatives are too few to guarantee" in (copy / "report.html").read_text()
    worst = ["evaluate.alpha=0.001", "evaluate.promise=worst"]
    cat = evaluate_run(copy, overrides=worst)["target"]["cat"]
    fewest = min(each["num_negatives"] for each in cat["promises"].values())
    assert fewest < 450
    assert cat["alpha"] == pytest.approx(1 - 0.05 ** (1 / fewest))
    assert f"{fewest:,} held-out negatives (" in (copy / "report.html").read_text()


def test_other_targets_are_negatives_of_a_target(two_targets: Path) -> None:
    metrics = _metrics(two_targets)
    assert set(metrics["target"]) == {"cat", "dog"}
    assert metrics["strata"]["my_dog"]["cat"]["fpr"]["n"] == 20
    assert metrics["strata"]["my_dog"]["dog"]["tpr"]["n"] == 20
    rows = pq.read_table(two_targets / "predictions.parquet")
    assert rows["logit"].to_pylist() == rows["logit_cat"].to_pylist()
    assert rows["logit"].to_pylist() != rows["logit_dog"].to_pylist()
    # Their probability is 1, that of other negatives 0.5, so that the latter count double.
    assert 1 / EVAL_PROBABILITY == 2
    cat = of_target(rows, "cat", split="test", targets=("cat", "dog"))
    detected = cat.logits_N >= metrics["target"]["cat"]["threshold"]
    doubled = np.where(cat.source_N == "my_dog", 1, 2) * ~cat.is_positive_N
    wanted = np.sum(doubled * detected) / np.sum(doubled)
    assert metrics["target"]["cat"]["fpr"]["all"]["value"] == pytest.approx(wanted)
    as_drawn = np.mean(detected[~cat.is_positive_N])
    assert metrics["target"]["cat"]["fpr_as_drawn"]["all"]["value"] == pytest.approx(as_drawn)


def test_mid_stratum_is_reported_where_present(run: Path, tmp_path: Path) -> None:
    data = shutil.copytree(run.parent / "data", tmp_path / "data")
    copy = shutil.copytree(run, tmp_path / "run")
    assert "mid" not in _metrics(run)["target"]["cat"]["fpr"]
    for shard in Dataset(str(data)).read_generation().shards:
        if shard.source == "scenes":
            table = pq.read_table(data / shard.sidecar_path)
            nulls = pa.nulls(table.num_rows, pa.string())
            replace_sidecar(data, shard, with_columns(table, stratum=nulls))
    info = ReferenceInfo(
        fingerprint="toy", num_embeddings=9, num_positives=9, median=0.8, ceiling=0.9, near=0.9,
        mid=-1.0,
    )  # fmt: skip
    Dataset(str(data)).write_reference(info)
    metrics = evaluate_run(copy, overrides=[f"output.path={data}"])
    assert metrics["target"]["cat"]["fpr"]["mid"]["n"] == 50
    by_similarity = metrics["target"]["cat"]["by_similarity"]["fpr"]
    rows = pq.read_table(copy / "predictions.parquet", filters=[("split", "=", "test")])
    similarity = rows.filter(pc.equal(rows["label"], ""))["similarity"].to_numpy()
    assert by_similarity["near"]["n"] == np.sum(similarity >= 0.9)
    assert by_similarity["mid"]["n"] == np.sum(similarity < 0.9) > 0, "independent of the sources"
    assert metrics["target"]["cat"]["fpr"]["far"] == {
        "value": None, "low": None, "high": None, "n": 0,
    }  # fmt: skip


def test_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no finished run there"):
        evaluate_run(tmp_path)


def test_look_alikes_of_other_sources_than_those_of_training_are_reported_apart(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not any("sources" in name for name in _metrics(run)["target"]["cat"]["fpr"])
    copy = shutil.copytree(run, tmp_path / "run")
    predict_splits = evaluate.predict_splits

    def rename(*args: Any, **kwargs: Any) -> pa.Table:
        """A third of the look-alikes of test are of a source of their own."""
        table = predict_splits(*args, **kwargs)
        is_moved = [
            row["split"] == "test" and row["source"] == "near_animals" and number % 3 == 0
            for number, row in enumerate(table.to_pylist())
        ]
        sources = pc.if_else(pa.array(is_moved), "zoo", table["source"].combine_chunks())
        return with_columns(table, source=sources)

    monkeypatch.setattr(evaluate, "predict_splits", rename)
    fpr = evaluate_run(copy)["target"]["cat"]["fpr"]
    known, other = fpr["near, sources in training"], fpr["near, other sources"]
    assert 0 < other["n"] < known["n"] < fpr["near"]["n"] == 50
    rows = pq.read_table(copy / "predictions.parquet")
    zoo = rows.filter(pc.equal(rows["source"], "zoo"))["logit"].to_numpy()
    threshold = _metrics(copy)["target"]["cat"]["threshold"]
    assert other["value"] == pytest.approx(np.mean(zoo >= threshold))
    assert "near, other sources" in (copy / "report.html").read_text()
