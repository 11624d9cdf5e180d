"""A person's verdicts on suspected positives become a generation.

positive   it shows the target: selected with probability 1
negative   it does not: drawn like any other candidate of its source or, if a trained model
           suspected it, with the probability that mining gave it
drop       it is of no use: rejected, and removed from the quarantine
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.selection import SelectionConfig
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import RejectReason, with_columns
from pipeline.errors import ConfigError
from pipeline.selection.rule import load_rule, poisson_sample

Verdict = Literal["positive", "negative", "drop"]
VERDICTS: dict[str, Verdict] = {name: name for name in get_args(Verdict)}


def read_verdicts(uri: str) -> dict[str, Verdict]:
    """Verdicts by key, from a CSV with the columns key and verdict; raises ConfigError."""
    try:
        content = storage.read_bytes(uri)
    except FileNotFoundError:
        raise ConfigError(f"{storage.redact(uri)}: no such file; check --verdicts") from None
    rows = parse_verdicts(uri, content, ("key", "verdict"))
    return {row["key"]: verdict for row, verdict in rows}


def parse_verdicts(
    uri: str, content: bytes, columns: Sequence[str]
) -> Iterator[tuple[dict[str, str], Verdict]]:
    """Rows of a CSV and their verdicts; raises ConfigError that names the line at fault."""
    with storage.reading(uri):
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")))
        listed = [(rows.line_num, row) for row in rows]
    for line, row in listed:
        verdict = VERDICTS.get(row.get("verdict") or "")
        if verdict is None or not all(row.get(column) for column in columns):
            raise ConfigError(
                f"{storage.redact(uri)}, line {line}: wanted {', '.join(columns)} with a "
                f"verdict of {', '.join(VERDICTS)}, got {row}"
            )
        yield row, verdict


def apply_verdicts(root: str, verdicts: Mapping[str, Verdict], *, target: str) -> Generation:
    """Commits a generation with the verdicts.

    Raises ConfigError if a key is not in quarantine or `target` is not one of the data set's.
    """
    dataset = Dataset(root)
    info = dataset.read_info()
    if target not in info.targets:
        raise ConfigError(f"--target {target}: the data set has {', '.join(info.targets)}")
    with hold_lease(root) as lease:
        parent = dataset.read_generation()
        held = {
            key
            for file in parent.quarantine
            for key in dataset.read_table(file.sidecar_path, ["key"])["key"].to_pylist()
        }
        if missing := sorted(set(verdicts) - held):
            raise ConfigError(f"{root}: {missing[0]} is not in quarantine ({len(missing):,} keys)")
        generation = revise(
            dataset, parent, verdicts, lambda rows: _decide(rows, dataset, info, verdicts, target)
        )
        commit(dataset, generation, lease)
    return generation


def _decide(
    rows: pa.Table,
    dataset: Dataset,
    info: DatasetInfo,
    verdicts: Mapping[str, Verdict],
    target: str,
) -> pa.Table:
    """Rows of one source, decided by the verdicts."""
    if not rows.num_rows:
        return rows
    selection = SelectionConfig.model_validate(info.fingerprint_inputs["selection"])
    rule = load_rule(dataset, rows["source"][0].as_py(), selection)
    verdict_N = np.array([verdicts[key] for key in rows["key"].to_pylist()], object)
    is_positive_N, is_dropped_N = verdict_N == "positive", verdict_N == "drop"
    probability_N, selected_N = poisson_sample(
        rule,
        similarity_B=rows["similarity"].to_numpy(),
        content_hashes=rows["content_hash"].to_pylist(),
        is_positive_B=is_positive_N,
        is_train_B=rows["split"].to_numpy(zero_copy_only=False) == "train",
        # Only suspects that a trained model found have one.
        at_least_B=pc.fill_null(rows["inclusion_probability"], 0).to_numpy(),
    )
    is_positive = pa.array(is_positive_N)
    present = pa.scalar("verified_present"), pa.scalar("verified_absent")
    dropped = pa.scalar(RejectReason.TAKEN_DOWN.value), pa.scalar(None, pa.string())
    return with_columns(
        rows,
        label=pc.if_else(is_positive, target, ""),
        label_state=pc.if_else(is_positive, *present),
        doubt=pa.nulls(rows.num_rows, pa.string()),
        inclusion_probability=pa.array(probability_N, pa.float32(), mask=is_dropped_N),
        selected=pa.array(selected_N & ~is_dropped_N),
        reject_reason=pc.if_else(pa.array(is_dropped_N), *dropped),
    )
