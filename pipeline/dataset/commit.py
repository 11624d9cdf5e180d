"""The commit of a generation, the steps that follow it, and the removal of leftover files."""

import hashlib
import re

from pipeline import storage
from pipeline.dataset import embedding_cache
from pipeline.dataset.dataset import Dataset, generation_path, round_folder
from pipeline.dataset.lease import Lease
from pipeline.dataset.metadata import NO_GENERATION, Command, Generation

# The sidecar of a mined generation ends in that generation's number (`pipeline.mine.shards`).
_NUMBERED = re.compile(r"(.+)-(\d{6})(?:\.g(\d{6}))?\.(?:tar|parquet)")


def commit(dataset: Dataset, generation: Generation, lease: Lease, *, by: Command) -> Generation:
    """Commits a generation and finishes the commit; returns it with the sha256 of what it follows.

    An interrupted commit is finished by `complete`, before anything of the next one is written.
    """
    before = dataset.read_latest()
    parent = generation_path(generation.parent) if generation.parent else None
    parent_sha256 = _sha256_of(dataset, parent) if parent else ""
    generation = generation.model_copy(update={"parent_sha256": parent_sha256, "made_by": by})
    lease.check()
    dataset.commit_generation(generation)
    _finish(dataset, before, generation)
    return generation


def complete(dataset: Dataset) -> Generation:
    """Finishes an interrupted commit; returns the latest generation.

    The steps after a commit depend only on what is committed. `dataset.json`, the last of them,
    records that they are done.
    """
    latest = dataset.read_latest()
    if latest.number and dataset.read_info().latest_generation != latest.number:
        before = dataset.read_generation(latest.parent) if latest.parent else NO_GENERATION
        _finish(dataset, before, latest)
    return latest


def _sha256_of(dataset: Dataset, path: str) -> str:
    """ "" if there is no such file."""
    content = dataset.read_if_there(path)
    return "" if content is None else hashlib.sha256(content).hexdigest()


def _finish(dataset: Dataset, before: Generation, generation: Generation) -> None:
    """Removes the parts of the rounds between two generations, and files of interrupted runs.

    No name is given twice, so that a file that was never listed has a number that this generation
    or a later one would have given: only sources with a new round need to be searched.
    """
    rounds = _new_rounds(before, generation)
    listed = generation.paths()
    folders = ("shards/train", "shards/val", "shards/test", "quarantine", "ledger", "hashes")
    garbage = []
    for folder in folders:
        for prefix in (".tmp-", *(f"{source}-" for source in dict.fromkeys(s for s, _ in rounds))):
            for uri in storage.list_prefix(dataset.uri(f"{folder}/{prefix}")):
                path = f"{folder}/{uri.rpartition('/')[2]}"
                if path not in listed and not _was_listed(path, before):
                    garbage.append(uri)
    round_folders = [round_folder(source, number) for source, number in rounds]
    for folder in map(embedding_cache.folder_of, round_folders):
        garbage += storage.list_prefix(dataset.uri(f"{folder}/.tmp-"))
    storage.remove_many(garbage)
    for folder in round_folders:
        storage.remove_tree(dataset.uri(folder))
    dataset.write_derived(generation)


def _was_listed(path: str, before: Generation) -> bool:
    """Whether this generation or an earlier one may list a file, judging by its name."""
    match = _NUMBERED.fullmatch(path)
    if match is None:
        return False
    is_numbered = int(match[2]) < before.next_numbers.get(match[1], 0)
    return is_numbered and (match[3] is None or int(match[3]) <= before.number)


def _new_rounds(before: Generation, generation: Generation) -> list[tuple[str, int]]:
    """Sources and the numbers of their rounds that are in the later generation only."""
    old = {(source.name, source.fingerprint): source.num_rounds for source in before.sources}
    return [
        (source.name, number)
        for source in generation.sources
        for number in range(
            old.get((source.name, source.fingerprint), 0) + 1, source.num_rounds + 1
        )
    ]
