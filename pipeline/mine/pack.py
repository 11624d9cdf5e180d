"""Decided rounds become the shards and tables of a new generation."""

from collections.abc import Mapping, Sequence

from pipeline.build.pack import ShardTask, cut_shards, pack_shards
from pipeline.cluster.workers import Cluster
from pipeline.config.schema import Config
from pipeline.dataset import Dataset
from pipeline.dataset.metadata import Generation, SourceRecord, add_counts
from pipeline.dataset.shards import sort_files
from pipeline.mine.choose import ChosenRound
from pipeline.mine.shards import Change, replace_shards


def pack_generation(
    config: Config,
    parent: Generation,
    chosen: Sequence[ChosenRound],
    changes: Mapping[str, Change],
    numbers: dict[str, int],
    cluster: Cluster,
) -> Generation:
    """Writes all shards of a generation; returns it, to be committed.

    changes: of earlier selected samples, by key. numbers: `next_numbers` as far as they are used;
    updated.
    """
    tasks: list[ShardTask] = []
    for each in chosen:
        tasks += cut_shards(
            each.parts,
            source=each.round.source,
            samples_per_shard=config.output.samples_per_shard,
            round_number=each.round.number,
            next_numbers=numbers,
        )
    shards, quarantine = sort_files(pack_shards(config, tasks, cluster))
    names = {each.round.source for each in chosen}
    dataset = Dataset(config.output.path)
    earlier = tuple(replace_shards(dataset, parent, names, changes, numbers=numbers))
    update = {
        "number": parent.number + 1,
        "parent": parent.number,
        "sources": tuple(_updated(source, chosen) for source in parent.sources),
        "shards": (*earlier, *shards),
        "quarantine": (*parent.quarantine, *quarantine),
        "next_numbers": dict(sorted(numbers.items())),
    }
    return parent.model_copy(update=update)


def _updated(source: SourceRecord, chosen: Sequence[ChosenRound]) -> SourceRecord:
    """The record of a source with its new tables, if it was mined."""
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
