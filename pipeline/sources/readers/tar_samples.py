"""Samples of a tar in the WebDataset layout.

Members of one sample follow each other and share a key: the path up to the first dot of the base
name. Unlike in webdataset, a second image under a key is a sample of its own, and a sample without
an image is read, too, so that counts add up. Masks beside images and hidden files are no samples.
"""

import itertools
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from typing import IO, Any, Literal, NamedTuple

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.errors import ConfigError, InfinegError, TransientStorageError
from pipeline.sources.readers.folders import (
    images_of_mask,
    is_mask_word,
    suffix_of,
    tell_once,
    told_suffixes,
)
from pipeline.sources.readers.tars import list_names, read_members

# As webdataset.tariterators.base_plus_ext, whose import takes 2 s because it imports torch.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)$")
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
    is_lost: bool = False  # whether it was wanted and could not be read


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
    """Reads one tar once, all of its samples or those at some positions.

    Images that are not wanted are counted by member names and not read. `is_offered` decides by the
    members of a key, without images, whether its samples are yielded.
    """

    def __init__(
        self,
        uri: str,
        *,
        wanted: Container[int] = range(sys.maxsize),
        image_fields: Sequence[str] | None = None,
        text_fields: Sequence[str] = ("json",),
        label_field: str | None = None,
        is_offered: Callable[[Sequence[Member]], bool] | None = None,
        allow_private: bool = True,
    ) -> None:
        """wanted: ordinals of the samples to yield.

        `image_fields` default to the formats that are read; an image without a member
        `label_field` is looked at twice: its label may lie elsewhere in the tar.
        """
        self._uri = uri
        self._allow_private = allow_private
        self._wanted = wanted
        if image_fields is None:
            image_fields = [suffix.removeprefix(".") for suffix in image_suffixes()]
        self._image_fields = frozenset(image_fields)
        self._text_fields = frozenset(text_fields)
        self._label_field = label_field
        self._is_checked = False  # whether members of one key are known to lie side by side
        self._is_long_checked = False  # whether no labelled key is known to have too many
        self._passed_over: Counter[str] = Counter()  # by suffix
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
            is_usable = bool(images) and not self._is_unusable(members)
            for member in (images or members)[:num_samples]:
                uri = _unique(f"{self._uri}#{member.name}", seen)
                if ordinal in self._wanted:
                    has_siblings = is_partial or len(images) > 1
                    content = member.content if is_usable else None
                    yield TarSample(uri, content or b"", members, has_siblings)
                ordinal += 1
        if told := told_suffixes(+self._passed_over):
            tell_once(
                f"{storage.redact(self._uri)}: members that are no samples are passed over: {told}"
            )

    def _is_unusable(self, members: Sequence[Member]) -> bool:
        """Whether its json says that it failed, or what is said of it could not be read."""
        if str(described(members).get("status", "")).startswith(_FAILED):
            return True
        return any(member.is_lost for member in members if not self._is_image(member.field))

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
        with self._open() as file:
            for found in read_members(file, self._uri, self._is_wanted):
                if (parts := self._parse(found.name)) is not None:
                    self._passed_over["mask"] += self._is_mask(parts[1])
                    yield Member(*parts, found.name, found.content, found.is_lost)
                elif not storage.is_hidden(found.name):
                    self._passed_over[suffix_of(found.name)] += 1

    def _open(self) -> IO[bytes]:
        try:
            return storage.open_read(self._uri, allow_private=self._allow_private)
        except FileNotFoundError:
            raise ConfigError(f"{self._uri}: no such tar; check `params.urls`") from None
        except IsADirectoryError:
            raise ConfigError(
                f"{self._uri}: a folder, not a tar; name the tars, e.g. "
                f"{self._uri.rstrip('/')}/{{00000..00099}}.tar, as `params.urls`"
            ) from None

    def _parse(self, name: str) -> tuple[str, str] | None:
        return _parse(name, self._group[0].key if self._group else "")

    def _is_wanted(self, name: str) -> bool:
        """Called once per name, in order, after all earlier members are in the group."""
        parts = self._parse(name)
        if parts is None:
            return False
        key, field = parts
        if not self._is_image(field):
            return field in self._text_fields
        if not self._group or self._group[0].key == key:
            return self._num_before + self._num_images in self._wanted
        return self._num_before + self._count() in self._wanted

    def _close_group(self, *, is_last: bool) -> tuple[list[Member], bool, int]:
        self._refuse_dotted()
        if is_last and not self._is_continued:
            self._refuse_scattered()
        elif self._label_field is not None:
            self._refuse_long()
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
        return field.rpartition(".")[2] in self._image_fields and not self._is_mask(field)

    def _is_mask(self, field: str) -> bool:
        *words, suffix = field.split(".")
        return suffix in self._image_fields and any(map(is_mask_word, words))

    def _refuse_scattered(self) -> None:
        """Raises InfinegError if the run lacks its image or label and that lies elsewhere.

        All names are read, once a tar and only at such a run: it would become a sample without a
        label, and a label without a sample.
        """
        if self._is_checked or self._lacks(self._group) is None:
            return
        self._is_checked = True
        keys: dict[str, set[str]] = {"image": set(), "label": set()}
        for key, run in itertools.groupby(self._all_names(), key=lambda parts: parts[0]):
            lacking = self._lacks([Member(key, field, "", None) for _, field in run])
            if lacking is not None:
                keys[lacking].add(key)
        if scattered := keys["image"] & keys["label"]:
            self._group = []  # it is not to be yielded
            raise InfinegError(
                f"{storage.redact(self._uri)}: members of one key must lie side by side, but those "
                f"of {len(scattered):,} keys do not, e.g. {storage.escape(min(scattered))!r}: its "
                "image is in one place and its label in another. Unpack it and sort: "
                "tar --sort=name -cf sorted.tar -C FOLDER ."
            )

    def _refuse_dotted(self) -> None:
        """Raises InfinegError if an image's label is not found because its name has a dot.

        Of a.v2.jpg and a.v2.cls the key is a, and the label's field v2.cls and not cls.
        """
        fields = {member.field for member in self._group}
        if self._label_field is None or self._label_field in fields:
            return
        images = {field.rpartition(".")[0] for field in fields if self._is_image(field)} - {""}
        dotted = {f"{stem}.{self._label_field}" for stem in images} & fields
        found = next((member for member in self._group if member.field in dotted), None)
        if found is not None:
            self._group = []  # it is not to be yielded
            raise InfinegError(
                f"{storage.redact(self._uri)}: {storage.escape(found.name)!r}: a key ends at the "
                f"first dot of a name, so that this is the member {found.field!r} of "
                f"{storage.escape(found.key)!r} and not its {self._label_field!r}; write the tar "
                "with names that have no other dots"
            )

    def _refuse_long(self) -> None:
        """Raises InfinegError if a label lies in one part of a key that is read in several.

        Images of the other parts would have no label. All names are read, once a tar.
        """
        if self._is_long_checked:
            return
        self._is_long_checked = True
        for key, run in itertools.groupby(self._all_names(), key=lambda parts: parts[0]):
            fields = [field for _, field in run]
            if len(fields) > _MAX_MEMBERS and self._label_field in fields:
                self._group = []  # it is not to be yielded
                raise InfinegError(
                    f"{storage.redact(self._uri)}: key {storage.escape(key)!r} has "
                    f"{len(fields):,} members and one label; at most {_MAX_MEMBERS} members of a "
                    "key are read together. Give each image a name and a label of its own"
                )

    def _all_names(self) -> Iterator[tuple[str, str]]:
        """Key and field of all members, up to a damage, which is told when it is reached."""
        before = ""
        with self._open() as file:
            try:
                for name in list_names(file, self._uri):
                    if (parts := _parse(name, before)) is not None:
                        before = parts[0]
                        yield parts
            except TransientStorageError:
                raise
            except InfinegError:
                return

    def _lacks(self, members: Sequence[Member]) -> Literal["image", "label"] | None:
        """What a run needs and has not."""
        fields = {member.field for member in members}
        if not any(map(self._is_image, fields)):
            needed = {self._label_field} if self._label_field else self._text_fields
            return "image" if fields & needed else None
        if self._label_field is None:
            return None  # any image may do without
        return None if self._label_field in fields else "label"


def described(members: Sequence[Member]) -> dict[str, Any]:
    """The json of a sample; {} if it is missing or broken."""
    content = next((m.content for m in members if m.field == "json" and m.content), b"{}")
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _parse(name: str, before: str) -> tuple[str, str] | None:
    """Key and field of a member's name; None if it belongs to no sample.

    `before` is the key of the member before: the mask of its image belongs to that.
    """
    if storage.is_hidden(name) or _META.match(name):
        return None
    parts = _NAME.match(name)
    if parts is None:
        return None
    key, field = parts.groups()
    if before in images_of_mask(key):
        return before, f"mask.{field.lower()}"
    return key, field.lower()


def _unique(uri: str, seen: set[str]) -> str:
    """A tar may hold a name twice, but URIs are unique."""
    for candidate in itertools.chain([uri], (f"{uri}@{n}" for n in itertools.count(2))):
        if candidate not in seen:
            seen.add(candidate)
            return candidate
    raise AssertionError("unreachable")
