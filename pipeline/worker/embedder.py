"""Samples become rows with embeddings, some at a time.

Holds what is costly to make: the encoder, or what reaches those who run it for all workers.
Knows nothing of Ray, of parts or of what is selected.
"""

import itertools
from collections.abc import Iterable, Iterator

import pyarrow as pa
from more_itertools import chunked

from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import Positioned
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.telemetry.stopwatch import Stopwatch
from pipeline.worker.steps.decode import decode_batch
from pipeline.worker.steps.embed import BatchEmbedder
from pipeline.worker.steps.read import SourceDefaults, read_batch, refuse_batch

# Originals of this many samples are in memory at once.
_SAMPLES_PER_READ = 64


class Embedder:
    """The encoder of a worker, and the rows that it makes."""

    def __init__(self, config: Config, encoder: PreparedEncoder, taken_down: TakenDown) -> None:
        self.stopwatch = Stopwatch()
        self._config = config
        self._settings = config.output.image_settings
        self._batch_size = config.encoder.batch_size
        self._taken_down = taken_down
        self._encoder = encoder
        self._runtime = encoder.open()

    def read(self, samples: Iterator[Positioned], entry: SourceEntry) -> Iterator[pa.Table]:
        """`read_rows` of the entry."""
        rows = read_rows(samples, origin_of(self._config, entry), self._taken_down)
        return self.stopwatch.over("read", rows)

    def decode(self, rows: pa.Table) -> pa.Table:
        with self.stopwatch.stage("decode"):
            return decode_batch(rows, self._settings)

    def embed(self, samples: Iterator[Positioned], entry: SourceEntry) -> pa.Table:
        """Rows with `embedding`."""
        return self.embed_decoded(self.decode(rows) for rows in self.read(samples, entry))

    def embed_decoded(self, decoded: Iterable[pa.Table]) -> pa.Table:
        """Rows with `embedding`, of tables that are decoded while earlier ones are embedded."""
        growing = BatchEmbedder(
            runtime=self._runtime,
            preprocessing=self._encoder.preprocessing,
            embedding_dim=self._encoder.embedding_dim,
            batch_size=self._batch_size,
        )
        for rows in decoded:
            with self.stopwatch.stage("embed"):
                growing.add(rows)
        with self.stopwatch.stage("embed"):
            return growing.finish()


def read_rows(
    samples: Iterable[Positioned], origin: SourceDefaults, taken_down: TakenDown
) -> Iterator[pa.Table]:
    """Rows, read but not decoded, some at a time; the last table is empty."""
    for batch in itertools.chain(chunked(samples, _SAMPLES_PER_READ), [[]]):
        yield refuse_batch(read_batch(batch, origin), taken_down)


def origin_of(config: Config, entry: SourceEntry) -> SourceDefaults:
    """What the config says of every sample of a source."""
    is_positive = config.role_of(entry) == "positive"
    return SourceDefaults(
        source=entry.name,
        targets=config.target_names,
        split_fractions=config.split.fractions,
        target=(entry.target or config.target_names[0]) if is_positive else None,
        stratum=entry.stratum,
        label_state=entry.label_state,
    )
