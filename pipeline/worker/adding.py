"""Adds candidates to those that a part has selected: reads their images from the source again.

Knows nothing of Ray, or of how they were chosen.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.cluster.process import Task
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.embedding_cache import KeptEmbeddings
from pipeline.dataset.schema import Partition, with_columns
from pipeline.dataset.shards import find_named_by_content, write_named_by_content
from pipeline.worker.careful import open_source_of
from pipeline.worker.reread import read_images


class AddTask(Task, frozen=True):
    """A part, the rows of it to select with probability 1, and how to name it with them."""

    source: str
    partitions: tuple[Partition, ...]  # of its span
    part_path: str
    sha256: str  # of the part
    embeddings_path: str  # of all its rows
    rows: tuple[int, ...]
    prefix: str  # of the path to write


class AddingWorker:
    """Writes parts with more of their rows selected; what is there is not made again."""

    def __init__(self, config: Config, fence: storage.Fence | None = None) -> None:
        storage.configure(config.storage)
        storage.fence_worker(config.output.path, fence)
        self._config = config
        self._dataset = Dataset(config.output.path)
        self._entries = {entry.name: entry for entry in config.entries}

    def add(self, task: AddTask) -> Iterator[pa.Table]:
        """One row: part_path, path and sha256 of what is to be packed instead, num_new.

        num_new: samples that are selected by it, unless an earlier run has written it.
        """
        found, num_new = find_named_by_content(self._dataset, task.prefix), 0
        if found is None:
            rows = self._dataset.read_table(task.part_path, sha256=task.sha256)
            added = self._with_added(rows, task)
            found = write_named_by_content(self._dataset, task.prefix, added)
            num_new = pc.sum(added["selected"]).as_py() - (pc.sum(rows["selected"]).as_py() or 0)
        row = {"source": task.source, "part_path": task.part_path, "num_new": num_new}
        yield pa.Table.from_pylist([{**row, "path": found[0], "sha256": found[1]}])

    def _with_added(self, rows: pa.Table, task: AddTask) -> pa.Table:
        is_added_N = np.zeros(rows.num_rows, bool)
        is_added_N[list(task.rows)] = True
        is_new_N = is_added_N & ~rows["selected"].to_numpy()
        columns: dict[str, pa.Array | pa.ChunkedArray] = {}
        if is_new_N.any():
            new = pa.array(np.flatnonzero(is_new_N))
            source = open_source_of(task, self._entries[task.source], self._config)
            settings = self._config.output.image_settings
            images = read_images(source, task.partitions, rows.take(new), settings)
            kept = KeptEmbeddings(self._dataset.root).read(task.embeddings_path, ["embedding"])
            columns["image"] = _put(rows["image"], images, is_new_N)
            columns["embedding"] = _put(rows["embedding"], kept["embedding"].take(new), is_new_N)
        one = np.where(is_added_N, np.float32(1), rows["inclusion_probability"].to_numpy())
        is_null_N = rows["inclusion_probability"].is_null().to_numpy()
        return with_columns(
            rows,
            selected=pa.array(rows["selected"].to_numpy() | is_added_N),
            inclusion_probability=pa.array(one, pa.float32(), mask=is_null_N),
            **columns,
        )


def _put(column: pa.ChunkedArray, values: pa.Array, is_new_N: np.ndarray) -> pa.ChunkedArray:
    """The column with the values in the places where is_new_N."""
    place_N = np.arange(len(column))
    place_N[is_new_N] = len(column) + np.arange(int(is_new_N.sum()))
    values = values.cast(column.type)
    chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
    return pa.chunked_array([*column.chunks, *chunks]).take(pa.array(place_N))
