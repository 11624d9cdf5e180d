"""Which classes a source has shown: counts by class, for the check that what is declared occurs.

They travel with the parts, so that a build that was interrupted judges by the same counts.
"""

from collections import Counter
from collections.abc import Iterable

import pyarrow as pa
from pydantic import BaseModel, Field

# Others are counted together: captions are classes, too, and each is another one.
_MAX_CLASSES = 2000
_MAX_CHARACTERS = 120


class SeenLabels(BaseModel, frozen=True, extra="forbid"):
    """Numbers of samples by class name, "" for no class; of a list, its names with commas."""

    num_samples: int = 0
    targets: dict[str, int] = Field(default_factory=dict)  # of samples labelled as a target
    others: dict[str, int] = Field(default_factory=dict)
    num_more: int = 0  # samples of further classes


class LabelCounter:
    """Counts samples by class, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self._num_samples = 0
        self._targets: Counter[str] = Counter()
        self._others: Counter[str] = Counter()
        self._num_more = 0

    def add(self, class_name: str | None, *, is_target: bool, number: int = 1) -> None:
        self._num_samples += number
        if is_target:
            self._add_target(class_name or "", number)
        else:
            self._add_other((class_name or "")[:_MAX_CHARACTERS], number)

    def _add_target(self, name: str, number: int) -> None:
        """Past the limit a list of classes is counted one by one: each of them has occurred."""
        if name in self._targets or len(self._targets) < _MAX_CLASSES:
            self._targets[name] += number
        else:
            self._targets.update(dict.fromkeys(name.split(", "), number))

    def _add_other(self, name: str, number: int) -> None:
        if not name or name in self._others or len(self._others) < _MAX_CLASSES:
            self._others[name] += number
        else:
            self._num_more += number

    def update(self, seen: SeenLabels) -> None:
        self._num_samples += seen.num_samples
        for name, number in seen.targets.items():
            self._add_target(name, number)
        for name, number in seen.others.items():
            self._add_other(name, number)
        self._num_more += seen.num_more

    def seen(self) -> SeenLabels:
        return SeenLabels(
            num_samples=self._num_samples,
            targets=dict(self._targets),
            others=dict(self._others),
            num_more=self._num_more,
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
