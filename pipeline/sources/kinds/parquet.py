"""Parquet files with a column of images, as Hugging Face and many others keep them.

An image is bytes, a struct of bytes and path, or an address; a file that a table names is read
through `pipeline.storage`. A partition is one or several row groups.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, field_validator

from pipeline.dataset.schema import Partition, RawSample
from pipeline.errors import ConfigError
from pipeline.sources.readers.columns import (
    Columns,
    Row,
    choose_columns,
    holds,
    image_bytes,
    text_of,
)
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
from pipeline.sources.readers.parquet import (
    Table,
    class_names_of,
    open_table,
    read_rows,
    row_ranges,
)
from pipeline.sources.readers.patterns import address_id, find_all_files

_SUFFIXES = (".parquet", ".pq")
# A footer costs a request or two; over so many files, a partition is a file and none is opened.
_MAX_FOOTERS = 1000


class Params(BaseModel, frozen=True, extra="forbid"):
    """Which files, and what their columns hold."""

    # One or more files, folders, globs or names with braces: /data/set, s3://bucket/*.parquet,
    # hf://datasets/user/name/data/train-{00000..00009}-of-00010.parquet
    urls: tuple[str, ...] = Field(min_length=1)
    image_column: str | None = None  # None: image, img, jpg ..., or the only column of bytes
    label_column: str | None = None  # None: label, labels or fine_label, where there is one
    license_column: str | None = None  # None: license, where there is one
    author_column: str | None = None  # None: author, where there is one
    group_column: str | None = None  # samples of one value share a split, e.g. patient_id
    target: Target = ""
    target_labels: TargetLabels = ()
    target_policy: TargetPolicy = "exclude"
    labels_are_exhaustive: LabelsAreExhaustive = False
    label_names: LabelNames = ()
    rows_per_partition: int = Field(512, ge=1)  # row groups are joined until they have as many

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_many(cls, urls: object) -> object:
        return (urls,) if isinstance(urls, str) else urls


class Source:
    """Every row, but those that `target_policy` leaves out."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params

    def partitions(self) -> Iterator[Partition]:
        """Reads the footers of up to 1000 files; of more, it lists the names only."""
        files = find_all_files(self._params.urls, _SUFFIXES)
        head = list(itertools.islice(files, _MAX_FOOTERS + 1))
        if not head:
            raise ConfigError(
                f"{', '.join(self._params.urls)}: no file with a suffix of {' '.join(_SUFFIXES)} "
                "there; check `params.urls`"
            )
        if len(head) > _MAX_FOOTERS:
            yield from (
                Partition(address_id(uri), [uri, 0, None]) for uri in itertools.chain(head, files)
            )
            return
        for uri in head:
            with open_table(uri) as table:
                _, rule = self._columns_and_rule(table)
                for first, end, num_rows in row_ranges(table, self._params.rows_per_partition):
                    yield Partition(
                        # The rows are part of the id: a file written anew has other partitions.
                        id=f"{address_id(uri)}#{first}-{end}-{num_rows}",
                        locator=[uri, first, end],
                        num_samples=None if rule.leaves_some_out else num_rows,
                    )

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all that could be read, where the file is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Passes over row groups by the footer, or by their labels where a policy needs them."""
        uri, first, end = partition.locator
        with open_table(uri) as table:
            columns, rule = self._columns_and_rule(table)
            rows = read_rows(
                table,
                columns=columns.names,
                groups=(first, end),
                label_column=columns.label,
                is_offered=rule.is_offered if rule.leaves_some_out else None,
                start=start,
            )
            for number, row in rows:
                yield _sample(uri, number, row, columns, rule)

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """By the footer, as if no row were left out."""
        del mean_bytes
        if self._params.target_policy == "only":
            return None
        uri, first, end = partition.locator
        with open_table(uri) as table:
            return sum(table.group_sizes[first:end])

    def _columns_and_rule(self, table: Table) -> tuple[Columns, LabelRule]:
        """By the file's own schema: files of a set may differ in the order of classes."""
        schema = table.schema
        types = {field.name: holds(field.type) for field in schema}
        columns = choose_columns(self._params, types, table.uri)
        rule = label_rule(
            self._params,
            names=class_names_of(schema, columns.label) if columns.label else (),
            is_labelled=columns.label is not None,
            hint=f"give `params.label_column`; {table.uri} has {', '.join(schema.names)}",
        )
        return columns, rule


def _sample(uri: str, number: int, row: Row, columns: Columns, rule: LabelRule) -> RawSample:
    facts = rule.facts(None if columns.label is None else row[columns.label])
    return RawSample(
        uri=f"{uri}#{number}",
        image=image_bytes(row[columns.image], uri.rpartition("/")[0] or "."),
        label=facts.label,
        label_state=facts.label_state,
        class_name=facts.class_name,
        group=text_of(row, columns.group),
        license=text_of(row, columns.license),
        author=text_of(row, columns.author),
    )


def toy(directory: Path) -> Params:
    directory.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": jpeg, "path": f"{n}.jpg"} for n, jpeg in enumerate(toy_jpegs())]
    table = pa.table({"image": images, "label": ["red", "green", "blue"]})
    pq.write_table(table, directory / "toy.parquet", row_group_size=2)
    return Params(urls=(str(directory),))
