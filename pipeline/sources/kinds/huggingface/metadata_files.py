"""Folders of images with metadata.csv, .jsonl or .parquet, which name an image a row.

`datasets` silently drops an image without a row, and gives no bytes for a row without an image.
https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import csv
import io
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset.decoders import image_suffixes
from pipeline.errors import ConfigError
from pipeline.sources.readers.text import decode_text, shown

_log = logging.getLogger(__name__)

_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def tell_unmatched(folder: str) -> None:
    """Warns of images without a row and rows without an image, with their numbers and examples.

    Raises ConfigError if no row fits an image, and if a file is in another encoding than UTF-8.
    """
    root = os.path.normpath(folder)
    files = sorted(path for path in _walk(root) if os.path.basename(path) in _METADATA)
    if not files:
        return
    images = {path for path in _walk(root) if path.lower().endswith(image_suffixes())}
    if not images:
        return  # they may be in archives
    named = {
        os.path.normpath(os.path.join(os.path.dirname(path), name))
        for path in files
        for name in _file_names(Path(path))
    }
    without_row, without_image = images - named, named - images
    # A row may name a file of another suffix.
    without_image = {path for path in without_image if not os.path.exists(path)}
    counts = (
        f"{folder}: {len(named):,} rows of {', '.join(map(os.path.basename, files))}: "
        f"{len(without_image):,} name no image{_such_as(without_image, root)}; "
        f"{len(images):,} images: {len(without_row):,} have no row{_such_as(without_row, root)}"
    )
    if named and len(without_image) == len(named):
        raise ConfigError(f"{counts}. Check `file_name` of the metadata, relative to its folder")
    if without_row or without_image:
        _log.warning("%s; images without a row are not read", counts)


def _walk(root: str) -> Iterator[str]:
    """Files that are not hidden."""
    for folder, _, names in os.walk(root):
        yield from (os.path.join(folder, name) for name in names if not name.startswith("."))


def _such_as(paths: Iterable[str], root: str) -> str:
    some = sorted(paths)[:3]
    names = (shown(os.path.relpath(path, root)) for path in some)
    return f", such as {', '.join(names)}" if some else ""


def _file_names(path: Path) -> Iterator[str]:
    """Values of `file_name` and of columns that end in `_file_name`."""
    for row in _rows(path):
        for name, value in row.items():
            if isinstance(value, str) and (name == "file_name" or name.endswith("_file_name")):
                yield value


def _rows(path: Path) -> Iterable[dict[str, object]]:
    if path.suffix == ".parquet":
        with storage.reading(str(path)):
            columns = [n for n in pq.read_schema(path).names if n.endswith("file_name")]
            rows: list[dict[str, object]] = pq.read_table(path, columns=columns).to_pylist()
        return rows
    text = decode_text(path.read_bytes(), str(path))
    try:
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except csv.Error as error:
        raise ConfigError(f"{path}: no CSV: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: no JSON lines: {error}") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise ConfigError(f"{path}: row {number} is {str(row)[:40]!r}, no JSON object")
    return rows
