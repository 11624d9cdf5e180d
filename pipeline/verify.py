"""Re-reads a whole data set and checks every checksum, count and invariant."""

import json
import tarfile
from collections.abc import Iterator

import pyarrow as pa

from pipeline import storage
from pipeline.dataset import manifest
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.metadata import DatasetInfo, Generation, ShardFile, ShardRecord
from pipeline.dataset.shards import JSON_COLUMNS, differences, group_of, has_mined_sidecar
from pipeline.telemetry.progress import Progress
from pipeline.verify_ledgers import Packed, Verification, verify_source


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
