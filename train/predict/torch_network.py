"""The network of a detector by PyTorch. Imported only where it runs, since that takes seconds.

Shapes: B batch, C H W image, K targets.
"""

import contextlib
import os
import threading

import numpy as np
import torch
from numpy.typing import NDArray

from train.model.detector import load_model


class TorchNetwork:
    """On a GPU if there is one, else on all cores, a batch after the other."""

    batch_size = 32

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(run)[0].to(self._device)
        # On CPUs it has threads of its own.
        is_cpu = self._device.type == "cpu"
        self._turn = threading.Lock() if is_cpu else contextlib.nullcontext()

    def logits(self, pixels_BCHW: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._turn, torch.inference_mode():
            logits_BK = self._model(torch.from_numpy(pixels_BCHW).to(self._device))
            logits: NDArray[np.float32] = logits_BK.cpu().numpy()
            return logits
