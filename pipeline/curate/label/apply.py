"""Verdicts on candidates become a generation.

positive     selected with probability 1
negative     verified; its probability is the larger of the one that it was drawn with before and
             the one with which it came to be rated, 1 if it was picked
taken back   as it was before it was rated, as is what people disagree on or are unsure of

The draw is that of the data set, by the same random numbers, and so are all checks for duplicates
and for what is taken down.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.schema import Config
from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.log import Standing
from pipeline.curate.label.pictures import read_from_sources
from pipeline.curate.verdicts import VERDICTS, Verdict, decide
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import row_schema, with_columns
from pipeline.dataset.shards import LEDGER_COLUMNS, output_groups
from pipeline.errors import ConfigError, InfinegError

_DECIDED = (
    "label", "label_state", "doubt", "inclusion_probability", "selected", "reject_reason",
)  # fmt: skip


def apply_labels(
    config: Config,
    target: str,
    standing: Standing,
    read: Callable[[Generation], Candidates],
) -> tuple[Generation, int]:
    """Commits a generation with all verdicts that the latest one lacks; returns it, their number.

    read: the candidates of a generation. Raises ConfigError if there is nothing new, and
    InfinegError while a build holds the data set or if a picture cannot be read from its source.
    """
    dataset = Dataset(config.output.path)
    with hold_lease(dataset.root) as lease:
        parent = complete(dataset)
        found = read(parent)
        new = _not_applied(found, standing, target)
        taken_back = _taken_back(found, standing)
        if not new and not taken_back:
            raise ConfigError(
                f"{config.output.path}: generation {parent.number} has all verdicts that were given"
            )
        key_of = {n: found.describe(n)["key"] for n in new}
        changes = _Changes(
            dataset,
            dataset.read_info(),
            target,
            verdicts={key_of[n]: verdict for n, verdict in new.items()},
            at_least={key_of[n]: standing.probability[found.hashes[n]] for n in new},
            restored=_read_before(dataset, parent, standing, taken_back),
        )
        positions = [*new, *(found.position[each] for each in taken_back.values())]
        added = list(_read_added(config, found, positions, changes.decide))
        keys = [*changes.verdicts, *changes.restored]
        generation = revise(dataset, parent, keys, changes.decide, added=added)
        generation = commit(dataset, generation, lease, by="label")
    return generation, len(keys)


@dataclass(frozen=True)
class _Changes:
    """What becomes of rows, by key; restored: rows as they are to be again."""

    dataset: Dataset
    info: DatasetInfo
    target: str
    verdicts: Mapping[str, Verdict]
    at_least: Mapping[str, float]
    restored: Mapping[str, Mapping[str, Any]]

    def decide(self, rows: pa.Table) -> pa.Table:
        rows = decide(rows, self.dataset, self.info, self.verdicts, self.target, self.at_least)
        if not rows.num_rows:
            return rows
        earlier = [self.restored.get(key) for key in rows["key"].to_pylist()]
        is_restored = pa.array([each is not None for each in earlier])
        columns = {
            name: pc.if_else(
                is_restored,
                pa.array([each and each[name] for each in earlier], rows.schema.field(name).type),
                rows[name],
            )
            for name in _DECIDED
        }
        return with_columns(rows, **columns)


def _not_applied(found: Candidates, standing: Standing, target: str) -> dict[int, Verdict]:
    """Verdicts by position."""
    new: dict[int, Verdict] = {}
    for content_hash, probability in standing.probability.items():
        if content_hash in found.position:
            n = found.position[content_hash]
            verdict = VERDICTS[standing.verdicts[content_hash]]
            if not _is_applied(found.describe(n), verdict, target, probability):
                new[n] = verdict
    return new


def _is_applied(row: Mapping[str, Any], verdict: Verdict, target: str, probability: float) -> bool:
    if row["reject_reason"] is not None:
        return False
    if verdict == "positive":
        return bool(row["label"] == target)
    is_likely = row["inclusion_probability"] >= np.float32(probability)
    return bool(row["label"] == "" and row["label_state"] == "verified_absent" and is_likely)


def _taken_back(found: Candidates, standing: Standing) -> dict[str, str]:
    """Content hashes by key of what was applied and is neither positive nor negative any more."""
    taken_back = {}
    for content_hash, state in standing.label_states.items():
        if content_hash in found.position and content_hash not in standing.probability:
            row = found.describe(found.position[content_hash])
            if (row["label"], row["label_state"]) != ("", state):
                taken_back[row["key"]] = content_hash
    return taken_back


def _read_before(
    dataset: Dataset, parent: Generation, standing: Standing, taken_back: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Rows by key, of the latest generation in which they were not rated.

    Raises InfinegError if none tells any more.
    """
    before: dict[str, dict[str, Any]] = {}
    number = parent.parent
    while number is not None and before.keys() != taken_back.keys():
        generation = dataset.read_generation(number)
        for row in _rows_of(dataset, generation, taken_back.keys() - before.keys()):
            unrated = ("", standing.label_states[taken_back[row["key"]]])
            if (row["label"], row["label_state"]) == unrated:
                before[row["key"]] = row
        number = generation.parent
    if missing := sorted(taken_back.keys() - before.keys()):
        raise InfinegError(
            f"{dataset.root}: no earlier generation tells what {missing[0]} was before it was "
            "rated; rate it again instead of taking it back"
        )
    return before


def _rows_of(
    dataset: Dataset, generation: Generation, keys: Collection[str]
) -> Iterator[dict[str, Any]]:
    wanted = pa.array(sorted(keys), pa.string())
    for source in generation.sources:
        for ledger in source.ledger:
            if storage.exists(dataset.uri(ledger.path)):  # else it was purged
                rows = dataset.read_table(ledger.path, LEDGER_COLUMNS, sha256=ledger.sha256)
                yield from rows.filter(pc.is_in(rows["key"], value_set=wanted)).to_pylist()


def _read_added(
    config: Config,
    found: Candidates,
    positions: list[int],
    decide_again: Callable[[pa.Table], pa.Table],
) -> Iterator[tuple[int, pa.Table]]:
    """Rows that no shard holds and one is about to, with image and embedding."""
    missing = [n for n in positions if n not in found.in_tars]
    ledger = found.rows.take(pa.array(missing, pa.int64()))
    for source in ledger["source"].unique().to_pylist():
        own = ledger.filter(pc.equal(ledger["source"], source))
        groups = output_groups(decide_again(own.select(list(LEDGER_COLUMNS))))
        own = own.filter(pa.array([bool(group) for group in groups], pa.bool_()))
        images = dict(read_from_sources(config, own.to_pylist()))
        for number in own["round"].unique().to_pylist():
            rows = own.filter(pc.equal(own["round"], number))
            yield number, _with_pictures(found, rows, images)


def _with_pictures(found: Candidates, rows: pa.Table, images: Mapping[str, bytes]) -> pa.Table:
    hashes = rows["content_hash"].to_pylist()
    embedding_BD = found.embedding_ND[[found.position[each] for each in hashes]]
    dim = embedding_BD.shape[1]
    schema = row_schema(dim)
    rows = with_columns(
        rows,
        image=pa.array([images[each] for each in hashes], pa.large_binary()),
        embedding=pa.FixedSizeListArray.from_arrays(pa.array(embedding_BD.ravel()), dim),
    )
    return rows.select(schema.names).cast(schema)
