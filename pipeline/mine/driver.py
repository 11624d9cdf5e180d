"""A trained model chooses again: a generation with more of the negatives that it takes for targets.

    score all candidates -> fit c -> decide every row -> read chosen images -> shards -> generation

What the model said, and images, are work in progress (`mining/`), kept until the generation is
committed: a run that was interrupted goes on where it stopped, and what it commits is the same,
byte for byte. What is chosen with what probability is `hardness`; what becomes of older shards,
`mined_shards`.
"""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel

from pipeline import storage
from pipeline.build.changes import find_changes
from pipeline.build.pack import ShardTask, cut_shards, pack_shards
from pipeline.cluster.actors import start_encoder_actors
from pipeline.cluster.ray_data import Cluster, open_cluster
from pipeline.config.schema import Config, fingerprint
from pipeline.dataset import manifest
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation, MinedRecord, ShardFile, SourceRecord, add_counts
from pipeline.dataset.shards import sort_files
from pipeline.dataset.tables import read_seen_images
from pipeline.encoders.runtimes import PreparedEncoder, prepare_encoder
from pipeline.errors import ConfigError
from pipeline.mine.candidates import (
    KeptFile,
    Locator,
    MinedRound,
    embed_tasks,
    find_embeddings,
    look_tasks,
    rounds_of,
    score_tasks,
)
from pipeline.mine.choose import Chooser, ChosenRound, Tally, fit_scales, write_eligible
from pipeline.mine.scorer import Scorer
from pipeline.mine.shards import replace_shards
from pipeline.mine.worker import MineWorker
from pipeline.sources import open_entry
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

    By default a third of those that there are. They come from all sources together, the likeliest
    wherever they are, or from `only` some. Does nothing where this model did this already. Raises
    ConfigError where the data set is not what the config says.
    """
    root = config.output.path
    storage.configure(config.storage)
    with hold_lease(root) as lease:
        complete(root)
        parent = manifest.read_generation(root)
        names = _mined_sources(config, parent, only)
        asked = {
            "model": scorer.fingerprint,
            "budget": budget,
            "sources": tuple(sorted(names)),
            "num_read": sum(s.counts.read for s in parent.sources if s.name in names),
        }
        if any(record.model_dump(include=set(asked)) == asked for record in parent.mined):
            storage.remove_tree(storage.join(root, "mining"))
            return Mined(parent, {}, is_new=False)
        folder = f"mining/{fingerprint({**asked, 'generation': parent.number})[:16]}"
        _remove_other_work(root, folder)
        with open_cluster(config.build) as cluster:
            mining = MiningPass(config, scorer, parent, names, folder, cluster)
            mining.score()
            generation, tallies = mining.choose(budget or _default_budget(parent, names), asked)
        commit(root, generation, lease)
        storage.remove_tree(storage.join(root, "mining"))
    counts = generation.counts
    _log.info(
        "committed generation %d: %s selected of %s, by mining",
        generation.number, f"{counts.selected:,}", f"{counts.read:,}",
    )  # fmt: skip
    return Mined(generation, tallies, is_new=True)


def _mined_sources(config: Config, parent: Generation, only: Sequence[str]) -> list[str]:
    root = config.output.path
    changes = find_changes(config, parent, only)
    for name in (*(entry.name for entry in changes.build), *sorted(changes.drop)):
        raise ConfigError(
            f"{root}: source {name!r} is not built as the config says. Run `infineg build` first, "
            "or restore the config"
        )
    names = [
        source.name
        for source in parent.sources
        if source.role == "negative" and (not only or source.name in only)
    ]
    if not names:
        raise ConfigError(f"--source {' '.join(only) or '(none)'}: no source of negatives")
    return names


def _default_budget(parent: Generation, names: Sequence[str]) -> int:
    num_negatives = sum(
        shard.num_samples
        for shard in parent.shards
        if shard.split == "train" and not shard.label and shard.source in names
    )
    return max(1, num_negatives // 3)


def _remove_other_work(root: str, folder: str) -> None:
    """What was begun by another model, or for another budget, is of no use."""
    for name in {
        path.partition("/")[0] for path in storage.list_files(storage.join(root, "mining"))
    }:
        if f"mining/{name}" != folder:
            storage.remove_tree(storage.join(root, "mining", name))


_Task = TypeVar("_Task", bound=BaseModel)


_Kept = dict[str, list[KeptFile] | None]  # by name of the round


class MiningPass:
    """One pass over a data set."""

    def __init__(
        self,
        config: Config,
        scorer: Scorer,
        parent: Generation,
        names: Sequence[str],
        folder: str,
        cluster: Cluster,
    ) -> None:
        self._config = config
        self._root = config.output.path
        self._scorer = scorer
        self._parent = parent
        self._sources = [source for source in parent.sources if source.name in names]
        self._rounds = {source.name: rounds_of(source, folder) for source in self._sources}
        self._kept: _Kept = {r.name: find_embeddings(self._root, r) for r in self._all_rounds()}
        encoder = self._prepare_encoder()
        if encoder is not None:
            cluster, encoder = start_encoder_actors(cluster, encoder)
        self._cluster = cluster
        self._make_worker = functools.partial(
            MineWorker, config, scorer, encoder, parent.taken_down
        )

    def _all_rounds(self) -> Iterator[MinedRound]:
        return (round_ for rounds in self._rounds.values() for round_ in rounds)

    def _prepare_encoder(self) -> PreparedEncoder | None:
        """None where nothing is left to embed."""
        if all(kept is not None for kept in self._kept.values()):
            return None
        gpus = self._config.build.gpus_per_embedder
        encoder = prepare_encoder(self._config.encoder, gpus_per_worker=gpus)
        info = manifest.require_info(self._root)
        if encoder.fingerprint != info.encoder:
            raise ConfigError(
                f"{self._root} was embedded by {info.encoder}, this would be "
                f"{encoder.fingerprint}, and not all embeddings are kept. Use the encoder and "
                "encoder.runtime of then"
            )
        return encoder

    def _locator(self, source: str) -> Locator:
        entry = next(entry for entry in self._config.entries if entry.name == source)
        return Locator(self._root, open_entry(entry, self._config.role_of(entry)), source)

    def score(self) -> None:
        """Has every candidate scored by the workers."""
        if self._scorer.reads == "pixels":
            tasks = self._listed(look_tasks, self._all_rounds())
            self._map("score", MineWorker.score, tasks, _num_rows(self._all_rounds()))
            return
        missing = [r for r in self._all_rounds() if self._kept[r.name] is None]
        if missing:
            _log.info("embeddings of %s rounds are not kept: embedding anew", f"{len(missing):,}")
            anew = self._listed(embed_tasks, missing)
            self._map("embed", MineWorker.embed, anew, _num_rows(missing))
            self._kept |= {r.name: find_embeddings(self._root, r) for r in missing}
        by_file = (
            task for r in self._all_rounds() for task in score_tasks(r, self._kept[r.name] or ())
        )
        self._map("score", MineWorker.score, by_file, _num_rows(self._all_rounds()))

    def choose(
        self, budget: int, asked: Mapping[str, Any]
    ) -> tuple[Generation, Mapping[str, Tally]]:
        """Decides all rows, fetches what is new, and writes all files of the generation.

        asked: for its `MinedRecord`. Returns it, to be committed, and what was done to each source.
        """
        parent, num_folds = self._parent, self._scorer.num_folds
        rounds = list(self._all_rounds())
        num_F = np.zeros(num_folds, np.int64)
        for round_ in rounds:
            num_F += write_eligible(self._root, round_, num_folds)
        log_scales = fit_scales(self._root, rounds, num_F, budget)
        numbers = dict(parent.next_numbers)
        chooser = Chooser(
            self._root,
            log_scales=log_scales,
            seed=self._config.selection.seed,
            seen=read_seen_images(self._root, parent),
            numbers=numbers,
        )
        chosen = list(self._choose_rounds(chooser))
        tasks = [task for each in chosen for task in each.tasks]
        self._map("read", MineWorker.fetch, tasks, sum(each.num_wanted for each in chosen))
        shards, quarantine = sort_files(self._pack(chosen, numbers))
        old = replace_shards(
            self._root, parent, self._rounds.keys(), chooser.changes, numbers=numbers
        )
        tallies = chooser.tallies
        update = {
            "number": parent.number + 1,
            "parent": parent.number,
            "sources": tuple(_replaced(source, chosen) for source in parent.sources),
            "shards": (*old, *shards),
            "quarantine": (*parent.quarantine, *quarantine),
            "next_numbers": dict(sorted(numbers.items())),
            "mined": (*parent.mined, self._record(log_scales, tallies, asked)),
        }
        return parent.model_copy(update=update), tallies

    def _record(
        self, log_scales: tuple[float, ...], tallies: Mapping[str, Tally], asked: Mapping[str, Any]
    ) -> MinedRecord:
        return MinedRecord(
            generation=self._parent.number + 1,
            log_scales=log_scales,
            num_scored=sum(tally.num_scored for tally in tallies.values()),
            num_expected=sum(tally.num_expected for tally in tallies.values()),
            num_selected=sum(tally.num_selected for tally in tallies.values()),
            num_suspected=sum(tally.num_suspected for tally in tallies.values()),
            about=dict(self._scorer.about),
            **asked,
        )

    def _choose_rounds(self, chooser: Chooser) -> Iterator[ChosenRound]:
        for source in self._sources:
            locator = self._locator(source.name)
            for round_ in self._rounds[source.name]:
                yield chooser.choose(round_, self._kept[round_.name], locator)

    def _pack(self, chosen: Sequence[ChosenRound], numbers: dict[str, int]) -> list[ShardFile]:
        tasks: list[ShardTask] = []
        for each in chosen:
            of_round = cut_shards(
                each.parts,
                source=each.round.source,
                samples_per_shard=self._config.output.samples_per_shard,
                round_number=each.round.number,
                next_numbers=numbers,
            )
            numbers |= {task.group: task.number + 1 for task in of_round}
            tasks += of_round
        return pack_shards(self._config, tasks, self._cluster)

    def _listed(
        self,
        make: Callable[[str, MinedRound, Locator], Iterator[_Task]],
        rounds: Iterable[MinedRound],
    ) -> Iterator[_Task]:
        """Tasks by partitions, each source listed once."""
        for name, of_source in itertools.groupby(rounds, key=lambda round_: round_.source):
            locator = self._locator(name)
            for round_ in of_source:
                yield from make(self._root, round_, locator)

    def _map(
        self,
        what: str,
        method: Callable[[MineWorker, Any], Iterator[pa.Table]],
        tasks: Iterable[_Task],
        total: int,
    ) -> None:
        with Progress(what, total=total, unit="images") as progress:
            for table in self._cluster.map(method, tasks, make_worker=self._make_worker):
                progress.advance(table["num_rows"][0].as_py())


def _num_rows(rounds: Iterable[MinedRound]) -> int:
    return sum(round_.ledger.num_rows for round_ in rounds)


def _replaced(source: SourceRecord, chosen: Sequence[ChosenRound]) -> SourceRecord:
    """The record of a source with the tables that it has now."""
    own = [each for each in chosen if each.round.source == source.name]
    if not own:
        return source
    return source.model_copy(
        update={
            "ledger": tuple(each.ledger for each in own),
            "hashes": tuple(each.hashes for each in own),
            "counts": add_counts(each.counts for each in own),
        }
    )
