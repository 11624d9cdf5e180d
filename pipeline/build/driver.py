"""From config to generation.

    reference bank -> pilot and plan -> parts -> the hardest added -> shards, ledger and hashes
        -> generation

Each step is committed before the next one begins and skipped if it is already done, so that a
second run does what the first one left. A long source is read in rounds, each of which ends in a
generation.
"""

import contextlib
import functools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from pipeline import storage
from pipeline.build.changes import begin_dataset, find_changes, finished_generation
from pipeline.build.costs import check_costs
from pipeline.build.declared import check_rounds
from pipeline.build.files import settle_files
from pipeline.build.hardest import add_hardest
from pipeline.build.monitor import BuildMonitor, monitor_build
from pipeline.build.pack import pack_generation, without_sources
from pipeline.build.pilot import MakeWorker, plan_sources
from pipeline.build.pooled_sources import num_pooled, open_pool, record_planned
from pipeline.build.reading import PlannedSource, Reading, Spans, extend_plans
from pipeline.cluster.workers import Cluster, open_cluster
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.embedding_cache import EmbeddingsInfo, require_info, write_info
from pipeline.dataset.lease import Lease, hold_lease
from pipeline.dataset.metadata import Generation, PartRecord, SourcePlan
from pipeline.dataset.tables import read_seen_images
from pipeline.encoders.runtimes import PreparedEncoder, prepare_encoder
from pipeline.sources.survey import find_partitions
from pipeline.telemetry.metrics import BUILD_METRICS, serve_metrics
from pipeline.telemetry.progress import Progress
from pipeline.worker.span import ReadTask, SpanWorker

_log = logging.getLogger(__name__)


def build(
    config: Config,
    *,
    only: Sequence[str] = (),
    follow: bool = False,
    accept_changes: bool = False,
    max_hours: float | None = None,
) -> tuple[Generation, bool]:
    """Brings the data set to what the config says; returns its generation and whether it is new.

    Raises InfinegError if files of a source have changed since they were read; with
    `accept_changes` the source is drawn anew instead. With `follow` it then reads on in endless
    sources, one budget after another, until it is interrupted. Raises ConfigError for a plan that
    takes longer than `max_hours`.
    """
    storage.configure(config.storage)
    finished = None if follow else finished_generation(config, only)
    if finished is not None:
        return finished, False
    dataset = Dataset(config.output.path)
    with (
        serve_metrics(BUILD_METRICS, config.build.metrics, "build.metrics.port") as metrics,
        monitor_build(metrics, stuck_after_s=config.build.stuck_after_s) as monitor,
        hold_lease(dataset.root, wait_s=config.build.lease_wait_s) as lease,
    ):
        latest = complete(dataset)
        for prefix in (".tmp-", "plans/.tmp-", "generations/.tmp-", "embeddings/.tmp-"):
            storage.remove_many(storage.list_prefix(dataset.uri(prefix)))
        settle_files(config, latest, only, accept=accept_changes)
        changes = find_changes(config, latest, only, follow=follow)
        if changes.drop:
            _log.info("removing, or drawing anew: %s", ", ".join(sorted(changes.drop)))
        parent = without_sources(latest, changes.drop)
        if not changes.build:
            if not changes.drop:
                return latest, False  # cleaning up was all there was to do
            fewer = parent.model_copy(update={"number": latest.number + 1, "parent": latest.number})
            return _commit(dataset, fewer, lease), True
        with _plan_on_cluster(config, changes.build, parent) as (cluster, make_worker, planned):
            check_costs(config, planned, num_workers=cluster.num_workers, max_hours=max_hours)
            run = functools.partial(_build_rounds, config, cluster, make_worker, lease, monitor)
            generation = run(parent, planned)
            while follow:
                planned = extend_plans(dataset, planned)
                generation = run(generation, planned)
    return generation, True


def _build_rounds(
    config: Config,
    cluster: Cluster,
    make_worker: MakeWorker,
    lease: Lease,
    monitor: BuildMonitor,
    parent: Generation,
    planned: Sequence[PlannedSource],
) -> Generation:
    """Builds the planned sources; returns the last generation committed."""
    dataset = Dataset(config.output.path)
    total = sum(round_.num_candidates for source in planned for round_ in source.rounds())
    monitor.plan(total)
    cluster.expect(total - num_pooled(config, planned))
    seen: SeenImages | None = None  # read once, however many rounds there are
    with Progress("build", total=total, unit="candidates") as progress:
        reading, spans = Reading(config, planned, progress), Spans(planned)
        for rounds in reading.batches():
            tables = cluster.map(
                _build_span, monitor.dispatched(reading.tasks(rounds)), make_worker=make_worker
            )
            _log_parts(tables, progress, monitor)
            check_rounds(dataset, rounds)
            added = add_hardest(config, rounds, spans, cluster, monitor, parent.taken_down)
            if seen is None:
                seen = read_seen_images(dataset, parent)
            generation = pack_generation(config, parent, rounds, cluster, seen, added)
            parent = _commit(dataset, generation, lease)
    assert parent.number, "nothing was planned"
    return parent


def plan(config: Config, *, only: Sequence[str] = ()) -> tuple[list[SourcePlan], int]:
    """Only pilots and plans; returns the plans of the sources to build, and how many workers."""
    storage.configure(config.storage)
    dataset = Dataset(config.output.path)
    if finished_generation(config, only) is not None:
        return [], 0
    with hold_lease(dataset.root):
        latest = dataset.read_latest()
        settle_files(config, latest, only)
        entries = find_changes(config, latest, only).build
        if not entries:
            return [], 0
        with _plan_on_cluster(config, entries, latest) as (cluster, _, planned):
            return [source.plan for source in planned], cluster.num_workers


def _commit(dataset: Dataset, generation: Generation, lease: Lease) -> Generation:
    generation = commit(dataset, generation, lease, by="build")
    counts = generation.counts
    _log.info(
        "committed generation %d: %s sources, %s selected of %s, %s shards",
        generation.number, len(generation.sources), f"{counts.selected:,}", f"{counts.read:,}",
        f"{len(generation.shards):,}",
    )  # fmt: skip
    return generation


@contextlib.contextmanager
def _plan_on_cluster(
    config: Config, entries: Sequence[SourceEntry], latest: Generation
) -> Iterator[tuple[Cluster, MakeWorker, list[PlannedSource]]]:
    """A running cluster, how to make its workers, and the committed plans of `entries`."""
    if Dataset(config.output.path).read_reference() is None:
        find_partitions(config, entries)  # before the positives are read
    with ThreadPoolExecutor(max_workers=1) as pool:
        # At the same time: both take seconds, and Ray's start mostly waits for other processes.
        gpus = config.build.gpus_per_embedder
        preparing = pool.submit(prepare_encoder, config.encoder, gpus_per_worker=gpus)
        with open_cluster(config.build) as cluster:
            encoder = cluster.share(preparing.result())
            _warn_of_small_images(config, encoder)
            begin_dataset(config, encoder=encoder.fingerprint, embedding_dim=encoder.embedding_dim)
            info = EmbeddingsInfo(encoder=encoder.fingerprint, images=config.output.image_settings)
            if config.build.embeddings_from is not None:
                require_info(config.build.embeddings_from, info)
            if config.build.keep_embeddings:
                write_info(config.output.path, info)
            fence = storage.fence_of(config.output.path)
            make_worker = functools.partial(SpanWorker, config, encoder, latest.taken_down, fence)
            files = open_pool(config, entries, info)
            planned = plan_sources(config, entries, latest, cluster, make_worker)
            record_planned(config, planned, files)
            yield cluster, make_worker, planned


def _warn_of_small_images(config: Config, encoder: PreparedEncoder) -> None:
    kept, wanted = config.output.image_size, encoder.preprocessing.resize_size
    if kept < wanted:
        _log.warning(
            "output.image_size: the data set keeps %d px of the shorter side, which are enlarged "
            "to the %d px of %s. Set output.image_size to %d, or a smaller encoder.image_size",
            kept, wanted, config.encoder.name, wanted,
        )  # fmt: skip


def _log_parts(tables: Iterator[pa.Table], progress: Progress, monitor: BuildMonitor) -> None:
    """Logs and counts each part as it is committed."""
    for table in tables:
        part = PartRecord.model_validate_json(table["record"][0].as_py())
        seconds = table["seconds"][0].as_py()
        monitor.committed(part, json.loads(table["stages"][0].as_py()), is_new=seconds is not None)
        if seconds is not None:
            _log_part(part, seconds)
            progress.advance(part.counts.read)


def _build_span(worker: SpanWorker, task: ReadTask) -> Iterator[pa.Table]:
    """A table per part; `seconds` is null if it was committed by an earlier run.

    `stages` are the worker's seconds by stage since the part before, as JSON.
    """
    began = time.monotonic()
    for record, is_new in worker.build(task):
        seconds = time.monotonic() - began if is_new else None
        yield pa.table(
            {
                "record": [record.model_dump_json()],
                "seconds": pa.array([seconds], pa.float64()),
                "stages": [json.dumps(worker.stopwatch.take())],
            }
        )
        began = time.monotonic()


def _log_part(part: PartRecord, seconds: float) -> None:
    _log.info(
        "committed %s round %d span %d part %d: %s selected, %s rejected, %s not selected, %.1f s",
        part.source, part.round, part.span, part.part, f"{part.counts.selected:,}",
        f"{part.counts.num_rejected:,}", f"{part.counts.not_selected:,}", seconds,
    )  # fmt: skip
