"""Mean and standard deviation of each feature over the photographs of a train split.

Generated pictures are left out: they are of a few kinds that no camera takes, and would stretch the
scale of the features that tell them apart. Shapes: B batch, D embedding, N rows, S sample of them.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.encoders.networks import Encoder
from pipeline.encoders.preprocessing import crop_decoded
from train.data.bad_shards import RowImages
from train.data.embeddings import MappedEmbeddings
from train.data.rows import TrainRows

_MOST_ROWS, _MOST_IMAGES = 50_000, 512  # enough for two digits of each number
_ROWS_AT_ONCE, _IMAGES_AT_ONCE = 4096, 32
_LEAST_SD = 1e-6  # of a feature that varies; others are only centred


def photograph_statistics(
    rows: TrainRows, embedding_ND: NDArray[np.float16] | MappedEmbeddings
) -> tuple[Tensor, Tensor]:
    """mean_D and sd_D float32; of all rows where there are no photographs."""
    rows_S = _sample(rows, _MOST_ROWS)
    batches = np.array_split(rows_S, -(-len(rows_S) // _ROWS_AT_ONCE))
    return _statistics([embedding_ND[rows_B].astype(np.float64) for rows_B in batches])


def embed_photographs(
    rows: TrainRows, images: RowImages, encoder: Encoder
) -> tuple[Tensor, Tensor]:
    """The same for a run that uses no embeddings of the data set, which may have none that fit."""
    rows_S = _sample(rows, _MOST_IMAGES)
    embeddings = []
    for rows_B in np.array_split(rows_S, -(-len(rows_S) // _IMAGES_AT_ONCE)):
        pixels_BCHW = np.stack(
            [crop_decoded(images.decode(row), encoder.preprocessing) for row in rows_B.tolist()]
        )
        with torch.inference_mode():
            embedding_BD = encoder(torch.from_numpy(pixels_BCHW).to(encoder.mean.device))
        embeddings.append(embedding_BD.cpu().double().numpy())
    return _statistics(embeddings)


def _sample(rows: TrainRows, number: int) -> NDArray[np.int64]:
    """At most so many photographs, evenly spread over the shards."""
    rows_N = np.flatnonzero(rows.is_photo_N)
    if not len(rows_N):
        rows_N = np.arange(len(rows.is_photo_N))
    return rows_N[:: -(-len(rows_N) // number)]


def _statistics(embeddings: list[NDArray[np.float64]]) -> tuple[Tensor, Tensor]:
    embedding_SD = np.concatenate(embeddings)
    sd_D = embedding_SD.std(axis=0)
    sd_D = np.where(sd_D < _LEAST_SD, 1.0, sd_D)
    return torch.from_numpy(embedding_SD.mean(axis=0)).float(), torch.from_numpy(sd_D).float()
