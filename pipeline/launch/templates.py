"""Fills in the templates of `infra/`.

No value ever passes through text on its way into YAML: the template is parsed with a token in its
place, which is then replaced by the value itself, so that a value can hold anything and never
becomes structure. In a shell script each value becomes one quoted word.
"""

import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

# YAML 1.1 (written here), YAML 1.2 and Go read these differently.
_MAY_BE_NO_STRING = re.compile(r"[-+.\d~=<]|(?i:y|n|yes|no|on|off|true|false|null)$")
_TOKEN = re.compile(r"infineg-value-(\d+)-")


_ROOT = Path(__file__).parents[2]
# A wheel holds the folder inside `infineg`, a checkout beside it.
INFRA = next(path for path in (_ROOT / "infineg" / "infra", _ROOT / "infra") if path.is_dir())


def fill_yaml(name: str, values: Mapping[str, Any]) -> Any:
    """The parsed YAML of a template of `infra/`, filled in."""
    held: list[Any] = []

    def hold(value: Any) -> str:
        held.append(value)
        return f"infineg-value-{len(held) - 1}-"

    text = _environment(hold).get_template(name).render(**values)
    return _replace_tokens(yaml.safe_load(text), held)


def fill_script(name: str, values: Mapping[str, Any]) -> str:
    """The text of a shell script of `infra/`, filled in; each item of a list is a word."""

    def quote(value: Any) -> str:
        words = value if isinstance(value, list | tuple) else [value]
        return shlex.join(str(word) for word in words)

    return _environment(quote).get_template(name).render(**values)


def header_of(name: str) -> str:
    """The comment at the top of a template."""
    lines = (INFRA / name).read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:number])


def to_yaml(document: Any) -> str:
    """One document; text of several lines is a block."""
    return yaml.dump(document, Dumper=_Dumper, sort_keys=False, width=100, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """No aliases, which some readers of manifests do not follow; ambiguous strings are quoted."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _represent_string(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else '"' if _MAY_BE_NO_STRING.match(text) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_string)


def _environment(finalize: Callable[[Any], str]) -> Environment:
    return Environment(
        loader=FileSystemLoader(INFRA),
        finalize=finalize,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )


def _replace_tokens(node: Any, held: list[Any]) -> Any:
    if isinstance(node, dict):
        return {_replace_tokens(k, held): _replace_tokens(v, held) for k, v in node.items()}
    if isinstance(node, list):
        return [_replace_tokens(child, held) for child in node]
    if not isinstance(node, str):
        return node
    if whole := _TOKEN.fullmatch(node):
        return held[int(whole[1])]
    return _TOKEN.sub(lambda match: str(held[int(match[1])]), node)
