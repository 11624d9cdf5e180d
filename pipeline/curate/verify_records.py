"""Checks records and files that a generation does not list, but depends on or goes with.

Each is compared with the checksum in it or in another record. Files of older versions may have
none; they are noted.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Protocol

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.dataset import generation_path, plan_path
from pipeline.dataset.embedding_cache import Checksums, EmbeddingsInfo
from pipeline.dataset.keys import is_named_by_content
from pipeline.dataset.metadata import DatasetInfo, Generation, PartRecord, SourcePlan
from pipeline.dataset.records import RecordT, decode_record, has_checksum
from pipeline.errors import InfinegError
from pipeline.selection.reference import BANK_PATH

_REFERENCE = "reference.json"


class Findings(Protocol):
    """What was found; see `Verification`."""

    problems: list[str]
    unchecked: list[str]  # paths of files without a checksum

    def expect(self, claim: bool, problem: str) -> None: ...


def verify_records(
    dataset: Dataset, info: DatasetInfo, generation: Generation, found: Findings
) -> None:
    """Checks dataset.json, generations, the reference bank, plans, embeddings and parts."""
    checks = _Checks(dataset, found)
    checks.note_unchecked("dataset.json", dataset.read_if_there("dataset.json"))
    _verify_generations(checks, info, generation)
    _verify_reference(checks)
    _verify_plans(checks, generation)
    packed = _packed_rounds(checks, generation)
    _verify_embeddings(checks, packed, dict(_verify_parts(checks, packed)))


class _Checks:
    def __init__(self, dataset: Dataset, found: Findings) -> None:
        self.dataset = dataset
        self.found = found
        self.plans: dict[str, SourcePlan] = {}  # that are whole

    def list(self, folder: str, suffix: str) -> list[str]:
        """Paths of the files below a folder."""
        names = storage.list_files(self.dataset.uri(folder), (suffix,))
        return [f"{folder}/{name}" for name in names if not name.rpartition("/")[2].startswith(".")]

    def read(self, path: str, record: type[RecordT]) -> RecordT | None:
        """A record; notes a problem and returns None if it is missing or damaged."""
        content = self.dataset.read_if_there(path)
        if content is None:
            self.found.problems.append(f"{path}: missing")
            return None
        self.note_unchecked(path, content)
        return self.attempt(path, lambda: decode_record(path, content, record))

    def attempt(self, path: str, action: Callable[[], RecordT | None]) -> RecordT | None:
        try:
            return action()
        except InfinegError as error:
            message = str(error).replace(self.dataset.uri(path), path)
            self.found.problems.append(message)
            return None

    def note_unchecked(self, path: str, record: bytes | None) -> None:
        if record is not None and not has_checksum(record):
            self.found.unchecked.append(path)

    def compare(self, path: str, sha256: str | None) -> None:
        """A file with its checksum; one that has none is noted."""
        uri = self.dataset.uri(path)
        if not sha256:
            self.found.unchecked.append(path)
        elif not storage.exists(uri):
            self.found.problems.append(f"{path}: missing")
        elif storage.sha256_of(uri) != sha256:
            self.found.problems.append(f"{path}: sha256 differs from the record")

    def compare_with_name(self, path: str) -> None:
        """A table of files, whose name ends in the beginning of its sha256."""
        content = self.dataset.read_if_there(path)
        if content is None:
            self.found.problems.append(f"{path}: missing")
        else:
            is_same = is_named_by_content(path, content)
            self.found.expect(is_same, f"{path}: sha256 differs from its name")


def _verify_generations(checks: _Checks, info: DatasetInfo, generation: Generation) -> None:
    """Each generation is the one that the next one followed, and its files are whole.

    Those of the latest are checked elsewhere; earlier ones may lack files, after a purge.
    """
    earlier: dict[str, str] = {}
    named = {generation.number - 1: generation.parent_sha256}
    if info.latest_generation:
        named.setdefault(info.latest_generation, info.generation_sha256)
    for number in range(generation.number, 0, -1):
        path = generation_path(number)
        record = checks.read(path, Generation)
        content = checks.dataset.read_if_there(path)
        if record is None or content is None:
            continue
        sha256 = named.get(number)
        is_same = not sha256 or hashlib.sha256(content).hexdigest() == sha256
        checks.found.expect(is_same, f"{path}: not the generation that the next one followed")
        named[number - 1] = record.parent_sha256
        earlier |= record.sha256_by_path()
    for path in sorted(earlier.keys() - generation.paths()):
        if storage.exists(checks.dataset.uri(path)):
            checks.compare(path, earlier[path])


def _verify_reference(checks: _Checks) -> None:
    content = checks.dataset.read_if_there(_REFERENCE)
    checks.note_unchecked(_REFERENCE, content)
    reference = checks.attempt(_REFERENCE, checks.dataset.read_reference)
    if reference is not None:
        if reference.is_current:  # else a killed build may have written the next one
            checks.compare(BANK_PATH, reference.bank_sha256)
        for path in reference.files.values():
            checks.compare_with_name(path)


def _verify_plans(checks: _Checks, generation: Generation) -> None:
    committed = {source.name: source for source in generation.sources}
    for path in checks.list("plans", ".json"):
        name = path.removeprefix("plans/").removesuffix(".json")
        checks.note_unchecked(path, checks.dataset.read_if_there(path))
        if name in committed:
            plan = checks.attempt(path, partial(checks.dataset.read_plan_of, committed[name]))
        else:
            plan = checks.attempt(path, partial(checks.dataset.read_plan, name))
        if plan is not None:
            checks.plans[name] = plan
            if plan.files:
                checks.compare_with_name(plan.files)
    for name, source in committed.items():
        if source.plan_sha256:  # older versions do not say that there was one
            is_there = storage.exists(checks.dataset.uri(plan_path(name)))
            checks.found.expect(is_there, f"{plan_path(name)}: missing")


def _packed_rounds(checks: _Checks, generation: Generation) -> dict[str, int]:
    """Their number, by source; without sources that are being drawn anew."""
    return {
        source.name: source.num_rounds
        for source in generation.sources
        if (plan := checks.plans.get(source.name)) and plan.fingerprint == source.fingerprint
    }


def _verify_parts(checks: _Checks, packed: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Parts of rounds that are not packed; yields the files of their embeddings, and sha256s.

    Those of other rounds are being removed, or are left of a removal that was interrupted.
    """
    for path in checks.list("parts", ".json"):
        _, source, number, _ = path.split("/")
        if int(number) <= packed.get(source, 0):
            continue
        if (part := checks.read(path, PartRecord)) is not None:
            checks.compare(part.path, part.sha256)
            if part.embeddings_sha256 is not None:
                stem = path.removeprefix("parts/").removesuffix(".json")
                yield f"embeddings/{stem}.parquet", part.embeddings_sha256


def _verify_embeddings(
    checks: _Checks, packed: Mapping[str, int], sha256_of: dict[str, str]
) -> None:
    """Those of a source that is drawn anew are written again, each before its part's record."""
    of_rounds: dict[str, str] = {}
    for path in checks.list("embeddings", ".json"):
        if path == "embeddings/info.json":
            checks.read(path, EmbeddingsInfo)
        elif (checksums := checks.read(path, Checksums)) is not None:
            of_rounds |= checksums.sha256
    for path, sha256 in of_rounds.items():
        uri, is_settled = checks.dataset.uri(path), path.split("/")[1] in packed
        if is_settled or (storage.exists(uri) and storage.sha256_of(uri) == sha256):
            sha256_of.setdefault(path, sha256)
    for path in sorted({*sha256_of, *checks.list("embeddings", ".parquet")}):
        checks.compare(path, sha256_of.get(path))
