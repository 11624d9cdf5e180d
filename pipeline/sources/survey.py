"""Surveys a source: how many partitions and samples it has, and which partitions are taken.

Partitions are iterated and never kept: a source of a million takes no more memory than one of ten.
No image is opened.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from pipeline.config.schema import Config, SourceEntry
from pipeline.config.selection import SelectionConfig
from pipeline.dataset.metadata import SourcePlan
from pipeline.dataset.schema import Partition
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources import EstimatingSource, Source, estimate_samples, open_entry

# A pilot reads a little of many partitions, because samples of one partition resemble each other.
_MAX_PILOT_PARTITIONS = 64
UNKNOWN_PARTITION_SIZE = 1000  # before the pilot; only the order of magnitude matters


@dataclass(frozen=True)
class Listing:
    """The result of one pass over the partitions of a source."""

    num_listed: int | None  # None for an endless source
    num_partitions: int  # to take
    samples_per_partition: float | None  # None if unknown
    examples: tuple[Partition, ...]  # at even steps, for the pilot
    num_pilot: int  # candidates that the pilot reads in them
    can_tell_sizes: bool = True  # whether sizes of partitions can be estimated before reading
    num_wanted: int | None = None  # candidates of a source that ends; None for all
    # Estimated samples of each example; () before the pilot.
    estimates: tuple[float | None, ...] = ()

    def num_partitions_for(self, samples_per_partition: float) -> int:
        """Number of partitions that have the wanted candidates of a source that ends."""
        num_listed = self.num_listed or self.num_partitions
        num_candidates = num_listed * samples_per_partition
        if self.num_wanted is None or num_candidates <= self.num_wanted:
            return num_listed
        return max(1, round(num_listed * self.num_wanted / num_candidates))


def find_partitions(config: Config, entries: Sequence[SourceEntry]) -> None:
    """Opens each source and lists its first partition, so that what is wrong is said at once.

    Raises ConfigError that names the entry.
    """
    for entry in entries:
        source = open_entry(entry, config.role_of(entry))
        try:
            next(iter(source.partitions()), None)
        except ConfigError as error:
            raise ConfigError(f"{entry.name}: {error}") from None


def survey(source: Source, entry: SourceEntry, config: Config) -> Listing:
    """Iterates over the partitions once.

    Of an endless source the first partitions are taken, as many as the budget needs. Of another,
    all, or with `max_candidates` some at even steps: the first of a sorted list may be all alike.
    """
    is_positive = config.role_of(entry) == "positive"
    wanted = entry.max_candidates if is_positive else _candidates_wanted(entry, config, source)
    if source.is_endless and wanted is None:
        raise ConfigError(
            f"positives {entry.name}: endless; set `max_candidates` or bound it by its params"
        )
    examples = _EvenSteps(_MAX_PILOT_PARTITIONS)
    num_partitions = num_known = num_samples = 0
    for partition in source.partitions():
        examples.add(partition)
        num_partitions += 1
        if partition.num_samples is not None:
            num_known += 1
            num_samples += partition.num_samples
        if source.is_endless and wanted is not None:
            unknown = (num_partitions - num_known) * UNKNOWN_PARTITION_SIZE
            if num_samples + unknown >= wanted:
                break
    if not num_partitions:
        raise ConfigError(f"source {entry.name!r}: no partition found, nothing to read")
    mean = num_samples / num_known if num_known else None
    listing = Listing(
        num_listed=None if source.is_endless else num_partitions,
        num_partitions=num_partitions,
        samples_per_partition=mean,
        examples=tuple(examples.kept()),
        num_pilot=pilot_size(entry, config.selection),
        can_tell_sizes=mean is not None or isinstance(source, EstimatingSource),
        num_wanted=None if source.is_endless else wanted,
    )
    size = UNKNOWN_PARTITION_SIZE if mean is None else mean
    return replace(listing, num_partitions=listing.num_partitions_for(size))


def estimate_sizes(listing: Listing, source: Source, pilot: pa.Table) -> Listing:
    """Adds the source's estimates of partition sizes, if partitions have no counts."""
    if listing.samples_per_partition is not None or not pilot.num_rows:
        return listing
    mean_bytes = float(np.mean(pilot["read_bytes"].to_numpy()))
    estimates = (estimate_samples(source, each, mean_bytes) for each in listing.examples)
    return replace(listing, estimates=tuple(estimates))


class _EvenSteps:
    """Keeps `number` items of a stream of unknown length, at nearly even steps from the first."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._step = 1
        self._seen = 0
        self._held: list[Partition] = []

    def add(self, partition: Partition) -> None:
        if self._seen % self._step == 0:
            self._held.append(partition)
            if len(self._held) > 4 * self._number:
                self._held = self._held[::2]
                self._step *= 2
        self._seen += 1

    def kept(self) -> list[Partition]:
        number = min(self._number, len(self._held))
        return [self._held[i * len(self._held) // number] for i in range(number)]


def take_partitions(
    source: Source, num_partitions: int, num_listed: int | None
) -> Iterator[Partition]:
    """`num_partitions` of `num_listed` at even steps; if that is None, the first ones."""
    num_taken, num_listed = 0, num_listed or num_partitions
    for position, partition in enumerate(source.partitions()):
        if num_taken == num_partitions:
            return
        if position == num_taken * num_listed // num_partitions:
            yield partition
            num_taken += 1


def refuse_changed_listing(plan: SourcePlan, num_seen: int) -> InfinegError:
    return InfinegError(
        f"source {plan.source!r} was planned with {plan.num_listed or plan.num_partitions:,} "
        f"partitions and has {num_seen:,} now. Restore it, or remove plans/{plan.source}.json "
        "of the data set to start this source again."
    )


def _candidates_wanted(entry: SourceEntry, config: Config, source: Source) -> int | None:
    """Candidates to read of a source of negatives; None for all."""
    selection = config.selection
    budget = selection.budget
    if entry.max_candidates is not None:
        return entry.max_candidates
    if budget.candidates is not None:
        return math.ceil(entry.weight * budget.candidates)
    if not source.is_endless:
        return None
    if budget.selected is not None:
        return math.ceil(entry.weight * budget.selected * selection.candidates_per_selected)
    # The size of an image is unknown before the pilot; `make_plan` takes more.
    return 10 * pilot_size(entry, selection)


def pilot_size(entry: SourceEntry, selection: SelectionConfig) -> int:
    """Candidates that the first pilot reads; `plan.pilot_needed` may ask for more."""
    return max(selection.pilot, math.ceil(0.01 * entry.weight * (selection.budget.selected or 0)))
