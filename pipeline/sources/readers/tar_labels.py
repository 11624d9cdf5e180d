"""The label of a sample in a tar: a member such as `cls` or `txt`, or a value of the json."""

import json
from collections.abc import Sequence

from pipeline.sources.readers.class_names import Untyped
from pipeline.sources.readers.tar_samples import Member
from pipeline.sources.readers.text import decode_text, strip


def label_of(url: str, members: Sequence[Member], field: str) -> object:
    """A text without type from a member, a value with its type from JSON; None if there is none.

    url: of the tar. field: of a member, or `json.label` for a value of the json and
    `json.label.name` for one in that. Raises ConfigError for text in another encoding than UTF-8.
    """
    for member in members:
        if member.field == field and member.content is not None:
            text = decode_text(member.content, f"{url}#{member.name}")
            is_json = field.rpartition(".")[2] == "json"
            return _parse(text) if is_json else Untyped(strip(text))
    if not field.startswith("json."):
        return None
    return _value_at(label_of(url, members, "json"), field.removeprefix("json."))


def member_of(field: str) -> str:
    """The member that has the label: of json.label it is the json, of cls.txt itself."""
    return "json" if field.startswith("json.") else field


def _parse(text: str) -> object:
    """None for broken JSON: it costs a sample its class and no picture."""
    try:
        parsed: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed


def _value_at(parsed: object, path: str) -> object:
    while isinstance(parsed, dict):
        if path in parsed:
            return parsed[path]
        name, _, path = path.partition(".")
        parsed = parsed.get(name) if path else None
    return None
