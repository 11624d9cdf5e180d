"""Hashes, and the keys, splits and random numbers that are made of them."""

import hashlib
from collections.abc import Mapping

from pipeline.dataset.schema import Split


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_named_by_content(path: str, content: bytes) -> bool:
    """Whether a file's name ends, before its suffix, in the first 16 digits of its sha256."""
    return path.rpartition(".")[0].endswith(f"-{sha256_hex(content)[:16]}")


def unit_hash(*parts: str | int) -> float:
    """A uniform number in [0, 1) that depends only on `parts` (53 bits of BLAKE2b)."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / float(1 << 53)


def short_hash(text: str) -> str:
    """16 hexadecimal digits, for names that must not contain all characters of `text`."""
    # File names may have bytes that are no UTF-8.
    return hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).hexdigest()


def make_key(source: str, partition: str, ordinal: int) -> str:
    """Unique in the data set. `[a-z0-9_-]+`, because WebDataset cuts a name at its first dot."""
    return f"{source}-{short_hash(partition)}-{ordinal:08d}"


def split_of(group: str, fractions: Mapping[Split, float]) -> Split:
    """Split by hash of the leakage group, so that adding sources never moves a sample."""
    u = unit_hash("split", group)
    for split in ("val", "test"):
        if u < fractions[split]:
            return split
        u -= fractions[split]
    return "train"
