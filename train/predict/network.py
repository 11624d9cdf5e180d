"""The network of a detector: by ONNX Runtime on CPUs, by PyTorch on GPUs.

Shapes: B batch, C H W image, D embedding, K targets.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from train.model.info import ModelInfo
from train.model.onnx_file import MAX_BYTES, OnnxInfo, open_onnx


class Outputs(NamedTuple):
    """What a network says of a batch."""

    logits_BK: NDArray[np.float32]
    embedding_BD: NDArray[np.float32]  # L2-normalised


class Network(Protocol):
    """Something that several threads may call at once."""

    batch_size: int  # images that it takes at once

    def run(self, pixels_BCHW: NDArray[np.uint8]) -> Outputs:
        """logits_BK, before calibration, and embedding_BD."""


class OnnxNetwork:
    """ONNX Runtime, on the thread that calls."""

    batch_size = 8  # more at once are no faster on one core

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, pixels_BCHW: NDArray[np.uint8]) -> Outputs:
        return Outputs(*self._session.run(["logits", "embedding"], {"pixels": pixels_BCHW}))


def open_file(uri: str) -> tuple[Network, OnnxInfo]:
    """A model.onnx, from anywhere. Raises ConfigError if there is none, InfinegError if broken."""
    try:
        content = storage.read_range(uri, 0, MAX_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(
            f"{storage.redact(uri)}: no such file; a run is its folder, a model.onnx or their URL"
        ) from None
    return open_bytes(content, where=storage.redact(uri))


def open_bytes(content: bytes, *, where: str = "model.onnx") -> tuple[Network, OnnxInfo]:
    """The content of a model.onnx. Raises InfinegError if it is broken."""
    session, info = open_onnx(content, where)
    return OnnxNetwork(session), info


def open_run(run: Path, info: ModelInfo) -> Network:
    """Of a finished run here: PyTorch if there is a GPU, or if it has no model.onnx."""
    path = run / "model.onnx"
    if not path.exists() or has_gpu():
        from train.predict.torch_network import TorchNetwork  # seconds

        return TorchNetwork(run)
    network, written = open_file(str(path))
    if written.weights_sha256 != info.weights_sha256 or written.precision != "fp32":
        raise InfinegError(
            f"{path}: of other weights than model.safetensors; `infineg evaluate {run}` writes it"
        )
    return network


def has_gpu() -> bool:
    """Whether a GPU of NVIDIA is there, without torch, which takes seconds to say so."""
    devices = ("/dev/nvidiactl", "/dev/dxg")  # Linux, WSL
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    return not is_hidden and any(map(os.path.exists, devices))
