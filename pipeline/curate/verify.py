"""Re-reads a whole data set and checks every checksum, count and invariant."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.keys import split_of, unit_hash
from pipeline.dataset.metadata import (
    Counts,
    DatasetInfo,
    Generation,
    ShardFile,
    ShardRecord,
    SourceRecord,
    TableRecord,
    add_counts,
)
from pipeline.dataset.schema import row_schema
from pipeline.dataset.shards import (
    JSON_COLUMNS,
    count_rows,
    differences,
    group_of,
    has_mined_sidecar,
    output_group,
)
from pipeline.dataset.tables import HASH_COLUMNS
from pipeline.telemetry.progress import Progress


@dataclass
class Verification:
    """What was checked and what was found wrong."""

    num_shards: int = 0
    num_samples: int = 0
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)

    def expect(self, claim: bool, problem: str) -> None:
        if not claim:
            self.problems.append(problem)


def verify_dataset(root: str) -> Verification:
    """Checks the latest generation; an empty `problems` vouches for the data set."""
    info = manifest.require_info(root)
    generation = manifest.read_generation(root)
    result = Verification()
    packed: dict[str, Packed] = {}
    files = [*generation.shards, *generation.quarantine]
    with Progress("verify", total=len(files), unit="shards") as progress:
        for file in files:
            _verify_file(root, info, file, result, packed)
            progress.advance()
    hashes = [verify_source(root, info, source, result, packed) for source in generation.sources]
    for key in packed:
        result.problems.append(f"{key}: in a shard but in no ledger")
    _verify_no_leak(pa.concat_tables(hashes), result)
    _verify_timm_info(root, info, generation, result)
    return result


class Packed(NamedTuple):
    """What a shard holds of a sample; taken away where its row is found in a ledger."""

    group: str  # of `output_group`; "" where it is in no shard
    probability: float | None


def _verify_file(
    root: str,
    info: DatasetInfo,
    file: ShardFile,
    result: Verification,
    packed: dict[str, Packed],
) -> None:
    """One tar against its record and its sidecar; notes where each key was found."""
    for path, sha256 in ((file.path, file.sha256), (file.sidecar_path, file.sidecar_sha256)):
        uri = storage.join(root, path)
        if not storage.exists(uri):
            result.problems.append(f"{path}: missing")
            return
        if storage.sha256_of(uri) != sha256:  # and what it says can no longer be relied on
            result.problems.append(f"{path}: sha256 differs from the record")
            return
    try:
        samples = dict(_read_tar(storage.join(root, file.path)))
        rows = manifest.read_table(root, file.sidecar_path)
    except (tarfile.TarError, pa.ArrowInvalid, ValueError) as error:
        result.problems.append(f"{file.path}: cannot be read: {error}")
        return
    keys = rows["key"].to_pylist()
    group = group_of(file.path)
    result.expect(
        len(keys) == file.num_samples, f"{file.path}: {len(keys)} rows, not {file.num_samples}"
    )
    result.expect(keys == list(samples), f"{file.path}: keys of tar and sidecar differ")
    # Probabilities rise after a tar is written; nothing else may differ (`mined_shards`).
    is_risen = has_mined_sidecar(file)
    for row in rows.select([*JSON_COLUMNS, "tar_size"]).to_pylist():
        key, label, split = row["key"], row["label"], row["split"]
        size, probability = row["tar_size"], row["inclusion_probability"]
        members = samples.get(key, {})
        label_index = info.targets.index(label) + 1 if label in info.targets else 0
        result.expect(members.get("cls") == str(label_index).encode(), f"{key}: cls is not {label}")
        result.expect(len(members.get("jpg", b"")) == size, f"{key}: image size differs")
        about = json.loads(members.get("json", b"{}"))
        result.expect(about.get("key") == key, f"{key}: json tells of another sample")
        for name in differences(about, row, has_risen=is_risen):
            result.problems.append(f"{key}: {name} is {row[name]}, json tells {about.get(name)}")
        if isinstance(file, ShardRecord):
            result.expect(split == file.split, f"{key}: split {split} in a {file.split} shard")
            result.expect(
                probability is not None and 0 < probability <= 1,
                f"{key}: inclusion_probability {probability} is not in (0, 1]",
            )
        if key in packed:
            result.problems.append(f"{key}: in {packed[key].group} and {file.path}")
        packed[key] = Packed(group, probability)
    result.num_shards += 1
    result.num_samples += len(keys)


def _read_tar(uri: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples by key; raises ValueError where the members of one are not together."""
    seen: dict[str, dict[str, bytes]] = {}
    last = ""
    with storage.open_read(uri) as file, tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            key, _, extension = member.name.partition(".")
            if key != last and key in seen:
                raise ValueError(f"members of {key} are not together")
            last = key
            content = tar.extractfile(member)
            seen.setdefault(key, {})[extension] = content.read() if content else b""
    yield from seen.items()


def _verify_no_leak(images: pa.Table, result: Verification) -> None:
    """No image is in shards twice, and none looks like one of another split."""
    for position, reason in SeenImages().admit(images).items():
        key = images["key"][position].as_py()
        what = "the same image is in another shard" if reason == "duplicate" else "leaks"
        result.problems.append(f"{key}: {what}, by its bytes or by its look in another split")


def _verify_timm_info(
    root: str, info: DatasetInfo, generation: Generation, result: Verification
) -> None:
    """`_info.json` is derived: after a crash it may be of the generation in dataset.json."""
    try:
        splits = json.loads(storage.read_bytes(storage.join(root, "_info.json")))["splits"]
    except (FileNotFoundError, ValueError, KeyError) as error:
        result.problems.append(f"_info.json: cannot be read: {error!r}")
        return
    listed = sorted(name for split in splits.values() for name in split["filenames"])
    allowed = [generation]
    if 0 < info.latest_generation < generation.number:
        allowed.append(manifest.read_generation(root, info.latest_generation))
    result.expect(
        any(listed == sorted(shard.path for shard in each.shards) for each in allowed),
        "_info.json lists other shards than the latest generation",
    )


# Of a ledger, what is looked at row by row.
_VERIFIED = [
    "key", "source", "label", "group", "split", "content_hash", "inclusion_probability", "selected",
    "reject_reason",
]  # fmt: skip


_HASHES = pa.schema([row_schema(1).field(name) for name in HASH_COLUMNS])


def verify_source(
    root: str,
    info: DatasetInfo,
    source: SourceRecord,
    result: Verification,
    packed: dict[str, Packed],
) -> pa.Table:
    """Every row seen of a source: numbered without gap, decided by the rule, and packed once.

    Returns the rows of its `hashes/`.
    """
    numbering = _Numbering()
    counts: list[Counts] = []
    hashes: list[pa.Table] = [_HASHES.empty_table()]
    for ledger, images in zip(source.ledger, source.hashes, strict=True):
        if not (_is_sound(root, ledger, result) and _is_sound(root, images, result)):
            continue
        selected = [_HASHES.empty_table()]
        num_rows = 0
        for rows in manifest.iterate_table(root, ledger.path):
            counts.append(count_rows(rows))
            num_rows += rows.num_rows
            numbering.see(rows)
            for row in rows.select(_VERIFIED).to_pylist():
                _verify_row(row, info, result, packed)
            selected.append(rows.filter(rows["selected"]).select(HASH_COLUMNS).cast(_HASHES))
        result.num_rows += num_rows
        result.expect(num_rows == ledger.num_rows, f"{ledger.path}: other number of rows")
        hashes.append(manifest.read_table(root, images.path).cast(_HASHES))
        is_same = hashes[-1].equals(pa.concat_tables(selected))
        result.expect(is_same, f"{images.path}: other images than selected")
    result.expect(add_counts(counts) == source.counts, f"{source.name}: other counts")
    result.expect(numbering.is_sound, f"{source.name}: ordinals missing or doubled")
    result.expect(source.counts.adds_up(), f"{source.name}: counts do not add up")
    return pa.concat_tables(hashes)


def _is_sound(root: str, table: TableRecord, result: Verification) -> bool:
    uri = storage.join(root, table.path)
    is_sound = storage.exists(uri) and storage.sha256_of(uri) == table.sha256
    result.expect(is_sound, f"{table.path}: missing, or sha256 differs from the record")
    return is_sound


def _verify_row(
    row: dict[str, Any],
    info: DatasetInfo,
    result: Verification,
    packed: dict[str, Packed],
) -> None:
    key, probability = row["key"], row["inclusion_probability"]
    found = packed.pop(key, Packed("", probability))
    result.expect(
        found.probability == probability,
        f"{key}: inclusion_probability is {found.probability} in the sidecar and {probability} in "
        "the ledger",
    )
    fractions = info.fingerprint_inputs["split"]
    seed = info.fingerprint_inputs["selection"]["seed"]
    content_hash = str(row["content_hash"])
    group = output_group(
        source=str(row["source"]),
        split=str(row["split"]),
        label=str(row["label"]),
        selected=bool(row["selected"]),
        reason=row["reject_reason"],
    )
    result.expect(
        found.group == group,
        f"{key}: belongs in {group or 'no shard'}, is in {found.group or 'none'}",
    )
    if row["reject_reason"] is None:
        is_chosen = unit_hash(seed, content_hash) < probability
        result.expect(row["selected"] == is_chosen, f"{key}: selected against the rule")
    else:
        result.expect(not row["selected"], f"{key}: rejected and selected")
    full = {"train": 0.0, **fractions}
    result.expect(row["split"] == split_of(str(row["group"]), full), f"{key}: in the wrong split")


class _Numbering:
    """Whether the rows of a source, in its order, are numbered from 0 on in each partition.

    Memory holds the names of partitions, and not what was seen of each.
    """

    def __init__(self) -> None:
        self.is_sound = True
        self._names: set[str] = set()
        self._name: str | None = None
        self._num_seen = 0  # of the latest partition

    def see(self, rows: pa.Table) -> None:
        runs = pc.run_end_encode(rows["partition"].combine_chunks())
        ends = runs.run_ends.to_pylist()
        ordinals = rows["ordinal"].to_numpy()
        for name, start, stop in zip(runs.values.to_pylist(), [0, *ends], ends, strict=False):
            if name != self._name:
                self.is_sound &= name not in self._names
                self._names.add(name)
                self._name, self._num_seen = name, 0
            wanted = np.arange(self._num_seen, self._num_seen + stop - start)
            self.is_sound &= np.array_equal(ordinals[start:stop], wanted)
            self._num_seen += stop - start
