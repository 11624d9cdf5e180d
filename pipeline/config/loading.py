"""Reads a config file: overrides, variables, and errors that name the field."""

import os
import re
from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.errors import ConfigError

# Removed settings with their defaults, which the configs of older runs contain.
_REMOVED: Mapping[str, object] = {
    "selection.cascade": False,
    "selection.budget.hours": None,
    "train.unknown": "negative",
    "train.unknown_prior": None,
    "train.shuffle_window": 16,
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
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: {error}") from None
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
    child = node.setdefault(step, {})
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
    """Fills ${NAME} in every string."""
    if isinstance(value, dict):
        return {k: fill_variables(v, variables, f"{where}: {k}") for k, v in value.items()}
    if isinstance(value, list):
        return [fill_variables(v, variables, where) for v in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in variables:
            raise ConfigError(
                f"{where}: ${{{name}}} is not set; export {name}=... or --set variables.{name}=..."
            )
        return str(variables[name])

    return _VARIABLE.sub(fill, value)


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
    variables = ChainMap[str, str]({**(data.get("variables") or {})}, around)
    try:
        config = Config.model_validate(fill_variables(data, variables, str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: {describe_errors(error)}") from None
    storage.configure(config.storage)
    return config


def read_yaml(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with overrides applied and ${NAME} not filled; raises ConfigError."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(data).__name__}")
    drop_removed(data)
    for override in overrides:
        apply_override(data, override)
    return data


def describe_errors(error: ValidationError) -> str:
    """One line per problem: field, message, value."""
    lines = []
    for problem in error.errors():
        field = ".".join(map(str, problem["loc"])) or "config"
        message = problem["msg"].removeprefix("Value error, ")
        seen = "" if isinstance(problem["input"], dict) else f", got {problem['input']!r}"
        lines.append(f"{field}: {message}{seen}")
    return "\n  ".join(lines)
