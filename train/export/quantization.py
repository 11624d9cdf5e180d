"""The encoder with 8-bit integers, the head in float; calibrated anew on its own logits.

Static quantization in QDQ form: each convolution is computed in int8, with a scale per channel of
its weights. Shapes: B batch, C H W image, D embedding.
"""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from pipeline.encoders.sessions import open_session

# Nodes of the head are of other types; its features differ by orders of magnitude.
_QUANTIZED = ["Conv", "Add", "Clip", "Relu", "MatMul", "GlobalAveragePool", "ReduceMean"]
_IMAGES_AT_ONCE = 8


class _Pictures(CalibrationDataReader):  # type: ignore[misc]
    """One picture after the other."""

    def __init__(self, pixels_NCHW: NDArray[np.uint8]) -> None:
        self._left = iter(pixels_NCHW)

    def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
        pixels_CHW = next(self._left, None)
        return None if pixels_CHW is None else {"pixels": pixels_CHW[None]}


def quantize(graph: bytes, pixels_NCHW: NDArray[np.uint8]) -> bytes:
    """pixels -> embedding, logits in int8; the ranges of activations are those on the pixels."""
    with tempfile.TemporaryDirectory() as directory:
        plain, prepared, quantized = (
            Path(directory, f"{name}.onnx") for name in ("plain", "prepared", "quantized")
        )
        plain.write_bytes(graph)
        quant_pre_process(str(plain), str(prepared), skip_symbolic_shape=True)
        heads = [node.name for node in onnx.load(prepared).graph.node if _is_of_head(node)]
        quantize_static(
            str(prepared),
            str(quantized),
            _Pictures(pixels_NCHW),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=_QUANTIZED,
            nodes_to_exclude=heads,
            per_channel=True,
            activation_type=QuantType.QUInt8,  # on x86 twice as fast as signed ones
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
        model = onnx.load(quantized)
        content: bytes = model.SerializeToString(deterministic=True)
        return content


def _is_of_head(node: onnx.NodeProto) -> bool:
    return node.name.startswith("head_")


class QuantizedEmbedder:
    """pixels_BCHW -> embedding_BD of an exported model, on all cores."""

    def __init__(self, model: bytes) -> None:
        self._session: Any = open_session(model)

    def __call__(self, pixels_BCHW: Tensor) -> Tensor:
        pixels, starts = pixels_BCHW.numpy(), range(0, len(pixels_BCHW), _IMAGES_AT_ONCE)

        def embed(start: int) -> NDArray[np.float32]:
            part = pixels[start : start + _IMAGES_AT_ONCE]
            (embedding_BD,) = self._session.run(["embedding"], {"pixels": part})
            return np.asarray(embedding_BD)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return torch.from_numpy(np.concatenate(list(pool.map(embed, starts))))
