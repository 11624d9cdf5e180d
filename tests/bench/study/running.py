"""Performs the runs of a study one by one and keeps their results."""

import json
import logging
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from pipeline.telemetry.progress import Progress
from study.baselines import BASELINES, Material
from study.datasets import TARGET, Built, DataSets
from study.measuring import HeldOut, measure_logits, read_held_out
from study.mining import get_mined
from study.photos import Photos, strata_of
from study.runs import Run, plan_runs
from study.settings import Settings
from train.data.batches import read_eval_batches
from train.evaluate.run import predict_splits
from train.loop.trainer import train
from train.metrics.predictions import thin_to_uniform
from train.metrics.ranking import Floats
from train.model.detector import load_model

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Study:
    """Inputs of every run."""

    settings: Settings
    photos: Photos
    out: Path
    data_sets: DataSets


def run_study(settings: Settings, photos: Photos, out: Path) -> list[dict[str, Any]]:
    """The results of all runs, in order; kept results are read, not computed again."""
    _claim(out, settings, photos)
    study = Study(settings, photos, out, DataSets(settings, photos, out))
    runs = plan_runs(
        settings,
        num_train_positives=study.data_sets.num_train_positives,
        num_train_negatives=study.data_sets.num_train_negatives,
    )
    paths = [out / "runs" / f"{run.key(settings, photos.fingerprint)}.json" for run in runs]
    with Progress("study", total=len(runs), unit="runs") as progress:
        progress.expect_less(sum(path.exists() for path in paths))
        for run, path in zip(runs, paths, strict=True):
            if not path.exists():
                result = _do(study, run, path.stem)
                storage.write_atomic(str(path), json.dumps(result).encode())
                _log_result(result)
                progress.advance()
    return [json.loads(path.read_text()) for path in paths]


def _claim(out: Path, settings: Settings, photos: Photos) -> None:
    """Raises ConfigError if the folder has data sets of other photographs or settings."""
    inputs = (photos.fingerprint, settings.near_share, settings.pilot, settings.encoder,
              settings.image_size)  # fmt: skip
    ours, path = json.dumps(inputs, sort_keys=True), out / "data" / "of.json"
    if not path.exists():
        storage.write_atomic(str(path), ours.encode())
    elif path.read_text() != ours:
        raise ConfigError(
            f"{out} has a study of other photographs or settings; choose another --out, or remove "
            "that folder"
        )


def _do(study: Study, run: Run, name: str) -> dict[str, Any]:
    began = time.monotonic()
    built = _build(study, run, name)
    built_after = time.monotonic() - began
    held_out = read_held_out(built)
    others: dict[str, int] = {}
    if run.arm.baseline:
        material = _material(study, run, built, held_out)
        logits_N = BASELINES[run.arm.baseline](material)
        others = {kind: len(rows) for kind, rows in material.others.items()}
    else:
        logits_N = _train_and_predict(study, run, built, name)
    return {
        "arm": run.arm.name,
        **asdict(run.arm),
        "seed": run.seed,
        "near_share": run.near_share,
        "num_positives": run.num_positives,
        "budget": run.budget,
        **_trained_on(built, run),
        "others": others,
        **measure_logits(held_out, logits_N, alpha=study.settings.alpha),
        "build_seconds": round(built_after, 1),
        "seconds": round(time.monotonic() - began - built_after, 1),
    }


def _build(study: Study, run: Run, name: str) -> Built:
    choice = run.choice(study.settings.budgets[0])
    if not choice.mined_budget:
        return study.data_sets.get(choice)
    miner = replace(run, arm=replace(run.arm, correction="weight", mode="head"))
    train_config = miner.train_config(study.settings, study.out / "train" / f"{name}-miner")
    return get_mined(study.data_sets, choice, train_config=train_config)


def _train_and_predict(study: Study, run: Run, built: Built, name: str) -> Floats:
    """logits_N of the held-out images, in the order of the shards; removes the run."""
    path = study.out / "train" / name
    train_config = run.train_config(study.settings, path)
    train_config = train_config.model_copy(update={"generation": built.generation})
    train(built.config, train_config, resume=(path / "checkpoints").exists())
    detector, info = load_model(path)
    predictions = thin_to_uniform(predict_splits(detector, info, dataset=built.root))
    shutil.rmtree(path)
    logits_N: Floats = predictions["logit"].to_numpy()
    return logits_N


def _material(study: Study, run: Run, built: Built, held_out: HeldOut) -> Material:
    generation = Dataset(built.root).read_generation(built.generation)
    batches = read_eval_batches(
        built.root, generation, splits=("train",), mode="head", preprocessing=None
    )
    by_label: dict[str, list[Floats]] = {TARGET: [], "": []}
    for rows, inputs in batches:
        is_target = np.array(rows["label"].to_pylist()) == TARGET
        by_label[TARGET].append(inputs.numpy()[is_target])
        by_label[""].append(inputs.numpy()[~is_target])
    return Material(
        positive_ND=np.concatenate(by_label[TARGET]),
        negative_ND=np.concatenate(by_label[""]),
        others=_others(study, run, built) if run.arm.negatives == "others" else {},
        held_out_MD=held_out.embedding_ND,
        seed=run.seed,
    )


def _others(study: Study, run: Run, built: Built) -> dict[str, Floats]:
    """Training images of every look-alike kind: kind -> embedding_ND."""
    embeddings = study.data_sets.embeddings(built)
    others: dict[str, list[Any]] = {}
    for content_hash, kind in study.data_sets.train_photos(run.seed, "near").items():
        if content_hash in embeddings:
            others.setdefault(kind, []).append(embeddings[content_hash])
    return {kind: np.stack(rows).astype(np.float32) for kind, rows in sorted(others.items())}


def _trained_on(built: Built, run: Run) -> dict[str, Any]:
    """The actual number of negatives, and the share of look-alikes among them."""
    if run.arm.negatives in ("none", "others"):
        return {"num_negatives": 0, "near_in_training": None}
    generation = Dataset(built.root).read_generation(built.generation)
    kinds = [
        kind
        for shard in generation.shards
        if shard.split == "train" and not shard.label
        for kind in Dataset(built.root)
        .read_sidecar(shard, ("class_name",))["class_name"]
        .to_pylist()
    ]
    num_near = sum("near" in strata_of(kind) for kind in kinds)
    return {"num_negatives": len(kinds), "near_in_training": num_near / len(kinds)}


def _log_result(result: dict[str, Any]) -> None:
    rates = ", ".join(
        f"{name} {rate['value']:.1%}" for name, rate in result["fpr_at_tpr95"].items()
    )
    _log.info(
        "%s, seed %d, %d positives, %d negatives: FPR at TPR 95 %%: %s; TPR %.1f %%; %.1f + %.1f s",
        result["arm"], result["seed"], result["num_positives"], result["num_negatives"], rates,
        100 * result["tpr"]["value"], result["build_seconds"], result["seconds"],
    )  # fmt: skip
