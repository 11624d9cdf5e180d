"""With what probability a candidate is chosen: from a pilot to a plan.

Pure: reads a pilot's rows, opens no image and starts nothing.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.commits import ReferenceInfo, SourcePlan, strata_by_similarity
from pipeline.config import Config, SourceEntry, fingerprint
from pipeline.listing import UNKNOWN_PARTITION_SIZE, Listing, pilot_size
from pipeline.records import Partition
from pipeline.steps.select import inclusion_probability

# A task of Ray costs its driver 15 ms: partitions are read together until it has a second of work.
_SAMPLES_PER_SPAN = 512


def pilot_sample(partitions: Sequence[Partition], num_wanted: int) -> list[tuple[Partition, int]]:
    """Partitions for the pilot, each with the samples to read of it."""
    return [(partition, math.ceil(num_wanted / len(partitions))) for partition in partitions]


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
    num_workers: int = 1,
) -> SourcePlan:
    """Fits the inclusion probabilities so that the expected numbers meet the budget.

    pilot: a row a sample with partition, label, stratum, similarity, doubt, reject_reason,
    size_bytes, seconds, partition_size.
    """
    findings = _read_pilot(entry, config, listing, pilot)
    num_partitions = _extend_prefix(entry, config, listing, findings, num_workers)
    num_candidates = num_partitions * findings.samples_per_partition
    per_pilot = num_candidates / max(pilot.num_rows, 1)
    scale, eval_probability, probability_N = _fit_probabilities(
        entry, config, findings, per_pilot, reference
    )
    expected = _expect_selected(findings.usable, probability_N, eval_probability, config, reference)
    partitions_per_span = _SAMPLES_PER_SPAN // max(findings.samples_per_partition, 1.0)
    per_span = max(partitions_per_span, 1) * max(findings.samples_per_partition, 1.0)
    return SourcePlan(
        source=entry.name,
        role=config.role_of(entry),
        fingerprint=fingerprint(config.source_inputs(entry)),
        num_partitions=num_partitions,
        num_listed=listing.num_listed,
        partitions_per_budget=num_partitions,
        partitions_per_span=max(1, int(partitions_per_span)),
        spans_per_round=max(1, int(config.output.candidates_per_round // per_span)),
        samples_per_partition=findings.samples_per_partition,
        scale=scale,
        eval_probability=eval_probability,
        expected_selected={key: n * per_pilot for key, n in sorted(expected.items())},
        expected_rejected={
            item["values"]: item["counts"] * per_pilot
            for item in pc.value_counts(pilot["reject_reason"].drop_null()).to_pylist()
        },
        expected_bytes=findings.mean_bytes * sum(expected.values()) * per_pilot,
        num_pilot=pilot.num_rows,
        seconds_per_candidate=findings.seconds,
    )


@dataclass(frozen=True)
class _Findings:
    """What a pilot tells of a source."""

    usable: pa.Table
    samples_per_partition: float
    mean_bytes: float  # of a usable picture, as it goes into a shard
    seconds: float  # a candidate takes one worker

    @property
    def negatives(self) -> pa.Table:
        return self.usable.filter(pc.equal(self.usable["label"], ""))


def _read_pilot(entry: SourceEntry, config: Config, listing: Listing, pilot: pa.Table) -> _Findings:
    is_usable = pc.and_(pilot["reject_reason"].is_null(), pilot["doubt"].is_null())
    usable = pilot.filter(is_usable)
    samples_per_partition = listing.samples_per_partition
    if samples_per_partition is None:
        num_wanted = pilot_size(entry, config.selection)
        samples_per_partition = _samples_in_pilot(listing, pilot, num_wanted)
    return _Findings(
        usable=usable,
        samples_per_partition=samples_per_partition,
        mean_bytes=float(np.mean(usable["size_bytes"].to_numpy())) if len(usable) else 0.0,
        seconds=float(np.mean(pilot["seconds"].to_numpy())) if len(pilot) else 0.0,
    )


def _extend_prefix(
    entry: SourceEntry, config: Config, listing: Listing, findings: _Findings, num_workers: int
) -> int:
    """Partitions to take, where only the pilot tells how much a partition is.

    That is so of an endless source whose budget is in bytes or hours, and of partitions of unknown
    size.
    """
    budget = config.selection.budget
    num_candidates = None
    if budget.bytes is not None:
        num_selected = entry.weight * budget.bytes / max(findings.mean_bytes, 1.0)
        num_candidates = num_selected * config.selection.candidates_per_selected
    elif budget.hours is not None:
        # Twice what the pilot promises, because it is the clock that ends it.
        num_seconds = 2 * 3600 * entry.weight * budget.hours * num_workers
        num_candidates = num_seconds / max(findings.seconds, 1e-6)
    if listing.estimates and config.role_of(entry) == "negative":
        # Positives are embedded before there is a pilot, and what was listed then is what counts.
        return listing.num_partitions_for(findings.samples_per_partition)
    is_fixed = listing.num_listed is not None or entry.max_candidates is not None
    if num_candidates is None or is_fixed:
        return listing.num_partitions
    return max(1, math.ceil(num_candidates / max(findings.samples_per_partition, 1e-9)))


def _fit_probabilities(
    entry: SourceEntry,
    config: Config,
    findings: _Findings,
    per_pilot: float,
    reference: ReferenceInfo,
) -> tuple[float, float, NDArray[np.float64]]:
    """Scale, probability of val and test, and inclusion_probability_N of the pilot's negatives.

    per_pilot: candidates of the source for each one of the pilot.
    """
    selection, fractions = config.selection, config.split.fractions
    similarity_N = findings.negatives["similarity"].to_numpy()
    if not len(similarity_N):
        return 1.0, 1.0, np.ones(0)
    num_negatives = len(similarity_N) * per_pilot
    num_train = num_negatives * fractions["train"]
    if selection.budget.selected is not None:
        wanted = entry.weight * selection.budget.selected
    elif selection.budget.bytes is not None:
        wanted = entry.weight * selection.budget.bytes / findings.mean_bytes
    else:
        wanted = num_train / selection.candidates_per_selected
    curve = {
        "beta": selection.effective_beta,
        "offset": reference.median,
        "min_probability": selection.min_probability,
    }
    scale = fit_scale(similarity_N, mean_probability=wanted / num_train, **curve)
    num_eval = num_negatives * (fractions["val"] + fractions["test"]) / 2
    wanted_eval = wanted / 4
    if selection.eval_budget is not None:
        wanted_eval = entry.weight * selection.eval_budget
    eval_probability = min(1.0, wanted_eval / num_eval) if num_eval else 1.0
    return scale, eval_probability, inclusion_probability(similarity_N, scale=scale, **curve)


def _samples_in_pilot(listing: Listing, pilot: pa.Table, num_wanted: int) -> float:
    """Mean size of partitions: read to the end, else by estimate, else only that it is large."""
    counted = pilot["partition_size"].drop_null().to_numpy()
    if len(counted):
        return float(np.mean(counted))
    limit = pilot_sample(listing.examples, num_wanted)[0][1]
    num_read = Counter(pilot["partition"].to_pylist())
    estimates = listing.estimates or (None,) * len(listing.examples)
    sizes = [
        max(limit, estimate or UNKNOWN_PARTITION_SIZE)
        if num_read[partition.id] >= limit
        else num_read[partition.id]
        for partition, estimate in zip(listing.examples, estimates, strict=True)
    ]
    return float(np.mean(sizes))


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
