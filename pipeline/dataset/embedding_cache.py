"""Embeddings of all candidates, kept so that new positives or probabilities need no encoder.

One file per part, `embeddings/<source>/<round>/<span>-<part>.parquet`. It is a cache: deleting it
costs only time.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import storage
from pipeline.dataset.dataset import Dataset
from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import ImageSettings, with_columns
from pipeline.dataset.taken_down import refuse_taken_down, same_pictures
from pipeline.errors import ConfigError, InfinegError

_ADDED = ("perceptual_hash", "width", "height", "embedding")
KEPT = ("content_hash", *_ADDED, "reject_reason")
_INFO = "embeddings/info.json"


class EmbeddingsInfo(BaseModel, frozen=True, extra="forbid"):
    """The settings that embeddings depend on."""

    encoder: str
    images: ImageSettings


def write_info(root: str, info: EmbeddingsInfo) -> None:
    """Writes it once: a data set keeps its encoder and its image settings."""
    uri = Dataset(root).uri(_INFO)
    if not storage.exists(uri):
        storage.write_atomic(uri, info.model_dump_json(indent=1).encode())


def require_info(root: str, wanted: EmbeddingsInfo) -> None:
    """Raises ConfigError if the data set at `root` has none, or made with other settings."""
    dataset = Dataset(root)
    uri = dataset.uri(_INFO)
    if not storage.exists(uri):
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(uri)} is not there: no data set, or one built "
            "with build.keep_embeddings=false"
        )
    if dataset.exists():
        dataset.read_info()  # refuses one that embedded only some candidates, by a cascade
    found = EmbeddingsInfo.model_validate_json(storage.read_bytes(uri))
    if found != wanted:
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(root)} has {found}, this data set needs "
            f"{wanted}. Leave the setting out to embed again"
        )


def write_embeddings(root: str, stem: str, rows: pa.Table) -> None:
    """rows: of one part, decoded and embedded, with only the reject_reasons of decoding."""
    with storage.open_atomic(Dataset(root).uri(_path(stem))) as file:
        kept = rows.select(KEPT).combine_chunks()
        pq.write_table(kept, file, compression="none")


def read_embeddings(root: str, stem: str) -> pa.Table | None:
    """The rows that `write_embeddings` has written of a part, if it has."""
    dataset, path = Dataset(root), _path(stem)
    return dataset.read_table(path) if storage.exists(dataset.uri(path)) else None


def forget_embeddings(dataset: Dataset, path: str, taken_down: TakenDown) -> None:
    """Writes a file of embeddings anew, without those of pictures that are taken down."""
    rows = refuse_taken_down(dataset.read_table(path), taken_down)
    with storage.open_atomic(dataset.uri(path)) as file:
        pq.write_table(rows.combine_chunks(), file, compression="none")


def attach_embeddings(rows: pa.Table, cached: pa.Table) -> pa.Table:
    """Adds the cached columns to rows that are read but not decoded.

    A picture that was taken down, here or there, gets no embedding. Raises InfinegError if the
    source holds other images now.
    """
    if not same_pictures(cached["content_hash"], rows["content_hash"]):
        raise InfinegError(
            f"build.embeddings_from: around {rows['uri'][0] if len(rows) else 'the end'} the "
            "source is not what it was when it was embedded. Leave the setting out to embed again"
        )
    refused = rows["content_hash"].is_null()
    added = {
        name: pc.if_else(refused, pa.scalar(None, cached.schema.field(name).type), cached[name])
        for name in _ADDED
    }
    reasons = pc.coalesce(rows["reject_reason"], cached["reject_reason"])
    return with_columns(rows, reject_reason=reasons, **added)


def folder_of(round_folder: str) -> str:
    """Folder of the embeddings of a round, given the folder of its parts."""
    return f"embeddings/{round_folder.removeprefix('parts/')}"


def _path(stem: str) -> str:
    return f"{folder_of(stem)}.parquet"
