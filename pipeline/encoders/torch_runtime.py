"""Runs an encoder by PyTorch.

Shapes: B batch, C H W image, D embedding.
"""

from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.config.encoder import EncoderConfig
from pipeline.encoders.networks import Encoder, load_encoder
from pipeline.encoders.runtimes import Pending


class TorchRuntime:
    """PyTorch, on a GPU if there is one; `bf16` by autocast."""

    def __init__(self, encoder: Encoder, *, precision: str = "fp32") -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoder = encoder.to(self._device)
        self._is_bf16 = precision == "bf16"

    @classmethod
    def load(cls, config: EncoderConfig) -> Self:
        return cls(load_encoder(config), precision=config.precision)

    def embed(self, pixels_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self.submit(pixels_BCHW)()

    def submit(self, pixels_BCHW: NDArray[np.uint8]) -> Pending:
        with (
            torch.inference_mode(),
            torch.autocast(self._device.type, torch.bfloat16, enabled=self._is_bf16),
        ):
            embedding_BD = self._encoder(torch.from_numpy(pixels_BCHW).to(self._device))
        return lambda: embedding_BD.cpu().numpy()
