"""Samples of a tar in the WebDataset layout.

Members of one sample follow each other and share a key: the path up to the first dot of the base
name. Unlike in webdataset, a second image under a key is a sample of its own, and a sample without
an image is read, too, so that counts add up.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources.readers.tars import read_members

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")

_META = re.compile(r"__[^/]*__($|/)")  # top-level names that webdataset skips, too
# Members of one key in memory at once: all names may begin alike, as v1.0_1.jpg, v1.0_2.jpg, ...
_MAX_MEMBERS = 64
# Status in img2dataset's json of an image that it could not fetch or resize.
_FAILED = "failed_to_"


class Member(NamedTuple):
    """A file of a tar; `content` is None if it was not read."""

    key: str
    field: str  # after the first dot of the base name, lower case
    name: str
    content: bytes | None


class TarSample(NamedTuple):
    """One image, or none, with its address and the members of its key."""

    uri: str
    image: bytes
    members: Sequence[Member]  # of its key; if these are very many, those around it
    has_siblings: bool  # whether its key has other images

    @property
    def key(self) -> str:
        return self.members[0].key


class TarReader:
    """Reads one tar once, from sample number `start` on.

    Earlier images are counted by member names and not read. `is_offered` decides by the members of
    a key, without images, whether its samples are yielded.
    """

    def __init__(
        self,
        uri: str,
        *,
        start: int = 0,
        image_fields: Sequence[str] = IMAGE_FIELDS,
        text_fields: Sequence[str] = ("json",),
        is_offered: Callable[[Sequence[Member]], bool] | None = None,
    ) -> None:
        self._uri = uri
        self._start = start
        self._image_fields = frozenset(image_fields)
        self._text_fields = frozenset(text_fields)
        self._is_offered = is_offered
        self._group: list[Member] = []  # members of the current key
        self._num_images = 0  # in the group
        self._is_continued = False  # whether earlier members of its key were another group
        self._num_before = 0  # samples of the groups before

    def read(self) -> Iterator[TarSample]:
        """Raises InfinegError, after all readable samples, if the tar is broken."""
        ordinal = 0
        seen: set[str] = set()
        for members, is_partial, num_samples in self._groups():
            images = [member for member in members if self._is_image(member.field)]
            has_failed = str(described(members).get("status", "")).startswith(_FAILED)
            for member in (images or members)[:num_samples]:
                uri = _unique(f"{self._uri}#{member.name}", seen)
                if ordinal >= self._start:
                    content = member.content if images and not has_failed else None
                    has_siblings = is_partial or len(images) > 1
                    yield TarSample(uri, content or b"", members, has_siblings)
                ordinal += 1

    def _groups(self) -> Iterator[tuple[list[Member], bool, int]]:
        """Runs of members of one key, whether each is only a part, and its number of samples.

        If the tar is broken, the last run comes before the error.
        """
        try:
            for member in self._members():
                if self._group and member.key != self._group[0].key:
                    yield self._close_group(is_last=True)
                elif len(self._group) == _MAX_MEMBERS:
                    yield self._close_group(is_last=False)
                self._group.append(member)
                self._num_images += self._is_image(member.field)
        except InfinegError:
            if self._group:
                yield self._close_group(is_last=True)
            raise
        if self._group:
            yield self._close_group(is_last=True)

    def _members(self) -> Iterator[Member]:
        try:
            file = storage.open_read(self._uri)
        except FileNotFoundError:
            raise ConfigError(f"{self._uri}: no such tar; check `params.urls`") from None
        with file:
            for name, content in read_members(file, self._uri, self._is_wanted):
                if (parts := _parse(name)) is not None:
                    yield Member(*parts, name, content)

    def _is_wanted(self, name: str) -> bool:
        """Called once per name, in order, after all earlier members are in the group."""
        parts = _parse(name)
        if parts is None:
            return False
        key, field = parts
        if not self._is_image(field):
            return field in self._text_fields
        if not self._group or self._group[0].key == key:
            return self._num_before + self._num_images >= self._start
        return self._num_before + self._count() >= self._start

    def _close_group(self, *, is_last: bool) -> tuple[list[Member], bool, int]:
        members, num_samples = self._group, self._count()
        is_partial = self._is_continued or not is_last
        self._num_before += num_samples
        self._group, self._num_images, self._is_continued = [], 0, not is_last
        return members, is_partial, num_samples

    def _count(self) -> int:
        """Samples of the group: its images, or one without an image if its key has none."""
        if self._is_offered is not None and not self._is_offered(self._group):
            return 0
        return self._num_images or int(not self._is_continued)

    def _is_image(self, field: str) -> bool:
        return field.rpartition(".")[2] in self._image_fields


def described(members: Sequence[Member]) -> dict[str, Any]:
    """The json of a sample; {} if it is missing or broken."""
    content = next((m.content for m in members if m.field == "json" and m.content), b"{}")
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _parse(name: str) -> tuple[str, str] | None:
    """Key and field of a member's name; None if it belongs to no sample."""
    from webdataset.tariterators import base_plus_ext  # imports torch, which takes 2 s

    key, field = base_plus_ext(name)
    return None if key is None or _META.match(name) else (key, field.lower())


def _unique(uri: str, seen: set[str]) -> str:
    """A tar may hold a name twice, but URIs are unique."""
    for candidate in itertools.chain([uri], (f"{uri}@{n}" for n in itertools.count(2))):
        if candidate not in seen:
            seen.add(candidate)
            return candidate
    raise AssertionError("unreachable")
