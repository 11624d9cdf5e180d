"""What a small sample of a source, its pilot, says about the whole.

Pure: reads a pilot's rows, opens no image and starts nothing.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.metadata import ReferenceInfo
from pipeline.dataset.schema import Partition, RejectReason
from pipeline.sources import Source
from pipeline.sources.survey import UNKNOWN_PARTITION_SIZE, Listing


def pilot_sample(partitions: Sequence[Partition], num_wanted: int) -> list[tuple[Partition, int]]:
    """Partitions for the pilot, each with the number of samples to read of it."""
    return [(partition, math.ceil(num_wanted / len(partitions))) for partition in partitions]


@dataclass(frozen=True)
class Pilot:
    """A source that has no plan yet: its listing, and statistics of the candidates read so far.

    rows: one per sample, with partition, label, label_state, stratum, similarity, doubt,
    reject_reason, read_bytes, size_bytes, seconds, partition_size.
    """

    entry: SourceEntry
    source: Source
    listing: Listing
    rows: pa.Table
    usable: pa.Table
    rejected: Mapping[str, int]  # number of the other rows, by RejectReason
    mean_bytes: float  # of a usable image as it goes into a shard
    seconds: float  # per candidate and worker

    @property
    def num_rows(self) -> int:
        return int(self.rows.num_rows)

    @property
    def similarity_N(self) -> NDArray[np.float32]:
        """Of the usable negatives."""
        negatives = self.usable.filter(pc.equal(self.usable["label"], ""))
        return np.asarray(negatives["similarity"].to_numpy(), np.float32)

    @property
    def samples_per_partition(self) -> float:
        if self.listing.samples_per_partition is not None:
            return self.listing.samples_per_partition
        return mean_partition_size(self.listing, self.rows)


def make_pilot(
    entry: SourceEntry,
    source: Source,
    listing: Listing,
    rows: pa.Table,
    *,
    config: Config,
    reference: ReferenceInfo,
) -> Pilot:
    """Computes the statistics of a pilot from its rows."""
    reasons = pc.coalesce(rows["reject_reason"], rows["doubt"])
    if config.selection.quarantine == "auto":
        is_unknown = pc.and_(pc.equal(rows["label"], ""), pc.equal(rows["label_state"], "unknown"))
        is_suspected = pc.and_(is_unknown, pc.greater(rows["similarity"], reference.ceiling))
        suspected = pc.if_else(is_suspected, RejectReason.SUSPECTED_POSITIVE.value, None)
        reasons = pc.coalesce(reasons, suspected)
    usable = rows.filter(reasons.is_null())
    return Pilot(
        entry=entry,
        source=source,
        listing=listing,
        rows=rows,
        usable=usable,
        rejected=Counter(reasons.drop_null().to_pylist()),
        mean_bytes=_mean(usable["size_bytes"]),
        seconds=_mean(rows["seconds"]),
    )


def _mean(values: pa.ChunkedArray) -> float:
    return float(np.mean(values.to_numpy())) if len(values) else 0.0


def mean_partition_size(listing: Listing, rows: pa.Table) -> float:
    """By the partitions read to the end if there are any, else by the source's estimates."""
    counted = rows["partition_size"].drop_null().to_numpy()
    if len(counted):
        return float(np.mean(counted))
    limit = pilot_sample(listing.examples, listing.num_pilot)[0][1]
    num_read = Counter(rows["partition"].to_pylist())
    estimates = listing.estimates or (None,) * len(listing.examples)
    sizes = [
        max(limit, estimate or UNKNOWN_PARTITION_SIZE)
        if num_read[partition.id] >= limit
        else num_read[partition.id]
        for partition, estimate in zip(listing.examples, estimates, strict=True)
    ]
    return float(np.mean(sizes))
