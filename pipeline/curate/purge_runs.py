"""Removes pictures from what lies outside the data set: runs, and copies in caches of this machine.

Knows of a run its files, not the trainer.
"""

import io
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from pipeline import storage
from pipeline.dataset.local_copies import find_copies
from pipeline.dataset.metadata import ShardFile
from pipeline.errors import ConfigError

_CONFIG = "config.yaml"
# A picture of a report, its bytes in the address and its key as the text in its place; or a key.
_IMAGE = re.compile(rb'<img src="data:[^"]*" alt="([^"]*)"[^>]*>|<code>([^<]*)</code>\n')


def require_runs(runs: Iterable[str]) -> None:
    """Raises ConfigError if there is no run in one of these folders."""
    for run in runs:
        if not storage.exists(storage.join(run, _CONFIG)):
            raise ConfigError(f"--run {storage.redact(run)}: no run there (no {_CONFIG})")


def purge_run(run: str, keys: Collection[str], tell: Callable[[str], None]) -> None:
    """Removes pictures from reports, and rows from predictions and neighbours, by key."""
    for name in storage.list_files(run, (".html", ".parquet")):
        uri = storage.join(run, name)
        change = _without_images if name.endswith(".html") else _without_rows
        before = storage.read_bytes(uri)
        after = change(before, keys)
        if after != before:
            storage.write_atomic(uri, after)
            tell(f"removed from {uri}")


def purge_copies(
    gone: Collection[ShardFile], runs: Sequence[str], tell: Callable[[str], None]
) -> None:
    """Removes copies of shards from this machine's caches: its own, and those that runs name."""
    for folder in dict.fromkeys([None, *_cache_folders(runs)]):
        for path in find_copies(gone, folder):
            path.unlink(missing_ok=True)
            tell(f"removed {path}")


def _cache_folders(runs: Sequence[str]) -> Iterator[str]:
    for run in runs:
        config = yaml.safe_load(storage.read_bytes(storage.join(run, _CONFIG)))
        if folder := (config.get("train") or {}).get("cache_dir"):
            yield folder


def _without_images(page: bytes, keys: Collection[str]) -> bytes:
    def keep(found: re.Match[bytes]) -> bytes:
        return b"" if (found[1] or found[2]).decode() in keys else found[0]

    return _IMAGE.sub(keep, page)


def _without_rows(content: bytes, keys: Collection[str]) -> bytes:
    rows = pq.read_table(io.BytesIO(content))
    if "key" not in rows.column_names:
        return content
    gone = pc.is_in(rows["key"], value_set=pa.array(sorted(keys), pa.string()))
    if not pc.any(gone).as_py():
        return content
    buffer = io.BytesIO()
    kept = rows.filter(pc.invert(gone))
    pq.write_table(kept, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
