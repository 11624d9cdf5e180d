"""Data sets of the Hugging Face Hub, streamed, and what `datasets` reads of a disk.

A set that is parquet on the Hub can also be read by kind `parquet` with
`hf://datasets/user/name/...`: finer partitions, and resuming without reading again.
"""

import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
from pydantic import BaseModel, Field, field_validator

from pipeline.dataset.schema import Partition, RawSample
from pipeline.sources.kinds.huggingface.datasets import OpenDataset, class_names, column_types
from pipeline.sources.kinds.huggingface.opening import open_dataset
from pipeline.sources.readers.columns import Columns, choose_columns, image_bytes, text_of
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.labels import (
    LabelNames,
    LabelRule,
    LabelsAreExhaustive,
    Target,
    TargetLabels,
    TargetPolicy,
    label_rule,
)


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which data set, and what its columns hold."""

    # user/name on the Hub; or a folder: of save_to_disk, of parquet, arrow, tar or image files; or
    # a format of `datasets` such as parquet or imagefolder, with data_files or data_dir
    path: str
    name: str | None = None  # configuration, where the set has several
    split: str = "train"  # of the set; the data set that is built makes its own splits
    revision: str | None = None  # branch, tag or commit; a commit keeps ids when the set changes
    data_dir: str | None = None  # folder within the set
    data_files: tuple[str, ...] = ()  # files or globs, of the set or any address
    image_column: str | None = None  # None: image, img, jpg ..., or the only column of images
    label_column: str | None = None  # None: label, labels or fine_label, where there is one
    license_column: str | None = None  # None: license, where there is one
    author_column: str | None = None  # None: author, where there is one
    group_column: str | None = None  # samples of one value share a split, e.g. patient_id
    target: Target = ""
    target_labels: TargetLabels = ()
    target_policy: TargetPolicy = "exclude"
    labels_are_exhaustive: LabelsAreExhaustive = False
    label_names: LabelNames = ()
    rows_per_partition: int = Field(512, ge=1)  # of a save_to_disk folder; a stream's is a file

    @field_validator("data_files", mode="before")
    @classmethod
    def _one_or_many(cls, files: object) -> object:
        return (files,) if isinstance(files, str) else files

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
    """Every row, but those that `target_policy` leaves out."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params

    def __reduce__(self) -> tuple[type["Source"], tuple[Params]]:
        return Source, (self._params,)  # a worker opens the set itself

    def partitions(self) -> Iterator[Partition]:
        """Opens the set, and reads no image; raises ConfigError where the settings do not fit."""
        data, _, rule = self._opened
        for partition in data.partitions(self._params.rows_per_partition):
            yield replace(partition, num_samples=None) if rule.leaves_some_out else partition

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all that could be read, where a file is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Begins at the row itself in a save_to_disk folder; a stream has to come by the rows
        before, and looks at their labels only."""
        data, columns, rule = self._opened
        rows = data.rows(
            partition.locator,
            label=columns.label,
            is_offered=rule.is_offered if rule.leaves_some_out else None,
            start=start,
        )
        for uri, row in rows:
            facts = rule.facts(None if columns.label is None else row[columns.label])
            yield RawSample(
                uri=uri,
                image=image_bytes(row[columns.image], data.folder),
                label=facts.label,
                label_state=facts.label_state,
                class_name=facts.class_name,
                group=text_of(row, columns.group),
                license=text_of(row, columns.license),
                author=text_of(row, columns.author),
            )

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """As if no row were left out, where the set tells how many it has."""
        del mean_bytes
        if self._params.target_policy == "only":
            return None
        return self._opened[0].estimate_rows(partition.locator)

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
        columns = choose_columns(params, column_types(data.features), data.where)
        rule = label_rule(
            params,
            names=class_names(data.features[columns.label]) if columns.label else (),
            is_labelled=columns.label is not None,
            hint=f"give `params.label_column`; {data.where} has {', '.join(data.features)}",
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
