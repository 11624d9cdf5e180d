"""Writes and reads the files that rows become: parts, and shards (tar) with sidecars (parquet).

The bytes depend only on the rows: fixed tar headers and member order, no time, no host.
WebDataset's convention: https://github.com/webdataset/webdataset#the-webdataset-format
"""

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.dataset import Dataset, Span, part_stem
from pipeline.dataset.keys import is_named_by_content, sha256_hex
from pipeline.dataset.metadata import Counts, PartRecord, ShardFile, ShardRecord
from pipeline.dataset.schema import RejectReason, row_schema, with_columns
from pipeline.dataset.seen_labels import SeenLabels, count_labels
from pipeline.errors import BadShard

# The columns in `<key>.json`, for readers that have only the tar. Its inclusion_probability is
# that of the generation that wrote the tar: mining raises it in sidecars.
JSON_COLUMNS = (
    "key", "source", "uri", "label", "label_state", "class_name", "stratum", "group", "split",
    "content_hash", "similarity", "inclusion_probability", "license", "author", "width", "height",
)  # fmt: skip
# The columns of a ledger: what was seen and decided.
LEDGER_COLUMNS = tuple(n for n in row_schema(1).names if n not in ("image", "embedding"))


def output_group(*, source: str, split: str, label: str, selected: bool, reason: str | None) -> str:
    """Path of a row's shards without number and suffix: by source, split and label; "" for none."""
    if reason == RejectReason.SUSPECTED_POSITIVE:
        return f"quarantine/{source}"
    if not selected:
        return ""
    return f"shards/{split}/{source}-{label}" if label else f"shards/{split}/{source}"


def sort_files(files: Iterable[ShardFile]) -> tuple[list[ShardRecord], list[ShardFile]]:
    """Separates shards from the files of the quarantine."""
    shards, quarantine = [], []
    for file in files:
        if file.path.startswith("quarantine/"):
            quarantine.append(file)
        else:
            _, split, name = group_of(file.path).split("/")
            label = name.partition("-")[2]  # names of sources contain no dash
            given = file.model_dump(include=set(ShardFile.model_fields))
            shards.append(ShardRecord.model_validate({**given, "split": split, "label": label}))
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
    dataset: Dataset,
    rows: pa.Table,
    span: Span,
    *,
    part: int,
    is_last: bool,
    left_out: SeenLabels | None = None,
    embeddings_sha256: str | None = None,
) -> PartRecord:
    """Writes decided rows as a part of a span: data first, then the record that commits it.

    Images and embeddings, most of a row's bytes, stay only on rows that go into a shard or into
    quarantine. A part may have no rows: an empty partition is finished like any other.
    left_out: labels that the source has passed over in this span, if it declares any.
    embeddings_sha256: of the file with the embeddings of these rows, if they are kept.
    """
    kept = pa.array([bool(group) for group in output_groups(rows)], pa.bool_())
    heavy = {
        name: pc.if_else(kept, rows[name], pa.scalar(None, rows.schema.field(name).type))
        for name in ("image", "embedding")
    }
    rows = with_columns(rows, **heavy)
    path = part_stem(span, part) + ".parquet"
    with storage.open_atomic(dataset.uri(path)) as file:
        # Their checksums cost no further reading where only some columns are read.
        _write_parquet(rows, file, write_page_checksum=True)
    record = PartRecord(
        source=span.source,
        round=span.round,
        span=span.span,
        span_id=span.span_id,
        part=part,
        is_last=is_last,
        path=path,
        sha256=file.sha256,
        counts=count_rows(rows),
        embeddings_sha256=embeddings_sha256,
        seen=None if left_out is None else count_labels(rows),
        left_out=left_out,
    )
    dataset.commit_part(record)
    return record


def replace_part(
    dataset: Dataset, record: PartRecord, rows: pa.Table, *, generation: int
) -> PartRecord:
    """Commits other decisions about the rows of a part, under a name that no file has.

    generation: the one that asks for it. The old file stays, and belongs to nothing.
    """
    path = f"{part_stem(record, record.part)}.g{generation:06d}.parquet"
    assert path != record.path, "a generation replaces a part once"
    with storage.open_atomic(dataset.uri(path)) as file:
        _write_parquet(rows, file)
    update = {"path": path, "sha256": file.sha256, "counts": count_rows(rows)}
    replaced = record.model_copy(update=update)
    dataset.commit_part(replaced)
    return replaced


def write_named_by_content(dataset: Dataset, prefix: str, rows: pa.Table) -> tuple[str, str]:
    """Writes rows of a part to `<prefix>-<hash of the content>.parquet`; returns path and sha256.

    The name commits it: `find_named_by_content` finds it again.
    """
    buffer = io.BytesIO()
    pq.write_table(rows.combine_chunks(), buffer, compression="zstd", compression_level=1)
    sha256 = sha256_hex(buffer.getvalue())
    path = f"{prefix}-{sha256[:16]}.parquet"
    storage.write_atomic(dataset.uri(path), buffer.getvalue())
    return path, sha256


def find_named_by_content(dataset: Dataset, prefix: str) -> tuple[str, str] | None:
    """What `write_named_by_content` returned, if it has written; raises BadShard if damaged."""
    for uri in storage.list_prefix(dataset.uri(f"{prefix}-")):
        path = f"{prefix.rpartition('/')[0]}/{uri.rpartition('/')[2]}"
        content = storage.read_bytes(uri)
        if not is_named_by_content(path, content):
            raise BadShard(f"{uri}: damaged; remove it, and the next build makes it again")
        return path, sha256_hex(content)
    return None


def refuse_rows(rows: pa.Table, reasons: Mapping[int, RejectReason]) -> pa.Table:
    """Rejects some rows, by position, that had been selected."""
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
    dataset: Dataset,
    rows: pa.Table,
    *,
    stem: str,
    targets: Sequence[str],
    encoder: str,
    round_number: int,
) -> ShardFile:
    """Writes `<stem>.tar` and `<stem>.parquet`. rows: `row_schema`, images present, unique keys."""
    offsets, sizes = [], []
    described = rows.select(list(JSON_COLUMNS)).to_pylist()
    with storage.open_atomic(dataset.uri(stem + ".tar")) as tar_file, _open_tar(tar_file) as tar:
        for about, image in zip(described, rows["image"], strict=True):
            key, image = about["key"], image.as_py()
            about |= {"encoder": encoder, "generation": round_number}
            label_index = targets.index(about["label"]) + 1 if about["label"] else 0
            text = json.dumps(about, sort_keys=True, separators=(",", ":"))
            # The image last, so that the end of the tar so far is its end.
            tar.write({"__key__": key, "cls": str(label_index).encode(), "jpg": image})
            offsets.append(tar.tarstream.offset - _padded(len(image)))
            sizes.append(len(image))
            tar.write({"__key__": key, "json": text.encode()})
    sidecar = with_columns(
        rows.drop_columns(["image"]),
        tar_offset=pa.array(offsets, pa.int64()),
        tar_size=pa.array(sizes, pa.int64()),
    )
    with storage.open_atomic(dataset.uri(stem + ".parquet")) as sidecar_file:
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


@contextlib.contextmanager
def _open_tar(file: storage.HashingWriter) -> Iterator[Any]:
    """A webdataset.TarWriter whose bytes depend only on what is written."""
    import webdataset  # here, because it imports torch, which readers of shards can do without

    tar = webdataset.TarWriter(
        file, user="", group="", mode=0o644, mtime=0, compress=False, encoder=False
    )
    tar.tarstream.format = tarfile.USTAR_FORMAT  # TarWriter 1.0.2 drops its argument `format`
    try:
        yield tar
        # Not tar.close(), which also pads to 10,240 bytes. POSIX: two zero blocks end an archive.
        tar.tarstream.fileobj.write(b"\0" * 2 * tarfile.BLOCKSIZE)
    finally:
        tar.tarstream.fileobj.close()


def _padded(num_bytes: int) -> int:
    """Bytes in a tar, whose members end at a whole block."""
    return -(-num_bytes // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def differences(about: Mapping[str, Any], row: Mapping[str, Any], *, has_risen: bool) -> list[str]:
    """Columns that differ between `<key>.json` and the sidecar.

    has_risen: the sidecar's probability may be larger.
    """
    names = [name for name in JSON_COLUMNS if about.get(name) != row[name]]
    then, now = about.get("inclusion_probability"), row["inclusion_probability"]
    if has_risen and then is not None and now is not None and then < now:
        names.remove("inclusion_probability")
    return names


def _write_parquet(rows: pa.Table, file: storage.HashingWriter, **options: bool) -> None:
    buffer = io.BytesIO()
    # Otherwise the pages of the file would depend on how the rows were put together.
    rows = rows.combine_chunks()
    pq.write_table(rows, buffer, compression="zstd", compression_level=1, **options)
    file.write(buffer.getvalue())


def read_shard(dataset: Dataset, file: ShardFile) -> tuple[pa.Table, int]:
    """Rows of a shard with their images, and the round of its source in which it was written.

    Raises InfinegError if a file of it is not what its record says.
    """
    rows = dataset.read_table(file.sidecar_path, sha256=file.sidecar_sha256)
    tar = dataset.read_checked(file.path, file.sha256)
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
