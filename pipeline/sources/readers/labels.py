"""From the class of a sample to its label: settings and rules that labelled formats share.

Each sample has one class or a list of them: a number among known names, or a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

from pipeline import storage
from pipeline.dataset.schema import LabelState
from pipeline.errors import ConfigError

TargetPolicy = Literal["exclude", "positive", "only"]


def _texts(value: object) -> object:
    """One value or several, numbers included, as texts."""
    if isinstance(value, str | int):
        value = (value,)
    if isinstance(value, list | tuple):
        return tuple(str(each) if isinstance(each, int) else each for each in value)
    return value


def _texts_or_path(value: object) -> object:
    return value if isinstance(value, str) else _texts(value)


class LabelledParams(BaseModel, frozen=True, extra="forbid"):
    """Settings of a source whose samples have classes."""

    target: str = Field(
        "", description="Label of the target's images, e.g. cat; '' is the first of target_labels."
    )
    target_labels: Annotated[tuple[str, ...], BeforeValidator(_texts)] = Field(
        (), description="Classes that are the target, names or numbers, e.g. [cat] or [3]."
    )
    target_policy: TargetPolicy = Field(
        "exclude",
        description="What to do with the target's images: leave them out, yield them among all "
        "others with the target as label, or yield only them (a source of positives).",
    )
    labels_are_exhaustive: bool = Field(
        False,
        description="Whether an image of another class surely does not show the target, as in "
        "CIFAR-10. Otherwise its label_state is unknown.",
    )
    label_names: Annotated[tuple[str, ...] | str, BeforeValidator(_texts_or_path)] = Field(
        (),
        description="Names of numbered classes, in order, or the path of a file of them: one name "
        "per line, a JSON list, or JSON id2label. () takes the names that the data has.",
    )


class ClassFacts(NamedTuple):
    """Fields of a RawSample that follow from its class."""

    class_name: str | None
    label: str
    label_state: LabelState


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """Which samples a source yields, and with which label, by their classes."""

    target: str
    targets: frozenset[str]
    policy: TargetPolicy
    is_exhaustive: bool
    names: tuple[str, ...]  # of numbered classes; () if they have none

    @property
    def leaves_some_out(self) -> bool:
        return bool(self.targets) and self.policy != "positive"

    def is_offered(self, label: object) -> bool:
        """Whether the source yields samples of this class."""
        if not self.leaves_some_out:
            return True
        is_target = not self.targets.isdisjoint(self.class_names(label))
        return is_target == (self.policy == "only")

    def facts(self, label: object) -> ClassFacts:
        names = self.class_names(label)
        class_name = ", ".join(names) or None
        if not self.targets.isdisjoint(names):
            return ClassFacts(class_name, self.target, "verified_present")
        is_absent = self.is_exhaustive and bool(names)
        return ClassFacts(class_name, "", "verified_absent" if is_absent else "unknown")

    def class_names(self, label: object) -> list[str]:
        """Names of one class or of a list; a null, "" or negative number is no class."""
        labels = label if isinstance(label, list | tuple) else [label]
        return [name for each in labels if (name := self._class_name(each)) is not None]

    def _class_name(self, label: object) -> str | None:
        if isinstance(label, bytes):
            label = label.decode(errors="replace")
        if isinstance(label, float):
            label = int(label) if label.is_integer() else None  # pandas writes nulls as nan
        text = "" if label is None else str(label).strip()
        if not text or (isinstance(label, int) and label < 0):
            return None
        if not self.names or text in self.names:
            return text
        if not text.isdecimal() or int(text) >= len(self.names):
            raise ConfigError(
                f"class {text!r} is none of the {len(self.names)} known "
                f"({_some(self.names)}); check `params.label_names`"
            )
        return self.names[int(text)]


def label_rule(
    settings: LabelledParams, *, names: Sequence[str] = (), is_labelled: bool, hint: str
) -> LabelRule:
    """`names` are those of the data; raises ConfigError if settings and data do not fit.

    A target label that is no class would turn the target's images into negatives.
    """
    names = tuple(_read_names(settings.label_names) or names)
    targets = settings.target_labels
    if targets and not is_labelled:
        raise ConfigError(f"`params.target_labels` needs classes: {hint}")
    if settings.labels_are_exhaustive and not targets:
        raise ConfigError(
            "`params.labels_are_exhaustive` needs `params.target_labels`; if no class of the "
            "set is the target, give the source `label_state: verified_absent`"
        )
    if settings.target_policy != "exclude" and not targets:
        raise ConfigError(
            f"`params.target_policy` {settings.target_policy} needs `params.target_labels`"
        )
    return LabelRule(
        target=settings.target or (targets[0] if targets else ""),
        targets=frozenset(_known_name(target, names) for target in targets),
        policy=settings.target_policy,
        is_exhaustive=settings.labels_are_exhaustive,
        names=names,
    )


def _known_name(label: str, names: tuple[str, ...]) -> str:
    if not names or label in names:
        return label
    if label.isdecimal() and int(label) < len(names):
        return names[int(label)]
    raise ConfigError(
        f"`params.target_labels`: {label!r} is none of the {len(names)} classes: {_some(names)}"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def _read_names(names: tuple[str, ...] | str) -> list[str]:
    if not isinstance(names, str):
        return list(names)
    try:
        text = storage.read_bytes(names).decode()
    except (FileNotFoundError, UnicodeDecodeError):
        raise ConfigError(
            f"{names}: no such text file; check `params.label_names`, a list or a path"
        ) from None
    if not names.endswith(".json"):
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            parsed = [parsed[str(number)] for number in range(len(parsed))]
    except (ValueError, KeyError):
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(name, str) for name in parsed):
        raise ConfigError(
            f"{names}: expected a list of names, or an object from numbers (0, 1, ...) to names; "
            "check `params.label_names`"
        )
    return parsed
