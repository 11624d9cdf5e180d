"""From the class of a sample to its label: settings and rules that labelled formats share.

Each sample has one class or a list of them; `class_names` says which one a label means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, Field

from pipeline.dataset.schema import LabelState
from pipeline.dataset.seen_labels import LabelCounter
from pipeline.errors import ConfigError
from pipeline.sources.readers.class_names import (
    ClassNames,
    NotALabel,
    TextLabels,
    read_class_names,
    refuse_multi_hot,
)
from pipeline.sources.readers.declared import Declared
from pipeline.sources.readers.text import strip

TargetPolicy = Literal["exclude", "positive", "only"]


def _labels(value: object) -> object:
    """One label or several, each a whole number or a text, by its type."""
    values = value if isinstance(value, list | tuple) else (value,)
    return tuple(_label(each) for each in values)


def _label(value: object) -> object:
    if isinstance(value, str):
        return strip(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return value


def _texts_or_path(value: object) -> object:
    """Several texts, numbers included, or one path."""
    if not isinstance(value, list | tuple):
        return value
    if any(isinstance(each, bool) for each in value):
        raise ValueError("a name is yes, no, on, off, true or false: write it in quotes")
    return tuple(str(each) if isinstance(each, int) else each for each in value)


class LabelledParams(BaseModel, frozen=True, extra="forbid"):
    """Settings of a source whose samples have classes."""

    target: str = Field(
        "", description="Label of the target's images, e.g. cat; '' is the first of target_labels."
    )
    target_labels: Annotated[tuple[int | str, ...], BeforeValidator(_labels)] = Field(
        (),
        description="Classes that are the target: names in quotes or numbers, e.g. [cat] or [3]. "
        "Each has to occur in what is read.",
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
    text_labels: TextLabels = Field(
        "auto",
        description="What a class written as text is, e.g. in a tar member: its name, or its "
        "number. auto: a name, or in a tar member a number if it is one; refused where names are "
        "digits, too.",
    )

    @property
    def named_files(self) -> list[str]:
        """Files, beside those with samples, on which labels depend."""
        return [self.label_names] if isinstance(self.label_names, str) else []


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
    classes: ClassNames
    where: str  # labels are, for messages: the file or data set, and its column or member

    @property
    def leaves_some_out(self) -> bool:
        return bool(self.targets) and self.policy != "positive"

    def is_offered(self, label: object) -> bool:
        """Whether the source yields samples of this class."""
        if not self.leaves_some_out:
            return True
        is_target = not self.targets.isdisjoint(self.class_names(label))
        return is_target == (self.policy == "only")

    def counting(self, left_out: LabelCounter) -> Callable[[object], bool]:
        """`is_offered`, which counts those that are not."""

        def is_offered(label: object) -> bool:
            if self.is_offered(label):
                return True
            self.count(label, left_out)
            return False

        return is_offered

    def count(self, label: object, counter: LabelCounter) -> None:
        facts = self.facts(label)
        counter.add(facts.class_name, is_target=facts.label_state == "verified_present")

    def facts(self, label: object) -> ClassFacts:
        names = self.class_names(label)
        class_name = ", ".join(names) or None
        if not self.targets.isdisjoint(names):
            return ClassFacts(class_name, self.target, "verified_present")
        is_absent = self.is_exhaustive and bool(names)
        return ClassFacts(class_name, "", "verified_absent" if is_absent else "unknown")

    def class_names(self, label: object) -> list[str]:
        """Names of one class or of a list; raises ConfigError if a class is not known."""
        labels = label if isinstance(label, list | tuple) else [label]
        try:
            if len(labels) > 1:
                refuse_multi_hot(labels)
            named = [self.classes.name_of(each) for each in labels]
        except NotALabel as error:
            if not self.targets:
                return []  # a column that is only called so, and that nothing depends on
            raise ConfigError(
                f"{self.where}: {error}; name another by `params.label_column` or "
                "`params.class_field`"
            ) from None
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {error}") from None
        return [name for name in named if name is not None]


def label_rule(
    settings: LabelledParams,
    *,
    names: Sequence[str] = (),
    is_labelled: bool,
    hint: str,
    where: str,
) -> LabelRule:
    """`names` are those of the data; raises ConfigError if settings and data do not fit.

    A target label that is no class would turn the target's images into negatives.
    """
    classes = ClassNames(
        names=read_class_names(settings.label_names) or tuple(names),
        text_labels=settings.text_labels,
    )
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
        target=settings.target or (str(targets[0]) if targets else ""),
        targets=frozenset(map(classes.name_of_target, targets)),
        policy=settings.target_policy,
        is_exhaustive=settings.labels_are_exhaustive,
        classes=classes,
        where=where,
    )


def declared(settings: LabelledParams, rule: LabelRule, place: str) -> Declared:
    """place: where classes are, with its setting; "" if the settings do not say."""
    names = {rule.classes.name_of_target(label): None for label in settings.target_labels}
    return Declared(
        targets=tuple(names),
        known=frozenset(rule.classes.names),
        place=place,
        is_only=settings.target_policy == "only",
    )
