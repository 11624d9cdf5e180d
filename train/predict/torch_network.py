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
from train.predict.network import Outputs


class TorchNetwork:
    """On a GPU if there is one, else on all cores, a batch after the other."""

    batch_size = 32

    def __init__(self, run: str | os.PathLike[str]) -> None:
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(run)[0].to(self._device)
        # On CPUs it has threads of its own.
        is_cpu = self._device.type == "cpu"
        self._turn = threading.Lock() if is_cpu else contextlib.nullcontext()

    def run(self, pixels_BCHW: NDArray[np.uint8]) -> Outputs:
        with self._turn, torch.inference_mode():
            embedding_BD = self._model.encoder(torch.from_numpy(pixels_BCHW).to(self._device))
            logits_BK = self._model.head_logits(embedding_BD)
            return Outputs(logits_BK.cpu().numpy(), embedding_BD.float().cpu().numpy())
