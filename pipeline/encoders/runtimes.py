"""Runs an encoder on batches: by ONNX Runtime on a CPU core, or by PyTorch, imported only then.

Shapes: B batch, C H W image, D embedding.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.export_cache import ExportedEncoder, read
from pipeline.encoders.origin import weights_digest, weights_origin
from pipeline.encoders.preprocessing import Preprocessing
from pipeline.encoders.sessions import open_session

if TYPE_CHECKING:
    from pipeline.encoders.networks import Encoder

_log = logging.getLogger(__name__)

# Waits for the result and returns embedding_BD, L2-normalised.
Pending = Callable[[], NDArray[np.float32]]


class Runtime(Protocol):
    """Something that embeds batches. Equal batches give equal bits on one machine."""

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        """embedding_BD, L2-normalised."""

    def submit(self, pixels_BCHW: NDArray[np.uint8]) -> Pending:
        """Starts `embed` and returns at once if a GPU or another process computes."""


class RuntimeFactory(Protocol):
    """Opens a runtime that workers share, see `cluster.actors`."""

    def open(self) -> Runtime: ...


class OnnxRuntime:
    """ONNX Runtime on one CPU thread: 4 to 5 times as fast as PyTorch, cosine over 0.9999."""

    def __init__(self, model: bytes) -> None:
        self._session = open_session(model)

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        embedding_BD: NDArray[np.float32] = self._session.run(None, {"pixels": pixels_BCHW})[0]
        return embedding_BD

    def submit(self, pixels_BCHW: NDArray[np.uint8]) -> Pending:
        embedding_BD = self.embed(pixels_BCHW)
        return lambda: embedding_BD


@dataclass(frozen=True)
class PreparedEncoder:
    """Everything that a worker needs to embed, ready to be sent to it."""

    config: EncoderConfig
    preprocessing: Preprocessing
    embedding_dim: int
    fingerprint: str  # what embeddings depend on, readable; comparable if it is equal
    model: bytes | None  # ONNX; None: PyTorch runs the encoder
    shared: RuntimeFactory | None = None  # embeds for all workers; None: each opens the encoder

    def open(self) -> Runtime:
        if self.shared is not None:
            return self.shared.open()
        if self.model is not None:
            return OnnxRuntime(self.model)
        from pipeline.encoders.torch_runtime import TorchRuntime

        return TorchRuntime.load(self.config)

    @property
    def is_torch(self) -> bool:
        return self.model is None

    @property
    def batch_bytes(self) -> int:
        """Size of the pixels and embeddings of a full batch."""
        num_pixels = 3 * self.preprocessing.image_size**2
        return self.config.batch_size * (num_pixels + 4 * self.embedding_dim)


def prepare_encoder(config: EncoderConfig, *, gpus_per_worker: float) -> PreparedEncoder:
    """Loads the encoder once for all processes that open it: workers or actors.

    Runtime `auto` is PyTorch if they have GPUs or the precision is bf16, else ONNX Runtime.
    """
    runtime = config.runtime
    if runtime == "auto":
        is_torch = gpus_per_worker > 0 or config.precision == "bf16"
        runtime = "torch" if is_torch else "onnxruntime"
    encoder: Encoder | ExportedEncoder
    if runtime == "onnxruntime":
        encoder = read(config, weights_digest(config)) or _export(config)
        identity, model = encoder.identity, encoder.model
    else:
        from pipeline.encoders.networks import encoder_identity, load_encoder

        encoder = load_encoder(config)
        identity, model = encoder_identity(encoder, config), None
    _log.info(
        "encoder %s: %d values of %d px, weights from %s",
        config.name, encoder.embedding_dim, encoder.preprocessing.image_size,
        weights_origin(config),
    )  # fmt: skip
    return PreparedEncoder(
        config=config,
        preprocessing=encoder.preprocessing,
        embedding_dim=encoder.embedding_dim,
        fingerprint=f"{identity}:{runtime}-{config.precision}:batch{config.batch_size}",
        model=model,
    )


def _export(config: EncoderConfig) -> ExportedEncoder:
    from pipeline.encoders.export import export_encoder

    return export_encoder(config)
