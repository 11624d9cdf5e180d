"""One span of partitions at a time: reads, decodes, embeds, scores, selects, writes its parts.

Runs inside a worker and knows nothing of Ray. The whole chain stays in one process, so that
decoded pixels never travel; what leaves is a small record.
"""

import functools
import itertools
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa
from more_itertools import chunked, peekable
from pydantic import BaseModel

from pipeline import manifest, storage
from pipeline.commits import Counts, PartRecord, TakenDown, add_counts
from pipeline.config import Config, SourceEntry
from pipeline.errors import TooManyRejects
from pipeline.keys import short_hash
from pipeline.records import Partition, RejectReason, row_schema
from pipeline.reference import ReferenceBank, read_bank
from pipeline.rules import read_rule
from pipeline.runtimes import PreparedEncoder
from pipeline.shards import count_rows, write_part
from pipeline.sources import Source, open_source, read_from
from pipeline.steps.decode import decode_batch
from pipeline.steps.embed import embed_batch
from pipeline.steps.read import Origin, Positioned, read_batch
from pipeline.steps.refuse import refuse_batch
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


class SpanTask(BaseModel, frozen=True):
    """Consecutive partitions of one source to read as one stream; `limit` bounds the samples."""

    source: str
    partitions: tuple[Partition, ...]
    round: int = 1
    span: int = 0  # number in the round
    limit: int | None = None

    @property
    def span_id(self) -> str:
        return short_hash("\n".join(partition.id for partition in self.partitions))

    @property
    def num_samples(self) -> int:
        """0 where the source does not tell."""
        return sum(partition.num_samples or 0 for partition in self.partitions)


class SpanWorker:
    """Holds what is costly to make: the encoder and, once there is one, the reference bank."""

    def __init__(self, config: Config, encoder: PreparedEncoder, taken_down: TakenDown) -> None:
        storage.configure(config.storage)
        self._config = config
        self._encoder = encoder
        self._taken_down = taken_down
        self._root = config.output.path
        self._settings = config.output.image_settings
        self._runtime = encoder.open()
        self._entries = {entry.name: entry for entry in config.entries}
        self._rules: dict[str, SelectionRule] = {}

    def embed(self, task: SpanTask) -> Iterator[pa.Table]:
        """Rows with embeddings, from which the reference bank is made."""
        for samples in chunked(self._read(task), SAMPLES_PER_PART):
            yield self._embedded(iter(samples), task).drop_columns(["image"])

    def score(self, task: SpanTask) -> Iterator[pa.Table]:
        """What a pilot needs: a row a sample, and the seconds that each took."""
        columns = ["source", "label", "stratum", "similarity", "reject_reason", "size_bytes"]
        began = time.monotonic()
        rows = score_batch(self._embedded(self._read(task), task), self._bank)
        sizes = [len(image.as_buffer()) if image.is_valid else 0 for image in rows["image"]]
        rows = rows.append_column("size_bytes", pa.array(sizes, pa.int64())).select(columns)
        seconds = (time.monotonic() - began) / max(rows.num_rows, 1)
        yield rows.append_column("seconds", pa.array([seconds] * rows.num_rows, pa.float64()))

    def build(self, task: SpanTask) -> Iterator[tuple[PartRecord, bool]]:
        """Commits the parts of a span that are not committed yet; yields all, and which are new.

        All, because a task that Ray runs again has to yield what it yielded before. Raises
        TooManyRejects before the part that goes over the limit is committed.
        """
        counts: list[Counts] = []
        while record := manifest.read_part_record(
            self._root, task.source, task.round, task.span, len(counts)
        ):
            yield record, False
            counts.append(record.counts)
            if record.is_last:
                return
        samples = peekable(self._read(task, start=sum(each.read for each in counts)))
        is_last = False
        while not is_last:
            rows = self._decide(itertools.islice(samples, SAMPLES_PER_PART), task)
            is_last = not samples
            part = len(counts)
            counts.append(count_rows(rows))
            _check_rejects(self._entries[task.source], task, counts, rows)
            record = write_part(
                self._root,
                rows,
                source=task.source,
                round_number=task.round,
                span=task.span,
                span_id=task.span_id,
                part=part,
                is_last=is_last,
            )
            yield record, True

    def _read(self, task: SpanTask, *, start: int = 0) -> Iterator[Positioned]:
        """The samples of all partitions, without the first `start`."""
        entry = self._entries[task.source]
        samples = _read_partitions(open_source(entry.kind, entry.params), task.partitions, start)
        return itertools.islice(samples, task.limit)

    def _embedded(self, samples: Iterator[Positioned], task: SpanTask) -> pa.Table:
        """Rows of one part, decoded and embedded."""
        origin = origin_of(self._config, self._entries[task.source])
        decoded = []
        for batch in itertools.chain(chunked(samples, _SAMPLES_PER_READ), [[]]):
            rows = refuse_batch(read_batch(batch, origin), self._taken_down)
            decoded.append(decode_batch(rows, self._settings))
        return embed_batch(
            pa.concat_tables(decoded),
            runtime=self._runtime,
            preprocessing=self._encoder.preprocessing,
            embedding_dim=self._encoder.embedding_dim,
            batch_size=self._config.encoder.batch_size,
        )

    def _decide(self, samples: Iterator[Positioned], task: SpanTask) -> pa.Table:
        """Rows of one part with everything decided, as `row_schema`."""
        rows = self._embedded(samples, task)
        rows = score_batch(rows, self._bank)
        rows = select_batch(rows, self._rule(task.source), self._bank.positive_hashes)
        schema = row_schema(self._encoder.embedding_dim)
        return rows.select(schema.names).cast(schema)

    @functools.cached_property
    def _bank(self) -> ReferenceBank:
        return read_bank(self._root, num_neighbors=self._config.selection.num_neighbors)

    def _rule(self, source: str) -> SelectionRule:
        if source not in self._rules:
            self._rules[source] = read_rule(self._root, source, self._config.selection)
        return self._rules[source]


def _read_partitions(
    source: Source, partitions: Sequence[Partition], start: int
) -> Iterator[Positioned]:
    for partition in partitions:
        if partition.num_samples is not None and start >= partition.num_samples:
            start -= partition.num_samples
            continue
        if partition.num_samples is not None or len(partitions) == 1:
            samples, first, start = read_from(source, partition, start), start, 0
        else:  # only reading tells in which partition sample `start` lies
            samples, first = source.read(partition), 0
        for ordinal, sample in enumerate(samples, start=first):
            if start:
                start -= 1
            else:
                yield Positioned(partition.id, ordinal, sample)


def origin_of(config: Config, entry: SourceEntry) -> Origin:
    """What the config says of every sample of a source."""
    is_positive = config.role_of(entry) == "positive"
    return Origin(
        source=entry.name,
        targets=config.target_names,
        split_fractions=config.split.fractions,
        target=(entry.target or config.target_names[0]) if is_positive else None,
        stratum=entry.stratum,
        label_state=entry.label_state,
    )


def _check_rejects(
    entry: SourceEntry, task: SpanTask, counts: Sequence[Counts], rows: pa.Table
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
    where = " to ".join(dict.fromkeys((task.partitions[0].id, task.partitions[-1].id)))
    raise TooManyRejects(
        f"source {entry.name!r}, partition {where}: {num_bad:,} of {total.read:,} samples "
        f"rejected ({', '.join(f'{reason} {n:,}' for reason, n in commonest)}), limit "
        f"{entry.max_reject_fraction:.0%}. Example: {example}. Raise `max_reject_fraction` of "
        "this entry only if the source is known to be like this, then run again: it resumes."
    )
