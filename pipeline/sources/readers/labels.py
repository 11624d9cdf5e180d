"""What the class of a sample says of the target, by the settings that labelled formats share.

A table or a tar has one label a sample, or a list of them: a number among known names, or a text.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, Protocol

from pydantic import BeforeValidator, Field

from pipeline import storage
from pipeline.dataset.schema import LabelState
from pipeline.errors import ConfigError


def _texts(value: object) -> object:
    """One value or several, YAML's numbers included, as texts."""
    if isinstance(value, str | int):
        value = (value,)
    if isinstance(value, list | tuple):
        return tuple(str(each) if isinstance(each, int) else each for each in value)
    return value


def _texts_or_path(value: object) -> object:
    return value if isinstance(value, str) else _texts(value)


Target = Annotated[
    str, Field(description="label of the target's own, e.g. cat; '' is the first of target_labels")
]
TargetLabels = Annotated[
    tuple[str, ...],
    BeforeValidator(_texts),
    Field(description="classes that are the target, names or numbers, e.g. [cat] or [3]"),
]
TargetPolicy = Annotated[
    Literal["exclude", "positive", "only"],
    Field(
        description="what to do with the target's own: leave them out, yield them with the "
        "target as label among all others, or yield nothing else (a source of positives)"
    ),
]
LabelsAreExhaustive = Annotated[
    bool,
    Field(
        description="whether a sample of another class surely does not show the target, as in "
        "CIFAR-10; else its label_state is unknown"
    ),
]
LabelNames = Annotated[
    tuple[str, ...] | str,
    BeforeValidator(_texts_or_path),
    Field(
        description="names of numbered classes, in order, or the path of a file of them: a name "
        "a line, a JSON list, or JSON id2label; () is what the data itself says"
    ),
]


class LabelSettings(Protocol):
    """Params that have the fields above."""

    @property
    def target(self) -> str: ...
    @property
    def target_labels(self) -> tuple[str, ...]: ...
    @property
    def target_policy(self) -> Literal["exclude", "positive", "only"]: ...
    @property
    def labels_are_exhaustive(self) -> bool: ...
    @property
    def label_names(self) -> tuple[str, ...] | str: ...


class ClassFacts(NamedTuple):
    """The fields of a RawSample that follow from its class."""

    class_name: str | None
    label: str
    label_state: LabelState


@dataclass(frozen=True, kw_only=True)
class LabelRule:
    """From the value of a label column to what a source yields."""

    target: str
    targets: frozenset[str]
    policy: Literal["exclude", "positive", "only"]
    is_exhaustive: bool
    names: tuple[str, ...]  # of numbered classes; () where labels are texts or numbers are all

    @property
    def leaves_some_out(self) -> bool:
        return bool(self.targets) and self.policy != "positive"

    def is_offered(self, label: object) -> bool:
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
        """Names of one label or of a list; a null, "" or negative number is no label."""
        labels = label if isinstance(label, list | tuple) else [label]
        return [name for each in labels if (name := self._class_name(each)) is not None]

    def _class_name(self, label: object) -> str | None:
        if isinstance(label, bytes):
            label = label.decode(errors="replace")
        if isinstance(label, float):
            label = int(label) if label.is_integer() else None  # as pandas writes nulls
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
    settings: LabelSettings, *, names: Sequence[str] = (), is_labelled: bool, hint: str
) -> LabelRule:
    """`names` are the data's own; raises ConfigError where settings and data do not fit.

    A target label that no class has would turn the target's images into negatives.
    """
    names = tuple(_read_names(settings.label_names) or names)
    targets = settings.target_labels
    if targets and not is_labelled:
        raise ConfigError(f"`params.target_labels` needs to know the classes: {hint}")
    if settings.labels_are_exhaustive and not targets:
        raise ConfigError(
            "`params.labels_are_exhaustive` needs `params.target_labels`; where no class of the "
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
            f"{names}: no such text; check `params.label_names`, a list or a file's path"
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
            f"{names}: wanted a list of names or an object of numbers from 0 on and names; "
            "check `params.label_names`"
        )
    return parsed
