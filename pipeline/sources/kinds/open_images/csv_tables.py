"""Reads columns of a CSV of any size, block by block, plain or gzip."""

import contextlib
import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import IO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from pipeline import storage
from pipeline.errors import ConfigError, InfinegError
from pipeline.sources.readers.compression import DAMAGED, GZIP_MAGIC, GzipStream, peek
from pipeline.sources.readers.text import SPACES, decode_text

_BLOCK_BYTES = 1 << 20
_MAX_HEADER_BYTES = 1 << 16


def read_columns(
    uri: str,
    *,
    setting: str,
    required: Mapping[str, pa.DataType],
    optional: Mapping[str, pa.DataType] | None = None,
) -> Iterator[pa.Table]:
    """Blocks of the required columns, and of the optional ones that the file has.

    Raises ConfigError, which names `setting`, if the file or a column is missing, and
    InfinegError, after all readable blocks, if the file is broken.
    """
    try:
        with _open(uri, setting) as stream:
            header = _read_header(stream, uri)
        types = _types(uri, header, setting, required, optional or {})
        with _open(uri, setting) as stream:
            for batch in _open_csv(stream, types):
                yield _stripped(pa.Table.from_batches([batch]))
    except (pa.ArrowInvalid, *DAMAGED) as error:
        raise InfinegError(f"{uri}: broken CSV: {error}") from None


def _types(
    uri: str,
    header: list[str],
    setting: str,
    required: Mapping[str, pa.DataType],
    optional: Mapping[str, pa.DataType],
) -> dict[str, pa.DataType]:
    if missing := required.keys() - set(header):
        raise ConfigError(
            f"{uri}: no column {', '.join(sorted(missing))}, its first line is "
            f"{','.join(header)[:120]!r}; check `{setting}`"
        )
    return {name: kind for name, kind in {**required, **optional}.items() if name in header}


def _stripped(rows: pa.Table) -> pa.Table:
    columns = [
        pc.utf8_trim(column, SPACES) if pa.types.is_string(column.type) else column
        for column in rows.columns
    ]
    return pa.table(columns, rows.column_names)


def _open_csv(stream: IO[bytes], types: Mapping[str, pa.DataType]) -> pa.csv.CSVStreamingReader:
    return pa.csv.open_csv(
        stream,
        read_options=pa.csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        # A quoted title may have several lines.
        parse_options=pa.csv.ParseOptions(newlines_in_values=True),
        convert_options=pa.csv.ConvertOptions(column_types=types, include_columns=list(types)),
    )


@contextlib.contextmanager
def _open(uri: str, setting: str) -> Iterator[IO[bytes]]:
    try:
        file = storage.open_read(uri)
    except FileNotFoundError:
        raise ConfigError(f"{uri}: no such file; check `{setting}`") from None
    with file:
        head, stream, _ = peek(file, len(GZIP_MAGIC))
        if head == GZIP_MAGIC:
            stream = cast(IO[bytes], GzipStream(stream, uri))
        # Arrow makes a block of each short read.
        yield io.BufferedReader(cast(io.RawIOBase, stream), _BLOCK_BYTES)


def _read_header(stream: IO[bytes], uri: str) -> list[str]:
    head = b""
    while b"\n" not in head and len(head) < _MAX_HEADER_BYTES:
        piece = stream.read(_MAX_HEADER_BYTES)
        if not piece:
            break
        head += piece
    line = re.split(b"[\r\n]", head, maxsplit=1)[0]
    return next(csv.reader([decode_text(line, uri)]), [])
