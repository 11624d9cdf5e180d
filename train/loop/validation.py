"""Validation between steps: measures the val split to know which weights are best.

Shapes: N rows of val, K targets.
"""

import copy
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.errors import ConfigError
from train.config import EarlyStopping, Metric, Mode
from train.data.batches import read_eval_batches
from train.data.rows import folds_of
from train.loop.state import TrainState
from train.metrics import ranking
from train.metrics.ranking import Bools, Floats
from train.model.detector import Head
from train.model.tensors import load_into, read_tensors, write_tensors

_log = logging.getLogger(__name__)
# Names of BestSoFar's fields in a checkpoint.
_STORED = [f"early_stopping.{name}" for name in ("step", "value", "num_worse")]


@dataclass(frozen=True)
class BestSoFar:
    """The best check so far. `value` is of the metric, nan before the first check."""

    step: int = 0  # optimizer steps done at the best check
    value: float = math.nan
    num_bad_checks: int = 0  # checks since

    def after(self, step: int, value: float, metric: Metric) -> "BestSoFar":
        """The best after one more check. An equal value is not better."""
        is_better = value < self.value if metric == "val_loss" else value > self.value
        if is_better or math.isnan(self.value):
            return BestSoFar(step, value)
        return BestSoFar(self.step, self.value, self.num_bad_checks + 1)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        values = (self.step, self.value, self.num_bad_checks)
        return {
            name: torch.tensor(float(value), dtype=torch.float64)
            for name, value in zip(_STORED, values, strict=True)
        }

    @staticmethod
    def from_state(state: Mapping[str, Tensor]) -> "BestSoFar":
        """Restores what `state` returned; a new one if it is not there."""
        if _STORED[0] not in state:
            return BestSoFar()
        step, value, num_bad_checks = (state[name].item() for name in _STORED)
        return BestSoFar(int(step), value, int(num_bad_checks))


class Validation:
    """Every process computes logits of its part of val; all come to the same conclusion."""

    def __init__(
        self, state: TrainState, settings: EarlyStopping, run_dir: Path, best: BestSoFar
    ) -> None:
        """Raises ConfigError if val lacks what the metric needs."""
        self.best = best
        self._state, self._settings = state, settings
        self._best_path = run_dir / "checkpoints" / "best.safetensors"
        shards = [shard for shard in state.generation.shards if shard.split == "val"]
        columns = ("label", "inclusion_probability", "group")
        tables = [Dataset(state.config.output.path).read_sidecar(each, columns) for each in shards]
        starts = np.cumsum([0, *(len(each) for each in tables)]).tolist()
        of_rank = slice(state.world.rank, None, state.world.size)
        self._own_shards = list(zip(shards, starts, strict=False))[of_rank]
        rows = pa.concat_tables(tables) if tables else pa.table({column: [] for column in columns})
        self._fold_N = folds_of(rows["group"], state.train_config.folds)
        self._label_N = np.array(rows["label"].to_pylist(), dtype=object)
        self._weight_N = 1 / rows["inclusion_probability"].to_numpy().astype(np.float64)
        for target in state.config.target_names:
            num_positives = int((self._label_N == target).sum())
            if num_positives in (0, len(self._label_N)):
                raise ConfigError(
                    f"train.early_stopping: val of generation {state.generation.number} has "
                    f"{num_positives:,} samples of {target} and "
                    f"{len(self._label_N) - num_positives:,} others; it needs both"
                )

    def is_due(self, done: int) -> bool:
        """Whether to validate after `done` steps."""
        return done % self._settings.every == 0 or done == self._state.train_config.steps

    @property
    def is_over(self) -> bool:
        """Whether patience is exhausted."""
        return self.best.num_bad_checks >= self._settings.patience

    def validate(self, done: int, mode: Mode) -> dict[str, float]:
        """Measures the weights that would be exported now, and keeps them if they are the best."""
        metric = self._settings.metric
        value = self._measure(self._logits(mode))
        self.best = self.best.after(done, value, metric)
        if self.best.step == done and self._state.world.is_main:
            sha256 = write_tensors(self._best_path, self._state.evaluated.state_dict())
            about = {"step": done, metric: value, "sha256": sha256}
            content = json.dumps(about, indent=1) + "\n"
            storage.write_atomic(str(self._best_path.with_suffix(".json")), content.encode())
        if self.is_over:
            _log.info(
                "stopped early at step %s: no %s better than %.5f of step %s in %d checks",
                f"{done:,}", metric, self.best.value, f"{self.best.step:,}",
                self.best.num_bad_checks,
            )  # fmt: skip
        return {metric: value}

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return self.best.state()

    def finish(self) -> int:
        """Loads the best weights into the trained module; returns after how many steps they are."""
        about = json.loads(self._best_path.with_suffix(".json").read_bytes())
        tensors = read_tensors(self._best_path, sha256=about.get("sha256", ""))
        load_into(self._state.trained, tensors, self._best_path)
        return self.best.step

    def _logits(self, mode: Mode) -> NDArray[np.float32]:
        """logits_NK, on all processes."""
        state = self._state
        # A copy, so that the module that learns stays in training mode, and compiled for it.
        module = copy.deepcopy(state.evaluated).eval()
        to_logits = module
        if mode == "head" and state.train_config.mode == "finetune":
            to_logits = module.get_submodule("head")
        num_targets = len(state.config.target_names)
        logits_NK = torch.zeros(len(self._label_N), num_targets, device=state.world.device)
        with torch.inference_mode():
            for places, inputs in self._read_own(mode):
                inputs = inputs.to(state.world.device)
                if state.train_config.folds > 1:  # each row by the head that has not seen it
                    assert isinstance(module, Head)
                    logits_BK = module.held_out_logits(inputs, self._fold_N[places])
                else:
                    logits_BK = to_logits(inputs)
                logits_NK[places] = logits_BK.float()
        return state.world.all_reduce_sum(logits_NK).cpu().numpy()

    def _read_own(self, mode: Mode) -> Iterator[tuple[slice, Tensor]]:
        """Places in val, and inputs, of this process's shards."""
        state = self._state
        for shard, start in self._own_shards:
            batches = read_eval_batches(
                state.config.output.path,
                state.generation.model_copy(update={"shards": (shard,)}),
                splits=("val",),
                mode=mode,
                preprocessing=state.detector.encoder.preprocessing,
                cache_dir=state.train_config.cache_dir,
                cache_gb=state.train_config.cache_gb,
            )
            for rows, inputs in batches:
                yield slice(start, start + len(rows)), inputs
                start += len(rows)

    def _measure(self, logits_NK: NDArray[np.float32]) -> float:
        """The mean over the targets."""
        train_config = self._state.train_config
        values = [
            measure_target(
                self._label_N == target,
                logits_NK[:, index],
                self._weight_N,
                self._settings,
                positive_share=train_config.num_positives / train_config.batch_size,
            )
            for index, target in enumerate(self._state.config.target_names)
        ]
        return float(np.mean(values))


def measure_target(
    is_positive_N: Bools,
    logits_N: Floats,
    weights_N: Floats,
    settings: EarlyStopping,
    *,
    positive_share: float,
) -> float:
    """One target's metric; negatives weigh 1 / inclusion_probability.

    val_loss is in nats, with the classes weighted to their shares in training. val_tpr_at_fpr
    is the share of positives above the lowest threshold that keeps the weighted FPR.
    """
    metric: Metric = settings.metric
    if metric == "val_loss":
        at_share_N = ranking.weights_at_prior(is_positive_N, weights_N, prior=positive_share)
        return ranking.log_loss(is_positive_N, logits_N, at_share_N)
    if metric == "val_tpr_at_fpr":
        return tpr_at_fpr(is_positive_N, logits_N, weights_N, fpr=settings.fpr)
    area = ranking.area_under_roc if metric == "val_auroc" else ranking.average_precision
    value = area(is_positive_N, logits_N, weights_N)
    assert value is not None
    return value


def tpr_at_fpr(is_positive_N: Bools, logits_N: Floats, weights_N: Floats, *, fpr: float) -> float:
    """Share of positives above the highest negatives that hold more than `fpr` of their weight."""
    negative_logits, weights = logits_N[~is_positive_N], weights_N[~is_positive_N]
    descending = np.argsort(-negative_logits, kind="stable")
    mass = np.cumsum(weights[descending])
    index = int(np.searchsorted(mass, fpr * mass[-1], side="right"))
    return float(np.mean(logits_N[is_positive_N] > negative_logits[descending[index]]))
