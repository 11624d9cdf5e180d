"""How far an exported model agrees with its run: on pictures of test, which neither was fitted on.

Shapes: N pictures, C H W image, K targets.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from pipeline import storage
from pipeline.errors import InfinegError
from train.metrics.probability import decide
from train.model.info import TargetCalibration
from train.predict.network import Network

_NUM_TIMED = 64


class Parity(BaseModel, frozen=True):
    """The report beside an exported model. Sizes in bytes, times in ms of CPU."""

    format: str
    num_pictures: int
    mean_logit_difference: float  # absolute
    largest_logit_difference: float
    num_changed: int  # pictures with another label
    max_changed: float  # the share of pictures up to which the export is allowed
    num_bytes: int
    sha256: str
    ms_a_picture: float | None = None
    ms_a_picture_of_run: float | None = None
    thresholds: dict[str, float]  # by target, on the logits of the exported model
    # By target, `tpr` and `fpr` by stratum, each with value, low, high and n.
    rates: dict[str, dict[str, Any]]
    rates_of_run: dict[str, dict[str, Any]]

    @property
    def share_changed(self) -> float:
        return self.num_changed / self.num_pictures

    def check(self, path: str) -> None:
        """Raises InfinegError if more decisions changed than allowed."""
        if self.share_changed > self.max_changed:
            raise InfinegError(
                f"{path} is not written: {self.num_changed} of {self.num_pictures} pictures of "
                f"test get another label ({self.share_changed:.2%}), allowed are "
                f"{self.max_changed:.2%} (--max-changed). The parity report beside it says more"
            )


def compare_logits(
    logits_NK: NDArray[np.float32],
    calibration: Mapping[str, TargetCalibration],
    reference_NK: NDArray[np.float32],
    reference_calibration: Mapping[str, TargetCalibration],
) -> dict[str, Any]:
    """The fields of `Parity` that pictures decide. Each side has its own thresholds."""
    difference_NK = np.abs(logits_NK.astype(np.float64) - reference_NK)
    labels = decide(logits_NK, calibration), decide(reference_NK, reference_calibration)
    return {
        "num_pictures": len(logits_NK),
        "mean_logit_difference": float(difference_NK.mean()),
        "largest_logit_difference": float(difference_NK.max()),
        "num_changed": sum(one != other for one, other in zip(*labels, strict=True)),
    }


def rates_of(metrics: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Of the content of a metrics.json."""
    return {
        target: {"tpr": block["tpr"], "fpr": block["fpr"]}
        for target, block in metrics["target"].items()
    }


def milliseconds(network: Network, pixels_NCHW: NDArray[np.uint8]) -> float:
    """CPU time of one picture, of the network alone."""
    size = network.batch_size
    batches = [pixels_NCHW[i : i + size] for i in range(0, len(pixels_NCHW[:_NUM_TIMED]), size)]
    network.run(batches[0])  # allocates
    began = time.process_time()
    for batch in batches:
        network.run(batch)
    return (time.process_time() - began) * 1e3 / sum(map(len, batches))


def write_report(path: Path, parity: Parity) -> None:
    """Beside the exported model: <name>.parity.json and <name>.parity.md."""
    name = path.name
    storage.write_atomic(
        str(path.with_name(f"{name}.parity.json")), f"{parity.model_dump_json(indent=1)}\n".encode()
    )
    storage.write_atomic(str(path.with_name(f"{name}.parity.md")), as_markdown(parity).encode())


def as_markdown(parity: Parity) -> str:
    """Two tables."""
    lines = [
        f"# {parity.format}, compared with its run",
        "",
        "| | |",
        "|---|---|",
        f"| pictures of test | {parity.num_pictures:,} |",
        f"| decisions changed | {parity.num_changed:,} ({parity.share_changed:.2%}; "
        f"allowed {parity.max_changed:.2%}) |",
        f"| difference of logits | mean {parity.mean_logit_difference:.2g}, "
        f"largest {parity.largest_logit_difference:.2g} |",
        f"| size | {parity.num_bytes / 1e6:,.1f} MB |",
    ]
    if parity.ms_a_picture is not None:
        lines.append(
            f"| CPU time of the network | {parity.ms_a_picture:.1f} ms a picture, "
            f"of the run {parity.ms_a_picture_of_run:.1f} ms |"
        )
    lines += ["", "| at the threshold | exported | run | n |", "|---|---|---|---|"]
    for target, block in parity.rates.items():
        of_run = parity.rates_of_run[target]
        pairs = [("TPR", block["tpr"], of_run["tpr"])]
        pairs += [
            (f"FPR, {name}", rate, of_run["fpr"][name]) for name, rate in block["fpr"].items()
        ]
        lines += [
            f"| {target}: {name} | {format_rate(rate)} | {format_rate(before)} | {rate['n']:,} |"
            for name, rate, before in pairs
        ]
    return "\n".join([*lines, ""])


def format_rate(rate: Mapping[str, Any]) -> str:
    """A rate with its 95 % interval."""
    if rate["value"] is None:
        return "-"
    return f"{rate['value']:.2%} [{rate['low']:.2%}, {rate['high']:.2%}]"
