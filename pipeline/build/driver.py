"""From config to generation.

    reference bank -> pilot and plan -> parts -> shards, ledger and hashes -> generation

Each arrow is committed before the next begins and skipped where it is already done, so that a
second run does what the first one did not. A long source is read in rounds, each of which ends in
a generation.
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
from pipeline.build.monitor import BuildMonitor, monitor_build
from pipeline.build.pack import pack_generation, without_sources
from pipeline.build.pilot import plan_sources
from pipeline.build.reading import PlannedSource, Reading, extend_plans
from pipeline.cluster.actors import start_encoder_actors
from pipeline.cluster.ray_data import Cluster, open_cluster
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset import manifest
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.dedup import SeenImages
from pipeline.dataset.embedding_cache import EmbeddingsInfo, require_info, write_info
from pipeline.dataset.lease import Lease, hold_lease
from pipeline.dataset.metadata import Generation, PartRecord, SourcePlan
from pipeline.dataset.tables import read_seen_images
from pipeline.encoders.runtimes import prepare_encoder
from pipeline.telemetry.metrics import BUILD_METRICS, serve_metrics
from pipeline.telemetry.progress import Progress
from pipeline.worker.span import ReadTask, SpanWorker

_log = logging.getLogger(__name__)
_MakeWorker = functools.partial[SpanWorker]


def build(
    config: Config, *, only: Sequence[str] = (), follow: bool = False
) -> tuple[Generation, bool]:
    """Brings the data set to what the config says; returns its generation and if it is new.

    With `follow` it then reads on in sources that never end, a budget more each time, until it is
    interrupted.
    """
    root = config.output.path
    storage.configure(config.storage)
    finished = None if follow else finished_generation(config, only)
    if finished is not None:
        return finished, False
    with (
        _monitoring(config) as monitor,
        hold_lease(root, wait_s=config.build.lease_wait_s) as lease,
    ):
        _clean_up(root)
        changes = find_changes(config, only, follow=follow)
        number = manifest.latest_generation_number(root)
        parent = manifest.read_generation(root, number) if number else None
        if parent and changes.drop:
            _log.info("leaving out, by the config: %s", ", ".join(sorted(changes.drop)))
            parent = without_sources(parent, changes.drop)
        if not changes.build:
            assert parent is not None, "nothing can be dropped where no generation is"
            if not changes.drop:
                return parent, False  # all that was left to do was to clean up
            fewer = parent.model_copy(update={"number": number + 1, "parent": number})
            return _commit(root, fewer, lease), True
        with _plan_on_cluster(config, changes.build) as (cluster, make_worker, planned):
            run = functools.partial(_build_rounds, config, cluster, make_worker, lease, monitor)
            generation = run(parent, planned)
            while follow:
                planned = extend_plans(root, planned)
                generation = run(generation, planned)
    return generation, True


@contextlib.contextmanager
def _monitoring(config: Config) -> Iterator[BuildMonitor]:
    settings = config.build
    with (
        serve_metrics(BUILD_METRICS, settings.metrics, "build.metrics.port") as metrics,
        monitor_build(metrics, stuck_after_s=settings.stuck_after_s) as monitor,
    ):
        yield monitor


def _build_rounds(
    config: Config,
    cluster: Cluster,
    make_worker: _MakeWorker,
    lease: Lease,
    monitor: BuildMonitor,
    parent: Generation | None,
    planned: Sequence[PlannedSource],
) -> Generation:
    """Builds what is planned; returns the last of the generations that it committed."""
    root = config.output.path
    total = sum(round_.num_candidates for source in planned for round_ in source.rounds())
    monitor.plan(total)
    seen: SeenImages | None = None  # read once, however many rounds there are
    with Progress("build", total=total, unit="candidates") as progress:
        reading = Reading(config, planned, progress)
        for rounds in reading.batches():
            tables = cluster.map(
                _build_span,
                monitor.dispatched(reading.tasks(rounds)),
                make_worker=make_worker,
            )
            _log_parts(tables, progress, monitor)
            if seen is None:
                seen = read_seen_images(root, parent) if parent else SeenImages()
            generation = pack_generation(config, parent, rounds, cluster, seen)
            parent = _commit(root, generation, lease)
    assert parent is not None, "nothing was planned"
    return parent


def plan(config: Config, *, only: Sequence[str] = ()) -> tuple[list[SourcePlan], int]:
    """Pilot and plan alone; returns the plans of all that is to be built, and the workers."""
    storage.configure(config.storage)
    entries = find_changes(config, only).build
    if not entries:
        return [], 0
    with (
        hold_lease(config.output.path),
        _plan_on_cluster(config, entries) as (cluster, _, planned),
    ):
        return [source.plan for source in planned], cluster.num_workers


def _commit(root: str, generation: Generation, lease: Lease) -> Generation:
    commit(root, generation, lease)
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


def _clean_up(root: str) -> None:
    """Ends what an interrupted run had begun to end, and removes what it had begun to write."""
    complete(root)
    for prefix in (".tmp-", "plans/.tmp-", "generations/.tmp-", "embeddings/.tmp-"):
        storage.remove_many(storage.list_prefix(storage.join(root, prefix)))


@contextlib.contextmanager
def _plan_on_cluster(
    config: Config, entries: Sequence[SourceEntry]
) -> Iterator[tuple[Cluster, _MakeWorker, list[PlannedSource]]]:
    """A running cluster, what makes its workers, and the committed plans of `entries`."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        # Both take seconds, and Ray's start is a wait for other processes.
        gpus = config.build.gpus_per_embedder
        preparing = pool.submit(prepare_encoder, config.encoder, gpus_per_worker=gpus)
        with open_cluster(config.build) as cluster:
            cluster, encoder = start_encoder_actors(cluster, preparing.result())
            begin_dataset(config, encoder=encoder.fingerprint, embedding_dim=encoder.embedding_dim)
            _begin_embeddings(config, encoder.fingerprint)
            taken_down = manifest.read_taken_down(config.output.path)
            make_worker = functools.partial(SpanWorker, config, encoder, taken_down)
            yield cluster, make_worker, plan_sources(config, entries, cluster, make_worker)


def _begin_embeddings(config: Config, encoder: str) -> None:
    info = EmbeddingsInfo(encoder=encoder, images=config.output.image_settings)
    if config.build.embeddings_from is not None:
        require_info(config.build.embeddings_from, info)
    if config.build.keep_embeddings:
        write_info(config.output.path, info)


def _log_parts(tables: Iterator[pa.Table], progress: Progress, monitor: BuildMonitor) -> None:
    """Passes over the results; tells of each part as it is committed."""
    for table in tables:
        part = PartRecord.model_validate_json(table["record"][0].as_py())
        seconds = table["seconds"][0].as_py()
        monitor.committed(part, json.loads(table["stages"][0].as_py()), is_new=seconds is not None)
        if seconds is not None:
            _log_part(part, seconds)
            progress.advance(part.counts.read)


def _build_span(worker: SpanWorker, task: ReadTask) -> Iterator[pa.Table]:
    """A table a part; `seconds` is null where it was committed by an earlier run.

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
        part.source,
        part.round,
        part.span,
        part.part,
        f"{part.counts.selected:,}",
        f"{part.counts.num_rejected:,}",
        f"{part.counts.not_selected:,}",
        seconds,
    )
