"""Tars in the WebDataset layout, img2dataset's among them.

Members of one sample follow each other and share a key: the path up to the first dot of the base
name (`base_plus_ext` in webdataset). Unlike there a second image under a key is a sample of its
own, and a sample without an image is read too, so that counts add up.
"""

import io
import itertools
import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, Field, field_validator

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.formats.tars import read_members
from pipeline.formats.toy import toy_jpegs
from pipeline.records import Partition, RawSample

_KEY = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)", re.DOTALL)
_META = re.compile(r"__[^/]*__($|/)")  # top-level names that webdataset skips too
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which tars, and what is in them."""

    urls: tuple[str, ...] = Field(min_length=1)  # one or more; s3://bucket/bg-{00000..00099}.tar
    image_fields: tuple[str, ...] = (  # last suffix of a member's name, lower case
        "jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff",
    )  # fmt: skip
    class_field: str | None = None  # member whose text is the class name, e.g. cls or txt

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, urls: object) -> object:
        return (urls,) if isinstance(urls, str) else urls

    @field_validator("urls")
    @classmethod
    def _opens_files_only(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if any(url.startswith(("pipe:", "|")) for url in urls):
            raise ValueError("`pipe:` URLs run a shell and are refused")
        return urls


class _Member(NamedTuple):
    """A file of a tar; `content` is None where the source has no use for it."""

    key: str
    field: str  # what follows the first dot of the base name, lower case
    name: str
    content: bytes | None


class Source:
    """One partition a tar, read as a stream, compressed or not."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params

    def partitions(self) -> Iterator[Partition]:
        """Opens nothing: a tar that is missing shows when it is read."""
        seen = set()
        for pattern in self._params.urls:
            for url in expand_braces(pattern):
                if url in seen:
                    raise ConfigError(f"{url} is named twice; check `params.urls`")
                seen.add(url)
                yield Partition(url, url)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all that could be read, where the tar is broken."""
        url: str = partition.locator
        seen: set[str] = set()
        for members in _group_by_key(self._members(url)):
            images = [member for member in members if self._is_image(member.field)]
            class_name, description = self._class_name(members), _description(members)
            for image in images or members[:1]:
                yield RawSample(
                    uri=_unique(f"{url}#{image.name}", seen),
                    image=(image.content or b"") if images else b"",
                    # Several pictures of one sample must not end on both sides of a split.
                    group=f"{url}#{members[0].key}" if len(images) > 1 else None,
                    class_name=class_name,
                    license=description.get("license"),
                    author=description.get("author"),
                )

    def _members(self, url: str) -> Iterator[_Member]:
        try:
            file = storage.open_read(url)
        except FileNotFoundError:
            raise ConfigError(f"{url}: no such tar; check `params.urls`") from None
        with file:
            for name, content in read_members(file, url, self._is_wanted):
                match = _KEY.fullmatch(name)
                if match and not _META.match(name):
                    yield _Member(match[1], match[2].lower(), name, content)

    def _is_image(self, field: str) -> bool:
        return field.rpartition(".")[2] in self._params.image_fields

    def _is_wanted(self, name: str) -> bool:
        field = name.rpartition("/")[2].partition(".")[2].lower()
        return self._is_image(field) or field in ("json", self._params.class_field)

    def _class_name(self, members: Sequence[_Member]) -> str | None:
        for member in members:
            if member.field == self._params.class_field and member.content is not None:
                return member.content.decode(errors="replace").strip()
        return None


def _group_by_key(members: Iterator[_Member]) -> Iterator[list[_Member]]:
    """Runs of one key; where the tar breaks, first what there is of the last one."""
    group: list[_Member] = []
    try:
        for member in members:
            if group and member.key != group[0].key:
                yield group
                group = []
            group.append(member)
    except InfinegError:
        if group:
            yield group
        raise
    if group:
        yield group


def _description(members: Sequence[_Member]) -> dict[str, str]:
    """Texts of the sample's json; one that is broken says nothing, and costs no picture."""
    content = next((m.content for m in members if m.field == "json" and m.content), b"{}")
    try:
        described = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(described, dict):
        return {}
    return {name: value for name, value in described.items() if isinstance(value, str)}


def expand_braces(pattern: str) -> Iterator[str]:
    """`a-{000..012}-{x,y}.tar` to names, as bash does; zero padding is kept."""
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


def _unique(uri: str, seen: set[str]) -> str:
    """A tar may hold a name twice; a URI is one sample's."""
    for candidate in itertools.chain([uri], (f"{uri}@{n}" for n in itertools.count(2))):
        if candidate not in seen:
            seen.add(candidate)
            return candidate
    raise AssertionError("unreachable")


def toy(directory: Path) -> Params:
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "toy-00000.tar"
    with tarfile.open(path, "w") as archive:
        for number, jpeg in enumerate(toy_jpegs()):
            member = tarfile.TarInfo(f"{number:09d}.jpg")
            member.size = len(jpeg)
            archive.addfile(member, io.BytesIO(jpeg))
    return Params(urls=(str(directory / "toy-{00000..00000}.tar"),))
