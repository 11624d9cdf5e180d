"""Removes samples for good: from the next generation, and from what later builds accept."""

import logging
from collections.abc import Callable, Sequence

from pipeline import storage
from pipeline.curate.purge import purge_pictures, read_sound
from pipeline.curate.purge_runs import require_runs
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation, TakenDown
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import RejectReason
from pipeline.dataset.taken_down import NAMING_COLUMNS, is_taken_down
from pipeline.errors import ConfigError

_log = logging.getLogger(__name__)


def take_down(
    root: str,
    wanted: TakenDown,
    *,
    purge: bool = False,
    runs: Sequence[str] = (),
    tell: Callable[[str], None] = _log.info,
) -> tuple[Generation, int]:
    """Commits a generation without the samples in `wanted`; returns it and their number of rows.

    Images with the same bytes are rejected too, whatever their name, in this generation and when
    parts that are already read are packed.

    With `purge` all files that hold them lose them, also those of `runs` and of this machine's
    caches, and earlier generations lack the files that had to be deleted. Without anything in
    `wanted` it purges all that was ever taken down. `tell` gets a line for each removal, and then
    one for each thing that cannot be reached.

    Can be run again after a crash, and then ends as if it had never been interrupted. Raises
    ConfigError if nothing is found.
    """
    dataset = Dataset(root)
    dataset.read_info()
    require_runs(runs)
    with hold_lease(root) as lease:
        parent = complete(dataset)
        if purge:  # at once, before this process writes such files itself
            storage.remove_many(storage.list_prefix(dataset.uri(".tmp-")))
        refused = TakenDown(content_hashes=_find_bytes(dataset, parent, wanted))
        if wanted and not (refused or wanted.overlaps(parent.taken_down)):
            raise ConfigError(f"{root}: generation {parent.number} has no such sample")
        if not wanted and not (purge and parent.taken_down):
            raise ConfigError(f"{root}: nothing is named, and nothing was taken down before")
        generation = revise(dataset, parent, (), lambda rows: rows, refused=wanted | refused)
        is_same = _is_same(generation, parent)  # an earlier run has committed it
        generation = parent if is_same else commit(dataset, generation, lease, by="takedown")
        if purge:
            lease.check()
            hashes = refused.content_hashes if wanted else generation.taken_down.content_hashes
            purge_pictures(dataset, generation, hashes, runs=runs, tell=tell)
    return generation, _num_refused(generation) - _num_refused(parent)


def _find_bytes(dataset: Dataset, generation: Generation, wanted: TakenDown) -> frozenset[str]:
    """Content hashes of the samples in `wanted`.

    From all tables that there are, of any generation or of none, and from earlier takedowns: the
    tables that knew a name may be purged.
    """
    if not wanted:
        return frozenset()
    folders = ("ledger", "shards", "quarantine", "parts")
    paths = [
        f"{folder}/{name}"
        for folder in folders
        for name in storage.list_files(dataset.uri(folder), (".parquet",))
    ]

    def find(path: str) -> list[str]:
        rows = read_sound(dataset, path, NAMING_COLUMNS)
        if rows is None:
            return []
        found: list[str] = rows["content_hash"].filter(is_taken_down(rows, wanted)).to_pylist()
        return found

    earlier = generation.takedowns or (generation.taken_down,)
    known = (each.content_hashes for each in earlier if wanted.overlaps(each))
    return frozenset().union(*storage.map_ahead(find, paths), *known)


def _is_same(generation: Generation, parent: Generation) -> bool:
    numbers = {"number": parent.number, "parent": parent.parent}
    return generation.model_copy(update=numbers) == parent


def _num_refused(generation: Generation) -> int:
    return generation.counts.rejected.get(RejectReason.TAKEN_DOWN, 0)
