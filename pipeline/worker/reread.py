"""Reads images and embeddings of candidates again, from their source and from kept files.

Knows nothing of what they are used for.
"""

import hashlib
from collections.abc import Iterator, Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.embedding_cache import KeptEmbeddings
from pipeline.dataset.schema import ImageSettings, Partition, RawSample
from pipeline.errors import InfinegError
from pipeline.sources import Source, read_at
from pipeline.worker.steps.decode import decode_batch

_READ = ("source", "partition", "ordinal", "uri", "rotation", "content_hash")


def read_images(
    source: Source, partitions: Sequence[Partition], rows: pa.Table, settings: ImageSettings
) -> pa.Array:
    """The images of rows of a source, decoded and encoded as in shards.

    rows: of a ledger, in its order, of `partitions`. Raises InfinegError if the source has changed.
    """
    by_id = {partition.id: partition for partition in partitions}
    described = rows.select(list(_READ)).to_pylist()
    images = [
        _decode(sample, row, settings)
        for name, of_partition in groupby(described, key=lambda row: row["partition"])
        for sample, row in _read_samples(source, by_id[name], list(of_partition))
    ]
    return pa.array(images, pa.large_binary())


def read_kept(root: str, rows: pa.Table) -> pa.Array:
    """The embeddings at `embedding_path` and `embedding_row` of rows; equal paths are adjacent."""
    tables = []
    kept = KeptEmbeddings(root)
    for path in dict.fromkeys(rows["embedding_path"].to_pylist()):
        places = rows["embedding_row"].filter(pc.equal(rows["embedding_path"], path))
        tables.append(kept.read(path, ["embedding"]).take(places))
    return pa.concat_tables(tables)["embedding"].combine_chunks()


def changed_source(source: str, where: str) -> InfinegError:
    return InfinegError(
        f"source {source!r}: {storage.redact(where)} has changed since the data set was built. "
        "Restore the source, or leave it out (--source)"
    )


def _read_samples(
    source: Source, partition: Partition, rows: Sequence[dict[str, object]]
) -> Iterator[tuple[RawSample, dict[str, object]]]:
    """The sample of each row, by its ordinal."""
    ordinals = [int(str(row["ordinal"])) for row in rows]
    num_read = 0
    for sample, row in zip(read_at(source, partition, ordinals), rows, strict=False):
        yield sample, row
        num_read += 1
    if num_read < len(rows):
        raise changed_source(str(rows[num_read]["source"]), str(rows[num_read]["uri"]))


def _decode(sample: RawSample, row: dict[str, object], settings: ImageSettings) -> bytes:
    if hashlib.sha256(sample.image).hexdigest() != row["content_hash"]:
        raise changed_source(str(row["source"]), str(row["uri"]))
    read = pa.table(
        {
            "image": pa.array([sample.image], pa.large_binary()),
            "rotation": pa.array([row["rotation"]], pa.int32()),
            "reject_reason": pa.nulls(1, pa.string()),
        }
    )
    image = decode_batch(read, settings)["image"][0].as_py()
    assert isinstance(image, bytes), "the same bytes were decoded before"
    return image
