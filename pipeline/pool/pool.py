"""Reads and writes the files of a pool. Knows nothing of sources, workers or selection."""

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from pipeline import storage
from pipeline.config.schema import SourceEntry, fingerprint
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import EmbeddingsInfo
from pipeline.dataset.images import upright_jpeg
from pipeline.dataset.records import encode_record
from pipeline.dataset.schema import ImageSettings
from pipeline.dataset.seen_labels import SeenLabels
from pipeline.errors import BadShard, ConfigError, InfinegError

_INFO = "pool.json"
_PREVIEWS = ImageSettings(image_size=64, jpeg_quality=75)
_IS_LAST, _LEFT_OUT = b"is_last", b"left_out"  # in the metadata of a part


class PooledSource(BaseModel, frozen=True, extra="forbid"):
    """`source.json`: what was pooled of a source, and of which files."""

    kind: str
    name: str  # in the config by which it was pooled first
    num_partitions: int  # taken of those listed
    num_listed: int | None
    partitions_per_span: int
    files: str  # the table of its files; "" if it reads none


@dataclass(frozen=True)
class PooledPart:
    """Consecutive candidates of a span, decoded and embedded.

    rows: as their source has them, without image or what a config adds; with `perceptual_hash`,
    `width`, `height`, `embedding`, `reject_reason` of reading and decoding, and the bytes of the
    image as read and as in a shard (`read_bytes`, `size_bytes`, int64).
    """

    rows: pa.Table
    is_last: bool  # of the span
    left_out: SeenLabels | None  # by the source, in the span so far
    images: pa.ChunkedArray | None = None  # where they have just been read


class Pool:
    """A pool on disk or in an object store, which need not exist yet."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.files = Dataset(root)

    def require_info(self, wanted: EmbeddingsInfo) -> None:
        """Begins a pool; raises ConfigError if there is one that was made with other settings."""
        found = self.files.read_record(_INFO, EmbeddingsInfo)
        if found is None:
            storage.write_atomic(self.files.uri(_INFO), encode_record(wanted))
        elif found != wanted:
            raise ConfigError(
                f"pool: {storage.redact(self.root)} has {found}, this data set needs {wanted}. "
                "Name another folder, in which a pool is begun, or leave the setting out"
            )

    def read_source(self, entry: SourceEntry) -> PooledSource | None:
        return self.files.read_record(_source_path(entry), PooledSource)

    def write_source(self, entry: SourceEntry, source: PooledSource) -> None:
        uri = self.files.uri(_source_path(entry))
        storage.write_atomic(uri, encode_record(source), replaces=True)

    def remove_source(self, entry: SourceEntry) -> None:
        storage.remove_tree(self.files.uri(folder_of(entry)))

    def num_parts(self, entries: Iterable[SourceEntry]) -> int:
        """Files of candidates that these sources have, by a listing."""
        folders = (self.files.uri(folder_of(entry)) for entry in entries)
        return sum(len(storage.list_files(folder, (".parquet",))) for folder in folders)

    def read_part(self, entry: SourceEntry, span_id: str, part: int) -> PooledPart | None:
        """None if it is not there. Raises InfinegError if it is damaged."""
        path = _part_path(entry, span_id, part)
        try:
            rows = self.files.read_table(path, _COLUMNS)
        except FileNotFoundError:
            return None
        except BadShard as error:
            reason = str(error).partition("; ")[0]
            raise InfinegError(f"{reason}; remove it, and it is read from its source") from None
        metadata = rows.schema.metadata
        left_out = metadata.get(_LEFT_OUT)
        return PooledPart(
            rows.replace_schema_metadata(None),
            is_last=bool(int(metadata[_IS_LAST])),
            left_out=None if left_out is None else SeenLabels.model_validate_json(left_out),
        )

    def write_part(self, entry: SourceEntry, span_id: str, part: int, content: PooledPart) -> None:
        """Writes a part, with previews; content: with images."""
        assert content.images is not None
        previews = [_preview(image.as_buffer()) for image in content.images]
        rows = content.rows.append_column("preview", pa.array(previews, pa.binary()))
        metadata = {_IS_LAST: str(int(content.is_last))}
        if content.left_out is not None:
            metadata[_LEFT_OUT] = content.left_out.model_dump_json()
        rows = rows.replace_schema_metadata(metadata).combine_chunks()
        with storage.open_atomic(self.files.uri(_part_path(entry, span_id, part))) as file:
            pq.write_table(
                rows,
                file,
                # Embeddings and JPEGs are as small as they get.
                compression=dict.fromkeys(_TEXT, "zstd"),
                write_page_checksum=True,
            )


_TEXT = (
    "partition", "uri", "label", "label_state", "class_name", "stratum", "group", "license",
    "author", "doubt", "content_hash", "reject_reason",
)  # fmt: skip
_COLUMNS = (
    "partition", "ordinal", "uri", "label", "label_state", "class_name", "stratum", "group",
    "license", "author", "rotation", "doubt", "content_hash", "perceptual_hash", "width", "height",
    "embedding", "reject_reason", "read_bytes", "size_bytes",
)  # fmt: skip


def folder_of(entry: SourceEntry) -> str:
    """By what decides which samples a source has, not by its name or its budget."""
    made_of = fingerprint({"kind": entry.kind, "params": entry.params})
    return f"{entry.kind}-{made_of[:16]}"


def _source_path(entry: SourceEntry) -> str:
    return f"{folder_of(entry)}/source.json"


def _part_path(entry: SourceEntry, span_id: str, part: int) -> str:
    return f"{folder_of(entry)}/{span_id}-{part:06d}.parquet"


def _preview(image: pa.Buffer | None) -> bytes | None:
    """A JPEG of at most 64 pixels on the shorter side, of a decoded image."""
    if image is None:
        return None
    return upright_jpeg(image.to_pybytes(), rotation=0, settings=_PREVIEWS)[0]
