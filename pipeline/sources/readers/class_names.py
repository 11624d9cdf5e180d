"""What a label means: by its type a number is the position of a class, and a text is its name.

The same for every container, so that 3, 3.0 and True = 1 in a column, a JSON value or the member of
a tar are the same class. What is not certain is refused.
"""

import functools
import json
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.sources.readers.text import decode_text, shown, strip

_log = logging.getLogger(__name__)

TextLabels = Literal["auto", "names", "numbers"]

# As one is written; 007 is a name, and so are more digits than a 64-bit number has.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.0+)?")
_PADDED = re.compile(r"-?[0-9]{1,19}(\.0+)?")
_LINE_END = re.compile(r"\r\n|\r|\n")  # str.splitlines knows eight more


class NotALabel(ValueError):
    """A value of a type that no label has."""


class Untyped(str):
    """A label from a place that has only text, such as a tar member: a name or a number."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class ClassNames:
    """The names of numbered classes, () if there are none, and how to take a text."""

    names: tuple[str, ...] = ()
    text_labels: TextLabels = "auto"

    def name_of(self, label: object) -> str | None:
        """None for null, nan, "" and a negative number: no class.

        Raises NotALabel for another type, and ConfigError for a class that is not known or not
        certain.
        """
        if isinstance(label, bytes):
            label = Untyped(decode_text(label, "a label"))
        if isinstance(label, str):
            text = strip(label)
            return self._by_text(text, is_untyped=isinstance(label, Untyped)) if text else None
        number = _whole_number(label)
        return None if number is None else self._by_number(number)

    def name_of_target(self, label: int | str) -> str:
        """The name of a class that the settings name; a text may be a number if no name is one."""
        if not self.names or label in self._numbers:
            return str(label)
        if isinstance(label, str) and not self._has_digits and _NUMBER.fullmatch(label):
            label = _number_in(label)
        if isinstance(label, int) and 0 <= label < len(self.names):
            name = self.names[label]
            if self._has_digits and name != str(label):
                _log.warning(
                    "`params.target_labels`: %d is class number %d, named %r; for a class of the "
                    'name "%d" write it in quotes', label, label, name, label,
                )  # fmt: skip
            return name
        raise ConfigError(
            f"`params.target_labels`: {label!r} is none of the {len(self.names)} classes: "
            f"{some_names(self.names)}"
        )

    def _by_number(self, number: int) -> str | None:
        if number < 0:
            return None
        if not self.names:
            return str(number)
        if number >= len(self.names):
            raise self._unknown(str(number))
        return self.names[number]

    def _by_text(self, text: str, *, is_untyped: bool) -> str | None:
        if is_untyped and _LINE_END.search(text):
            raise NotALabel(f"{shown(text[:80])} is several lines, and a class is one")
        if self.text_labels == "numbers":
            if not _PADDED.fullmatch(text):
                raise ConfigError(
                    f"class {shown(text)} is no number; check `params.text_labels`, which says so"
                )
            return self._by_number(_number_in(text))
        if self.text_labels == "auto" and _NUMBER.fullmatch(text):
            if self._has_digits:
                return self._certain(text)
            if is_untyped:
                return self._by_number(_number_in(text))
        if self.names and text not in self._numbers:
            raise self._unknown(text)
        return text

    def _certain(self, text: str) -> str | None:
        """The class of a text of digits, where names are digits, if both readings are the same."""
        number = _number_in(text)
        if number < 0:
            return None
        named = self.names[number] if number < len(self.names) else None
        if named == text:
            return text
        by_name = (
            f"the class of that name, number {self._numbers[text]}"
            if (text in self._numbers)
            else "a name that no class has"
        )
        by_number = f"class number {number}, named {named!r}" if named else "a number too large"
        raise ConfigError(
            f"class {text!r} is a text, and names of classes are digits: is it {by_name}, or "
            f"{by_number}? Set `params.text_labels` to names or to numbers"
        )

    def _unknown(self, label: str) -> ConfigError:
        is_number = self.text_labels != "numbers" and _PADDED.fullmatch(label)
        hint = "; if texts are numbers, set `params.text_labels: numbers`" if is_number else ""
        return ConfigError(
            f"class {label!r} is none of the {len(self.names)} known ({some_names(self.names)}); "
            f"check `params.label_names`{hint}"
        )

    @functools.cached_property
    def _numbers(self) -> dict[object, int]:
        """Name -> its number, the first if several have it."""
        return {name: number for number, name in reversed(list(enumerate(self.names)))}

    @functools.cached_property
    def _has_digits(self) -> bool:
        return any(_PADDED.fullmatch(name) for name in self.names)


def _whole_number(label: object) -> int | None:
    """None for null and nan; raises NotALabel for what is no whole number."""
    if label is None or isinstance(label, int):
        return None if label is None else int(label)
    if not isinstance(label, float | Decimal):
        raise NotALabel(f"a label is a number, a text or a list of them, not a {_type(label)}")
    if math.isnan(label):
        return None  # pandas writes nulls as nan
    if not math.isfinite(label) or label != int(label):
        raise NotALabel(f"class {label} is no whole number")
    return int(label)


def refuse_multi_hot(labels: Sequence[object]) -> None:
    """Raises NotALabel for a vector that has a 0 or 1 for each class: its numbers are no classes.

    [0, 1] may be either and is taken for two classes; a class is not listed twice.
    """
    is_hot = all(isinstance(each, bool | int | float) and each in (0, 1) for each in labels)
    if is_hot and (isinstance(labels[0], bool) or len(set(labels)) < len(labels)):
        raise NotALabel(
            f"{labels[:20]} has a 0 or 1 for each class; a list is the numbers of its classes"
        )


def number_of(label: object) -> int | None:
    """The number of a class where names are not digits; None for a name and for no class."""
    if isinstance(label, str):
        text = strip(label)
        return _number_in(text) if _PADDED.fullmatch(text) else None
    try:
        return _whole_number(label)
    except NotALabel:
        return None


def _number_in(text: str) -> int:
    return int(text.partition(".")[0])


def _type(label: object) -> str:
    return "struct" if isinstance(label, dict) else type(label).__name__


def some_names(names: Sequence[str]) -> str:
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")


def read_class_names(names: tuple[str, ...] | str) -> tuple[str, ...]:
    """The names themselves, or those in the file at this path, in order of their numbers."""
    if not isinstance(names, str):
        return names
    try:
        text = decode_text(storage.read_bytes(names), names)
    except FileNotFoundError:
        raise ConfigError(
            f"{names}: no such text file; check `params.label_names`, a list or a path"
        ) from None
    return _from_json(text, names) if names.endswith(".json") else _from_lines(text, names)


def _from_lines(text: str, where: str) -> tuple[str, ...]:
    lines = [strip(line) for line in _LINE_END.split(text)]
    while lines and not lines[-1]:
        lines.pop()
    if "" in lines:
        raise ConfigError(
            f"{where}: line {lines.index('') + 1} is empty, and a name's line is its number; "
            "check `params.label_names`"
        )
    return tuple(lines)


def _from_json(text: str, where: str) -> tuple[str, ...]:
    try:
        parsed = json.loads(text)
        if isinstance(parsed, dict):
            parsed = [parsed[str(number)] for number in range(len(parsed))]
    except (ValueError, KeyError, RecursionError):
        parsed = None
    if not isinstance(parsed, list) or not all(isinstance(name, str) for name in parsed):
        raise ConfigError(
            f"{where}: expected a list of names, or an object from numbers (0, 1, ...) to names; "
            "check `params.label_names`"
        )
    return tuple(map(strip, parsed))
