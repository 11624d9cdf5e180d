"""Parquet files with a column of images, as Hugging Face and many others keep them.

An image is bytes, a struct of bytes and path, or an address. A partition is one row group or
several.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline import storage
from pipeline.dataset.schema import Partition, RawSample
from pipeline.dataset.seen_labels import LabelCounter, SeenLabels
from pipeline.errors import ConfigError
from pipeline.sources.readers.columns import (
    Columns,
    TableParams,
    check_column,
    columns_and_rule,
    holds,
    row_sample,
)
from pipeline.sources.readers.files import toy_jpegs
from pipeline.sources.readers.labels import LabelRule
from pipeline.sources.readers.parquet import (
    Table,
    class_names_of,
    open_table,
    read_rows,
    row_ranges,
)
from pipeline.sources.readers.patterns import OneOrMore, address_id, find_all_files
from pipeline.storage import FileVersion

_SUFFIXES = (".parquet", ".pq")
# A footer costs one or two requests. With more files, a partition is a file and none is opened.
_MAX_FOOTERS = 1000


class Params(TableParams, frozen=True, extra="forbid"):
    """Which files, and what their columns hold."""

    urls: OneOrMore = Field(
        min_length=1,
        description="One or more files, folders, globs or names with braces: /data/set, "
        "s3://bucket/*.parquet, hf://datasets/user/name/data/train-{00000..00009}-of-00010.parquet",
    )


class Source:
    """Every row except those that `target_policy` leaves out."""

    is_endless = False

    def __init__(self, params: Params) -> None:
        self._params = params
        self.left_out = LabelCounter()

    def partitions(self) -> Iterator[Partition]:
        """Reads the footers of up to 1000 files; more files are only listed."""
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
                        # The rows are part of the id: a rewritten file has other partitions.
                        id=f"{address_id(uri)}#{first}-{end}-{num_rows}",
                        locator=[uri, first, end],
                        num_samples=None if rule.leaves_some_out else num_rows,
                    )

    def files(self) -> list[FileVersion]:
        """The tables; not the images that a column of addresses names."""
        tables = find_all_files(self._params.urls, _SUFFIXES)
        return storage.versions_of(itertools.chain(self._params.named_files, tables))

    def read(self, partition: Partition) -> Iterator[RawSample]:
        """Raises InfinegError, after all readable rows, if the file is broken."""
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Skips row groups by the footer, or by their labels if the policy leaves some out."""
        uri, first, end = partition.locator
        with open_table(uri) as table:
            columns, rule = self._columns_and_rule(table)
            rows = read_rows(
                table,
                columns=columns.names,
                groups=(first, end),
                label_column=columns.label,
                is_offered=rule.counting(self.left_out) if rule.leaves_some_out else None,
                start=start,
            )
            for number, row in rows:
                folder = uri.rpartition("/")[0] or "."
                yield row_sample(f"{uri}#{number}", row, columns, rule, folder)

    def estimate_samples(self, partition: Partition, mean_bytes: float) -> float | None:
        """From the footer, as if no row were left out."""
        del mean_bytes
        if self._params.target_policy == "only":
            return None
        uri, first, end = partition.locator
        with open_table(uri) as table:
            return sum(table.group_sizes[first:end])

    def declares_labels(self) -> bool:
        return self._params.declares_labels

    def check_labels(self, seen: SeenLabels) -> None:
        with open_table(next(iter(self.partitions())).locator[0]) as table:
            _, rule = self._columns_and_rule(table)
        check_column(self._params, rule, seen)

    def _columns_and_rule(self, table: Table) -> tuple[Columns, LabelRule]:
        """From this file's schema: files of a set may differ in the order of classes."""
        schema = table.schema
        types = {field.name: holds(field.type) for field in schema}
        return columns_and_rule(
            self._params, types, lambda column: class_names_of(schema, column), table.uri
        )


def toy(directory: Path) -> Params:
    directory.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": jpeg, "path": f"{n}.jpg"} for n, jpeg in enumerate(toy_jpegs())]
    table = pa.table({"image": images, "label": ["red", "green", "blue"]})
    pq.write_table(table, directory / "toy.parquet", row_group_size=2)
    return Params(urls=(str(directory),))
