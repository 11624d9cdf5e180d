"""Reads samples again that a ledger tells of, and makes sure that they are the same."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline import storage
from pipeline.dataset.images import upright_jpeg
from pipeline.dataset.schema import ImageSettings, Partition
from pipeline.errors import InfinegError
from pipeline.sources import Source, read_at

_REMEDY = "Restore the source, or leave it out (--source)"


def changed_source(source: str, where: str, *, remedy: str = _REMEDY) -> InfinegError:
    return InfinegError(
        f"source {source!r}: {storage.redact(where)} has changed since the data set was built. "
        f"{remedy}"
    )


def reread_images(
    source: Source,
    partition: Partition,
    rows: Sequence[Mapping[str, Any]],
    settings: ImageSettings,
    *,
    remedy: str = _REMEDY,
) -> Iterator[bytes]:
    """The image of each row as it is, or would be, in a shard.

    rows: of a ledger, of this partition, in its order: `source`, `ordinal`, `uri`, `rotation`,
    `content_hash`. Raises InfinegError, which ends in `remedy`, if the source has changed.
    """
    samples = read_at(source, partition, [row["ordinal"] for row in rows])
    for row in rows:
        sample = next(samples, None)
        if sample is None or hashlib.sha256(sample.image).hexdigest() != row["content_hash"]:
            raise changed_source(row["source"], row["uri"], remedy=remedy)
        yield upright_jpeg(sample.image, rotation=row["rotation"] or 0, settings=settings)[0]
