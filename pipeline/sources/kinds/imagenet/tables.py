"""ImageNet repackaged in parquet files and in tars of the WebDataset layout.

Here the class of an image is known only after its row or its members are read.
"""

import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.sources.kinds.imagenet.classes import IMAGENET_1K, is_wnid, read_synsets, wnid_of
from pipeline.sources.readers.class_names import number_of
from pipeline.sources.readers.columns import TableParams, choose_columns, holds, image_bytes
from pipeline.sources.readers.parquet import (
    Table,
    class_names_of,
    open_table,
    read_rows,
    row_ranges,
)
from pipeline.sources.readers.tar_labels import label_of
from pipeline.sources.readers.tar_samples import Member, TarReader, described
from pipeline.sources.readers.tars import estimate_members
from pipeline.sources.readers.text import strip
from pipeline.storage import FileVersion

_log = logging.getLogger(__name__)

_IN_NAME = re.compile(r"(?:^|/)(n\d{8})_[^/]*$")  # n01440764_10026, as ILSVRC names its images
_KNOWN_SET = re.compile(r"imagenet-?(1k|12k|22k)(?=[-_.])")


# JSON; the first item is the wnid of all images there, None if only reading shows it.
Address = list[Any]


class FoundImage(NamedTuple):
    """An image with its class."""

    wnid: str
    uri: str
    image: bytes


class ParquetImages:
    """Hugging Face's `data/train-00000-of-00294.parquet`; an address is a range of row groups.

    Columns `image` (struct of bytes and path) and `label`: a number in the order of the wnids, as
    in ILSVRC/imagenet-1k, or of the file's own class names if those are wnids.
    """

    images_per_address = None

    def __init__(self, files: Sequence[str], *, synsets: str | None, rows_per_address: int) -> None:
        self._files = files
        self._synsets = synsets
        self._rows_per_address = rows_per_address

    def addresses(self) -> Iterator[Address]:
        for uri in self._files:
            with open_table(uri) as table:
                self._wnids(table)
                for first, end, num_rows in row_ranges(table, self._rows_per_address):
                    yield [None, uri, first, end, num_rows]

    def files(self) -> list[FileVersion]:
        return storage.versions_of(self._files)

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        del mean_bytes
        return float(address[4])

    def read(
        self, address: Address, *, is_offered: Callable[[str | None], bool], start: int
    ) -> Iterator[FoundImage]:
        _, uri, first, end, _ = address
        with open_table(uri) as table:
            columns = _columns_of(table)
            wnids = self._wnids(table)

            def wnid(label: object) -> str | None:
                if isinstance(label, str) and is_wnid(strip(label)):
                    return strip(label)
                number = number_of(label)
                return None if number is None else wnid_of(number, wnids, uri)

            rows = read_rows(
                table,
                columns=columns,
                groups=(first, end),
                label_column=columns[1],
                is_offered=lambda label: is_offered(wnid(label)),
                start=start,
            )
            folder = uri.rpartition("/")[0] or "."
            for number, row in rows:
                found = wnid(row[columns[1]])
                assert found is not None, "rows without a class are not offered"
                yield FoundImage(found, f"{uri}#{number}", _image(row[columns[0]], folder))

    def _wnids(self, table: Table) -> tuple[str, ...]:
        """In order of class number."""
        if self._synsets is not None:
            return read_synsets(self._synsets)
        names = class_names_of(table.schema, _columns_of(table)[1])
        if names and all(map(is_wnid, names)):
            return tuple(names)
        if len(names) not in (0, 1000):
            raise ConfigError(
                f"{table.uri}: {len(names)} classes with names that are not wnids, such as "
                f"{names[0]!r}; give `params.synsets`, a file with one wnid per line"
            )
        return read_synsets(IMAGENET_1K)


class WdsImages:
    """timm's `imagenet1k-train-{0000..1023}.tar` and the like; an address is a tar.

    The class is a wnid in the json, or in front of the image's name, or the number in `cls`. The
    numbers of timm's 1k, 12k and 22k follow the sorted wnids of each set.
    """

    images_per_address = None

    def __init__(self, tars: Sequence[str], *, synsets: str | None) -> None:
        self._tars = tars
        self._synsets = synsets

    def addresses(self) -> Iterator[Address]:
        for tar in self._tars:
            yield [None, tar]

    def files(self) -> list[FileVersion]:
        return storage.versions_of(self._tars)

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        return estimate_members(storage.size_of(address[1]), mean_bytes)

    def read(
        self, address: Address, *, is_offered: Callable[[str | None], bool], start: int
    ) -> Iterator[FoundImage]:
        tar = address[1]
        reader = TarReader(
            tar,
            wanted=range(start, sys.maxsize),
            text_fields=("json", "cls"),
            is_offered=self._once(tar, is_offered),
        )
        for sample in reader.read():
            found = self._wnid(tar, sample.members)
            assert found is not None, "samples without a class are not offered"
            yield FoundImage(found, sample.uri, sample.image)

    def _once(
        self, tar: str, is_offered: Callable[[str | None], bool]
    ) -> Callable[[Sequence[Member]], bool]:
        """By members, asked once: a reader asks more than once about those of a key."""
        last: tuple[object, bool] = (None, False)

        def is_offered_once(members: Sequence[Member]) -> bool:
            nonlocal last
            key = (members[0].key, len(members))
            if last[0] != key:
                last = key, is_offered(self._wnid(tar, members))
            return last[1]

        return is_offered_once

    def _wnid(self, tar: str, members: Sequence[Member]) -> str | None:
        description = described(members)
        wnids = {value for value in description.values() if is_wnid(value)}
        if len(wnids) == 1:
            return str(wnids.pop())
        for name in (members[0].key, str(description.get("filename", "")).partition(".")[0]):
            if named := _IN_NAME.search(name):
                return named[1]
        number = number_of(label_of(tar, members, "cls"))
        if number is None:
            number = number_of(label_of(tar, members, "json.label"))
        if number is None:
            _log.info("%s#%s: no class in its json or cls, left out", tar, members[0].key)
            return None
        return wnid_of(number, self._wnids(tar, members[0]), f"{tar}#{members[0].name}")

    def _wnids(self, tar: str, member: Member) -> tuple[str, ...]:
        if self._synsets is not None:
            return read_synsets(self._synsets)
        if known := _KNOWN_SET.search(tar.rpartition("/")[2]):
            return read_synsets(f"imagenet-{known[1]}")
        raise ConfigError(
            f"{tar}#{member.name}: a class number, and neither its json nor the name of the tar "
            "(imagenet1k-..., imagenet12k-..., imagenet22k-...) says of which list; give "
            "`params.synsets`, a file with a wnid a line"
        )


def _image(value: object, folder: str) -> bytes:
    try:
        return image_bytes(value, folder)
    except storage.PrivateAddress as error:
        _log.warning("%s: %s", folder, error)
        return b""


def _columns_of(table: Table) -> list[str]:
    """The columns of the image and of its class."""
    types = {field.name: holds(field.type) for field in table.schema}
    columns = choose_columns(TableParams(), types, table.uri)  # by usual names
    if columns.label is None:
        raise ConfigError(
            f"{table.uri}: no column `label`; there are {', '.join(types)}; use kind parquet for a "
            "data set without classes"
        )
    return [columns.image, columns.label]


class Images(Protocol):
    """The images of one copy."""

    @property
    def images_per_address(self) -> int | None:
        """None if only reading would show it."""

    def addresses(self) -> Iterator[Address]:
        """In an order that never changes; opens no image."""

    def files(self) -> list[FileVersion]:
        """Of the images, and of what lies beside them and gives their classes."""

    def estimate_images(self, address: Address, mean_bytes: float) -> float | None:
        """Estimated number of images, of `mean_bytes` on average; None if unknown."""

    def read(
        self, address: Address, *, is_offered: Callable[[str | None], bool], start: int
    ) -> Iterator[FoundImage]:
        """Images of offered classes, without the first `start`; None is asked for no class.

        A layout whose addresses have a wnid need not ask `is_offered`: the caller has.
        """
