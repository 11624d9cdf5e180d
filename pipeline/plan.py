"""How much is taken of a source, and with what probability: from a pilot to a plan.

Pure: reads listings and a pilot's rows, opens no image and starts nothing. A listing is passed
over, never kept: a source of a million partitions costs no more memory than one of ten.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from more_itertools import chunked
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.commits import ReferenceInfo, SourcePlan, strata_by_similarity
from pipeline.config import Config, SelectionConfig, SourceEntry, fingerprint
from pipeline.errors import ConfigError, InfinegError
from pipeline.records import Partition
from pipeline.sources import Source
from pipeline.steps.select import inclusion_probability

# A pilot reads a little of many partitions, because samples of one partition resemble each other.
_MAX_PILOT_PARTITIONS = 64
_UNKNOWN_PARTITION_SIZE = 1000  # until the pilot tells; only orders of magnitude matter
# A task of Ray costs its driver 15 ms: partitions are read together until it has a second of work.
_SAMPLES_PER_SPAN = 512


@dataclass(frozen=True)
class Listing:
    """What one pass over the partitions of a source tells, and what is to be taken of them."""

    num_listed: int | None  # None: of an endless source, of which the first ones are taken
    num_partitions: int
    samples_per_partition: float | None  # None where the source does not tell
    examples: tuple[Partition, ...]  # at even steps, for the pilot


def survey(source: Source, entry: SourceEntry, config: Config) -> Listing:
    """Passes over the partitions once.

    An endless source gives a prefix, as long as the budget asks for. Another is read whole, or,
    over `max_candidates`, at even steps: a prefix of a sorted list would be all of one kind.
    """
    wanted = entry.max_candidates
    if source.is_endless:
        if config.role_of(entry) == "positive" and wanted is None:
            raise ConfigError(
                f"positives {entry.name}: endless; set `max_candidates` or bound it by its params"
            )
        wanted = wanted or num_candidates_wanted(entry, config.selection)
    examples = _EvenSteps(_MAX_PILOT_PARTITIONS)
    num_partitions = num_known = num_samples = 0
    for partition in source.partitions():
        examples.add(partition)
        num_partitions += 1
        if partition.num_samples is not None:
            num_known += 1
            num_samples += partition.num_samples
        if source.is_endless and wanted is not None:
            unknown = (num_partitions - num_known) * _UNKNOWN_PARTITION_SIZE
            if num_samples + unknown >= wanted:
                break
    if not num_partitions:
        raise ConfigError(f"source {entry.name!r}: no partition found, nothing to read")
    mean = num_samples / num_known if num_known else None
    num_taken = num_partitions
    if not source.is_endless and wanted is not None:
        num_candidates = num_partitions * (_UNKNOWN_PARTITION_SIZE if mean is None else mean)
        if num_candidates > wanted:
            num_taken = max(1, round(num_partitions * wanted / num_candidates))
    return Listing(
        num_listed=None if source.is_endless else num_partitions,
        num_partitions=num_taken,
        samples_per_partition=mean,
        examples=tuple(examples.kept()),
    )


class _EvenSteps:
    """Keeps `number` of a stream of unknown length, at nearly even steps, the first among them."""

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


@dataclass(frozen=True)
class Planned:
    """A source that is to be built, and how much of its plan is committed already."""

    entry: SourceEntry
    source: Source
    plan: SourcePlan
    num_rounds: int = 0
    num_partitions: int = 0

    def rounds(self) -> "Iterator[Round]":
        """What is left, cut into rounds."""
        first, number = self.num_partitions, self.num_rounds + 1
        while first < self.plan.num_partitions:
            last = min(first + self.plan.partitions_per_round, self.plan.num_partitions)
            yield Round(self, number, first, last)
            first, number = last, number + 1


@dataclass(frozen=True)
class Round:
    """Partitions `first` to `last` of a source's plan, packed and committed together."""

    planned: Planned
    number: int  # 1 for the source's first
    first: int
    last: int

    @property
    def source(self) -> str:
        return self.planned.entry.name

    @property
    def num_spans(self) -> int:
        return -(-(self.last - self.first) // self.planned.plan.partitions_per_span)

    @property
    def num_candidates(self) -> int:
        return round((self.last - self.first) * self.planned.plan.samples_per_partition)

    def cut(self, num_spans: int) -> "Round":
        """The first spans alone, of a round that was ended early."""
        last = min(self.last, self.first + num_spans * self.planned.plan.partitions_per_span)
        return Round(self.planned, self.number, self.first, last)


def iterate_spans(planned: Planned) -> Iterator[tuple[Partition, ...]]:
    """The partitions that are not committed, one task's work at a time, as the source lists them.

    Raises InfinegError where the source lists fewer than when it was planned.
    """
    plan, num_taken = planned.plan, planned.num_partitions
    taken = take_partitions(planned.source, plan.num_partitions, plan.num_listed)
    for partitions in chunked(itertools.islice(taken, num_taken, None), plan.partitions_per_span):
        num_taken += len(partitions)
        yield tuple(partitions)
    if num_taken < plan.num_partitions:
        raise refuse_changed_listing(plan, num_taken)


def take_partitions(
    source: Source, num_partitions: int, num_listed: int | None
) -> Iterator[Partition]:
    """`num_partitions` of `num_listed`, at even steps; without a number listed the first ones."""
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
        "of the data set to begin this source anew."
    )


def num_candidates_wanted(entry: SourceEntry, selection: SelectionConfig) -> int:
    """Candidates that the budget asks for of a source which never ends by itself."""
    return math.ceil(entry.weight * selection.budget * selection.candidates_per_selected)


def pilot_sample(partitions: Sequence[Partition], num_wanted: int) -> list[tuple[Partition, int]]:
    """Partitions for the pilot, each with the samples to read of it."""
    return [(partition, math.ceil(num_wanted / len(partitions))) for partition in partitions]


def pilot_size(entry: SourceEntry, selection: SelectionConfig) -> int:
    return max(selection.pilot, math.ceil(0.01 * entry.weight * selection.budget))


def fit_scale(
    similarity_N: NDArray[np.float32],
    *,
    beta: float,
    offset: float,
    min_probability: float,
    mean_probability: float,
) -> float:
    """The scale for which the mean `inclusion_probability` is `mean_probability`.

    The mean grows with the scale, so that the root is unique. A target below what the floor
    allows gives the floor; one that is all there is takes everything.
    """
    # Sorted, for the mean to have one order: the pilot's rows come in any.
    similarity_N = np.sort(similarity_N)
    smallest = min_probability * math.exp(-beta * (float(similarity_N[-1]) - offset))
    largest = math.exp(beta * (1 + offset))  # takes even a similarity of -1

    def excess(log_scale: float) -> float:
        probability_N = inclusion_probability(
            similarity_N,
            scale=math.exp(log_scale),
            beta=beta,
            offset=offset,
            min_probability=min_probability,
        )
        return float(probability_N.mean()) - mean_probability

    low, high = math.log(smallest), math.log(largest)
    if excess(low) >= 0:
        return smallest
    if mean_probability >= 1:
        return largest
    return math.exp(float(brentq(excess, low, high, xtol=1e-12)))


def make_plan(
    entry: SourceEntry,
    *,
    config: Config,
    listing: Listing,
    pilot: pa.Table,
    reference: ReferenceInfo,
) -> SourcePlan:
    """Fits the inclusion probabilities so that the expected numbers meet the budget.

    pilot: a row a sample with partition, label, stratum, similarity, reject_reason, size_bytes,
    seconds.
    """
    selection = config.selection
    samples_per_partition = listing.samples_per_partition
    if samples_per_partition is None:
        samples_per_partition = _samples_in_pilot(listing, pilot, pilot_size(entry, selection))
    num_candidates = listing.num_partitions * samples_per_partition
    usable = pilot.filter(pilot["reject_reason"].is_null())
    negatives = usable.filter(pc.equal(usable["label"], ""))
    per_pilot = num_candidates / max(pilot.num_rows, 1)
    num_negatives = negatives.num_rows * per_pilot
    fractions = config.split.fractions
    similarity_N = negatives["similarity"].to_numpy()
    scale = eval_probability = 1.0
    probability_N = np.ones(len(similarity_N))
    if len(similarity_N):
        wanted_share = entry.weight * selection.budget / (num_negatives * fractions["train"])
        curve = {
            "beta": selection.effective_beta,
            "offset": reference.median,
            "min_probability": selection.min_probability,
        }
        scale = fit_scale(similarity_N, mean_probability=wanted_share, **curve)
        probability_N = inclusion_probability(similarity_N, scale=scale, **curve)
        num_eval = num_negatives * (fractions["val"] + fractions["test"]) / 2
        wanted = entry.weight * selection.num_eval
        eval_probability = min(1.0, wanted / num_eval) if num_eval else 1.0
    expected = _expect_selected(usable, probability_N, eval_probability, config, reference)
    mean_bytes = float(np.mean(usable["size_bytes"].to_numpy())) if usable.num_rows else 0.0
    partitions_per_span = max(1, int(_SAMPLES_PER_SPAN // max(samples_per_partition, 1e-9)))
    partitions_per_span = min(partitions_per_span, _SAMPLES_PER_SPAN)
    per_span = max(partitions_per_span * samples_per_partition, 1.0)
    return SourcePlan(
        source=entry.name,
        role=config.role_of(entry),
        fingerprint=fingerprint(config.source_inputs(entry)),
        num_partitions=listing.num_partitions,
        num_listed=listing.num_listed,
        partitions_per_span=partitions_per_span,
        spans_per_round=max(1, int(config.output.candidates_per_round // per_span)),
        samples_per_partition=samples_per_partition,
        scale=scale,
        eval_probability=eval_probability,
        expected_selected={key: n * per_pilot for key, n in sorted(expected.items())},
        expected_rejected={
            item["values"]: item["counts"] * per_pilot
            for item in pc.value_counts(pilot["reject_reason"].drop_null()).to_pylist()
        },
        expected_bytes=mean_bytes * sum(expected.values()) * per_pilot,
        num_pilot=pilot.num_rows,
        seconds_per_candidate=float(np.mean(pilot["seconds"].to_numpy())) if len(pilot) else 0.0,
    )


def _samples_in_pilot(listing: Listing, pilot: pa.Table, num_wanted: int) -> float:
    """Mean size of the partitions that the pilot read to their end; else only that it is large."""
    limit = pilot_sample(listing.examples, num_wanted)[0][1]
    num_read = pilot.num_rows / len(listing.examples)
    if num_read < limit:  # hardly any was cut off at the limit
        return float(num_read)
    return float(max(limit, _UNKNOWN_PARTITION_SIZE))


def _expect_selected(
    usable: pa.Table,
    probability_N: NDArray[np.float64],
    eval_probability: float,
    config: Config,
    reference: ReferenceInfo,
) -> dict[str, float]:
    """Expected selected by "split/stratum", of the pilot's samples; positives are a stratum."""
    expected: dict[str, float] = {}
    negatives_probability = iter(probability_N)
    strata = pc.coalesce(
        usable["stratum"], strata_by_similarity(usable["similarity"], reference)
    ).to_pylist()
    for label, of_negatives in zip(usable["label"].to_pylist(), strata, strict=True):
        stratum = "positive" if label else of_negatives
        train_probability = 1.0 if label else float(next(negatives_probability))
        for split, fraction in config.split.fractions.items():
            probability = eval_probability if split != "train" and not label else train_probability
            key = f"{split}/{stratum}"
            expected[key] = expected.get(key, 0.0) + fraction * probability
    return expected
