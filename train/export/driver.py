"""From a finished run to a file or folder for others, refused if it decides otherwise.

Shapes: N pictures, C H W image, K targets.
"""

import hashlib
import io
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from train.config import EvaluateConfig, load_train_config
from train.evaluate.run import predict_splits, with_calibration
from train.export import hub, pictures
from train.export.parity import Parity, compare_logits, milliseconds, rates_of, write_report
from train.export.program import WithEmbedding, export_program
from train.export.quantization import QuantizedEmbedder, quantize
from train.metrics.predictions import of_target, thin_to_uniform
from train.metrics.summary import measure
from train.model.detector import DetectorModel, load_model
from train.model.info import ModelInfo, logit_column
from train.model.onnx_file import OnnxInfo, encode_onnx, open_onnx
from train.model.onnx_graph import detector_graph
from train.predict.network import Network, OnnxNetwork, Outputs

_log = logging.getLogger(__name__)

Format = Literal["onnx", "onnx-int8", "torch", "hub"]
NAMES: dict[Format, str] = {
    "onnx": "model.onnx", "onnx-int8": "model-int8.onnx", "torch": "model.pt2", "hub": "hub",
}  # fmt: skip
# The share of pictures of test that may get another label, unless another is given.
MAX_CHANGED: dict[Format, float] = {"onnx": 0.0, "onnx-int8": 0.02, "torch": 0.0, "hub": 0.0}
_NUM_COMPARED = 300


@dataclass(frozen=True)
class _Run:
    """A run that is evaluated."""

    path: Path
    model: DetectorModel
    info: ModelInfo
    metrics: dict[str, Any]  # the content of metrics.json
    dataset: str

    @property
    def calibration(self) -> dict[str, Any]:
        assert self.info.calibration is not None
        return {target: self.info.calibration[target] for target in self.info.targets}


@dataclass(frozen=True)
class _Exported:
    """The content of a file, and what `Parity` says of it."""

    content: bytes
    facts: dict[str, Any]


class _Module:
    """pixels -> embedding, logits of PyTorch as a network."""

    batch_size = 8

    def __init__(self, module: Any) -> None:
        self._module = module

    def run(self, pixels_BCHW: NDArray[np.uint8]) -> Outputs:
        with torch.inference_mode():
            embedding_BD, logits_BK = self._module(torch.from_numpy(pixels_BCHW))
        return Outputs(logits_BK.numpy(), embedding_BD.numpy())


def export_run(
    run_dir: str | os.PathLike[str],
    kind: Format,
    *,
    out: str | os.PathLike[str] | None = None,
    max_changed: float | None = None,
    contact: str | None = None,
) -> tuple[Path, Parity]:
    """Writes the exported model and its parity report; returns the path and the report.

    out: default RUN/exports/<name>. max_changed: default `MAX_CHANGED`. contact: who to ask, for
    the card of `hub`. Raises ConfigError for a run that is not evaluated, and InfinegError if more
    decisions change than allowed: then only the report is written.
    """
    run = _open_run(Path(run_dir))
    path = _path_of(run, kind, out)
    exported = _quantized(run) if kind == "onnx-int8" else _in_float(run, kind)
    allowed = MAX_CHANGED[kind] if max_changed is None else max_changed
    parity = Parity(
        format=kind,
        max_changed=allowed,
        num_bytes=len(exported.content),
        sha256=hashlib.sha256(exported.content).hexdigest(),
        rates_of_run=rates_of(run.metrics),
        **exported.facts,
    )
    write_report(path, parity)
    parity.check(str(path))
    if kind == "hub":
        weights = (run.path / "model.safetensors").read_bytes()
        hub.write_folder(path, exported.content, weights, run.info, run.metrics, contact=contact)
    else:
        storage.write_atomic(str(path), exported.content)
    _log.info("exported %s as %s: %s", run.path, kind, path)
    return path, parity


def _open_run(path: Path) -> _Run:
    model, info = load_model(path)
    metrics = path / "metrics.json"
    if info.calibration is None or not metrics.exists():
        raise ConfigError(f"{path}: not evaluated yet; run `infineg evaluate {path}`")
    config, _, _ = load_train_config(path / "config.yaml")
    return _Run(path, model, info, json.loads(metrics.read_text()), config.output.path)


def _path_of(run: _Run, kind: Format, out: str | os.PathLike[str] | None) -> Path:
    if out is None:
        return run.path / "exports" / NAMES[kind]
    if "://" in os.fspath(out):
        raise ConfigError(f"--out {out}: a path of this machine is wanted; copy it from there")
    path = Path(os.path.abspath(out))  # `.` has no name, and the report is beside the folder
    return path / NAMES[kind] if path.is_dir() and kind != "hub" else path


def _in_float(run: _Run, kind: Format) -> _Exported:
    """Compared with PyTorch; the calibration stays, and so do the rates while decisions do."""
    network: Network
    if kind == "torch":
        content = export_program(run.model, run.info)
        network = _Module(torch.export.load(io.BytesIO(content)).module())
    else:
        content = encode_onnx(detector_graph(run.model, run.info), OnnxInfo.of(run.info))
        network = OnnxNetwork(open_onnx(content, NAMES[kind])[0])
    pixels_NCHW = pictures.of_test(run.dataset, run.info, at_most=_NUM_COMPARED)
    of_run = _Module(WithEmbedding(run.model).eval())
    compared = compare_logits(
        _logits(network, pixels_NCHW), run.calibration, _logits(of_run, pixels_NCHW),
        run.calibration,
    )  # fmt: skip
    times = {
        "ms_a_picture": milliseconds(network, pixels_NCHW),
        "ms_a_picture_of_run": milliseconds(of_run, pixels_NCHW),
    }
    thresholds = {target: each.threshold for target, each in run.calibration.items()}
    rates = rates_of(run.metrics)
    return _Exported(content, {**compared, **times, "thresholds": thresholds, "rates": rates})


def _logits(network: Network, pixels_NCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
    size = network.batch_size
    parts = [
        network.run(pixels_NCHW[start : start + size]).logits_BK
        for start in range(0, len(pixels_NCHW), size)
    ]
    return np.concatenate(parts)


def _quantized(run: _Run) -> _Exported:
    """Compared on all of test, by the logits that the run was evaluated with."""
    graph = detector_graph(run.model, run.info)
    quantized = quantize(graph, pictures.of_both_kinds(run.dataset, run.info))
    embed = QuantizedEmbedder(quantized)
    predictions = thin_to_uniform(
        predict_splits(run.model, run.info, dataset=run.dataset, embed=embed)
    )
    config = _evaluate_config(run)
    held_out, tests = (
        [of_target(predictions, target, split=split, targets=run.info.targets)
         for target in run.info.targets]
        for split in ("held_out", "test")
    )  # fmt: skip
    info = with_calibration(run.info, held_out, config)
    assert info.calibration is not None
    content = encode_onnx(quantized, OnnxInfo.of(info, precision="int8"))
    compared = compare_logits(
        _test_logits(predictions, info), info.calibration, _logits_of_run(run, predictions),
        run.calibration,
    )  # fmt: skip
    pixels_NCHW = pictures.of_test(run.dataset, run.info, at_most=64)
    networks = (OnnxNetwork(open_onnx(each, "model.onnx")[0])
                for each in (content, encode_onnx(graph, OnnxInfo.of(run.info))))  # fmt: skip
    times = [milliseconds(network, pixels_NCHW) for network in networks]
    return _Exported(
        content,
        {
            **compared,
            "ms_a_picture": times[0],
            "ms_a_picture_of_run": times[1],
            "thresholds": info.thresholds,
            "rates": rates_of(measure(tests, info, config)),
        },
    )


def _evaluate_config(run: _Run) -> EvaluateConfig:
    """The one that the run was evaluated with, `--set` included."""
    _, _, config = load_train_config(run.path / "config.yaml")
    block = run.metrics["target"][run.info.targets[0]]
    known = {"alpha": block.get("alpha_wanted", block["alpha"]), "delta": block["delta"]}
    known |= {name: block[name] for name in ("promise", "deploy_prior") if name in block}
    return config.model_copy(update=known)


def _test_logits(predictions: pa.Table, info: ModelInfo) -> NDArray[np.float32]:
    """logits_NK of test."""
    rows = predictions.filter(pc.equal(predictions["split"], "test"))
    names = [logit_column(target, info.targets) for target in info.targets]
    return np.stack([rows[name].to_numpy() for name in names], axis=1)


def _logits_of_run(run: _Run, predictions: pa.Table) -> NDArray[np.float32]:
    """The same of predictions.parquet, for the same rows."""
    path = str(run.path / "predictions.parquet")
    with storage.reading(path):
        before = pq.read_table(io.BytesIO(storage.read_bytes(path)))
    keys = [each.filter(pc.equal(each["split"], "test"))["key"] for each in (before, predictions)]
    if not keys[0].equals(keys[1]):
        raise InfinegError(f"{path}: other rows than the data set has; run `infineg evaluate`")
    return _test_logits(before, run.info)
