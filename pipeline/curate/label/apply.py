"""Verdicts on candidates become a generation.

positive   selected with probability 1
negative   verified; its probability is the larger of the one that it was drawn with before and the
           one with which it came to be rated, 1 if it was picked

Others, and those on which people disagree, change nothing. The draw is that of the data set, by the
same random numbers, and so are all checks for duplicates and for what is taken down.
"""

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config.schema import Config
from pipeline.curate.label.candidates import Candidates
from pipeline.curate.label.log import Standing
from pipeline.curate.label.pictures import read_from_sources
from pipeline.curate.verdicts import VERDICTS, Verdict, decide
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import Generation
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import row_schema, with_columns
from pipeline.dataset.shards import LEDGER_COLUMNS
from pipeline.errors import ConfigError


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
        if not new:
            raise ConfigError(
                f"{config.output.path}: generation {parent.number} has all verdicts that were given"
            )
        info = dataset.read_info()
        verdicts = {found.describe(n)["key"]: verdict for n, verdict in new.items()}
        at_least = {found.describe(n)["key"]: standing.probability[found.hashes[n]] for n in new}

        def decide_again(rows: pa.Table) -> pa.Table:
            return decide(rows, dataset, info, verdicts, target, at_least)

        added = list(_read_added(config, found, list(new), decide_again))
        generation = revise(dataset, parent, verdicts, decide_again, added=added)
        generation = commit(dataset, generation, lease, by="label")
    return generation, len(new)


def _not_applied(found: Candidates, standing: Standing, target: str) -> dict[int, Verdict]:
    """Verdicts by position."""
    new: dict[int, Verdict] = {}
    for content_hash, probability in standing.probability.items():
        if content_hash in found.position:
            n = found.position[content_hash]
            verdict = VERDICTS[standing.verdicts[content_hash]]
            if not _is_applied(found, n, verdict, target, probability):
                new[n] = verdict
    return new


def _is_applied(
    found: Candidates, position: int, verdict: Verdict, target: str, probability: float
) -> bool:
    row = found.describe(position)
    if row["reject_reason"] is not None:
        return False
    if verdict == "positive":
        return bool(row["label"] == target)
    is_likely = row["inclusion_probability"] >= np.float32(probability)
    return bool(row["label"] == "" and row["label_state"] == "verified_absent" and is_likely)


def _read_added(
    config: Config,
    found: Candidates,
    positions: list[int],
    decide_again: Callable[[pa.Table], pa.Table],
) -> Iterator[tuple[int, pa.Table]]:
    """Rows that no shard holds and that are about to be selected, with image and embedding."""
    missing = [n for n in positions if n not in found.in_tars]
    ledger = found.rows.take(pa.array(missing, pa.int64()))
    for source in ledger["source"].unique().to_pylist():
        own = ledger.filter(pc.equal(ledger["source"], source))
        is_selected = decide_again(own.select(list(LEDGER_COLUMNS)))["selected"]
        own = own.filter(is_selected)
        images = dict(read_from_sources(config, own.to_pylist()))
        for number in own["round"].unique().to_pylist():
            rows = own.filter(pc.equal(own["round"], number))
            yield number, _with_pictures(found, rows, images)


def _with_pictures(found: Candidates, rows: pa.Table, images: dict[str, bytes]) -> pa.Table:
    hashes = rows["content_hash"].to_pylist()
    embedding_BD = found.embedding_ND[[found.position[each] for each in hashes]]
    schema = row_schema(embedding_BD.shape[1])
    embeddings = pa.FixedSizeListArray.from_arrays(
        pa.array(embedding_BD.ravel()), embedding_BD.shape[1]
    )
    rows = with_columns(
        rows,
        image=pa.array([images[each] for each in hashes], pa.large_binary()),
        embedding=embeddings,
    )
    return rows.select(schema.names).cast(schema)
