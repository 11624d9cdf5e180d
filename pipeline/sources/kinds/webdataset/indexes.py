"""Lists of tars in the JSON that timm, wids and Energon write beside them."""

import json
from typing import Any

from pipeline import storage
from pipeline.errors import ConfigError
from pipeline.sources.readers.files import locate


def read_shard_index(uri: str) -> list[str]:
    """Addresses of the tars of all splits, in the order of the file.

    timm: `_info.json`, {"splits": {"train": {"filenames": [...]}}}. wids: `shardindex.json`,
    {"shardlist": [{"url": ...}]}. Energon: `.nv-meta/.info.json`, {"shard_counts": {"a.tar": 9}}.
    """
    try:
        index = json.loads(storage.read_bytes(uri))
        names = _names(index)
    except FileNotFoundError:
        raise ConfigError(f"{uri}: no such file; check `params.urls`") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        names = []
    folder = uri.rpartition("/")[0] or "."
    if folder.endswith("/.nv-meta") or folder == ".nv-meta":
        folder = folder.removesuffix(".nv-meta").rstrip("/") or "."
    tars = [locate(name, folder) if isinstance(name, str) else None for name in names]
    if not tars or None in tars:
        raise ConfigError(
            f"{uri}: no list of tars as timm (splits), wids (shardlist) or Energon "
            "(shard_counts) write it; give their addresses as `params.urls`"
        )
    return [tar for tar in tars if tar is not None]


def _names(index: Any) -> list[Any]:
    if "splits" in index:
        return [name for split in index["splits"].values() for name in split["filenames"]]
    if "shardlist" in index:
        return [shard["url"] for shard in index["shardlist"]]
    return list(index["shard_counts"])
