"""From config to generation.

    reference bank -> pilot and plan -> parts -> shards, ledger and hashes -> generation

Each arrow is committed before the next begins and skipped where it is already done, so that a
second run does what the first one did not. A long source is read in rounds, each of which ends in
a generation.
"""

import contextlib
import functools
import itertools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from pipeline import manifest
from pipeline.cluster import Cluster, open_cluster
from pipeline.commits import Generation, PartRecord, SourcePlan
from pipeline.config import Config, SourceEntry
from pipeline.dataset import begin_dataset, find_changes, finished_generation
from pipeline.errors import InfinegError
from pipeline.generations import pack_generation, sweep, without_sources
from pipeline.parts import SpanTask, SpanWorker
from pipeline.pilot import plan_sources
from pipeline.plan import Planned, Round, iterate_spans
from pipeline.progress import Progress
from pipeline.records import Partition
from pipeline.runtimes import prepare_encoder

_log = logging.getLogger(__name__)
_MakeWorker = functools.partial[SpanWorker]


def build(config: Config, *, only: Sequence[str] = ()) -> tuple[Generation, bool]:
    """Brings the data set to what the config says; returns its generation and if it is new."""
    finished = finished_generation(config, only)
    if finished is not None:
        return finished, False
    root = config.output.path
    changes = find_changes(config, only)
    number = manifest.latest_generation_number(root)
    parent = manifest.read_generation(root, number) if number else None
    if parent and changes.drop:
        _log.info("leaving out what the config no longer has: %s", ", ".join(sorted(changes.drop)))
        parent = without_sources(parent, changes.drop)
    if not changes.build:
        assert parent is not None, "nothing can be dropped where no generation is"
        fewer = parent.model_copy(update={"number": number + 1, "parent": number})
        return _commit(root, fewer), True
    with _plan_on_cluster(config, changes.build) as (cluster, make_worker, planned):
        total = sum(r.num_candidates for source in planned for r in source.rounds())
        # Opened once: a listing is not passed over again for every round.
        spans = {source.entry.name: iterate_spans(source) for source in planned}
        with Progress("build", total=total, unit="candidates") as progress:
            for rounds in _batches(planned, config.output.candidates_per_round):
                tasks = _tasks(root, rounds, spans, progress)
                _build_parts(cluster.map(_build_span, tasks, make_worker=make_worker), progress)
                parent = _commit(root, pack_generation(config, parent, rounds, cluster))
                sweep(root, parent, rounds)
    assert parent is not None
    return parent, True


def plan(config: Config, *, only: Sequence[str] = ()) -> tuple[list[SourcePlan], int]:
    """Pilot and plan alone; returns the plans of all that is to be built, and the workers."""
    entries = find_changes(config, only).build
    if not entries:
        return [], 0
    with _plan_on_cluster(config, entries) as (cluster, _, planned):
        return [source.plan for source in planned], cluster.num_workers


def _commit(root: str, generation: Generation) -> Generation:
    manifest.commit_generation(root, generation)
    counts = generation.counts
    _log.info(
        "committed generation %d: %s sources, %s selected of %s, %s shards",
        generation.number,
        len(generation.sources),
        f"{counts.selected:,}",
        f"{counts.read:,}",
        f"{len(generation.shards):,}",
    )
    return generation


@contextlib.contextmanager
def _plan_on_cluster(
    config: Config, entries: Sequence[SourceEntry]
) -> Iterator[tuple[Cluster, _MakeWorker, list[Planned]]]:
    """A running cluster, what makes its workers, and the committed plans of `entries`."""
    encoder = prepare_encoder(config.encoder, gpus_per_worker=config.build.gpus_per_worker)
    begin_dataset(config, encoder=encoder.fingerprint, embedding_dim=encoder.embedding_dim)
    with open_cluster(config.build) as cluster:
        make_worker = functools.partial(SpanWorker, config, encoder)
        yield cluster, make_worker, plan_sources(config, entries, cluster, make_worker)


def _batches(planned: Sequence[Planned], candidates: int) -> Iterator[list[Round]]:
    """Rounds in the order of the config, as many a generation as reach `candidates`.

    A source is finished before the next one begins, so that what is a duplicate of what does not
    depend on whether sources are built together or one by one.
    """
    batch: list[Round] = []
    for source in planned:
        for round_ in source.rounds():
            batch.append(round_)
            if sum(each.num_candidates for each in batch) >= candidates:
                yield batch
                batch = []
    if batch:
        yield batch


def _tasks(
    root: str,
    rounds: Sequence[Round],
    spans: Mapping[str, Iterator[tuple[Partition, ...]]],
    progress: Progress,
) -> Iterator[SpanTask]:
    """The spans of some rounds that are not finished, as their sources list them."""
    for round_ in rounds:
        committed = manifest.read_part_records(root, round_.source, round_.number).values()
        if committed:
            _log.info("resuming: %s parts are committed already", f"{len(committed):,}")
            progress.expect_less(sum(record.counts.read for record in committed))
        ids = {record.span: record.span_id for record in committed}
        finished = {record.span for record in committed if record.is_last}
        of_round = itertools.islice(spans[round_.source], round_.num_spans)
        for span, partitions in enumerate(of_round):
            task = SpanTask(
                source=round_.source, partitions=partitions, round=round_.number, span=span
            )
            if ids.get(span, task.span_id) != task.span_id:
                raise InfinegError(
                    f"source {round_.source!r}: partition {partitions[0].id} is not what was "
                    "there when a part of it was committed. Restore the source, or remove "
                    f"plans/{round_.source}.json of the data set to begin this source anew."
                )
            if span not in finished:
                yield task


def _build_parts(tables: Iterator[pa.Table], progress: Progress) -> None:
    """Tells of each part as it is committed."""
    for table in tables:
        part = PartRecord.model_validate_json(table["record"][0].as_py())
        seconds = table["seconds"][0].as_py()
        if seconds is not None:
            _log_part(part, seconds)
            progress.advance(part.counts.read)


def _build_span(worker: SpanWorker, task: SpanTask) -> Iterator[pa.Table]:
    """A table a part; `seconds` is null where it was committed by an earlier run."""
    began = time.monotonic()
    for record, is_new in worker.build(task):
        seconds = time.monotonic() - began if is_new else None
        yield pa.table(
            {"record": [record.model_dump_json()], "seconds": pa.array([seconds], pa.float64())}
        )
        began = time.monotonic()


def _log_part(part: PartRecord, seconds: float) -> None:
    _log.info(
        "committed %s round %d span %d part %d: %s selected, %s rejected, %s not selected, %.1f s",
        part.source,
        part.round,
        part.span,
        part.part,
        f"{part.counts.selected:,}",
        f"{part.counts.num_rejected:,}",
        f"{part.counts.not_selected:,}",
        seconds,
    )
