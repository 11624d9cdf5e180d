"""A trained model chooses again: a generation with more of the negatives that it takes for targets.

    score all candidates -> fit c -> decide every row -> read chosen images -> shards -> generation

What the model said, and images, are work in progress (`mining/`), kept until the generation is
committed: a run that was interrupted goes on where it stopped, and what it commits is the same,
byte for byte. What is chosen with what probability is `hardness`; what becomes of older shards,
`mined_shards`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline import storage
from pipeline.build.changes import find_changes
from pipeline.cluster.ray_data import open_cluster
from pipeline.config.schema import Config, fingerprint
from pipeline.dataset import manifest
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation
from pipeline.errors import ConfigError
from pipeline.mine_choice import Tally
from pipeline.mine_pass import MiningPass
from pipeline.scorer import Scorer

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
    changes = find_changes(config, only)
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
