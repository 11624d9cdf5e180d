"""Data sets that no encoder has looked at: rows as a build would decide them, of made-up images.

Parts, shards, tables and generations are written by the project's own functions, so that what is
measured of a million candidates is what a build of as many does, but for reading and embedding.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa

from pipeline.build.pack import cut_shards, pack_shard
from pipeline.dataset.dataset import Dataset, round_folder
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.keys import make_key, split_of, unit_hash
from pipeline.dataset.metadata import (
    Counts,
    DatasetInfo,
    Generation,
    PartRecord,
    ShardFile,
    SourcePlan,
    SourceRecord,
)
from pipeline.dataset.schema import row_schema
from pipeline.dataset.shards import sort_files, write_part
from pipeline.dataset.tables import RoundTables, write_tables
from support.tables import table_of

SOURCE = "stream"
FRACTIONS = {"train": 0.7, "val": 0.15, "test": 0.15}
SAMPLES_PER_PARTITION = 1000


def decided_rows(
    first: int, number: int, *, share: float = 0.01, dim: int = 1280, image_bytes: int = 20_000
) -> pa.Table:
    """`number` rows from candidate `first` on, of which about `share` are selected."""
    rng = np.random.default_rng(first)
    numbers = range(first, first + number)
    partitions = [f"{n // SAMPLES_PER_PARTITION:06d}.tar" for n in numbers]
    ordinals = [n % SAMPLES_PER_PARTITION for n in numbers]
    hashes = [hashlib.sha256(str(n).encode()).hexdigest() for n in numbers]
    selected = [unit_hash(0, digest) < np.float32(share) for digest in hashes]
    columns: dict[str, object] = {
        "key": [make_key(SOURCE, p, o) for p, o in zip(partitions, ordinals, strict=True)],
        "source": SOURCE,
        "partition": partitions,
        "ordinal": ordinals,
        "uri": [f"s3://bucket/{p}#{o:06d}.jpg" for p, o in zip(partitions, ordinals, strict=True)],
        "label": "",
        "label_state": "unknown",
        "group": hashes,
        "split": [split_of(digest, FRACTIONS) for digest in hashes],
        "content_hash": hashes,
        "perceptual_hash": rng.integers(0, 2**64, number, np.uint64),
        "image": [rng.bytes(image_bytes) if is_selected else None for is_selected in selected],
        "width": 256,
        "height": 256,
        "embedding": list(rng.standard_normal((number, dim)).astype(np.float16)),
        "similarity": rng.standard_normal(number).astype(np.float32),
        "inclusion_probability": share,
        "selected": selected,
    }
    return table_of(number, row_schema(dim), columns)


def write_parts(
    root: Path | str,
    num_parts: int,
    *,
    samples_per_part: int = 512,
    round_number: int = 1,
    first: int = 0,
    **rows: float,
) -> list[PartRecord]:
    """Parts of a round, a span each, from candidate `first` on."""
    return [
        write_part(
            Dataset(str(root)),
            decided_rows(first + n * samples_per_part, samples_per_part, **rows),  # type: ignore[arg-type]
            SimpleNamespace(source=SOURCE, round=round_number, span=n, span_id="0" * 16),
            part=0,
            is_last=True,
        )
        for n in range(num_parts)
    ]


def write_part_records(root: Path, num_parts: int) -> None:
    """The records alone of the parts of a round, without the waits for the disk of a commit."""
    counts = Counts(read=512, selected=5, not_selected=505, rejected={"truncated": 2})
    folder = root / round_folder(SOURCE, 1)
    folder.mkdir(parents=True)
    for span in range(num_parts):
        stem = f"{round_folder(SOURCE, 1)}/{span:06d}-000000"
        record = PartRecord(
            source=SOURCE, round=1, span=span, span_id=f"{span:016x}", part=0, is_last=True,
            path=f"{stem}.parquet", sha256=f"{span:064x}", counts=counts,
        )  # fmt: skip
        (root / f"{stem}.json").write_text(record.model_dump_json(indent=1))


def plan_of(num_partitions: int) -> SourcePlan:
    return SourcePlan(
        source=SOURCE, role="negative", fingerprint="f", num_partitions=num_partitions,
        num_listed=num_partitions, partitions_per_budget=num_partitions, partitions_per_span=1,
        spans_per_round=num_partitions, samples_per_partition=512.0, scale=1.0,
        eval_probability=0.01, expected_selected={}, expected_rejected={}, expected_bytes=0.0,
        num_pilot=0, seconds_per_candidate=0.01,
    )  # fmt: skip


def tables_of(
    root: Path | str, parts: Sequence[PartRecord], seen: SeenImages | None = None
) -> RoundTables:
    number = parts[0].round
    return write_tables(
        Dataset(str(root)),
        [part.path for part in parts],
        SeenImages() if seen is None else seen,
        ledger_path=f"ledger/{SOURCE}-{number:06d}.parquet",
        hashes_path=f"hashes/{SOURCE}-{number:06d}.parquet",
    )


def pack_round(root: Path | str, tables: RoundTables) -> list[ShardFile]:
    tasks = cut_shards(
        tables.parts, source=SOURCE, samples_per_shard=1000, round_number=1, next_numbers={}
    )
    return [
        pack_shard(Dataset(str(root)), task, targets=("cat",), encoder="none") for task in tasks
    ]


def seen_images(number: int, seed: int) -> pa.Table:
    """What refuses duplicates looks at, of images that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    hashes = [f"{n:064x}" for n in rng.integers(0, 2**63, number)]
    splits = ["train", "val", "test", "train", "train"] * (number // 5)
    looks = rng.integers(0, 2**64, number, np.uint64)
    return pa.table({"content_hash": hashes, "perceptual_hash": looks, "split": splits})


def write_dataset(root: Path | str, num_parts: int, **rows: float) -> Generation:
    """A data set of one round, as `infineg verify` reads it."""
    parts = write_parts(root, num_parts, **rows)
    tables = tables_of(root, parts)
    shards, quarantine = sort_files(pack_round(root, tables))
    inputs = {"split": {"val": 0.15, "test": 0.15}, "selection": {"seed": 0}}
    info = DatasetInfo(
        targets=("cat",), encoder="none", embedding_dim=4, fingerprint="f",
        fingerprint_inputs=inputs, latest_generation=0,
    )  # fmt: skip
    source = SourceRecord(
        name=SOURCE, fingerprint="f", role="negative", num_rounds=1, num_partitions=num_parts,
        counts=tables.counts, ledger=(tables.ledger,), hashes=(tables.hashes,),
    )  # fmt: skip
    generation = Generation(
        number=1, parent=None, sources=(source,), shards=tuple(shards),
        quarantine=tuple(quarantine), next_numbers={},
    )  # fmt: skip
    Dataset(str(root)).write_info(info)
    Dataset(str(root)).commit_generation(generation)
    Dataset(str(root)).write_derived(generation)
    return generation
