"""The network of a trained detector in ONNX: the exported encoder, and its head as nodes after it.

Shapes: B batch, D embedding, K targets.
"""

import logging
import os
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from pipeline import storage
from pipeline.encoders.export import export_frozen, export_module
from train.model.detector import DetectorModel, Head, Standardize
from train.model.info import ModelInfo
from train.model.onnx_file import MAX_BYTES, OnnxInfo, encode_onnx

_log = logging.getLogger(__name__)

_GRAPH_BYTES = 2**22  # beside the weights, at most


def write_onnx(run_dir: str | os.PathLike[str], model: DetectorModel, info: ModelInfo) -> None:
    """Writes RUN/model.onnx of a calibrated run; equal weights and calibration give equal bytes.

    A network that ONNX cannot express, or too large for one file, gets none, and a warning:
    PyTorch runs it.
    """
    path = Path(run_dir) / "model.onnx"
    weights_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    if weights_bytes + _GRAPH_BYTES > MAX_BYTES:
        _log.warning("%s is not written: ONNX holds at most 2 GB", path)
        return
    try:
        graph = detector_graph(model, info)
    except torch.onnx.OnnxExporterError as error:
        reason = str(error).partition("\n")[0]
        _log.warning("%s is not written: ONNX cannot express %s (%s)", path, info.encoder.name,
                     reason)  # fmt: skip
        return
    storage.write_atomic(str(path), encode_onnx(graph, OnnxInfo.of(info)))


def detector_graph(model: DetectorModel, info: ModelInfo) -> bytes:
    """pixels -> embedding, logits; without metadata. Moves the model to the CPU."""
    model = model.cpu().eval()
    if info.mode == "head":
        encoder = export_frozen(model.encoder, info.encoder).model
    else:
        size = info.preprocessing.image_size
        pixels_BCHW = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        encoder = export_module(model.encoder, pixels_BCHW, inputs="pixels", outputs="embedding")
    return with_head(encoder, model.head)


def with_head(encoder: bytes, head: Head) -> bytes:
    """The head after an encoder whose output is `embedding`."""
    network = onnx.load_from_string(encoder)
    _forget_origin(network)
    nodes = _HeadNodes()
    num_targets = nodes.add(head)
    network.graph.node.extend(nodes.nodes)
    network.graph.initializer.extend(nodes.constants)
    batch = network.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    network.graph.output.append(
        helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, num_targets])
    )
    onnx.checker.check_model(network)
    serialized: bytes = network.SerializeToString(deterministic=True)
    return serialized


class _HeadNodes:
    """Nodes of one output each, from `embedding` to `logits`, and their constants."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, head: Head) -> int:
        """The mean of the folds' heads, as one of all their hidden values; returns K."""
        last = "embedding"
        if isinstance(head.standardize, Standardize):
            last = self._node("Sub", last, self._constant("mean", head.standardize.mean_D))
            last = self._node("Div", last, self._constant("sd", head.standardize.sd_D))
        last = self._layer_norm(head.norm, last)
        folds = [
            [each for each in fold.children() if isinstance(each, nn.Linear)]
            for fold in head.folds.children()
        ]
        outer_weights = [fold[-1].weight.double() for fold in folds]
        if len(folds[0]) > 1:
            inner = [torch.cat([getattr(fold[0], name) for fold in folds])
                     for name in ("weight", "bias")]  # fmt: skip
            last = self._gelu(self._linear("inner", last, *inner))
            weight = torch.cat(outer_weights, dim=1) / len(folds)
        else:
            weight = torch.stack(outer_weights).mean(dim=0)
        bias = torch.stack([fold[-1].bias.double() for fold in folds]).mean(dim=0)
        self._linear("outer", last, weight.float(), bias.float(), output="logits")
        return len(bias)

    def _layer_norm(self, norm: nn.LayerNorm, last: str) -> str:
        ones, zeros = torch.ones(norm.normalized_shape), torch.zeros(norm.normalized_shape)
        scale = self._constant("scale", ones if norm.weight is None else norm.weight)
        shift = self._constant("shift", zeros if norm.bias is None else norm.bias)
        return self._node("LayerNormalization", last, scale, shift, axis=-1, epsilon=norm.eps)

    def _gelu(self, last: str) -> str:
        """x / 2 * (1 + erf(x / sqrt 2)); an operator of its own since opset 20 only."""
        erf = self._node("Erf", self._node("Div", last, self._number("root", 2**0.5)))
        raised = self._node("Add", erf, self._number("one", 1.0))
        return self._node("Mul", self._node("Mul", last, raised), self._number("half", 0.5))

    def _linear(
        self, name: str, last: str, weight: Tensor, bias: Tensor, *, output: str | None = None
    ) -> str:
        constants = self._constant(f"{name}_weight", weight), self._constant(f"{name}_bias", bias)
        return self._node("Gemm", last, *constants, output=output, transB=1)

    def _node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        name = output or f"head_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, inputs, [name], name=f"head_{kind}_{name}", **attributes)
        )
        return name

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, torch.tensor(value))

    def _constant(self, name: str, values: Tensor) -> str:
        array = values.detach().float().cpu().numpy()
        self.constants.append(numpy_helper.from_array(array, f"head_{name}"))
        return f"head_{name}"


def _forget_origin(network: onnx.ModelProto) -> None:
    """Of each node PyTorch writes the files and lines of this machine that it comes from."""
    graph = network.graph
    del network.metadata_props[:]
    values = (*graph.input, *graph.output, *graph.value_info)
    for part in (graph, *graph.node, *graph.initializer, *values):
        part.ClearField("doc_string")
        del part.metadata_props[:]
