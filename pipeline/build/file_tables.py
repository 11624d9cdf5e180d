"""The table of the files of a source: listed, kept beside the plan, and compared.

Name, size, and a hash of what the storage gives as version: an ETag, a commit, or the time of the
last change. About 16 bytes a file, and in memory a hundred.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import storage
from pipeline.dataset import Dataset
from pipeline.dataset.keys import is_named_by_content, sha256_hex, short_hash
from pipeline.errors import InfinegError
from pipeline.sources import Source, StoredSource
from pipeline.sources.readers.patterns import address_id

_SCHEMA = pa.schema([("name", pa.string()), ("size", pa.int64()), ("stamp", pa.uint64())])
_NUM_EXAMPLES = 3


@dataclass(frozen=True)
class FileChanges:
    """Names of files that differ between two listings of a source."""

    added: Sequence[str] = ()
    removed: Sequence[str] = ()
    changed: Sequence[str] = ()
    touched: Sequence[str] = ()  # same size, another version: reading shows whether they changed

    def __str__(self) -> str:
        """`1 added, 2 changed, such as a.jpg, b.jpg`; "" if nothing has changed for certain."""
        kinds = {"added": self.added, "removed": self.removed, "changed": self.changed}
        counts = ", ".join(f"{len(names):,} {kind}" for kind, names in kinds.items() if names)
        names = [name for some in kinds.values() for name in some]
        return counts and f"{counts}, such as {', '.join(names[:_NUM_EXAMPLES])}"


def write_files(dataset: Dataset, name: str, files: pa.Table) -> str:
    """Keeps the table of a source's files; returns its path.

    The name follows from the content, so that the table of a plan that is still in use stays.
    """
    buffer = io.BytesIO()
    pq.write_table(
        files,
        buffer,
        compression="zstd",
        use_dictionary=False,
        column_encoding={"name": "DELTA_BYTE_ARRAY"},  # names of a folder begin alike
    )
    path = f"plans/{name}-{sha256_hex(buffer.getvalue())[:16]}.parquet"
    storage.write_atomic(dataset.uri(path), buffer.getvalue())
    return path


def remove_other_files(dataset: Dataset, name: str, path: str) -> None:
    """Removes the tables of a source that its plan no longer names."""
    found = storage.list_prefix(dataset.uri(f"plans/{name}-"))
    storage.remove_many(uri for uri in found if uri != dataset.uri(path))


def list_files(source: Source) -> pa.Table | None:
    """The files of a source as they are now, sorted; None if it reads none."""
    if not isinstance(source, StoredSource):
        return None
    files = list(source.files())
    columns = {
        "name": [address_id(file.uri) for file in files],
        "size": [file.size for file in files],
        "stamp": [int(short_hash(file.stamp), 16) if file.stamp else 0 for file in files],
    }
    table = pa.table(columns, schema=_SCHEMA)
    # Two settings may name the same file.
    distinct = table.group_by(_SCHEMA.names, use_threads=False).aggregate([])
    return distinct.sort_by([(name, "ascending") for name in _SCHEMA.names])


def compare_files(then: pa.Table, now: pa.Table) -> FileChanges:
    """Differences of two listings, both sorted by name."""
    if then.equals(now):
        return FileChanges()
    is_kept = pc.is_in(then["name"], value_set=now["name"])
    is_old = pc.is_in(now["name"], value_set=then["name"])
    before, after = then.filter(is_kept), now.filter(is_old)
    sizes = pc.not_equal(before["size"], after["size"])  # null if one is unknown
    is_changed = pc.fill_null(sizes, False)
    is_touched = pc.or_(pc.not_equal(before["stamp"], after["stamp"]), pc.is_null(sizes))
    return FileChanges(
        added=now.filter(pc.invert(is_old))["name"].to_pylist(),
        removed=then.filter(pc.invert(is_kept))["name"].to_pylist(),
        changed=after.filter(is_changed)["name"].to_pylist(),
        touched=after.filter(pc.and_not(is_touched, is_changed))["name"].to_pylist(),
    )


def read_files(dataset: Dataset, path: str) -> pa.Table:
    """The table at this path. Raises InfinegError if it is missing or damaged."""
    content = dataset.read_if_there(path)
    if content is None or not is_named_by_content(path, content):
        problem = "no such file" if content is None else "damaged"
        raise InfinegError(
            f"{dataset.uri(path)}: {problem}, so that nothing tells whether the source has "
            "changed. Restore it, or build a new data set: --set output.path=NEW_PATH"
        )
    return pq.read_table(io.BytesIO(content))
