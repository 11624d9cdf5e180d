"""Data sets opened with Hugging Face `datasets`: a split on a disk, or a stream of files.

Images are not decoded here, so that a broken one does not end the stream.
"""

import contextlib
import itertools
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import datasets
import pyarrow as pa

from pipeline import storage
from pipeline.dataset.schema import Partition
from pipeline.errors import InfinegError, TransientStorageError
from pipeline.sources.readers.columns import Holds, Row, holds
from pipeline.storage import FileVersion
from pipeline.storage.retry import is_transient

# Raised when broken data are read, besides OSError.
BROKEN = (
    pa.ArrowException,
    datasets.exceptions.DatasetsError,
    tarfile.TarError,
    zlib.error,
    EOFError,
    ValueError,
)
_SAVED_BESIDE = ("dataset_info.json", "state.json")
Features = Mapping[str, Any]
IsOffered = Callable[[object], bool]


class OpenDataset(Protocol):
    """One split of a data set."""

    where: str  # for addresses and messages
    folder: str  # where relative paths start
    features: Features
    files_of_any_split: Sequence[str]  # of a folder in which names say what is in which split

    def files(self) -> list[FileVersion]:
        """What it consists of."""

    def select(self, columns: Sequence[str]) -> "OpenDataset":
        """Only these columns, not decoded."""

    def partitions(self, rows_per_partition: int) -> Iterator[Partition]:
        """Ranges of rows if rows can be addressed, else files."""

    def estimate_rows(self, locator: list[int]) -> float | None:
        """Estimated number of rows; None if unknown."""

    def rows(
        self, locator: list[int], *, label: str | None, is_offered: IsOffered | None, start: int
    ) -> Iterator[tuple[str, Row]]:
        """Addresses and rows, without the first `start`.

        With `is_offered`, only rows whose value in column `label` it accepts.
        """


class SavedDataset:
    """A folder of `save_to_disk`: rows can be addressed."""

    files_of_any_split: Sequence[str] = ()

    def __init__(self, data: datasets.Dataset, *, where: str, folder: str) -> None:
        self._data = data
        self.where = where
        self.folder = folder
        self.features: Features = data.features

    def files(self) -> list[FileVersion]:
        """Its Arrow files, and the JSON beside them."""
        names = [file["filename"] for file in self._data.cache_files]
        folders = sorted({os.path.dirname(name) for name in names})
        beside = (f"{folder}/{name}" for folder in folders for name in _SAVED_BESIDE)
        return storage.versions_of([*names, *beside])

    def select(self, columns: Sequence[str]) -> "SavedDataset":
        data = _undecoded(self._data, self.features, columns)
        return SavedDataset(data, where=self.where, folder=self.folder)

    def partitions(self, rows_per_partition: int) -> Iterator[Partition]:
        num_rows = len(self._data)
        for first in range(0, num_rows, rows_per_partition):
            end = min(first + rows_per_partition, num_rows)
            yield Partition(f"rows-{first}-{end}-of-{num_rows}", [first, end], end - first)

    def estimate_rows(self, locator: list[int]) -> float | None:
        first, end = locator
        return end - first

    def rows(
        self, locator: list[int], *, label: str | None, is_offered: IsOffered | None, start: int
    ) -> Iterator[tuple[str, Row]]:
        numbers: Sequence[int] = range(*locator)
        if is_offered is not None:
            with errors_of(self.where):
                labels = self._data.select_columns([label]).select(numbers)[:][label]
            numbers = [n for n, each in zip(numbers, labels, strict=True) if is_offered(each)]
        for number in numbers[start:]:
            with errors_of(f"{self.where}, row {number}"):
                row = self._data[number]
            yield f"{self.where}#{number}", row


class StreamedDataset:
    """Files read one after the other; earlier files are skipped, earlier rows of a file are not.

    `commit` is that of the Hub, or "". It is part of all ids, so that parts of another commit are
    not taken for parts of this one.
    """

    def __init__(
        self,
        data: datasets.IterableDataset,
        features: Features,
        *,
        where: str,
        folder: str,
        commit: str,
        data_files: Sequence[str],
        files_of_any_split: Sequence[str] = (),
    ) -> None:
        self._data = data
        self._commit = commit
        self._data_files = data_files
        self.files_of_any_split = files_of_any_split
        self.where = where
        self.folder = folder
        self.features = features

    def files(self) -> list[FileVersion]:
        if self._commit:
            return [hub_version(self.where, self._commit)]
        # A member of an archive is `zip://name::archive`.
        archives = (name.rpartition("::")[2] for name in self._data_files)
        return storage.versions_of(dict.fromkeys(archives))

    def select(self, columns: Sequence[str]) -> "StreamedDataset":
        return StreamedDataset(
            _undecoded(self._data, self.features, columns),
            {name: self.features[name] for name in columns},
            where=self.where,
            folder=self.folder,
            commit=self._commit,
            data_files=self._data_files,
            files_of_any_split=self.files_of_any_split,
        )

    def partitions(self, rows_per_partition: int) -> Iterator[Partition]:
        del rows_per_partition  # the number of rows of a file is not known before it is read
        num_shards = self._data.num_shards
        for shard in range(num_shards):
            name = f"{shard:05d}-of-{num_shards:05d}"
            yield Partition(f"{self._commit}-{name}".lstrip("-"), [shard, num_shards])

    def estimate_rows(self, locator: list[int]) -> float | None:
        """From the number of rows of the split, which most data sets of the Hub have."""
        split = (self._data.info.splits or {}).get(str(self._data.split))
        return split.num_examples / locator[1] if split and split.num_examples else None

    def rows(
        self, locator: list[int], *, label: str | None, is_offered: IsOffered | None, start: int
    ) -> Iterator[tuple[str, Row]]:
        shard, num_shards = locator
        if self._data.num_shards != num_shards:
            raise InfinegError(
                f"{self.where}: {self._data.num_shards} files, but there were {num_shards} when "
                "it was listed; set `params.revision` to a commit"
            )
        where = f"{self.where}#{shard:05d}-of-{num_shards:05d}"
        rows = iter(self._data.shard(num_shards=num_shards, index=shard))
        for number in itertools.count():
            with errors_of(f"{where}, row {number}"):
                row = next(rows, None)
            if row is None:
                return
            if is_offered is not None and not is_offered(row[label or ""]):
                continue
            if start > 0:
                start -= 1
            else:
                yield f"{where}#{number}", row


def where_of(path: str, name: str | None, split: str) -> str:
    """How a split is called in addresses and messages."""
    return "/".join(filter(None, (path.rstrip("/"), name, split)))


def hub_version(where: str, commit: str) -> FileVersion:
    """All of a data set of the Hub: nothing below a commit changes."""
    return FileVersion(where, None, commit)


def column_types(features: Features) -> dict[str, Holds]:
    return {name: _holds(feature) for name, feature in features.items()}


def class_names(feature: object) -> list[str]:
    """Names of a ClassLabel, or of a list of them."""
    while (inner := getattr(feature, "feature", None)) is not None:
        feature = inner
    return list(feature.names or ()) if isinstance(feature, datasets.ClassLabel) else []


@contextlib.contextmanager
def errors_of(where: str) -> Iterator[None]:
    """Turns whatever `datasets` raises into an InfinegError; encloses only calls of it."""
    try:
        yield
    except InfinegError:
        raise
    except Exception as error:
        if is_transient(error):
            raise TransientStorageError(f"{where}: {error}; run again to resume") from error
        raise InfinegError(f"{where}: broken: {type(error).__name__}: {error}") from None


def _undecoded(data: Any, features: Features, columns: Sequence[str]) -> Any:
    data = data.select_columns(list(columns))
    for name in columns:
        if isinstance(features[name], datasets.Image):
            data = data.cast_column(name, datasets.Image(decode=False))
    return data


def _holds(feature: object) -> Holds:
    if isinstance(feature, datasets.Image):
        return "images"
    if hasattr(feature, "decode_example"):  # audio and video are bytes and path, too
        return "other"
    return holds(datasets.Features({"column": feature}).arrow_schema.field("column").type)
