"""Counts and sampling of a data set by source: the `dataset` block of metrics.json.

Reads one sidecar at a time, and only the columns that are counted.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, ReferenceInfo, ShardRecord, SourceRecord
from pipeline.dataset.schema import SPLITS
from train.metrics.intervals import effective_size
from train.metrics.predictions import assign_strata
from train.metrics.ranking import Floats

_COLUMNS = ("label", "label_state", "license", "stratum", "similarity", "inclusion_probability")
_POSITIVE = "positive"
_NOT_STATED = "not stated"


@dataclass
class _Tally:
    """Counts of one source, over its shards."""

    splits: Counter[str] = field(default_factory=Counter)
    strata: dict[str, Counter[str]] = field(
        default_factory=lambda: {split: Counter() for split in SPLITS}
    )
    label_states: Counter[str] = field(default_factory=Counter)
    licenses: Counter[str] = field(default_factory=Counter)
    train_probabilities: list[Floats] = field(default_factory=list)  # of negatives
    eval_probabilities: set[float] = field(default_factory=set)  # of negatives

    def add(self, shard: ShardRecord, rows: pa.Table, reference: ReferenceInfo | None) -> None:
        self.splits[shard.split] += rows.num_rows
        stratum = assign_strata(rows, reference)[0]
        self.strata[shard.split] += _count(stratum, _POSITIVE if shard.label else _NOT_STATED)
        self.label_states += _count(rows["label_state"], _NOT_STATED)
        self.licenses += _count(rows["license"], _NOT_STATED)
        if shard.label:
            return
        probabilities = rows["inclusion_probability"].to_numpy()
        if shard.split == "train":
            self.train_probabilities.append(probabilities)
        else:
            self.eval_probabilities.update(np.unique(probabilities).tolist())


def _count(column: pa.ChunkedArray, if_null: str) -> Counter[str]:
    counted = pc.value_counts(column.fill_null(if_null)).to_pylist()
    return Counter({each["values"]: each["counts"] for each in counted})


def describe_dataset(dataset: str, generation: Generation, config: Config) -> dict[str, Any]:
    """The `dataset` block. Per source, read = selected + not selected + rejected.

    `inclusion_probability` is that of the source's training negatives; `n_effective` is the number
    of equally weighted ones that would represent its stream equally well (Kish 1965).
    """
    reference = Dataset(dataset).read_reference()
    tallies = {source.name: _Tally() for source in generation.sources}
    for shard in generation.shards:
        rows = Dataset(dataset).read_sidecar(shard, _COLUMNS)
        tallies[shard.source].add(shard, rows, reference)
    quarantined: Counter[str] = Counter()
    for file in generation.quarantine:
        quarantined[file.source] += file.num_samples
    selection = config.selection
    return {
        "encoder": config.encoder.name,
        "selection": {
            "mode": selection.mode,
            "beta": selection.effective_beta,
            "min_probability": selection.min_probability,
            "budget": selection.budget.model_dump(mode="json", exclude_none=True),
        },
        "sources": [
            _describe(source, tallies[source.name], quarantined[source.name])
            for source in generation.sources
        ],
        "splits": {
            split: _ordered(sum((tally.strata[split] for tally in tallies.values()), Counter()))
            for split in SPLITS
        },
    }


def _describe(source: SourceRecord, tally: _Tally, num_quarantined: int) -> dict[str, Any]:
    return {
        "name": source.name,
        "role": source.role,
        **source.counts.model_dump(),  # read, selected, not_selected, rejected
        "quarantined": num_quarantined,
        "splits": {split: tally.splits[split] for split in SPLITS},
        "strata": _ordered(sum(tally.strata.values(), Counter())),
        "label_states": _largest(tally.label_states),
        "licenses": _largest(tally.licenses),
        **_sampling(tally.train_probabilities),
        "eval_probabilities": sorted(tally.eval_probabilities),
    }


def _sampling(train_probabilities: Iterable[Floats]) -> dict[str, Any]:
    probability_N = np.concatenate([np.zeros(0), *train_probabilities])
    if not len(probability_N):
        return {"inclusion_probability": None, "n_effective": None}
    return {
        "inclusion_probability": {
            "min": float(probability_N.min()),
            "median": float(np.median(probability_N)),
            "max": float(probability_N.max()),
        },
        "n_effective": effective_size(1 / probability_N),
    }


def _ordered(strata: Counter[str]) -> dict[str, int]:
    names = (_POSITIVE, "near", "mid", "far", "generated", _NOT_STATED)
    return {name: strata[name] for name in names if strata[name]}


def _largest(counts: Counter[str], num: int = 8) -> dict[str, int]:
    """The most common, the others as one: a source may have thousands of licences."""
    common = dict(counts.most_common(num))
    rest = counts.total() - sum(common.values())
    return common | ({"others": rest} if rest else {})
