"""From config to generation.

    reference bank -> pilot and plan -> parts -> shards and ledger -> generation

Each arrow is committed before the next begins and skipped where it is already done, so that a
second run does what the first one did not.
"""

import contextlib
import functools
import logging
import time
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline import manifest
from pipeline.cluster import Cluster, open_cluster
from pipeline.config import Config, SourceEntry
from pipeline.dataset import begin_dataset, entries_to_build, finished_generation
from pipeline.generations import pack_generation, sweep
from pipeline.parts import PartitionTask, PartitionWorker
from pipeline.pilot import plan_sources
from pipeline.plan import Planned
from pipeline.progress import Progress
from pipeline.records import Generation, PartRecord, SourcePlan
from pipeline.runtimes import prepare_encoder

_log = logging.getLogger(__name__)
_MakeWorker = functools.partial[PartitionWorker]


def build(config: Config, *, only: Sequence[str] = ()) -> tuple[Generation, bool]:
    """Brings the data set to what the config says; returns its generation and if it is new."""
    finished = finished_generation(config, only)
    if finished is not None:
        return finished, False
    root = config.output.path
    entries = entries_to_build(config, only)
    with _plan_on_cluster(config, entries) as (cluster, make_worker, planned):
        _build_parts(config, planned, cluster, make_worker)
        generation = pack_generation(config, planned, cluster)
    manifest.commit_generation(root, generation)
    sweep(root, [source.entry.name for source in planned])
    return generation, True


def plan(config: Config, *, only: Sequence[str] = ()) -> tuple[list[SourcePlan], int]:
    """Pilot and plan alone; returns the plans of all that is to be built, and the workers."""
    entries = entries_to_build(config, only)
    if not entries:
        return [], 0
    with _plan_on_cluster(config, entries) as (cluster, _, planned):
        return [source.plan for source in planned], cluster.num_workers


@contextlib.contextmanager
def _plan_on_cluster(
    config: Config, entries: Sequence[SourceEntry]
) -> Iterator[tuple[Cluster, _MakeWorker, list[Planned]]]:
    """A running cluster, what makes its workers, and the committed plans of `entries`."""
    encoder = prepare_encoder(config.encoder, gpus_per_worker=config.build.gpus_per_worker)
    begin_dataset(config, encoder=encoder.fingerprint, embedding_dim=encoder.embedding_dim)
    with open_cluster(config.build) as cluster:
        make_worker = functools.partial(PartitionWorker, config, encoder)
        yield cluster, make_worker, plan_sources(config, entries, cluster, make_worker)


def _build_parts(
    config: Config, planned: Sequence[Planned], cluster: Cluster, make_worker: _MakeWorker
) -> None:
    """Commits every part of every planned partition that is not committed yet."""
    root = config.output.path
    tasks, committed, num_known = [], set(), 0
    for source in planned:
        name = source.entry.name
        records = manifest.read_part_records(root, name)
        finished = {record.partition for record in records.values() if record.is_last}
        committed |= {(name, *key) for key in records}
        num_known += sum(record.counts.read for record in records.values())
        tasks += [
            PartitionTask(source=name, partition=partition)
            for partition in source.partitions
            if partition.id not in finished
        ]
    if committed:
        _log.info("resuming: %s parts are committed already", f"{len(committed):,}")
    total = sum(source.plan.num_candidates for source in planned) - num_known
    with Progress("build", total=max(total, 0), unit="candidates") as progress:
        for table in cluster.map(_build_partition, tasks, make_worker=make_worker):
            part = PartRecord.model_validate_json(table["record"][0].as_py())
            if (part.source, part.partition, part.part) not in committed:
                _log_part(part, table["seconds"][0].as_py())
                progress.advance(part.counts.read)


def _build_partition(worker: PartitionWorker, task: PartitionTask) -> Iterator[pa.Table]:
    began = time.monotonic()
    for record in worker.build(task):
        seconds = time.monotonic() - began
        yield pa.table({"record": [record.model_dump_json()], "seconds": [seconds]})
        began = time.monotonic()


def _log_part(part: PartRecord, seconds: float) -> None:
    _log.info(
        "committed %s/%s part %d: %s selected, %s rejected, %s not selected, %.1f s",
        part.source,
        part.partition,
        part.part,
        f"{part.counts.selected:,}",
        f"{part.counts.num_rejected:,}",
        f"{part.counts.not_selected:,}",
        seconds,
    )
