"""Re-reads a whole data set and checks every checksum, count and invariant.

First each shard, then each source's ledgers, which must list the same samples, then what holds for
the whole data set. Shards and ledgers are compared with the list of what is taken down.
"""

import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.curate.verify_ledgers import Packed, verify_source
from pipeline.curate.verify_records import verify_records
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import timm_info
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import DatasetInfo, Generation, ShardFile, ShardRecord, TakenDown
from pipeline.dataset.shards import JSON_COLUMNS, differences, group_of, has_mined_sidecar
from pipeline.dataset.taken_down import is_taken_down
from pipeline.telemetry.progress import Progress


@dataclass
class Verification:
    """What was checked, and the problems that were found."""

    num_shards: int = 0
    num_samples: int = 0
    num_rows: int = 0
    problems: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)  # files of older versions: no checksum

    def expect(self, claim: bool, problem: str) -> None:
        if not claim:
            self.problems.append(problem)


def verify_dataset(root: str) -> Verification:
    """Checks the latest generation; without `problems` the data set is sound."""
    dataset = Dataset(root)
    info = dataset.read_info()
    generation = dataset.read_generation()
    result = Verification()
    verify_records(dataset, info, generation, result)
    packed: dict[str, Packed] = {}
    files = [*generation.shards, *generation.quarantine]
    with Progress("verify", total=len(files), unit="shards") as progress:
        for file in files:
            _verify_shard(dataset, info, file, result, packed, generation.taken_down)
            progress.advance()
    hashes = []
    for source in generation.sources:
        num_rows, images = verify_source(
            dataset, info, source, packed, generation.taken_down, result.expect
        )
        result.num_rows += num_rows
        hashes.append(images)
    for key in packed:
        result.problems.append(f"{key}: in a shard but in no ledger")
    if hashes:
        _verify_no_leak(pa.concat_tables(hashes), result)
    _verify_timm_info(dataset, info, generation, result)
    return result


def _verify_shard(
    dataset: Dataset,
    info: DatasetInfo,
    file: ShardFile,
    result: Verification,
    packed: dict[str, Packed],
    taken_down: TakenDown,
) -> None:
    """Checks a tar against its record and its sidecar; notes where each key is."""
    for path, sha256 in ((file.path, file.sha256), (file.sidecar_path, file.sidecar_sha256)):
        uri = dataset.uri(path)
        if not storage.exists(uri):
            result.problems.append(f"{path}: missing")
            return
        if storage.sha256_of(uri) != sha256:  # its content means nothing then
            result.problems.append(f"{path}: sha256 differs from the record")
            return
    try:
        samples = dict(_read_tar(dataset.uri(file.path)))
        rows = dataset.read_table(file.sidecar_path)
    except (tarfile.TarError, pa.ArrowInvalid, ValueError) as error:
        result.problems.append(f"{file.path}: cannot be read: {error}")
        return
    for key in rows["key"].filter(is_taken_down(rows, taken_down)).to_pylist():
        result.problems.append(f"{key}: was taken down, is in {file.path}")
    keys = rows["key"].to_pylist()
    result.expect(
        len(keys) == file.num_samples, f"{file.path}: {len(keys)} rows, not {file.num_samples}"
    )
    result.expect(keys == list(samples), f"{file.path}: keys of tar and sidecar differ")
    for row in rows.select([*JSON_COLUMNS, "tar_size"]).to_pylist():
        key = row["key"]
        _verify_sample(row, samples.get(key, {}), info, file, result)
        if key in packed:
            result.problems.append(f"{key}: in {packed[key].group} and {file.path}")
        packed[key] = Packed(group_of(file.path), row["inclusion_probability"])
    result.num_shards += 1
    result.num_samples += len(keys)


def _verify_sample(
    row: Mapping[str, Any],
    members: Mapping[str, bytes],
    info: DatasetInfo,
    file: ShardFile,
    result: Verification,
) -> None:
    """Checks a row of a sidecar against the members of the tar and the shard's record."""
    key, label, split = row["key"], row["label"], row["split"]
    label_index = info.targets.index(label) + 1 if label in info.targets else 0
    result.expect(members.get("cls") == str(label_index).encode(), f"{key}: cls is not {label}")
    result.expect(len(members.get("jpg", b"")) == row["tar_size"], f"{key}: image size differs")
    try:
        about = dict(json.loads(members.get("json", b"{}")))
    except (ValueError, TypeError, RecursionError):
        about = {}
    result.expect(about.get("key") == key, f"{key}: its json has another key")
    # Mining raises probabilities after a tar is written; nothing else may differ (`mine.shards`).
    for name in differences(about, row, has_risen=has_mined_sidecar(file)):
        result.problems.append(f"{key}: {name} is {row[name]}, but {about.get(name)} in its json")
    if isinstance(file, ShardRecord):
        probability = row["inclusion_probability"]
        result.expect(split == file.split, f"{key}: split {split} in a {file.split} shard")
        result.expect(
            probability is not None and 0 < probability <= 1,
            f"{key}: inclusion_probability {probability} is not in (0, 1]",
        )


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
    """No image is in shards twice, and none is a near duplicate of one in another split."""
    for position, reason in SeenImages().admit(images).items():
        key = images["key"][position].as_py()
        what = "the same image is in another shard"
        if reason != "duplicate":
            what = "leaks: the same image, or a near duplicate, is in another split"
        result.problems.append(f"{key}: {what}")


def _verify_timm_info(
    dataset: Dataset, info: DatasetInfo, generation: Generation, result: Verification
) -> None:
    """`_info.json` is derived: after a crash it may list the generation in dataset.json instead."""
    content = dataset.read_if_there("_info.json")
    if content is None:
        result.problems.append("_info.json: missing")
        return
    allowed = [generation]
    if 0 < info.latest_generation < generation.number:
        allowed.append(dataset.read_generation(info.latest_generation))
    result.expect(
        content in [timm_info(each) for each in allowed],
        "_info.json: lists other shards than the latest generation, or is damaged",
    )
