"""The run that is served: its detector, its name, and the logits that its val split has."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline import storage
from train.model.info import logit_column
from train.predict.detector import Detector, Prediction

_KINDS = ("json", "onnx")  # of model.*, either of which changes with weights and calibration

__all__ = ["Prediction", "ServedModel", "load_model"]


@dataclass(frozen=True)
class ServedModel:
    """A detector and what tells its answers from those of another.

    name: folder of the run and the first digits of the sha256 of its model.json, in which are the
    sha256 of the weights, the calibration and the thresholds. val_logits: by target and by whether
    a picture shows it; empty for a run without predictions.parquet.
    """

    detector: Detector
    name: str
    val_logits: dict[tuple[str, bool], NDArray[np.float64]]

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(self.detector.targets)

    def predict(self, images: Sequence[bytes]) -> list[Prediction | str]:
        """A prediction for each image file, or the reason why there is none."""
        return [found for _, found in self.detector.predict_each(images)]


def load_model(run: str, *, prior: float | None = None) -> ServedModel:
    """Raises ConfigError for a run that is not trained and calibrated."""
    detector = Detector.load(run, prior=prior, explain=True)
    model = ServedModel(detector, _name(run), _read_val_logits(run, detector.targets))
    # The first prediction sets up more than the others: no visitor should wait for it.
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    model.predict([file.getvalue()])
    return model


def _name(run: str) -> str:
    files = [run] if run.endswith(".onnx") else [storage.join(run, f"model.{e}") for e in _KINDS]
    digest = hashlib.sha256(storage.read_bytes(next(filter(storage.exists, files)))).hexdigest()
    local = storage.local_path(run)
    name = local.resolve().name if local else storage.redact(run).rstrip("/").rpartition("/")[2]
    return f"{name}@{digest[:12]}"


def _read_val_logits(
    run: str, targets: Sequence[str]
) -> dict[tuple[str, bool], NDArray[np.float64]]:
    path = storage.join(run, "predictions.parquet")
    if run.endswith(".onnx") or not storage.exists(path):
        return {}
    rows = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    rows = rows.filter(pc.equal(rows["split"], "val"))
    label_N = np.array(rows["label"].to_pylist(), object)
    found = {}
    for target in targets:
        logit_N = rows[logit_column(target, targets)].to_numpy()
        for shows in (True, False):
            found[target, shows] = logit_N[(label_N == target) == shows].astype(np.float64)
    return found
