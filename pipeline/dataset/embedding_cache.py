"""Embeddings of all candidates, kept so that changed positives or probabilities cost no encoder.

One file a part beside the data set, `embeddings/<source>/<round>/<span>-<part>.parquet`. It is a
cache: deleted, it costs time and nothing else.
"""

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.schema import ImageSettings, with_columns
from pipeline.errors import ConfigError, InfinegError

_ADDED = ("perceptual_hash", "width", "height", "embedding")
_INFO = "embeddings/info.json"


class EmbeddingsInfo(BaseModel, frozen=True, extra="forbid"):
    """What embeddings depend on."""

    encoder: str
    images: ImageSettings


def write_info(root: str, info: EmbeddingsInfo) -> None:
    """Once: a data set keeps its encoder and its image settings."""
    uri = storage.join(root, _INFO)
    if not storage.exists(uri):
        storage.write_atomic(uri, info.model_dump_json(indent=1).encode())


def require_info(root: str, wanted: EmbeddingsInfo) -> None:
    """Raises ConfigError where the data set at `root` keeps none, or those of other images."""
    uri = storage.join(root, _INFO)
    if not storage.exists(uri):
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(uri)} is not there: no data set, or one built "
            "with build.keep_embeddings=false"
        )
    manifest.read_info(root)  # refuses one that embedded only some candidates, by a cascade
    found = EmbeddingsInfo.model_validate_json(storage.read_bytes(uri))
    if found != wanted:
        raise ConfigError(
            f"build.embeddings_from: {storage.redact(root)} has {found}, this data set wants "
            f"{wanted}. Leave the setting out to embed anew"
        )


def write_embeddings(root: str, stem: str, rows: pa.Table) -> None:
    """rows: of one part, decoded and embedded, with no reject_reason but those of decoding."""
    with storage.open_atomic(storage.join(root, _path(stem))) as file:
        kept = rows.select(["content_hash", *_ADDED, "reject_reason"]).combine_chunks()
        pq.write_table(kept, file, compression="none")


def read_embeddings(root: str, stem: str) -> pa.Table | None:
    """What `write_embeddings` wrote of a part; None where it did not."""
    path = _path(stem)
    if not storage.exists(storage.join(root, path)):
        return None
    return manifest.read_table(root, path)


def attach_embeddings(rows: pa.Table, cached: pa.Table) -> pa.Table:
    """rows, read but not decoded, with what decoding and embedding added then.

    Raises InfinegError where the source holds other images now.
    """
    if not cached["content_hash"].equals(rows["content_hash"]):
        raise InfinegError(
            f"build.embeddings_from: around {rows['uri'][0] if len(rows) else 'the end'} the "
            "source is not what it was when it was embedded. Leave the setting out to embed anew"
        )
    reasons = pc.coalesce(rows["reject_reason"], cached["reject_reason"])
    added = {name: cached[name] for name in _ADDED}
    return with_columns(rows, reject_reason=reasons, **added)


def folder_of(round_folder: str) -> str:
    """Where the embeddings of a round are, whose parts are in `round_folder`."""
    return f"embeddings/{round_folder.removeprefix('parts/')}"


def _path(stem: str) -> str:
    return f"{folder_of(stem)}.parquet"
