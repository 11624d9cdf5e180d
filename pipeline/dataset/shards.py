"""Rows become files: a table becomes a part, or a shard (tar) with its sidecar (parquet).

The bytes depend on the rows alone: fixed tar headers and member order, no time, no host.
WebDataset's convention: https://github.com/webdataset/webdataset#the-webdataset-format
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.metadata import (
    Counts,
    PartRecord,
    ShardFile,
    ShardRecord,
)
from pipeline.dataset.schema import SPLITS, RejectReason, Split, row_schema, with_columns

# What `<key>.json` tells of a sample, for readers that know the tar alone. Its
# inclusion_probability is that of the generation that wrote the tar: mining raises it in sidecars.
JSON_COLUMNS = (
    "key", "source", "uri", "label", "label_state", "class_name", "stratum", "group", "split",
    "content_hash", "similarity", "inclusion_probability", "license", "author", "width", "height",
)  # fmt: skip


# What a ledger tells of a row: what was seen and decided.
LEDGER_COLUMNS = tuple(n for n in row_schema(1).names if n not in ("image", "embedding"))


def output_group(*, source: str, split: str, label: str, selected: bool, reason: str | None) -> str:
    """Path stem of the shards that a row goes to, "" for none: one source, split and label each."""
    if reason == RejectReason.SUSPECTED_POSITIVE:
        return f"quarantine/{source}"
    if not selected:
        return ""
    return f"shards/{split}/{source}-{label}" if label else f"shards/{split}/{source}"


def parse_group(group: str) -> tuple[Split, str]:
    """Split and label of a group of shards; names hold no dash."""
    _, split, name = group.split("/")
    assert split in SPLITS
    return split, name.partition("-")[2]


def sort_files(files: Iterable[ShardFile]) -> tuple[list[ShardRecord], list[ShardFile]]:
    """Shards, and the files of the quarantine."""
    shards, quarantine = [], []
    for file in files:
        if file.path.startswith("quarantine/"):
            quarantine.append(file)
        else:
            split, label = parse_group(group_of(file.path))
            given = file.model_dump(include=set(ShardFile.model_fields))
            shards.append(ShardRecord(**given, split=split, label=label))
    return shards, quarantine


def group_of(path: str) -> str:
    """A path without its number and suffix."""
    return path.rpartition("-")[0]


def output_groups(rows: pa.Table) -> list[str]:
    """`output_group` of each row."""
    columns = ("source", "split", "label", "selected", "reject_reason")
    return [
        output_group(source=source, split=split, label=label, selected=selected, reason=reason)
        for source, split, label, selected, reason in zip(
            *(rows[column].to_pylist() for column in columns), strict=True
        )
    ]


def count_rows(rows: pa.Table) -> Counts:
    """Counts of decided rows; asserts that they add up."""
    rejected = {
        value["values"]: value["counts"]
        for value in pc.value_counts(rows["reject_reason"].drop_null()).to_pylist()
    }
    selected = pc.sum(rows["selected"]).as_py() or 0
    counts = Counts(
        read=rows.num_rows,
        selected=selected,
        not_selected=rows.num_rows - selected - sum(rejected.values()),
        rejected=dict(sorted(rejected.items())),
    )
    assert counts.adds_up()
    assert counts.not_selected >= 0
    return counts


def write_part(
    root: str,
    rows: pa.Table,
    *,
    source: str,
    round_number: int,
    span: int,
    span_id: str,
    part: int,
    is_last: bool,
) -> PartRecord:
    """Writes decided rows as a part: data first, then the record that commits it.

    Images and embeddings, most of a row's bytes, stay only on rows that go into a shard or into
    quarantine. No rows are a part too: an empty partition is done as any other.
    """
    kept = pa.array([bool(group) for group in output_groups(rows)], pa.bool_())
    heavy = {
        name: pc.if_else(kept, rows[name], pa.scalar(None, rows.schema.field(name).type))
        for name in ("image", "embedding")
    }
    rows = with_columns(rows, **heavy)
    path = manifest.part_stem(source, round_number, span, part) + ".parquet"
    with storage.open_atomic(storage.join(root, path)) as file:
        _write_parquet(rows, file)
    record = PartRecord(
        source=source,
        round=round_number,
        span=span,
        span_id=span_id,
        part=part,
        is_last=is_last,
        path=path,
        sha256=file.sha256,
        counts=count_rows(rows),
    )
    manifest.commit_part(root, record)
    return record


def refuse_rows(rows: pa.Table, reasons: Mapping[int, RejectReason]) -> pa.Table:
    """Rows of which some, by position, are rejected after they had been selected."""
    if not reasons:
        return rows
    is_refused = np.zeros(rows.num_rows, bool)
    is_refused[list(reasons)] = True
    given = pa.array([reasons.get(position) for position in range(rows.num_rows)], pa.string())
    return with_columns(
        rows,
        selected=pc.and_not(rows["selected"], pa.array(is_refused)),
        reject_reason=pc.coalesce(given, rows["reject_reason"]),
        inclusion_probability=pc.if_else(
            pa.array(is_refused), pa.scalar(None, pa.float32()), rows["inclusion_probability"]
        ),
    )


def write_shard(
    root: str, rows: pa.Table, *, stem: str, targets: Sequence[str], encoder: str, round_number: int
) -> ShardFile:
    """Writes `<stem>.tar` and `<stem>.parquet`. rows: `row_schema`, images present, unique keys."""
    offsets, sizes = [], []
    images = rows["image"]
    described = rows.select(list(JSON_COLUMNS)).to_pylist()
    with storage.open_atomic(storage.join(root, stem + ".tar")) as tar_file:
        for index, about in enumerate(described):
            image = images[index].as_buffer()
            about |= {"encoder": encoder, "generation": round_number}
            label_index = targets.index(about["label"]) + 1 if about["label"] else 0
            text = json.dumps(about, sort_keys=True, separators=(",", ":"))
            key = about["key"]
            _write_member(tar_file, f"{key}.cls", str(label_index).encode())
            offsets.append(_write_member(tar_file, f"{key}.jpg", image))
            sizes.append(image.size)
            _write_member(tar_file, f"{key}.json", text.encode())
        tar_file.write(b"\0" * 1024)  # POSIX: two zero blocks end an archive
    sidecar = with_columns(
        rows.drop_columns(["image"]),
        tar_offset=pa.array(offsets, pa.int64()),
        tar_size=pa.array(sizes, pa.int64()),
    )
    with storage.open_atomic(storage.join(root, stem + ".parquet")) as sidecar_file:
        _write_parquet(sidecar, sidecar_file)
    return ShardFile(
        path=stem + ".tar",
        sha256=tar_file.sha256,
        size_bytes=tar_file.size_bytes,
        sidecar_path=stem + ".parquet",
        sidecar_sha256=sidecar_file.sha256,
        num_samples=rows.num_rows,
        source=rows["source"][0].as_py(),
    )


def differences(about: Mapping[str, Any], row: Mapping[str, Any], *, has_risen: bool) -> list[str]:
    """Columns of which `<key>.json` tells otherwise than the sidecar.

    has_risen: the probability may be larger now.
    """
    names = [name for name in JSON_COLUMNS if about.get(name) != row[name]]
    then, now = about.get("inclusion_probability"), row["inclusion_probability"]
    if has_risen and then is not None and now is not None and then < now:
        names.remove("inclusion_probability")
    return names


def _write_member(file: storage.HashingWriter, name: str, data: bytes | pa.Buffer) -> int:
    """Appends one tar member and returns the offset of its data."""
    header = tarfile.TarInfo(name)  # mtime, uid and gid are 0, names empty
    header.size = len(data)
    header.mode = 0o644
    file.write(header.tobuf(tarfile.USTAR_FORMAT))
    offset = file.tell()
    file.write(data)
    file.write(b"\0" * (-len(data) % tarfile.BLOCKSIZE))
    return offset


def _write_parquet(rows: pa.Table, file: storage.HashingWriter) -> None:
    buffer = io.BytesIO()
    # How rows came together shows in the pages of a file, and must not.
    pq.write_table(rows.combine_chunks(), buffer, compression="zstd", compression_level=1)
    file.write(buffer.getvalue())


def read_shard(root: str, file: ShardFile) -> tuple[pa.Table, int]:
    """Rows of a shard with their images, and the round of its source that it is of."""
    rows = manifest.read_table(root, file.sidecar_path)
    tar = storage.read_bytes(storage.join(root, file.path))
    places = zip(rows["tar_offset"].to_pylist(), rows["tar_size"].to_pylist(), strict=True)
    images = pa.array([tar[offset : offset + size] for offset, size in places], pa.large_binary())
    rows = rows.drop_columns(["tar_offset", "tar_size"]).append_column("image", images)
    return rows, _round_of(tar)


def _round_of(tar: bytes) -> int:
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            if member.name.endswith(".json"):
                content = archive.extractfile(member)
                assert content is not None
                return int(json.loads(content.read())["generation"])
    raise AssertionError("a shard holds a sample")


def has_mined_sidecar(file: ShardFile) -> bool:
    """Whether the probabilities of its samples have risen since its tar was written."""
    stem = file.path.removesuffix(".tar")
    return re.fullmatch(re.escape(stem) + r"\.g\d{6}\.parquet", file.sidecar_path) is not None
