"""Samples become rows with embeddings: read, decoded, embedded.

Knows nothing of Ray, of parts or of selection.
"""

from collections.abc import Iterable, Iterator

import pyarrow as pa

from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import Positioned
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.encoders.runtimes import PreparedEncoder
from pipeline.telemetry.stopwatch import Stopwatch
from pipeline.worker.steps.decode import decode_batch
from pipeline.worker.steps.embed import BatchEmbedder
from pipeline.worker.steps.read import SourceDefaults, label_rows, read_facts, read_rows


class Embedder:
    """The encoder of a worker, which is costly to open, and the steps that lead up to it."""

    def __init__(self, config: Config, encoder: PreparedEncoder, taken_down: TakenDown) -> None:
        self.stopwatch = Stopwatch()
        self._config = config
        self._taken_down = taken_down
        self._encoder = encoder
        self._runtime = encoder.open()

    def read(self, samples: Iterable[Positioned], entry: SourceEntry) -> Iterator[pa.Table]:
        """`read_rows` with the defaults of the entry."""
        defaults = SourceDefaults.of(self._config, entry)
        return self.stopwatch.over("read", read_rows(samples, defaults, self._taken_down))

    def decode(self, rows: pa.Table) -> pa.Table:
        with self.stopwatch.stage("decode"):
            return decode_batch(rows, self._config.output.image_settings)

    def embed(self, samples: Iterable[Positioned], entry: SourceEntry) -> pa.Table:
        """Rows of the samples with `embedding`.

        Where a GPU or an actor embeds, the next rows are decoded meanwhile.
        """
        return self._embed_read(self.read(samples, entry))

    def embed_facts(self, samples: Iterable[Positioned]) -> pa.Table:
        """The same of samples as their source has them, before a config adds to them."""
        return self._embed_read(self.stopwatch.over("read", read_facts(samples)))

    def label(self, facts: pa.Table, entry: SourceEntry) -> pa.Table:
        """Rows of facts: what the entry adds, and without those that are taken down."""
        defaults = SourceDefaults.of(self._config, entry)
        return refuse_taken_down(label_rows(facts, defaults), self._taken_down)

    def _embed_read(self, tables: Iterator[pa.Table]) -> pa.Table:
        batches = self._new_batches()
        for read in tables:
            decoded = self.decode(read)
            with self.stopwatch.stage("embed"):
                batches.add(decoded)
        with self.stopwatch.stage("embed"):
            return batches.finish()

    def embed_decoded(self, rows: pa.Table) -> pa.Table:
        """Decoded rows with `embedding`."""
        batches = self._new_batches()
        batches.add(rows)
        return batches.finish()

    def _new_batches(self) -> BatchEmbedder:
        return BatchEmbedder(
            runtime=self._runtime,
            preprocessing=self._encoder.preprocessing,
            embedding_dim=self._encoder.embedding_dim,
            batch_size=self._config.encoder.batch_size,
        )
