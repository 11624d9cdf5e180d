"""How much is taken of a source, and with what probability: from a pilot to a plan.

Pure: reads listings and a pilot's rows, opens no image and starts nothing.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.optimize import brentq

from pipeline.config import Config, SelectionConfig, SourceEntry, fingerprint
from pipeline.errors import ConfigError
from pipeline.records import Partition, ReferenceInfo, SourcePlan, strata_by_similarity
from pipeline.sources import Source
from pipeline.steps.select import inclusion_probability

# A pilot reads a little of many partitions, because samples of one partition resemble each other.
_MAX_PILOT_PARTITIONS = 64
_UNKNOWN_PARTITION_SIZE = 1000  # until the pilot tells; only orders of magnitude matter


@dataclass(frozen=True)
class Planned:
    """A source that is to be built, with the partitions of its plan."""

    entry: SourceEntry
    plan: SourcePlan
    partitions: list[Partition]


def num_candidates_wanted(entry: SourceEntry, selection: SelectionConfig) -> int:
    """Candidates that the budget asks for of a source which never ends by itself."""
    return math.ceil(entry.weight * selection.budget * selection.candidates_per_selected)


def choose_partitions(
    source: Source, entry: SourceEntry, config: Config
) -> tuple[list[Partition], float]:
    """The partitions to take, and the stride between them in the source's list.

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
        return list(_prefix(source.partitions(), wanted)), 1.0
    partitions = list(source.partitions())
    if not partitions:
        raise ConfigError(f"source {entry.name!r}: no partition found, nothing to read")
    num_candidates = sum(map(_size, partitions))
    if wanted is None or num_candidates <= wanted:
        return partitions, 1.0
    num_taken = max(1, round(len(partitions) * wanted / num_candidates))
    return take_evenly(partitions, num_taken), len(partitions) / num_taken


def take_evenly(partitions: Sequence[Partition], number: int) -> list[Partition]:
    """`number` partitions at even steps, the first among them."""
    return [partitions[i * len(partitions) // number] for i in range(number)]


def pilot_sample(partitions: Sequence[Partition], num_wanted: int) -> list[tuple[Partition, int]]:
    """Partitions for the pilot, each with the samples to read of it."""
    chosen = take_evenly(partitions, min(len(partitions), _MAX_PILOT_PARTITIONS))
    return [(partition, math.ceil(num_wanted / len(chosen))) for partition in chosen]


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
    partitions: Sequence[Partition],
    stride: float,
    pilot: pa.Table,
    reference: ReferenceInfo,
    round_number: int = 1,
) -> SourcePlan:
    """Fits the inclusion probabilities so that the expected numbers meet the budget.

    pilot: a row a sample with label, stratum, similarity, reject_reason, size_bytes, seconds.
    """
    selection = config.selection
    num_candidates = _count_candidates(partitions, pilot)
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
    return SourcePlan(
        source=entry.name,
        round=round_number,
        role=config.role_of(entry),
        fingerprint=fingerprint(config.source_inputs(entry)),
        num_partitions=len(partitions),
        stride=stride,
        num_candidates=round(num_candidates),
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


def _count_candidates(partitions: Sequence[Partition], pilot: pa.Table) -> float:
    """Exact where the source knows; else the pilot's size is all that is known."""
    known = [p.num_samples for p in partitions if p.num_samples is not None]
    if len(known) == len(partitions):
        return float(sum(known))
    if known:
        return float(np.mean(known) * len(partitions))
    return float(max(pilot.num_rows, _UNKNOWN_PARTITION_SIZE * len(partitions)))


def _prefix(partitions: Iterator[Partition], num_wanted: int) -> Iterator[Partition]:
    num_taken = 0
    for partition in partitions:
        yield partition
        num_taken += _size(partition)
        if num_taken >= num_wanted:
            return


def _size(partition: Partition) -> int:
    return _UNKNOWN_PARTITION_SIZE if partition.num_samples is None else partition.num_samples
