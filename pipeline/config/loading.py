"""Reads a config file: overrides, variables, and errors that name the field."""

import math
import os
import re
from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.config import yaml_text
from pipeline.config.schema import Config
from pipeline.errors import ConfigError

ModelT = TypeVar("ModelT", bound=BaseModel)

_MAX_SHOWN = 300

# Removed settings with their defaults, which the configs of older runs contain.
_REMOVED: Mapping[str, object] = {
    "selection.cascade": False,
    "selection.budget.hours": None,
    "train.unknown": "negative",
    "train.unknown_prior": None,
    "train.shuffle_window": 16,
    "train.tolerance": 0.01,
    "train.wandb": None,
    "evaluate.num_bins": 15,
    "evaluate.tpr_levels": [0.95, 0.99],
}


def drop_removed(data: MutableMapping[str, Any]) -> None:
    """Drops removed settings that have their default; others stay and are then refused."""
    for name, default in _REMOVED.items():
        *parents, last = name.split(".")
        node: Any = data
        for step in parents:
            node = node.get(step) if isinstance(node, dict) else None
        if isinstance(node, dict) and last in node and node[last] == default:
            del node[last]


def apply_override(data: dict[str, Any], override: str) -> None:
    """Applies `selection.beta=0`; items of a list are found by position or by `name`."""
    path, separator, text = override.partition("=")
    if not separator:
        raise ConfigError(f"--set {override}: expected FIELD=VALUE")
    # YAML has no bytes that are no UTF-8, which the path of a file may have.
    is_text = storage.escape(text) != text
    value = text if is_text else yaml_text.parse(text, f"--set {override}")
    node: Any = data
    *parents, last = path.split(".")
    for step in parents:
        node = _descend(node, step, override)
    if isinstance(node, list):
        node[_position(node, last, override)] = value
    else:
        node[last] = value


def _descend(node: Any, step: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, step, override)]
    if node.get(step) is None:  # missing, or a section without content
        node[step] = {}
    child = node[step]
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override}: {step!r} is {child!r} and has no fields")
    return child


def _position(node: list[Any], step: str, override: str) -> int:
    names = [m.get("name") if isinstance(m, dict) else None for m in node]
    if step in names:
        return names.index(step)
    if step.isdecimal() and int(step) < len(node):
        return int(step)
    raise ConfigError(f"--set {override}: {step!r} is none of {names}")


_VARIABLE = re.compile(r"\$\{(\w+)\}")


def fill_variables(value: Any, variables: Mapping[str, str], where: str) -> Any:
    """Fills ${NAME} in every string; raises ConfigError for one that is missing or empty."""
    if isinstance(value, dict):
        return {k: fill_variables(v, variables, f"{where}: {k}") for k, v in value.items()}
    if isinstance(value, list):
        return [
            fill_variables(v, variables, f"{where}: {_label(v, n)}") for n, v in enumerate(value)
        ]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        found = str(variables[name]) if name in variables else None
        if found is None or not found.strip():
            # Empty, ${NAME}/data would be a folder of the whole machine.
            state = "not set" if found is None else "empty"
            raise ConfigError(
                f"{where}: ${{{name}}} is {state}; export {name}=... or --set variables.{name}=..."
            )
        return found

    return _VARIABLE.sub(fill, value)


def _label(item: Any, number: int) -> str:
    """An item of a list as its field is named."""
    name = item.get("name") if isinstance(item, dict) else None
    return name if isinstance(name, str) else str(number)


def load_config(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    environment: MutableMapping[str, str] | None = None,
) -> Config:
    """Reads YAML, applies `a.b=value` overrides, fills ${NAME}; raises ConfigError.

    ${NAME} comes from `variables` of the config, else from `environment`, by default that of the
    process.
    """
    data = read_yaml(path, overrides)
    around = os.environ if environment is None else environment
    own = data.get("variables") or {}
    # Anything else is refused below.
    variables = ChainMap[str, str](dict(own) if isinstance(own, dict) else {}, around)
    try:
        config = validate(Config, fill_variables(data, variables, str(path)))
    except InvalidSettings as error:
        raise ConfigError(f"{path}: {error}") from None
    storage.configure(config.storage)
    return config


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with overrides applied and ${NAME} not filled; raises ConfigError."""
    if os.path.isdir(path):
        raise ConfigError(
            f"{path} is a folder, no config: `infineg init {path} --target NAME` writes one for "
            "the pictures in it"
        )
    data = yaml_text.parse(yaml_text.read_text(path), str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(data).__name__}")
    drop_removed(data)
    for override in overrides:
        apply_override(data, override)
    return data


class InvalidSettings(ConfigError):
    """One line per problem: field, message, value."""


def validate(model: type[ModelT], data: Any, *, section: str = "") -> ModelT:
    """`data` as a model, whose numbers are finite; raises InvalidSettings.

    section: goes before the fields in messages, such as `train`.
    """
    parents = (section,) if section else ()
    try:
        checked = model.model_validate(data)
    except ValidationError as error:
        raise InvalidSettings(_describe(error, parents, set(model.model_fields))) from None
    for field, value in _numbers(checked.model_dump(), parents):
        if not math.isfinite(value):
            raise InvalidSettings(f"{field}: Input should be a finite number, got {value}")
    return checked


def _describe(error: ValidationError, parents: tuple[str, ...], fields: set[str]) -> str:
    lines = []
    for problem in error.errors():
        names = [*parents, *map(str, problem["loc"])]
        message = problem["msg"].removeprefix("Value error, ")
        value = problem["input"]
        seen = "" if isinstance(value, dict) else f", got {_shown(value, names)}"
        is_word = problem["type"] == "string_type" and isinstance(value, bool | int | float)
        hint = "; put it in quotes" if is_word else ""
        # A message about several fields begins with one of them.
        is_named = not problem["loc"] and re.split(r"\W", message)[0] in fields
        separator = "." if is_named and parents else ": "
        lines.append(f"{'.'.join(names) or 'config'}{separator}{message}{seen}{hint}")
    return "\n  ".join(lines)


def _shown(value: Any, names: Sequence[str]) -> str:
    """A value as a message shows it: short, and without secrets."""
    if any(map(storage.is_secret_name, names)):
        return "***"
    text = storage.redact(repr(value))
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


def _numbers(value: Any, names: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    """Every number with the name of its field."""
    if isinstance(value, Mapping):
        for name, child in value.items():
            yield from _numbers(child, (*names, str(name)))
    elif isinstance(value, list | tuple):
        for number, child in enumerate(value):
            yield from _numbers(child, (*names, str(number)))
    elif isinstance(value, float):
        yield ".".join(names), value
