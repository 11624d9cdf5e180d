"""A trained model adds negatives: a generation with more of those that it takes for a target.

    candidates -> score -> fit scales -> decide rows -> read chosen images -> shards -> generation

Scores and images are work in progress, kept in `mining/` until the generation is committed: an
interrupted run continues where it stopped and commits the same bytes. The probabilities come from
`selection.mining`; `mine.shards` updates the earlier shards.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pipeline import storage
from pipeline.build.changes import find_changes
from pipeline.build.files import settle_files
from pipeline.cluster.process import Task
from pipeline.cluster.workers import Cluster, open_cluster
from pipeline.config.schema import Config, fingerprint
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation, MinedRecord, SourceRecord
from pipeline.dataset.tables import read_seen_images
from pipeline.encoders.runtimes import PreparedEncoder, prepare_encoder
from pipeline.errors import ConfigError
from pipeline.mine.candidates import (
    Embeddings,
    MinedRound,
    embed_tasks,
    find_embeddings,
    rounds_of,
    score_embedding_tasks,
    score_image_tasks,
)
from pipeline.mine.choose import Chooser, Tally, fit_scales
from pipeline.mine.pack import pack_generation
from pipeline.mine.scorer import Scorer
from pipeline.mine.shards import is_minable
from pipeline.mine.worker import MineWorker
from pipeline.telemetry.progress import Progress

__all__ = ["Mined", "Tally", "mine"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Mined:
    """A generation, what was done to each source, and whether that is new."""

    generation: Generation
    tallies: Mapping[str, Tally]
    is_new: bool


def mine(
    config: Config, scorer: Scorer, *, budget: int | None = None, only: Sequence[str] = ()
) -> Mined:
    """Commits a generation in which `budget` more training negatives are expected.

    The default is a third of those that there are. All sources, or those in `only`, share the
    budget: the likeliest candidates are chosen wherever they are. Does nothing if the same model
    has already mined the same candidates for the same budget. Raises ConfigError where the data
    set does not match the config.
    """
    dataset = Dataset(config.output.path)
    storage.configure(config.storage)
    with hold_lease(dataset.root) as lease:
        parent = complete(dataset)
        sources = _mined_sources(config, parent, only)
        request = {
            "model": scorer.fingerprint,
            "budget": budget,
            "sources": tuple(sorted(source.name for source in sources)),
            "num_read": sum(source.counts.read for source in sources),
        }
        if any(record.model_dump(include=set(request)) == request for record in parent.mined):
            storage.remove_tree(dataset.uri("mining"))
            return Mined(parent, {}, is_new=False)
        with open_cluster(config.build) as cluster:
            generation, tallies = _mine_sources(config, scorer, parent, request, cluster)
        generation = commit(dataset, generation, lease, by="mine")
        storage.remove_tree(dataset.uri("mining"))
    counts = generation.counts
    _log.info(
        "committed generation %d: %s selected of %s, by mining",
        generation.number, f"{counts.selected:,}", f"{counts.read:,}",
    )  # fmt: skip
    return Mined(generation, tallies, is_new=True)


def _mined_sources(config: Config, parent: Generation, only: Sequence[str]) -> list[SourceRecord]:
    settle_files(config, parent, only)
    changes = find_changes(config, parent, only)
    if changed := [*(entry.name for entry in changes.build), *sorted(changes.drop)]:
        raise ConfigError(
            f"{config.output.path}: source {changed[0]!r} is not built as the config says. Run "
            "`infineg build` first, or restore the config"
        )
    sources = [
        source
        for source in parent.sources
        if source.role == "negative" and (not only or source.name in only)
    ]
    if not sources:
        raise ConfigError(f"--source {' '.join(only) or '(none)'}: no source of negatives")
    return sources


def _mine_sources(
    config: Config, scorer: Scorer, parent: Generation, request: Mapping[str, Any], cluster: Cluster
) -> tuple[Generation, Mapping[str, Tally]]:
    """Scores, decides and packs; returns the generation to commit and the tally of each source.

    request: the fields of `MinedRecord` that say what was asked for.
    """
    dataset, names = Dataset(config.output.path), request["sources"]
    folder = _work_folder(dataset, parent, request)
    rounds = [r for s in parent.sources if s.name in names for r in rounds_of(s, folder)]
    embeddings: Embeddings = {r.name: find_embeddings(dataset, r) for r in rounds}
    cluster.expect(_num_rows(rounds))
    encoder = None
    if None in embeddings.values():
        encoder = cluster.share(_prepare_encoder(config))
    fence = storage.fence_of(config.output.path)
    make_worker = functools.partial(MineWorker, config, scorer, encoder, parent.taken_down, fence)
    workers = _Workers(cluster, make_worker)
    embeddings = _score(config, scorer, rounds, embeddings, workers)
    num_negatives = sum(s.num_samples for s in parent.shards if is_minable(s, names))
    budget = request["budget"] or max(1, num_negatives // 3)
    log_scales = fit_scales(dataset, rounds, num_folds=scorer.num_folds, budget=budget)
    numbers = dict(parent.next_numbers)
    chooser = Chooser(config, log_scales, read_seen_images(dataset, parent), numbers)
    chosen = list(chooser.choose(rounds, embeddings))
    fetches = [task for each in chosen for task in each.tasks]
    workers.run("read", MineWorker.fetch, fetches, sum(task.num_rows for task in fetches))
    generation = pack_generation(config, parent, chosen, chooser.changes, numbers, workers.cluster)
    record = _record(scorer, parent, request, log_scales, Tally.total(chooser.tallies.values()))
    generation = generation.model_copy(update={"mined": (*parent.mined, record)})
    return generation, chooser.tallies


def _work_folder(dataset: Dataset, parent: Generation, request: Mapping[str, Any]) -> str:
    """The folder of this request's work in progress; removes that of other requests."""
    own = fingerprint({**request, "generation": parent.number})[:16]
    mining = dataset.uri("mining")
    for name in {path.partition("/")[0] for path in storage.list_files(mining)} - {own}:
        storage.remove_tree(storage.join(mining, name))
    return f"mining/{own}"


@dataclass(frozen=True)
class _Workers:
    """A cluster whose workers hold the model and, where it is needed, the encoder."""

    cluster: Cluster
    make_worker: Callable[[], MineWorker]

    def run(
        self,
        what: str,
        method: Callable[[MineWorker, Any], Iterator[pa.Table]],
        tasks: Iterable[Task],
        num_images: int,
    ) -> None:
        with Progress(what, total=num_images, unit="images") as progress:
            for table in self.cluster.map(method, tasks, make_worker=self.make_worker):
                progress.advance(table["num_rows"][0].as_py())


def _prepare_encoder(config: Config) -> PreparedEncoder:
    encoder = prepare_encoder(config.encoder, gpus_per_worker=config.build.gpus_per_embedder)
    info = Dataset(config.output.path).read_info()
    if encoder.fingerprint != info.encoder:
        raise ConfigError(
            f"{config.output.path} was embedded by {info.encoder}, this would be "
            f"{encoder.fingerprint}, and not all embeddings are kept. Use the same encoder and "
            "encoder.runtime as when it was built"
        )
    return encoder


def _score(
    config: Config,
    scorer: Scorer,
    rounds: Sequence[MinedRound],
    embeddings: Embeddings,
    workers: _Workers,
) -> Embeddings:
    """Has every candidate scored; returns the embeddings, with those that had to be made."""
    if scorer.reads == "pixels":
        tasks = score_image_tasks(config, rounds)
    else:
        missing = [round_ for round_ in rounds if embeddings[round_.name] is None]
        if missing:
            _log.info("embedding %s rounds whose embeddings are not kept", f"{len(missing):,}")
            workers.run("embed", MineWorker.embed, embed_tasks(config, missing), _num_rows(missing))
            dataset = Dataset(config.output.path)
            made = {r.name: find_embeddings(dataset, r) for r in missing}
            embeddings = {**embeddings, **made}
        tasks = score_embedding_tasks(rounds, embeddings)
    workers.run("score", MineWorker.score, tasks, _num_rows(rounds))
    return embeddings


def _num_rows(rounds: Sequence[MinedRound]) -> int:
    return sum(round_.ledger.num_rows for round_ in rounds)


def _record(
    scorer: Scorer,
    parent: Generation,
    request: Mapping[str, Any],
    log_scales: tuple[float, ...],
    total: Tally,
) -> MinedRecord:
    return MinedRecord(
        generation=parent.number + 1,
        log_scales=log_scales,
        num_scored=total.num_scored,
        num_expected=total.num_expected,
        num_selected=total.num_selected,
        num_suspected=total.num_suspected,
        about=dict(scorer.about),
        **request,
    )
