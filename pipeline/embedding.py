"""What a worker embeds of samples: all, or those alone that a cheap look does not decide.

Holds what is costly to make, the networks, or what reaches those who run them for all workers.
Knows nothing of Ray, of parts or of what is selected.
"""

import itertools
import time
from collections.abc import Iterable, Iterator, Set

import numpy as np
import pyarrow as pa
from more_itertools import chunked

from pipeline.cascade import Mask, choose_looks, needs_full_look
from pipeline.commits import TakenDown
from pipeline.config import Config, SourceEntry
from pipeline.records import CHEAP_SIMILARITY, Positioned
from pipeline.reference import CHEAP_EMBEDDING, ReferenceBank
from pipeline.runtimes import PreparedEncoder
from pipeline.steps.decode import decode_batch
from pipeline.steps.embed import GrowingBatch
from pipeline.steps.look import look_batch
from pipeline.steps.read import Origin, read_batch
from pipeline.steps.refuse import refuse_batch
from pipeline.steps.score import score_batch
from pipeline.steps.select import SelectionRule
from pipeline.stopwatch import Stopwatch

# Originals of this many samples are in memory at once.
_SAMPLES_PER_READ = 64


class Embedder:
    """The networks of a worker, and the rows that come of them."""

    def __init__(self, config: Config, encoder: PreparedEncoder, taken_down: TakenDown) -> None:
        self.stopwatch = Stopwatch()
        self._config = config
        self._settings = config.output.image_settings
        self._batch_size = config.encoder.batch_size
        self._taken_down = taken_down
        self._encoder = encoder
        self._runtime = encoder.open()
        self._cheap = encoder.cheap
        self._cheap_runtime = encoder.cheap.open() if encoder.cheap else None

    def read(self, samples: Iterator[Positioned], entry: SourceEntry) -> Iterator[pa.Table]:
        """`read_rows` of the entry."""
        rows = read_rows(samples, origin_of(self._config, entry), self._taken_down)
        return self.stopwatch.over("read", rows)

    def decode(self, rows: pa.Table) -> pa.Table:
        with self.stopwatch.stage("decode"):
            return decode_batch(rows, self._settings)

    def full(self, samples: Iterator[Positioned], entry: SourceEntry) -> pa.Table:
        """Rows with `embedding`."""
        return self.embed(self.decode(rows) for rows in self.read(samples, entry))

    def embed(self, decoded: Iterable[pa.Table]) -> pa.Table:
        """Rows with `embedding`, of tables that are decoded while earlier ones are embedded."""
        growing = GrowingBatch(
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

    def both(self, samples: Iterator[Positioned], entry: SourceEntry) -> tuple[pa.Table, float]:
        """Rows with `embedding` and `cheap_embedding`, and the seconds of the full look."""
        decoded, seconds = [], 0.0
        for rows in self.read(samples, entry):
            everything_B = np.ones(rows.num_rows, bool)
            rows = self._look(rows, everything_B, everything_B)
            began = time.monotonic()
            decoded.append(self.decode(rows))
            seconds += time.monotonic() - began
        began = time.monotonic()
        rows = self.embed(decoded)
        return rows, seconds + time.monotonic() - began

    def cascade(
        self,
        samples: Iterator[Positioned],
        entry: SourceEntry,
        *,
        rule: SelectionRule,
        cheap_bank: ReferenceBank,
    ) -> pa.Table:
        """Rows with `cheap_similarity`, and `embedding` where a full look can decide something.

        The others have none, are decoded too, and so are rejected for the same reasons.
        """
        skipped, masks = [], []

        def looked_at() -> Iterator[pa.Table]:
            for rows in self.read(samples, entry):
                rows, full_B = self._look_first(rows, rule, cheap_bank)
                skipped.append(rows.filter(pa.array(~full_B)))
                masks.append(full_B)
                yield self.decode(rows.filter(pa.array(full_B)))

        full = self.embed(looked_at())
        rest = pa.concat_tables(skipped).drop_columns(["image"])
        rows = pa.concat_tables([full, rest], promote_options="default")
        full_N = np.concatenate(masks)
        place_N = np.concatenate([np.flatnonzero(full_N), np.flatnonzero(~full_N)])
        return rows.take(pa.array(np.argsort(place_N)))

    def _look_first(
        self, rows: pa.Table, rule: SelectionRule, cheap_bank: ReferenceBank
    ) -> tuple[pa.Table, Mask]:
        """Rows with `cheap_similarity`, and which of them need a full look."""
        known: Set[str] = cheap_bank.positives.content_hashes
        full_B, cheap_B = choose_looks(rows, rule, known)
        rows = self._look(rows, ~full_B, cheap_B)
        rows = score_batch(rows, cheap_bank, of=CHEAP_EMBEDDING, name=CHEAP_SIMILARITY)
        rows = rows.drop_columns([CHEAP_EMBEDDING])
        return rows, full_B | (cheap_B & needs_full_look(rows, rule, known))

    def _look(self, rows: pa.Table, decoded_B: Mask, embedded_B: Mask) -> pa.Table:
        assert self._cheap is not None
        assert self._cheap_runtime is not None
        with self.stopwatch.stage("look"):
            return look_batch(
                rows,
                decoded_B=decoded_B,
                embedded_B=embedded_B,
                settings=self._settings,
                runtime=self._cheap_runtime,
                preprocessing=self._cheap.preprocessing,
                embedding_dim=self._cheap.embedding_dim,
                batch_size=self._batch_size,
            )


def read_rows(
    samples: Iterable[Positioned], origin: Origin, taken_down: TakenDown
) -> Iterator[pa.Table]:
    """Rows, read but not decoded, some at a time; the last table is empty."""
    for batch in itertools.chain(chunked(samples, _SAMPLES_PER_READ), [[]]):
        yield refuse_batch(read_batch(batch, origin), taken_down)


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
