"""Damages files: a flipped bit, or a data set as no build leaves it, with checksums that fit."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import generation_path
from pipeline.dataset.metadata import Generation, ShardRecord
from pipeline.dataset.records import encode_record
from pipeline.dataset.schema import with_columns


def flip(path: Path, position: float = 0.5) -> None:
    """A bit of a file, at a fraction of its length."""
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 0x01
    path.write_bytes(content)


def rewrite_generation(root: Path, generation: Generation) -> None:
    """Of the latest generation."""
    path = root / generation_path(generation.number)
    path.write_bytes(encode_record(generation))
    Dataset(str(root)).write_derived(generation)


def change_sidecar(root: Path, shard: ShardRecord, column: str, value: object) -> str:
    """Sets the first value of a column of a sidecar; returns the key of that sample."""
    rows = Dataset(str(root)).read_sidecar(shard)
    changed = pa.array([value, *rows[column].to_pylist()[1:]], rows.schema.field(column).type)
    replace_sidecar(root, shard, with_columns(rows, **{column: changed}))
    return str(rows["key"][0].as_py())


def replace_sidecar(root: Path, shard: ShardRecord, rows: pa.Table) -> None:
    path = root / shard.sidecar_path
    pq.write_table(rows, path)
    fitting = shard.model_copy(update={"sidecar_sha256": storage.sha256_of(str(path))})
    generation = Dataset(str(root)).read_generation()
    shards = tuple(fitting if s == shard else s for s in generation.shards)
    rewrite_generation(root, generation.model_copy(update={"shards": shards}))
