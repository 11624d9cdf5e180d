"""One partition at a time: reads, decodes, embeds, scores, selects, and writes its parts.

Runs inside a worker and knows nothing of Ray. The whole chain stays in one process, so that
decoded pixels never travel; what leaves is a small record.
"""

import functools
import itertools
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
from more_itertools import chunked, consume, peekable
from pydantic import BaseModel

from pipeline import manifest
from pipeline.config import Config, SourceEntry
from pipeline.errors import TooManyRejects
from pipeline.records import (
    Counts,
    Partition,
    PartRecord,
    RawSample,
    RejectReason,
    add_counts,
    row_schema,
)
from pipeline.reference import ReferenceBank, read_bank
from pipeline.runtimes import PreparedEncoder
from pipeline.shards import count_rows, write_part
from pipeline.sources import open_source
from pipeline.steps.decode import decode_batch
from pipeline.steps.embed import embed_batch
from pipeline.steps.read import Origin, read_batch
from pipeline.steps.score import score_batch
from pipeline.steps.select import SelectionRule, select_batch

# A part is what a crash can cost. Part of the format: images are embedded part by part, and the
# last bit of an embedding may depend on its batch.
SAMPLES_PER_PART = 512
# Originals of this many samples are in memory at once.
_SAMPLES_PER_READ = 64
_MIN_READ_TO_STOP = 100
# Rejects that tell of bad data. The others tell of labels, and do not stop a run.
_BAD_DATA = frozenset(
    {
        RejectReason.UNREADABLE,
        RejectReason.TRUNCATED,
        RejectReason.TOO_SMALL,
        RejectReason.TOO_LARGE,
        RejectReason.BAD_ASPECT,
        RejectReason.UNSUPPORTED_MODE,
    }
)


class PartitionTask(BaseModel, frozen=True):
    """One partition of one source to work on; `limit` bounds the samples read of it."""

    source: str
    partition: Partition
    limit: int | None = None


class PartitionWorker:
    """Holds what is costly to make: the encoder and, once there is one, the reference bank."""

    def __init__(self, config: Config, encoder: PreparedEncoder) -> None:
        self._config = config
        self._encoder = encoder
        self._root = config.output.path
        self._settings = config.output.image_settings
        self._runtime = encoder.open()
        self._entries = {entry.name: entry for entry in config.entries}
        self._rules: dict[str, SelectionRule] = {}

    def embed(self, task: PartitionTask) -> Iterator[pa.Table]:
        """Rows of the partition with embeddings, from which the reference bank is made."""
        for samples in chunked(self._read(task), SAMPLES_PER_PART):
            yield self._embedded(iter(samples), task, first_ordinal=0).drop_columns(["image"])

    def score(self, task: PartitionTask) -> Iterator[pa.Table]:
        """What a pilot needs: a row a sample, and the seconds that each took."""
        columns = ["source", "label", "stratum", "similarity", "reject_reason", "size_bytes"]
        began = time.monotonic()
        rows = score_batch(self._embedded(self._read(task), task, first_ordinal=0), self._bank)
        sizes = [len(image.as_buffer()) if image.is_valid else 0 for image in rows["image"]]
        rows = rows.append_column("size_bytes", pa.array(sizes, pa.int64())).select(columns)
        seconds = (time.monotonic() - began) / max(rows.num_rows, 1)
        yield rows.append_column("seconds", pa.array([seconds] * rows.num_rows, pa.float64()))

    def build(self, task: PartitionTask) -> Iterator[PartRecord]:
        """Commits the parts of a partition that are not committed yet; yields all records.

        All, because a run after a crash has to yield what the run before it yielded. Raises
        TooManyRejects before the part that goes over the limit is committed.
        """
        entry = self._entries[task.source]
        samples = peekable(self._read(task))
        counts: list[Counts] = []
        for part in itertools.count():
            in_part = itertools.islice(samples, SAMPLES_PER_PART)
            record = manifest.read_part_record(self._root, task.source, task.partition.id, part)
            if record is not None:
                consume(in_part)
            else:
                rows = self._decide(in_part, task, first_ordinal=part * SAMPLES_PER_PART)
                _check_rejects(entry, task.partition, [*counts, count_rows(rows)], rows)
                record = write_part(
                    self._root,
                    rows,
                    source=task.source,
                    partition=task.partition.id,
                    part=part,
                    is_last=not samples,
                )
            yield record
            counts.append(record.counts)
            if record.is_last:
                return

    def _read(self, task: PartitionTask) -> Iterator[RawSample]:
        entry = self._entries[task.source]
        samples = open_source(entry.kind, entry.params).read(task.partition)
        return itertools.islice(samples, task.limit)

    def _embedded(
        self, samples: Iterator[RawSample], task: PartitionTask, *, first_ordinal: int
    ) -> pa.Table:
        """Rows of one part, decoded and embedded."""
        origin = origin_of(self._config, self._entries[task.source], task.partition.id)
        decoded = [decode_batch(read_batch([], origin, first_ordinal=0), self._settings)]
        for batch in chunked(samples, _SAMPLES_PER_READ):
            first = first_ordinal + sum(map(len, decoded))
            rows = read_batch(batch, origin, first_ordinal=first)
            decoded.append(decode_batch(rows, self._settings))
        return embed_batch(
            pa.concat_tables(decoded),
            runtime=self._runtime,
            preprocessing=self._encoder.preprocessing,
            embedding_dim=self._encoder.embedding_dim,
            batch_size=self._config.encoder.batch_size,
        )

    def _decide(
        self, samples: Iterator[RawSample], task: PartitionTask, *, first_ordinal: int
    ) -> pa.Table:
        """Rows of one part with everything decided, as `row_schema`."""
        rows = self._embedded(samples, task, first_ordinal=first_ordinal)
        rows = score_batch(rows, self._bank)
        rows = select_batch(rows, self._rule(task.source), self._bank.positive_hashes)
        schema = row_schema(self._encoder.embedding_dim)
        return rows.select(schema.names).cast(schema)

    @functools.cached_property
    def _bank(self) -> ReferenceBank:
        return read_bank(self._root, num_neighbors=self._config.selection.num_neighbors)

    def _rule(self, source: str) -> SelectionRule:
        if source not in self._rules:
            self._rules[source] = self._read_rule(source)
        return self._rules[source]

    def _read_rule(self, source: str) -> SelectionRule:
        selection = self._config.selection
        plan = manifest.read_plan(self._root, source)
        assert plan is not None, f"no plan is committed for {source}"
        reference = manifest.read_reference_info(self._root)
        assert reference is not None
        return SelectionRule(
            scale=plan.scale,
            beta=selection.effective_beta,
            offset=reference.median,
            min_probability=selection.min_probability,
            eval_probability=plan.eval_probability,
            seed=selection.seed,
            ceiling=reference.ceiling if selection.quarantine == "auto" else None,
        )


def origin_of(config: Config, entry: SourceEntry, partition: str) -> Origin:
    """What the config says of every sample of a partition."""
    is_positive = config.role_of(entry) == "positive"
    return Origin(
        source=entry.name,
        partition=partition,
        targets=config.target_names,
        split_fractions=config.split.fractions,
        target=(entry.target or config.target_names[0]) if is_positive else None,
        stratum=entry.stratum,
        label_state=entry.label_state,
    )


def _check_rejects(
    entry: SourceEntry, partition: Partition, counts: Sequence[Counts], rows: pa.Table
) -> None:
    """Stops a run whose input is not what the config takes it for."""
    total = add_counts(counts)
    bad = {reason: n for reason, n in total.rejected.items() if reason in _BAD_DATA}
    num_bad = sum(bad.values())
    if total.read < _MIN_READ_TO_STOP or num_bad <= entry.max_reject_fraction * total.read:
        return
    commonest = sorted(bad.items(), key=lambda item: -item[1])
    reasons = rows["reject_reason"].to_pylist()
    examples = (
        uri
        for uri, reason in zip(rows["uri"].to_pylist(), reasons, strict=True)
        if reason in _BAD_DATA
    )
    # All may lie in parts that are committed already, where the limit has been lowered since.
    example = next(examples, "in an earlier part")
    raise TooManyRejects(
        f"source {entry.name!r}, partition {partition.id}: {num_bad:,} of {total.read:,} samples "
        f"rejected ({', '.join(f'{reason} {n:,}' for reason, n in commonest)}), limit "
        f"{entry.max_reject_fraction:.0%}. Example: {example}. Raise `max_reject_fraction` of "
        "this entry only if the source is known to be like this, then run again: it resumes."
    )
