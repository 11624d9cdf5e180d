"""`neighbours.parquet`: the training pictures that a prediction is explained by.

All positives and the negatives most like them, at most some thousands of each, with their
embeddings by the encoder of the run and small previews. Imports no torch, and needs neither the
data set nor the network, so that whatever predicts can show them.

One row a picture: key, source, uri, license, label ("" for none of the targets), embedding
(float16, L2-normalised) and preview (JPEG). Pages of the file carry checksums.
Shapes: N queries, R rows, D embedding, k neighbours.
"""

import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import storage
from pipeline.dataset.schema import embedding_matrix
from pipeline.errors import InfinegError

FILE_NAME = "neighbours.parquet"
PREVIEW_SIDE = 112  # pixels, longer side: 3 kB
_SHOWN = ("key", "source", "uri", "license", "label", "preview")


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A training picture and its similarity (cosine of the embeddings) to the picture asked for."""

    similarity: float
    key: str
    source: str
    uri: str
    license: str | None
    label: str  # "" for none of the targets
    preview: bytes  # JPEG


@dataclass(frozen=True)
class Nearest:
    """The training pictures most like a picture, nearest first: of the target, and of all else."""

    positives: list[Neighbour]
    negatives: list[Neighbour]


class Neighbours:
    """The training pictures of a run, by embedding.

    >>> neighbours = Neighbours.load("runs/cat")
    >>> nearest = neighbours.nearest(embedding_ND, target="cat")[0]
    >>> [(each.similarity, each.uri) for each in nearest.positives]
    """

    def __init__(self, rows: pa.Table) -> None:
        self._rows = rows.select(_SHOWN)
        self._label_R = np.array(rows["label"].to_pylist(), object)
        self._embedding_RD = embedding_matrix(rows)

    @classmethod
    def load(cls, run: str | os.PathLike[str]) -> "Neighbours | None":
        """None if the run has none. Raises InfinegError if the file is damaged."""
        path = Path(run) / FILE_NAME
        if not path.exists():
            return None
        try:
            content = io.BytesIO(path.read_bytes())
            return cls(pq.read_table(content, page_checksum_verification=True))
        except (OSError, pa.ArrowException, KeyError) as error:
            first = str(error).partition("\n")[0]
            raise InfinegError(
                f"{path}: damaged ({first}); `infineg evaluate {run}` writes it again, and without "
                "it predictions are made as before"
            ) from None

    def __len__(self) -> int:
        return len(self._rows)

    def nearest(
        self, embedding_ND: NDArray[np.floating], *, target: str, k: int = 3
    ) -> list[Nearest]:
        """At most k of each kind for each embedding; other targets are negatives of a target.

        embedding_ND: by the encoder of the run, L2-normalised.
        """
        similarity_NR = embedding_ND.astype(np.float32) @ self._embedding_RD.T
        is_target_R = self._label_R == target
        kinds = [self._best(similarity_NR, kind_R, k) for kind_R in (is_target_R, ~is_target_R)]
        return [Nearest(*kinds_of_one) for kinds_of_one in zip(*kinds, strict=True)]

    def _best(
        self, similarity_NR: NDArray[np.float32], is_member_R: NDArray[np.bool_], k: int
    ) -> list[list[Neighbour]]:
        rows_M = np.flatnonzero(is_member_R)
        # Stable, so that ties are in the order of the file.
        best_Nk = rows_M[np.argsort(-similarity_NR[:, rows_M], axis=1, kind="stable")[:, :k]]
        return [
            [
                Neighbour(similarity=float(similarity_R[row]), **shown)
                for row, shown in zip(best_k, self._rows.take(best_k).to_pylist(), strict=True)
            ]
            for best_k, similarity_R in zip(best_Nk, similarity_NR, strict=True)
        ]


def write_neighbours(run: str | os.PathLike[str], rows: pa.Table | None) -> None:
    """rows: see above; None removes the file, so that none of another evaluation stays."""
    if rows is None:
        (Path(run) / FILE_NAME).unlink(missing_ok=True)
        return
    content = io.BytesIO()
    pq.write_table(rows, content, compression="zstd", write_page_checksum=True)
    storage.write_atomic(str(Path(run) / FILE_NAME), content.getvalue())
