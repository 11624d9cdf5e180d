"""The commit of a generation, what follows it, and the removal of what interrupted runs left."""

import re

from pipeline import storage
from pipeline.dataset import embedding_cache, manifest
from pipeline.dataset.lease import Lease
from pipeline.dataset.metadata import NO_GENERATION, Generation

# The sidecar of a mined generation tells of which (`pipeline.mine.shards`).
_NUMBERED = re.compile(r"(.+)-(\d{6})(?:\.g(\d{6}))?\.(?:tar|parquet)")


def commit(root: str, generation: Generation, lease: Lease) -> None:
    """Commits a generation and does what follows, after what follows an earlier one is done."""
    complete(root)
    lease.check()
    manifest.commit_generation(root, generation)
    complete(root)


def complete(root: str) -> None:
    """Does what follows the commit of the latest generation where a crash came between.

    It follows from what is committed alone, and `dataset.json` tells that it is done.
    """
    if manifest.latest_generation_number(root) and not manifest.is_complete(root):
        generation = manifest.read_generation(root)
        before = (
            manifest.read_generation(root, generation.parent)
            if generation.parent
            else NO_GENERATION
        )
        sweep(root, before, generation)
        manifest.write_derived(root, generation)


def sweep(root: str, before: Generation, generation: Generation) -> None:
    """Removes the parts of the rounds between two generations, and what interrupted runs left.

    No name is given twice, so that what was never listed has a number that this generation or a
    later one would have given: nothing of sources without a new round is looked at.
    """
    rounds = _new_rounds(before, generation)
    listed = {path for file in generation.shards for path in (file.path, file.sidecar_path)}
    listed |= {path for file in generation.quarantine for path in (file.path, file.sidecar_path)}
    for source in generation.sources:
        listed |= {table.path for table in (*source.ledger, *source.hashes)}
    folders = ("shards/train", "shards/val", "shards/test", "quarantine", "ledger", "hashes")
    garbage = []
    for folder in folders:
        for prefix in (".tmp-", *(f"{source}-" for source in dict.fromkeys(s for s, _ in rounds))):
            for uri in storage.list_prefix(storage.join(root, folder, prefix)):
                path = f"{folder}/{uri.rpartition('/')[2]}"
                if path not in listed and not _was_listed(path, before):
                    garbage.append(uri)
    round_folders = [manifest.round_folder(source, number) for source, number in rounds]
    for folder in map(embedding_cache.folder_of, round_folders):
        garbage += storage.list_prefix(storage.join(root, folder, ".tmp-"))
    storage.remove_many(garbage)
    for folder in round_folders:
        storage.remove_tree(storage.join(root, folder))


def _was_listed(path: str, before: Generation) -> bool:
    """Whether this generation or an earlier one may list a file, by its name."""
    match = _NUMBERED.fullmatch(path)
    if match is None:
        return False
    is_numbered = int(match[2]) < before.next_numbers.get(match[1], 0)
    return is_numbered and (match[3] is None or int(match[3]) <= before.number)


def _new_rounds(before: Generation, generation: Generation) -> list[tuple[str, int]]:
    """Sources, and numbers of their rounds, that one generation has and the other has not."""
    old = {(source.name, source.fingerprint): source.num_rounds for source in before.sources}
    return [
        (source.name, number)
        for source in generation.sources
        for number in range(
            old.get((source.name, source.fingerprint), 0) + 1, source.num_rounds + 1
        )
    ]
