"""What the settings of a labelled source declare, and whether it occurred in what was read.

A target that never occurs is most often one that is spelt otherwise in the data: then its images
are among the negatives.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.dataset.seen_labels import SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.readers.text import shown

_log = logging.getLogger(__name__)

_MAX_SHOWN = 12


@dataclass(frozen=True, kw_only=True)
class Declared:
    """The classes of the target, and the setting that says where classes are."""

    targets: Sequence[str] = ()
    known: frozenset[str] = frozenset()  # those in the data's own or the given list of classes
    targets_setting: str = "params.target_labels"
    place: str = ""  # of classes, with its setting; "" if it is not declared
    is_only: bool = False  # whether the source yields only the target

    def __bool__(self) -> bool:
        return bool(self.targets or self.place)

    def check(self, seen: SeenLabels) -> None:
        """Raises ConfigError if something did not occur that has to; warns of known classes."""
        if not seen.num_samples:
            return  # nothing was read, which others tell
        if not has_class(seen):
            raise ConfigError(
                f"none of {seen.num_samples:,} samples has a class; check {self.place or 'labels'}"
            )
        missing = [name for name in self.targets if not is_seen(name, seen.targets)]
        unknown = [name for name in missing if name not in self.known]
        if unknown or (self.is_only and len(missing) == len(self.targets) > 0):
            raise ConfigError(
                f"no sample of class {_listed(unknown or missing)} among {seen.num_samples:,}; "
                f"seen: {described(seen)}{_resembling(unknown, seen)}. "
                f"Check `{self.targets_setting}`"
            )
        if missing:
            _log.warning(
                "no sample of class %s among %s, though the list of classes has it; seen: %s",
                _listed(missing), f"{seen.num_samples:,}", described(seen),
            )  # fmt: skip


def is_seen(name: str, counts: Mapping[str, int]) -> bool:
    """Whether a class is among those counted, by itself or in a list of several."""
    return any(f", {name}, " in f", {each}, " for each in counts)


def has_class(seen: SeenLabels) -> bool:
    return bool(seen.targets or seen.num_more or any(seen.others))


def described(seen: SeenLabels) -> str:
    """The commonest classes with their numbers: "Cat" 20, "thing" 20."""
    counts = Counter(seen.targets) + Counter(seen.others)
    parts = [
        f"{shown(name) if name else 'without a class'} {number:,}"
        for name, number in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    num_more = len(parts) - _MAX_SHOWN
    more = [f"and {num_more:,} other classes"] if num_more > 0 else []
    return ", ".join(parts[:_MAX_SHOWN] + more)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_SHOWN:,} more" if len(names) > _MAX_SHOWN else ""
    return ", ".join(map(shown, names[:_MAX_SHOWN])) + more


def _resembling(names: Sequence[str], seen: SeenLabels) -> str:
    """Classes that look like one of these, which the commonest may not be."""
    wanted = {_skeleton(name): name for name in names}
    found = [each for each in seen.others if each and _skeleton(each) in wanted]
    if not found:
        return ""
    return (
        f"; {_listed(found[:3])} differs from {shown(wanted[_skeleton(found[0])])} only in "
        "capitals, spaces, leading zeros or characters that one cannot see"
    )


def _skeleton(name: str) -> str:
    """Letters and digits only, in one form and case; a number without zeros before it."""
    folded = unicodedata.normalize("NFKC", name).casefold()
    text = "".join(each for each in folded if each.isalnum())
    return text.lstrip("0") or text
