"""Mines with a trained model: makes the scorer that `pipeline.mine` runs.

In mode head, candidates are scored by their embeddings with one head per fold (`cross_fit`). In
mode finetune, the run's own model scores images, since leaving folds out would take one finetuning
per fold: it finds negatives that it was trained on less probable than they are, so that these
weigh up to twice what they should.

The guard quarantines suspected positives: candidates above the logit that `GUARD_TPR` of the val
positives reach. Shapes: B batch, N rows of val, F folds, K targets.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from rich.table import Table
from torch import Tensor, nn

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.encoders.export import export_module
from pipeline.errors import ConfigError
from pipeline.mine.driver import Mined, Tally
from pipeline.mine.scorer import Scorer
from train.config import load_train_config
from train.data.batches import read_eval_batches
from train.metrics.calibration import fit_platt
from train.metrics.predictions import of_target
from train.metrics.ranking import threshold_at_tpr
from train.mining.cross_fit import fold_heads
from train.model.detector import Head, load_model
from train.model.info import ModelInfo

GUARD_TPR = 0.95
NUM_FOLDS = 3  # each head is trained on two thirds of the negatives


class MarginScorer(nn.Module):
    """inputs_B -> scored_BF2: log-odds, and the margin above the guard; see `Scorer`."""

    scale_FK: Tensor
    bias_FK: Tensor
    guard_FK: Tensor

    def __init__(self, models: Sequence[nn.Module], constants_3FK: NDArray[np.float64]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        scale_FK, bias_FK, guard_FK = torch.from_numpy(constants_3FK).float()
        self.register_buffer("scale_FK", scale_FK)
        self.register_buffer("bias_FK", bias_FK)
        self.register_buffer("guard_FK", guard_FK)

    def forward(self, inputs_B: Tensor) -> Tensor:
        logits_BFK = torch.stack([model(inputs_B) for model in self.models], dim=1).float()
        log_odds_BF = (logits_BFK * self.scale_FK + self.bias_FK).amax(dim=2)
        margin_BF = (logits_BFK - self.guard_FK).amax(dim=2)
        return torch.stack([log_odds_BF, margin_BF], dim=2)


def mined_table(mined: Mined) -> Table:
    """One row per source and the total: candidates scored, and what became of them."""
    table = Table(title=f"mined generation {mined.generation.number}")
    columns = ("candidates", "expected", "selected", "quarantined", "duplicates")
    for column in ("source", *columns):
        table.add_column(column, justify="left" if column == "source" else "right")

    rows = [*mined.tallies.items(), ("all", Tally.total(mined.tallies.values()))]
    for number, (name, tally) in enumerate(rows, start=2):
        table.add_row(
            name,
            f"{tally.num_scored:,}",
            f"{tally.num_expected:,.1f}",
            f"{tally.num_selected:,}",
            f"{tally.num_suspected:,}",
            f"{tally.num_refused:,}",
            end_section=number == len(rows),
        )
    return table


def prepare_scorer(config: Config, run_dir: str | os.PathLike[str]) -> Scorer:
    """The run's model as a scorer that can be sent to workers.

    Raises ConfigError for a run that is not finished, not evaluated, or of another data set.
    """
    run = Path(run_dir)
    detector, info = load_model(run)
    if info.calibration is None:
        raise ConfigError(f"{run}: not calibrated yet; run `infineg evaluate {run}`")
    dataset = Dataset(config.output.path).read_info()
    if info.dataset != dataset.fingerprint:
        raise ConfigError(
            f"--run {run}: trained on another data set than {config.output.path} (settings "
            f"{info.dataset[:12]}, not {dataset.fingerprint[:12]})"
        )
    if info.mode == "head":
        _, train_config, _ = load_train_config(run / "config.yaml")
        heads = fold_heads(
            run,
            config,
            train_config.model_copy(update={"folds": 1}),
            dataset,
            generation=info.generation,
            num_folds=NUM_FOLDS,
            num_steps=info.samples_seen // train_config.batch_size,
        )
        models: Sequence[nn.Module] = heads
        constants_3FK = _calibrate_heads(config.output.path, info, heads)
        example = torch.zeros(2, info.embedding_dim)
    else:
        models, constants_3FK = [detector], _own_constants(run, info)
        size = info.preprocessing.image_size
        example = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    model = MarginScorer(models, constants_3FK).eval()
    return Scorer(
        model=export_module(model, example, inputs="inputs", outputs="scored"),
        reads="embedding" if info.mode == "head" else "pixels",
        num_folds=len(models),
        preprocessing=info.preprocessing,
        fingerprint=_fingerprint(model),
        about={
            "run": run.name,
            "mode": info.mode,
            "generation": info.generation,
            "targets": list(info.targets),
            "guard_logits": constants_3FK[2].tolist(),  # by fold and target
        },
    )


def _calibrate_heads(root: str, info: ModelInfo, heads: Sequence[Head]) -> NDArray[np.float64]:
    """constants_3FK: each head's scale and bias, by Platt's fit on val, and its guard."""
    batches = read_eval_batches(
        root,
        Dataset(root).read_generation(info.generation),
        splits=("val",),
        mode="head",
        preprocessing=None,
    )
    labels: list[str] = []
    weights, logits = [], []
    with torch.inference_mode():
        for rows, embedding_BD in batches:
            labels += rows["label"].to_pylist()
            weights.append(1 / rows["inclusion_probability"].to_numpy().astype(np.float64))
            logits.append(torch.stack([head(embedding_BD) for head in heads], dim=1).numpy())
    logits_NFK, weights_N = np.concatenate(logits), np.concatenate(weights)
    constants_3FK = np.empty((3, len(heads), len(info.targets)))
    for k, target in enumerate(info.targets):
        is_positive_N = np.array(labels, object) == target
        for f in range(len(heads)):
            logits_N = logits_NFK[:, f, k]
            guard = threshold_at_tpr(logits_N[is_positive_N], tpr=GUARD_TPR)
            constants_3FK[:, f, k] = *fit_platt(logits_N, is_positive_N, weights_N), guard
    return constants_3FK


def _own_constants(run: Path, info: ModelInfo) -> NDArray[np.float64]:
    """constants_3FK from the run's own calibration and predictions; F is 1."""
    assert info.calibration is not None
    path = str(run / "predictions.parquet")
    with storage.reading(path):
        predictions = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    constants = []
    for target in info.targets:
        held_out = of_target(predictions, target, split="held_out", targets=info.targets)
        own = info.calibration[target]
        guard = threshold_at_tpr(held_out.logits_N[held_out.is_positive_N], tpr=GUARD_TPR)
        constants.append((own.scale, own.bias, guard))
    return np.array(constants).T[:, None, :]


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()
