"""Data sets of the Hugging Face Hub, streamed, and those that `datasets` reads from a disk.

A data set that is parquet on the Hub can also be read by kind `parquet` from
`hf://datasets/user/name/...`, with finer partitions and without reading again on resume.
"""

import functools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
from pydantic import Field, field_validator

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.sources.kinds.huggingface.metadata_files import tell_unmatched
from pipeline.sources.kinds.huggingface.opening import open_dataset
from pipeline.sources.kinds.huggingface.splits import (
    OpenDataset,
    class_names,
    column_types,
    hub_version,
    where_of,
)
from pipeline.sources.kinds.huggingface.unread_files import tell_without_split
from pipeline.sources.readers.columns import (
    Columns,
    TableParams,
    check_column,
    columns_and_rule,
    row_sample,
)
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.labels import LabelRule
from pipeline.sources.readers.patterns import OneOrMore
from pipeline.storage import FileVersion

_COMMIT = re.compile(r"[0-9a-f]{40}")


class Params(TableParams, frozen=True, extra="forbid"):
    """Which data set, and what its columns hold."""

    path: str = Field(
        description="user/name on the Hub; or a folder: of save_to_disk, of parquet, arrow, tar or "
        "image files; or a format of `datasets` such as parquet or imagefolder, with data_files or "
        "data_dir."
    )
    name: str | None = Field(None, description="Configuration, if the data set has several.")
    split: str = Field(
        "train", description="Split to read; the data set that is built makes its own splits."
    )
    revision: str | None = Field(
        None,
        description="Branch, tag or commit. With a commit, a resumed build reads the same files "
        "after the data set has changed.",
    )
    data_dir: str | None = Field(None, description="Folder within the data set.")
    data_files: OneOrMore = Field((), description="Files or globs, of the data set or any address.")

    @field_validator("path")
    @classmethod
    def _as_load_dataset_names_it(cls, path: str) -> str:
        path = path.removeprefix("hf://datasets/")
        if "://" in path:
            raise ValueError(
                "wanted user/name or a folder; for files elsewhere name their format, e.g. "
                "path: parquet, and their addresses in data_files, or use kind parquet"
            )
        return path


class Source:
    """Every row except those that `target_policy` leaves out."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self.left_out = LabelCounter()
        self._has_told = False

    def __reduce__(self) -> tuple[type["Source"], tuple[Params]]:
        return Source, (self._params,)  # each worker opens the data set itself

    def partitions(self) -> Iterator[Partition]:
        """Opens the data set, reads no image; raises ConfigError if the settings do not fit."""
        self._tell_unmatched()
        data, _, rule = self._opened
        for partition in data.partitions(self._params.rows_per_partition):
            yield replace(partition, num_samples=None) if rule.leaves_some_out else partition

    def files(self) -> list[FileVersion]:
        """The files of a folder; of a data set of the Hub its commit."""
        params = self._params
        named = storage.versions_of(params.named_files)
        commit = params.revision or ""
        if _COMMIT.fullmatch(commit) and not Path(params.path).exists():
            # It cannot change, and the Hub need not be asked.
            return [*named, hub_version(where_of(params.path, params.name, params.split), commit)]
        return [*named, *self._opened[0].files()]

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all readable rows, if a file is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Seeks in a save_to_disk folder; a stream reads the rows before, but not their images."""
        data, columns, rule = self._opened
        rows = data.rows(
            partition.locator,
            label=columns.label,
            is_offered=rule.counting(self.left_out) if rule.leaves_some_out else None,
            start=start,
        )
        for uri, row in rows:
            yield row_sample(uri, row, columns, rule, data.folder)

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """As if no row were left out; None if the data set has no number of rows."""
        del mean_bytes
        if self._params.target_policy == "only":
            return None
        return self._opened[0].estimate_rows(partition.locator)

    def declares_labels(self) -> bool:
        return self._params.declares_labels

    def check_labels(self, seen: SeenLabels) -> None:
        check_column(self._params, self._opened[2], seen)

    def _tell_unmatched(self) -> None:
        """Once, where partitions are listed: workers open the data set, too."""
        folder = self._params.data_dir or self._params.path
        if not self._has_told and Path(folder).is_dir():
            tell_unmatched(folder)
            if not self._params.data_files and (named := self._opened[0].files_of_any_split):
                tell_without_split(folder, named)
        self._has_told = True

    @functools.cached_property
    def _opened(self) -> tuple[OpenDataset, Columns, LabelRule]:
        params = self._params
        data = open_dataset(
            params.path,
            name=params.name,
            split=params.split,
            revision=params.revision,
            data_dir=params.data_dir,
            data_files=params.data_files,
        )
        columns, rule = columns_and_rule(
            params,
            column_types(data.features),
            lambda column: class_names(data.features[column]),
            data.where,
        )
        return data.select(columns.names), columns, rule


def toy(directory: Path) -> Params:
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["red", "green", "blue"])}
    )
    images = [{"bytes": jpeg, "path": None} for jpeg in toy_jpegs()]
    table = datasets.Dataset.from_dict({"image": images, "label": [0, 1, 2]}, features=features)
    table.save_to_disk(str(directory))
    return Params(path=str(directory))
