"""From a pilot to a plan: how much of a source is read, and with what probability it is selected.

Pure: reads a pilot's rows, opens no image and starts nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.compute as pc

from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.dataset.metadata import ReferenceInfo, SourcePlan, strata_by_similarity
from pipeline.selection.fit import Fitted, drawn_probability, fit_probabilities, round_scale
from pipeline.selection.pilot import Pilot
from pipeline.selection.rule import floor_of

# A Ray task costs its driver 15 ms: partitions are read together until it has a second of work.
_SAMPLES_PER_SPAN = 512


def plan_fingerprint(config: Config, entry: SourceEntry, draw: int) -> str:
    """Of all that a plan depends on: settings, and the draw, which is another if files changed."""
    inputs = config.source_inputs(entry)
    return fingerprint({**inputs, "draw": draw} if draw else inputs)


def draw_of(plan: SourcePlan | None, reference: ReferenceInfo | None) -> int:
    """The draw that a plan has to be of, by the last plan of its source and the reference bank."""
    return max(plan.draw if plan else 0, reference.draw if reference else 0)


def fit_pool(
    pilots: Sequence[Pilot],
    planned: Sequence[tuple[SourceEntry, SourcePlan]],
    *,
    config: Config,
    reference: ReferenceInfo,
) -> list[Fitted]:
    """The probabilities of sources that share one budget, as many of them as have no plan yet.

    planned: those that have one. Their scale is that of all.
    """
    for entry, plan in planned:
        if plan.num_wanted:
            floor = floor_of(plan, config.selection)
            scale = round_scale(plan.scale / entry.weight)
            return [
                Fitted(plan.num_wanted, scale * pilot.entry.weight, floor, plan.eval_probability)
                for pilot in pilots
            ]
    sizes = [_num_partitions(pilot, config) * pilot.samples_per_partition for pilot in pilots]
    return fit_probabilities(
        list(zip(pilots, sizes, strict=True)), config=config, reference=reference
    )


def make_plan(
    pilot: Pilot,
    *,
    config: Config,
    reference: ReferenceInfo,
    previous: SourcePlan | None = None,
    fit: Fitted | None = None,
) -> SourcePlan:
    """Fits the inclusion probabilities so that the expected numbers meet the budget.

    previous: an earlier plan of the same source. If its budget was smaller, what it selected stays
    selected. fit: the probabilities, if the source shares its budget with others.
    """
    entry, listing = pilot.entry, pilot.listing
    samples_per_partition = pilot.samples_per_partition
    # Of what decides which samples a source has and their order, not how many are wanted.
    amounts = {"weight", "max_reject_fraction"}
    draw = draw_of(previous, reference)
    inputs: dict[str, Any] = {
        "entry": entry.model_dump(mode="json", exclude=amounts),
        "role": config.role_of(entry),
        "rows": config.row_inputs(),
    }
    if pool := config.pool_inputs():
        inputs["pool"] = pool
    if draw:
        inputs["draw"] = draw
    source_fingerprint = fingerprint(inputs)
    num_partitions = _num_partitions(pilot, config)
    num_candidates = num_partitions * samples_per_partition
    if fit is None:
        (fit,) = fit_probabilities([(pilot, num_candidates)], config=config, reference=reference)
    if previous is not None and is_raised(previous, source_fingerprint, fit.num_wanted):
        fit = _keep_chosen(fit, previous, config)
    per_row = num_candidates / max(pilot.num_rows, 1)
    expected = _expect_selected(pilot, fit, config, reference)
    per_span = span_length(samples_per_partition) * max(samples_per_partition, 1.0)
    return SourcePlan(
        source=entry.name,
        role=config.role_of(entry),
        fingerprint=plan_fingerprint(config, entry, draw),
        draw=draw,
        num_partitions=num_partitions,
        num_listed=listing.num_listed,
        partitions_per_budget=num_partitions,
        partitions_per_span=span_length(samples_per_partition),
        spans_per_round=max(1, int(config.output.candidates_per_round // per_span)),
        samples_per_partition=samples_per_partition,
        source_fingerprint=source_fingerprint,
        num_wanted=fit.num_wanted,
        scale=fit.scale,
        min_probability=fit.min_probability,
        eval_probability=fit.eval_probability,
        expected_selected={key: n * per_row for key, n in sorted(expected.items())},
        expected_rejected={
            reason: number * per_row for reason, number in sorted(pilot.rejected.items())
        },
        expected_bytes=pilot.mean_bytes * sum(expected.values()) * per_row,
        num_pilot=pilot.num_rows,
        seconds_per_candidate=pilot.seconds,
    )


def span_length(samples_per_partition: float) -> int:
    """Partitions of one span."""
    return max(1, int(_SAMPLES_PER_SPAN // max(samples_per_partition, 1.0)))


def is_raised(previous: SourcePlan, source_fingerprint: str, num_wanted: float) -> bool:
    """Whether as much or more is wanted of the same source, so that what it has stays selected."""
    return previous.source_fingerprint == source_fingerprint and previous.num_wanted <= num_wanted


def _keep_chosen(fit: Fitted, previous: SourcePlan, config: Config) -> Fitted:
    """The fit, with no probability below the previous one.

    A larger budget comes with another pilot, so that by chance the fitted scale might be lower.
    """
    return replace(
        fit,
        scale=max(fit.scale, previous.scale),
        min_probability=max(fit.min_probability, floor_of(previous, config.selection)),
        eval_probability=max(fit.eval_probability, previous.eval_probability),
    )


def _num_partitions(pilot: Pilot, config: Config) -> int:
    """Partitions to take: as listed, unless only the pilot shows how much a partition holds.

    That is so for partitions of unknown size and for an endless source with a budget in bytes.
    """
    entry, listing, budget = pilot.entry, pilot.listing, config.selection.budget
    if listing.estimates and config.role_of(entry) == "negative":
        # Not positives: they were embedded before there was a pilot, by the first listing.
        return listing.num_partitions_for(pilot.samples_per_partition)
    is_fixed = listing.num_listed is not None or entry.max_candidates is not None
    if budget.bytes is None or is_fixed:
        return listing.num_partitions
    num_selected = entry.weight * budget.bytes / max(pilot.mean_bytes, 1.0)
    num_candidates = num_selected * config.selection.candidates_per_selected
    return max(1, math.ceil(num_candidates / max(pilot.samples_per_partition, 1e-9)))


def _expect_selected(
    pilot: Pilot, fit: Fitted, config: Config, reference: ReferenceInfo
) -> dict[str, float]:
    """Rows of the pilot expected to be selected, by "split/stratum"; positives are a stratum."""
    usable = pilot.usable
    # Half of them are drawn; which ones the first head adds is not known yet.
    drawn_N = drawn_probability(fit, pilot, config=config, reference=reference)
    probability_N = np.minimum(drawn_N / config.selection.share_drawn, 1)
    expected: dict[str, float] = {}
    negatives_probability = iter(probability_N)
    strata = pc.coalesce(
        usable["stratum"], strata_by_similarity(usable["similarity"], reference)
    ).to_pylist()
    for label, of_negatives in zip(usable["label"].to_pylist(), strata, strict=True):
        stratum = "positive" if label else of_negatives
        train_probability = 1.0 if label else float(next(negatives_probability))
        eval_probability = 1.0 if label else fit.eval_probability
        for split, fraction in config.split.fractions.items():
            probability = train_probability if split == "train" else eval_probability
            key = f"{split}/{stratum}"
            expected[key] = expected.get(key, 0.0) + fraction * probability
    return expected
