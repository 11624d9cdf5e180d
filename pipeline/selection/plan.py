"""With what probability a candidate is chosen: from a pilot to a plan.

Pure: reads a pilot's rows, opens no image and starts nothing.
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.schema import Config, SourceEntry, fingerprint
from pipeline.dataset.metadata import ReferenceInfo, SourcePlan, strata_by_similarity
from pipeline.selection.fit import Fitted, fit_probabilities, probability_curve
from pipeline.selection.pilot import PilotStats, pilot_stats
from pipeline.selection.rule import inclusion_probability
from pipeline.sources.survey import Listing

# A task of Ray costs its driver 15 ms: partitions are read together until it has a second of work.
_SAMPLES_PER_SPAN = 512


def make_plan(
    entry: SourceEntry,
    *,
    config: Config,
    listing: Listing,
    pilot: pa.Table,
    reference: ReferenceInfo,
    previous: SourcePlan | None = None,
) -> SourcePlan:
    """Fits the inclusion probabilities so that the expected numbers meet the budget.

    pilot: rows as of `pilot_stats`. What a `previous` plan of the same source with a smaller budget
    chose stays chosen.
    """
    findings = pilot_stats(config, listing, pilot, reference)
    source_fingerprint = fingerprint(_inputs_but_amounts(config, entry))
    num_partitions = _extend_prefix(entry, config, listing, findings)
    num_candidates = num_partitions * findings.samples_per_partition
    per_pilot = num_candidates / max(pilot.num_rows, 1)
    fit = _keep_chosen(
        fit_probabilities(entry, config, findings, per_pilot, reference),
        previous,
        source_fingerprint,
    )
    scale, eval_probability = fit.scale, fit.eval_probability
    probability_N = inclusion_probability(
        findings.similarity, scale=scale, **probability_curve(config, reference)
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
        source_fingerprint=source_fingerprint,
        num_wanted=fit.num_wanted,
        scale=scale,
        eval_probability=eval_probability,
        expected_selected={key: n * per_pilot for key, n in sorted(expected.items())},
        expected_rejected={
            reason: number * per_pilot for reason, number in sorted(findings.rejected.items())
        },
        expected_bytes=findings.mean_bytes * sum(expected.values()) * per_pilot,
        num_pilot=pilot.num_rows,
        seconds_per_candidate=findings.seconds,
    )


def _keep_chosen(fit: Fitted, previous: SourcePlan | None, source_fingerprint: str) -> Fitted:
    """The fit, but no probability falls where more is wanted of the same source.

    A larger budget comes with another pilot, by whose chance the scale might.
    """
    is_raised = (
        previous is not None
        and previous.source_fingerprint == source_fingerprint
        and previous.num_wanted <= fit.num_wanted
    )
    if previous is None or not is_raised:
        return fit
    return replace(
        fit,
        scale=max(fit.scale, previous.scale),
        eval_probability=max(fit.eval_probability, previous.eval_probability),
    )


def _inputs_but_amounts(config: Config, entry: SourceEntry) -> dict[str, Any]:
    """What decides which samples a source has, and their order, but not how many are wanted."""
    amounts = {"weight", "max_reject_fraction"}
    return {
        "entry": entry.model_dump(mode="json", exclude=amounts),
        "role": config.role_of(entry),
        "rows": config.row_inputs(),
    }


def _extend_prefix(
    entry: SourceEntry, config: Config, listing: Listing, findings: PilotStats
) -> int:
    """Partitions to take, where only the pilot tells how much a partition is.

    That is so of an endless source whose budget is in bytes, and of partitions of unknown size.
    """
    budget = config.selection.budget
    num_candidates = None
    if budget.bytes is not None:
        num_selected = entry.weight * budget.bytes / max(findings.mean_bytes, 1.0)
        num_candidates = num_selected * config.selection.candidates_per_selected
    if listing.estimates and config.role_of(entry) == "negative":
        # Positives are embedded before there is a pilot, and what was listed then is what counts.
        return listing.num_partitions_for(findings.samples_per_partition)
    is_fixed = listing.num_listed is not None or entry.max_candidates is not None
    if num_candidates is None or is_fixed:
        return listing.num_partitions
    return max(1, math.ceil(num_candidates / max(findings.samples_per_partition, 1e-9)))


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
