"""What a pilot tells of a source.

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

from pipeline.config.schema import Config
from pipeline.dataset.metadata import ReferenceInfo
from pipeline.dataset.schema import Partition, RejectReason
from pipeline.sources.survey import UNKNOWN_PARTITION_SIZE, Listing


def pilot_sample(partitions: Sequence[Partition], num_wanted: int) -> list[tuple[Partition, int]]:
    """Partitions for the pilot, each with the samples to read of it."""
    return [(partition, math.ceil(num_wanted / len(partitions))) for partition in partitions]


@dataclass(frozen=True)
class PilotStats:
    """What a pilot tells of a source."""

    num_rows: int  # candidates read
    usable: pa.Table
    rejected: Mapping[str, int]  # the others, by RejectReason
    samples_per_partition: float
    mean_bytes: float  # of a usable picture, as it goes into a shard
    seconds: float  # a candidate takes one worker

    @property
    def negatives(self) -> pa.Table:
        return self.usable.filter(pc.equal(self.usable["label"], ""))

    @property
    def similarity(self) -> NDArray[np.float32]:
        """similarity_N of `negatives`."""
        return np.asarray(self.negatives["similarity"].to_numpy(), np.float32)


def pilot_stats(
    config: Config,
    listing: Listing,
    pilot: pa.Table,
    reference: ReferenceInfo,
) -> PilotStats:
    """pilot: a row a sample with partition, label, label_state, stratum, similarity, doubt,
    reject_reason, size_bytes, seconds, partition_size.
    """
    reasons = pc.coalesce(pilot["reject_reason"], pilot["doubt"])
    if config.selection.quarantine == "auto":
        is_unknown = pc.and_(
            pc.equal(pilot["label"], ""), pc.equal(pilot["label_state"], "unknown")
        )
        is_suspected = pc.and_(is_unknown, pc.greater(pilot["similarity"], reference.ceiling))
        suspected = pc.if_else(is_suspected, RejectReason.SUSPECTED_POSITIVE.value, None)
        reasons = pc.coalesce(reasons, suspected)
    usable = pilot.filter(reasons.is_null())
    samples_per_partition = listing.samples_per_partition
    if samples_per_partition is None:
        samples_per_partition = _samples_in_pilot(listing, pilot)
    return PilotStats(
        num_rows=pilot.num_rows,
        usable=usable,
        rejected=Counter(reasons.drop_null().to_pylist()),
        samples_per_partition=samples_per_partition,
        mean_bytes=_mean(usable["size_bytes"]),
        seconds=_mean(pilot["seconds"]),
    )


def _mean(values: pa.ChunkedArray) -> float:
    return float(np.mean(values.to_numpy())) if len(values) else 0.0


def _samples_in_pilot(listing: Listing, pilot: pa.Table) -> float:
    """Mean size of partitions: read to the end, else by estimate, else only that it is large."""
    counted = pilot["partition_size"].drop_null().to_numpy()
    if len(counted):
        return float(np.mean(counted))
    limit = pilot_sample(listing.examples, listing.num_pilot)[0][1]
    num_read = Counter(pilot["partition"].to_pylist())
    estimates = listing.estimates or (None,) * len(listing.examples)
    sizes = [
        max(limit, estimate or UNKNOWN_PARTITION_SIZE)
        if num_read[partition.id] >= limit
        else num_read[partition.id]
        for partition, estimate in zip(listing.examples, estimates, strict=True)
    ]
    return float(np.mean(sizes))
