"""Addresses of many files from the patterns of a config: braces, globs and folders."""

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Annotated

from fsspec.utils import glob_translate
from pydantic import BeforeValidator

from pipeline import storage
from pipeline.dataset.keys import short_hash
from pipeline.errors import ConfigError

# A field of patterns; a single one may stand without a list.
OneOrMore = Annotated[
    tuple[str, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]

_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_QUERY = re.compile(r"https?://[^*\[?]+\?", re.IGNORECASE)  # as in a signed address
_WILDCARD = re.compile(r"[*?\[]")


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{000..012}-{x,y}.tar` to names as in bash, zero padding included.

    Lazy: a pattern may stand for millions. (bracex.iexpand holds them all: 22 s and 128 MB for a
    million.)
    """
    braces = _BRACES.search(pattern)
    if braces is None:
        yield pattern
        return
    first, last, choices = braces.groups()
    if choices is None:
        if int(last) < int(first):
            raise ConfigError(f"{pattern}: {braces[0]} counts down; check `params.urls`")
        width = len(first)
        texts = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    else:
        texts = (choice for choice in choices.split(","))
    for text in texts:
        yield from expand_braces(pattern[: braces.start()] + text + pattern[braces.end() :])


def address_id(url: str) -> str:
    """An address as the id of a partition, which is stored and shown, so without secrets."""
    visible = storage.redact(url)
    # Two addresses may differ only in what is hidden.
    return visible if visible == url else f"{visible}~{short_hash(url)}"


def refuse_repeats(patterns: Iterable[str]) -> Iterator[str]:
    """All names of the patterns; raises ConfigError at a repeated one.

    Keeps patterns, not names: one may stand for millions. Names of one pattern differ if the
    choices of its braces do.
    """
    plain: set[str] = set()
    earlier: list[re.Pattern[str]] = []
    for pattern in patterns:
        if repeated := _repeated_choice(pattern):
            raise ConfigError(f"{pattern}: names {repeated!r} twice; check `params.urls`")
        is_plain = _BRACES.search(pattern) is None
        for name in expand_braces(pattern):
            if name in plain or any(_is_named(name, other) for other in earlier):
                raise ConfigError(f"{name} is named twice; check `params.urls`")
            yield name
        if is_plain:
            plain.add(pattern)
        else:
            earlier.append(re.compile(_to_regex(pattern), re.DOTALL))


def find_all_files(patterns: Iterable[str], suffixes: tuple[str, ...]) -> Iterator[str]:
    """Addresses of all patterns, braces included; raises ConfigError at a repeated one."""
    seen: set[str] = set()
    for pattern in patterns:
        for name in expand_braces(pattern):
            for file in find_files(name, suffixes):
                if file in seen:
                    raise ConfigError(f"{file} is named twice; check `params.urls`")
                seen.add(file)
                yield file


def find_files(pattern: str, suffixes: tuple[str, ...]) -> Iterator[str]:
    """Addresses of one pattern without braces: a file, a glob, or a folder at any depth.

    In folders, hidden names and those that begin with an underscore, such as Spark's
    `_temporary`, are skipped. Anything else is taken for a file, unchecked.
    """
    if _QUERY.match(pattern):
        yield pattern
        return
    if wildcard := _WILDCARD.search(pattern):
        pattern = pattern if "/" in pattern[: wildcard.start()] else f"./{pattern}"
        matches = re.compile(glob_translate(pattern)).fullmatch
        yield from (name for name in _candidates(pattern) if matches(name) and _is_visible(name))
        return
    if not pattern.lower().endswith(suffixes):
        names = [
            name
            for name in storage.list_visible(pattern)
            if name.lower().endswith(suffixes)
            and not any(part.startswith("_") for part in name.split("/"))
        ]
        if names:
            yield from (storage.join(pattern, name) for name in names)
            return
    yield pattern


def _is_visible(uri: str) -> bool:
    return not storage.is_hidden(uri.rpartition("/")[2])


def _candidates(pattern: str) -> Iterator[str]:
    """Files that a glob may match: of one folder, if only its last part has a wildcard."""
    before = re.split(_WILDCARD, pattern, maxsplit=1)[0]
    if "/" not in pattern[len(before) :]:
        yield from storage.list_prefix(before)
        return
    folder = before.rpartition("/")[0]
    yield from (storage.join(folder, name) for name in storage.list_files(folder))


def _repeated_choice(pattern: str) -> str | None:
    for _, _, choices in _BRACES.findall(pattern):
        texts = choices.split(",") if choices else []
        for text, others in itertools.groupby(sorted(texts)):
            if len(list(others)) > 1:
                return str(text)
    return None


def _to_regex(pattern: str) -> str:
    """A regex whose groups are the texts of the numeric braces."""
    parts, end = [], 0
    for braces in _BRACES.finditer(pattern):
        first, last, choices = braces.groups()
        parts.append(re.escape(pattern[end : braces.start()]))
        parts.append(
            f"(?P<n{braces.start()}_{first}_{last}>[0-9]+)"
            if choices is None
            else "(?:" + "|".join(map(re.escape, choices.split(","))) + ")"
        )
        end = braces.end()
    return "".join(parts) + re.escape(pattern[end:])


def _is_named(name: str, pattern: re.Pattern[str]) -> bool:
    match = pattern.fullmatch(name)
    if match is None:
        return False
    for group, text in match.groupdict().items():
        _, first, last = group.split("_")
        if not int(first) <= int(text) <= int(last) or text != f"{int(text):0{len(first)}d}":
            return False
    return True
