"""Names of what a cache folder holds of a shard, for those who make it and who remove it."""

import re
from collections.abc import Collection
from pathlib import Path

from pipeline import storage
from pipeline.dataset.metadata import ShardFile

_DIGITS = 32  # of a sha256 in a name
# Of version 0.2: such a name does not tell which shard it is made of.
_UNNAMED_VIEW = re.compile(rf"[0-9a-f]{{{_DIGITS}}}\.npy")


def tar_copy(shard: ShardFile) -> str:
    """A tar in `copies/`."""
    return f"{shard.sha256[:_DIGITS]}.tar"


def embeddings_copy(shard: ShardFile) -> str:
    """The embeddings of a sidecar in `copies/`."""
    return f"{shard.sidecar_sha256[:_DIGITS]}.f16"


def view_copy(shard: ShardFile, key: str) -> str:
    """Embeddings of augmented images of a shard in `views/`; key: a hash of how they are made."""
    return f"{shard.sha256[:_DIGITS]}-{key}.npy"


def find_copies(shards: Collection[ShardFile], cache_dir: str | None = None) -> list[Path]:
    """All that a cache folder holds of some shards, and views that may be of them."""
    folder = storage.cache_folder(cache_dir)
    names = {name for shard in shards for name in (tar_copy(shard), embeddings_copy(shard))}
    tars = {shard.sha256[:_DIGITS] for shard in shards}
    copies = [
        path
        for path in folder.glob("copies/*")
        if path.name in names or path.name.removeprefix(storage.HALF_COPY) in names
    ]
    views = [
        path
        for path in folder.glob("views/*.npy")
        if path.name.partition("-")[0] in tars or _UNNAMED_VIEW.fullmatch(path.name)
    ]
    return sorted(copies + views)
