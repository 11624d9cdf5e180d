"""Ends the training of heads once it no longer changes what they say of held-out rows.

A few hundred rows are learned in a tenth of the steps that ten thousand take. The loss of the rows
of train and val, each judged by the head of its fold, is measured every `EVERY` steps; where it
stays the same, more steps would change nothing. It decides when to end, not which weights are kept:
the lowest loss of few rows is often that of a head that has hardly begun.

Shapes: N rows of train and val, at most `_MOST_ROWS` of them; K targets.
"""

import copy
import logging
import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train.config import EarlyStopping, Mode
from train.loop.state import TrainState
from train.loop.validation import measure_target
from train.model.detector import Head

EVERY = 50  # steps: in fewer the loss hardly moves while the rate rises
_MOST_ROWS = 8192  # a check of them takes as long as two steps
_LEAST_LOSS = 0.1  # nats; of less, not shares count but thousandths of a nat
_STORED = "convergence.loss"  # in a checkpoint
_METRIC = EarlyStopping(metric="val_loss")

_log = logging.getLogger(__name__)


class Convergence:
    """Every process judges its part of the rows; all come to the same conclusion."""

    def __init__(self, state: TrainState, stored: Mapping[str, Tensor]) -> None:
        """stored: of a checkpoint, what `state` returned; empty for a run that begins."""
        self._state = state
        self.is_over, self._step = False, 0
        self._loss = stored[_STORED].item() if _STORED in stored else math.nan
        rows = state.rows
        every = -(-len(rows.keys) // _MOST_ROWS)
        self._rows_N = np.arange(0, len(rows.keys), every)
        self._label_N = rows.label_N[self._rows_N]
        self._weight_N = rows.inverse_probability_N[self._rows_N].astype(np.float64)

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {_STORED: torch.tensor(self._loss, dtype=torch.float64)}

    def is_due(self, done: int) -> bool:
        """Whether to measure after `done` steps."""
        return done % EVERY == 0 and done < self._state.train_config.steps

    def validate(self, done: int, mode: Mode) -> dict[str, float]:  # noqa: ARG002 (always head)
        """The loss of the weights that would be exported now."""
        before, tolerance = self._loss, self._state.train_config.tolerance
        self._step, self._loss = done, self._measure()
        self.is_over = abs(self._loss - before) < tolerance * max(before, _LEAST_LOSS)
        if self.is_over:
            _log.info(
                "ended at step %s: the loss of held-out rows was %.5f and is %.5f",
                f"{done:,}", before, self._loss,
            )  # fmt: skip
        return {"held_out_loss": self._loss}

    def finish(self) -> int:
        """After how many steps the weights to export are those of the trained module, as it is."""
        self._state.trained.load_state_dict(self._state.evaluated.state_dict())
        return self._step if self.is_over else self._state.train_config.steps

    def _measure(self) -> float:
        """The mean over the targets, negatives weighing 1 / inclusion_probability."""
        logits_NK, train_config = self._logits(), self._state.train_config
        share = train_config.num_positives / train_config.batch_size
        values = [
            measure_target(
                self._label_N == target, logits_NK[:, index], self._weight_N, _METRIC,
                positive_share=share,
            )
            for index, target in enumerate(self._state.config.target_names)
        ]  # fmt: skip
        return float(np.mean(values))

    def _logits(self) -> NDArray[np.float32]:
        """logits_NK, on all processes."""
        state = self._state
        assert state.embedding_ND is not None
        # A copy, so that the module that learns stays in training mode, and compiled for it.
        head = copy.deepcopy(state.evaluated).eval()
        assert isinstance(head, Head)
        mine = slice(state.world.rank, None, state.world.size)
        device = state.world.device
        embedding_BD = torch.from_numpy(state.embedding_ND[self._rows_N[mine]]).float().to(device)
        logits_NK = torch.zeros(len(self._rows_N), len(state.config.targets), device=device)
        with torch.inference_mode():
            fold_B = state.rows.fold_N[self._rows_N[mine]]
            logits_NK[mine] = head.held_out_logits(embedding_BD, fold_B)
        return state.world.all_reduce_sum(logits_NK).cpu().numpy()
