"""Which classes a source has shown: counts by class, for the check that what is declared occurs.

They travel with the parts, so that a build that was interrupted judges by the same counts.
"""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
from pydantic import BaseModel, Field

# More classes are counted together: captions are classes, too, and none may be like another.
_MAX_CLASSES = 2000
_MAX_CHARACTERS = 120


class SeenLabels(BaseModel, frozen=True, extra="forbid"):
    """Numbers of samples by class name, "" for no class; of a list, its names with commas."""

    targets: dict[str, int] = Field(default_factory=dict)  # of samples labelled as a target
    others: dict[str, int] = Field(default_factory=dict)
    num_more: int = 0  # samples of further classes

    @property
    def num_samples(self) -> int:
        return sum(self.targets.values()) + sum(self.others.values()) + self.num_more


class LabelCounter:
    """Counts samples by class, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self._targets: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._num_more = 0

    def add(self, class_name: str | None, *, is_target: bool, number: int = 1) -> None:
        counts, name = self._targets if is_target else self._others, (class_name or "")
        name = name[:_MAX_CHARACTERS]
        if name in counts or len(counts) < _MAX_CLASSES or not name:
            counts[name] += number
        else:
            self._num_more += number

    def update(self, seen: SeenLabels) -> None:
        for name, number in seen.targets.items():
            self.add(name, is_target=True, number=number)
        for name, number in seen.others.items():
            self.add(name, is_target=False, number=number)
        self._num_more += seen.num_more

    def seen(self) -> SeenLabels:
        return SeenLabels(
            targets=dict(self._targets), others=dict(self._others), num_more=self._num_more
        )


def count_labels(rows: pa.Table) -> SeenLabels:
    """rows: with label and class_name."""
    counter = LabelCounter()
    counts = Counter(zip(rows["label"].to_pylist(), rows["class_name"].to_pylist(), strict=True))
    for (label, class_name), number in counts.items():
        counter.add(class_name, is_target=bool(label), number=number)
    return counter.seen()


def add_seen(each: Iterable[SeenLabels]) -> SeenLabels:
    counter = LabelCounter()
    for seen in each:
        counter.update(seen)
    return counter.seen()
