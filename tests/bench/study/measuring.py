"""The metrics of one run, from the logits of the held-out images.

Shapes: N samples of val and test, D embedding.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.special import expit

from pipeline.dataset import Dataset
from study.datasets import HELD_OUT, TARGET, Built
from study.photos import STRATA, strata_of
from train.data.batches import read_eval_batches
from train.metrics.calibration import calibrate_target
from train.metrics.intervals import Rate, event_rate
from train.metrics.probability import calibrated_logits
from train.metrics.ranking import Bools, Floats, area_under_roc, reliability, threshold_at_tpr
from train.model.info import TargetCalibration

_DELTA = 0.05


@dataclass(frozen=True)
class HeldOut:
    """Val and test of a generation, in the order of its shards."""

    ids_N: NDArray[np.str_]
    kinds_N: NDArray[np.str_]
    is_positive_N: Bools
    is_test_N: Bools
    is_stream_N: Bools  # without the extra held-out look-alikes; includes positives
    embedding_ND: NDArray[np.float32]

    def in_stratum(self, stratum: str) -> Bools:
        """The test negatives of a stratum; "stream" has those of the stream, in its mix."""
        is_negative_N = ~self.is_positive_N & self.is_test_N
        if stratum == "stream":
            return is_negative_N & self.is_stream_N
        inside_N: Bools = np.array([stratum in strata_of(k) for k in self.kinds_N.tolist()])
        return is_negative_N & inside_N


def read_held_out(built: Built) -> HeldOut:
    generation = Dataset(built.root).read_generation(built.generation)
    batches = read_eval_batches(
        built.root, generation, splits=("val", "test"), mode="head", preprocessing=None
    )
    tables, embeddings = zip(*batches, strict=True)
    rows = pa.concat_tables(tables)
    return HeldOut(
        ids_N=np.array(pc.utf8_slice_codeunits(rows["content_hash"], 0, 16).to_pylist()),
        kinds_N=np.array(rows["class_name"].fill_null("").to_pylist()),
        is_positive_N=np.array(rows["label"].to_pylist()) == TARGET,
        is_test_N=np.array(rows["split"].to_pylist()) == "test",
        is_stream_N=~np.char.startswith(np.array(rows["source"].to_pylist()), HELD_OUT),
        embedding_ND=np.concatenate([each.numpy() for each in embeddings]),
    )


def measure_logits(held_out: HeldOut, logits_N: Floats, *, alpha: float) -> dict[str, Any]:
    """Rates by stratum with Clopper-Pearson, at TPR 95 % and at the threshold set on val.

    `alarms` lists the test negatives above the threshold of TPR 95 %, `tested` all of them, a
    stratum each, for intervals over several runs. The threshold of TPR 95 % is that of the test
    positives: it compares rankings at equal sensitivity.
    """
    calibration = _calibrate(held_out, logits_N, alpha)
    positive_logits = logits_N[held_out.is_positive_N & held_out.is_test_N]
    at_95 = threshold_at_tpr(positive_logits, tpr=0.95)
    members = dict(_members(held_out))
    at_99 = threshold_at_tpr(positive_logits, tpr=0.99)
    in_mix_N = held_out.is_test_N & held_out.is_stream_N
    return {
        "tpr": asdict(_rate(positive_logits >= calibration.threshold)),
        "alpha": calibration.alpha,
        "fpr": {s: asdict(_rate(logits_N[m] >= calibration.threshold)) for s, m in members.items()},
        "fpr_at_tpr95": {s: asdict(_rate(logits_N[m] >= at_95)) for s, m in members.items()},
        "fpr_at_tpr99": {s: asdict(_rate(logits_N[m] >= at_99)) for s, m in members.items()},
        "auroc": {s: _auroc(positive_logits, logits_N[m]) for s, m in members.items()},
        "ece": _ece(held_out.is_positive_N[in_mix_N], logits_N[in_mix_N], calibration),
        "alarms": {s: held_out.ids_N[m & (logits_N >= at_95)].tolist() for s, m in members.items()},
        "tested": {s: held_out.ids_N[m].tolist() for s, m in members.items()},
    }


def _members(held_out: HeldOut) -> Iterator[tuple[str, Bools]]:
    for stratum in (*STRATA, "stream"):
        inside_N = held_out.in_stratum(stratum)
        if inside_N.any():
            yield stratum, inside_N


def _calibrate(held_out: HeldOut, logits_N: Floats, alpha: float) -> TargetCalibration:
    val_N = ~held_out.is_test_N
    is_positive_N = held_out.is_positive_N[val_N]
    return calibrate_target(
        logits_N[val_N],
        is_positive_N,
        np.ones(len(is_positive_N)),
        target=TARGET,
        alpha=alpha,
        delta=_DELTA,
        deploy_prior=float(is_positive_N.mean()),
    )


def _ece(is_positive_N: Bools, logits_N: Floats, calibration: TargetCalibration) -> float:
    """In the mix of the test split, which is that of val, where the calibration was fitted."""
    probabilities_N = expit(calibrated_logits(calibration, logits_N, deployed=False))
    weights_N = np.ones(len(logits_N))
    return reliability(is_positive_N, probabilities_N, weights_N).ece


def _auroc(positive_logits: Floats, negative_logits: Floats) -> float | None:
    logits_N = np.concatenate([positive_logits, negative_logits])
    is_positive_N = np.arange(len(logits_N)) < len(positive_logits)
    return area_under_roc(is_positive_N, logits_N, np.ones(len(logits_N)))


def _rate(events_N: Bools) -> Rate:
    return event_rate(events_N, np.ones(len(events_N)))
