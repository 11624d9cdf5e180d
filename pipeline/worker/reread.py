"""Reads images and embeddings of candidates again, from their source and from kept files.

Knows nothing of what they are used for.
"""

from collections.abc import Sequence
from itertools import groupby

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.embedding_cache import KeptEmbeddings
from pipeline.dataset.schema import ImageSettings, Partition
from pipeline.sources import Source
from pipeline.sources.rereading import reread_images

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
        image
        for name, own in groupby(described, key=lambda row: row["partition"])
        for image in reread_images(source, by_id[name], list(own), settings)
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
