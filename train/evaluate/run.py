"""Evaluates a run: predicts rows that it has not seen, calibrates on all but test, reports on test.

Writes `model.onnx` and `model.json` (both with its calibration), `predictions.parquet`,
`neighbours.parquet`, `metrics.json` and `report.html` to the run.
Shapes: B batch, K targets.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.schema import Split
from pipeline.errors import InfinegError
from train.config import EvaluateConfig, load_train_config
from train.data.batches import read_eval_batches
from train.data.rows import folds_of
from train.evaluate.missing_kinds import find_missing_kinds
from train.evaluate.neighbours import RunEmbedder, choose_neighbours
from train.metrics.calibration import calibrate_target
from train.metrics.predictions import (
    Place,
    TargetPredictions,
    of_target,
    prediction_rows,
    thin_to_uniform,
    write_predictions,
)
from train.metrics.summary import measure, write_metrics
from train.model.detector import DetectorModel, load_model
from train.model.info import (
    ModelInfo,
    TargetCalibration,
    logit_column,
    read_model_info,
    write_model_info,
)
from train.model.neighbours import Nearest, Neighbours, write_neighbours
from train.model.onnx_graph import write_onnx
from train.report.composition import describe_dataset
from train.report.page import render_report
from train.report.summary import telling_tpr
from train.report.wording import format_percent

_log = logging.getLogger(__name__)


def evaluate_run(
    run_dir: str | os.PathLike[str], *, overrides: Sequence[str] = ()
) -> dict[str, Any]:
    """Returns the content of metrics.json. `overrides` of RUN/config.yaml are like those of --set.

    Raises ConfigError for a folder without a finished run, InfinegError if val lacks positives or
    negatives.
    """
    run = Path(run_dir)
    detector, info = load_model(run)
    config, train_config, evaluate_config = load_train_config(run / "config.yaml", overrides)
    dataset = config.output.path
    unthinned = predict_splits(
        detector,
        info,
        dataset=dataset,
        cache_dir=train_config.cache_dir,
        cache_gb=train_config.cache_gb,
    )
    predictions = thin_to_uniform(unthinned)
    generation = Dataset(dataset).read_generation(info.generation)
    embedder = RunEmbedder.of(detector, info, train_config, dataset, generation)
    rows_of_training = choose_neighbours(embedder)
    held_out = [
        of_target(predictions, target, split="held_out", targets=info.targets)
        for target in info.targets
    ]
    info = with_calibration(info, held_out, evaluate_config)
    calibration = info.calibration or {}
    tests = [
        of_target(predictions, target, split="test", targets=info.targets)
        for target in info.targets
    ]
    cross_fitted = held_out if info.folds > 1 else None
    metrics = measure(tests, info, evaluate_config, cross_fitted=cross_fitted) | {
        "dataset": describe_dataset(dataset, generation, config)
    }
    page = render_report(
        tests,
        metrics,
        calibration,
        title=f"{', '.join(info.targets)}: evaluation of {run.name}",
        subtitle=_subtitle(info, predictions),
        dataset=dataset,
        explain=partial(_explain, embedder, rows_of_training),
        missing_kinds={
            target: find_missing_kinds(
                embedder,
                unthinned,
                calibration[target],
                target=target,
                logit_column=logit_column(target, info.targets),
                rows_of_training=rows_of_training,
            )
            for target in info.targets
        },
    )
    write_predictions(run, predictions)
    write_onnx(run, detector, info)
    write_neighbours(run, rows_of_training)
    storage.write_atomic(str(run / "report.html"), page.encode())
    write_model_info(run, info)
    write_metrics(run, metrics)
    _log_metrics(run, metrics)
    return metrics


def evaluate_if_new(run_dir: str | os.PathLike[str]) -> dict[str, Any] | None:
    """`evaluate_run` of a run that was not evaluated yet; None if it was."""
    info = read_model_info(run_dir)
    is_done = info is not None and info.calibration is not None
    return None if is_done else evaluate_run(run_dir)


def predict_splits(
    detector: DetectorModel,
    info: ModelInfo,
    *,
    dataset: str,
    cache_dir: str | None = None,
    cache_gb: float | None = None,
    embed: Callable[[Tensor], Tensor] | None = None,
) -> pa.Table:
    """All rows that the model, or the head of their fold, has not seen, in the order of the shards.

    `thin_to_uniform` makes those of `predictions.parquet` of them.
    embed: pixels_BCHW -> embedding_BD, in place of the embeddings of the data set or the encoder.
    """
    splits: tuple[Split, ...] = ("val", "test") if info.folds == 1 else ("train", "val", "test")
    generation = Dataset(dataset).read_generation(info.generation)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector = detector.to(device)
    from_embeddings = info.mode == "head" or embed is not None
    to_logits = detector.head_logits if from_embeddings else detector
    batches = read_eval_batches(
        dataset,
        generation,
        splits=splits,
        mode="finetune" if embed else info.mode,
        preprocessing=info.preprocessing,
        cache_dir=cache_dir,
        cache_gb=cache_gb,
    )
    reference = Dataset(dataset).read_reference()
    tables = []
    with torch.inference_mode():
        for rows, inputs_B in batches:
            inputs = inputs_B if embed is None else embed(inputs_B)
            if info.folds > 1 and rows["split"][0].as_py() != "test":  # a shard has one split
                fold_B = folds_of(rows["group"], info.folds)
                logits_BK = detector.head.held_out_logits(inputs.to(device), fold_B)
            else:
                logits_BK = to_logits(inputs.to(device))
            logits = logits_BK.float().cpu().numpy()
            tables.append(prediction_rows(rows, logits, targets=info.targets, reference=reference))
    if not tables:
        raise InfinegError(f"{dataset}: generation {generation.number} has no val or test samples")
    return pa.concat_tables(tables).combine_chunks()


def with_calibration(
    info: ModelInfo, held_out: Sequence[TargetPredictions], config: EvaluateConfig
) -> ModelInfo:
    """`info` with the calibration and threshold of each target, fitted on these rows."""
    calibration = {each.target: _calibrate(each, info, config) for each in held_out}
    thresholds = {target: each.threshold for target, each in calibration.items()}
    return info.model_copy(update={"calibration": calibration, "thresholds": thresholds})


def _calibrate(
    held_out: TargetPredictions, info: ModelInfo, config: EvaluateConfig
) -> TargetCalibration:
    return calibrate_target(
        held_out.logits_N,
        held_out.is_positive_N,
        held_out.weights_N,
        target=held_out.target,
        stratum_N=held_out.stratum_N,
        promise=config.promise,
        alpha=config.alpha,
        delta=config.delta,
        deploy_prior=config.deploy_prior,
        method=config.calibration,
        trained_prior=(info.trained_priors or {}).get(held_out.target),
    )


def _explain(
    embedder: RunEmbedder, rows_of_training: pa.Table | None, places: Sequence[Place], target: str
) -> list[Nearest] | None:
    """The training pictures most like each of some others, two of each kind."""
    embedding_ND = None if rows_of_training is None else embedder.embed_places(places)
    if embedding_ND is None:
        return None
    return Neighbours(rows_of_training).nearest(embedding_ND, target=target, k=2)


def _subtitle(info: ModelInfo, predictions: pa.Table) -> str:
    num_test = pc.sum(pc.equal(predictions["split"], "test")).as_py() or 0
    counts = [f"{len(predictions) - num_test:,} held-out", f"{num_test:,} test"]
    return (
        f"Generation {info.generation}, {info.encoder.name}, mode {info.mode}, "
        f"{info.samples_seen:,} samples seen in training; {' and '.join(counts)} samples"
    )


def _log_metrics(run: Path, metrics: Mapping[str, Any]) -> None:
    for target, block in metrics["target"].items():
        tpr, fpr = telling_tpr(block), block["fpr"]["all"]
        how = "" if tpr is block["tpr"] else ", cross-fitted"
        _log.info(
            "evaluated %s, %s: TPR %s (n %s%s), FPR %s (n %s)",
            run, target, format_percent(tpr["value"]), f"{tpr['n']:,}", how,
            format_percent(fpr["value"]), f"{fpr['n']:,}",
        )  # fmt: skip
