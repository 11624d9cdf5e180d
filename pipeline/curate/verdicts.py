"""A person's verdicts on suspected positives become a generation.

positive   it shows the target: selected with probability 1
negative   it does not: drawn like any other candidate of its source or, if a trained model
           suspected it, with the probability that mining gave it
drop       it is of no use: taken down, which removes it from the quarantine, and its bytes from
           wherever else they are or come from later
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.selection import SelectionConfig
from pipeline.dataset import Dataset
from pipeline.dataset.commit import commit, complete
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import DatasetInfo, Generation, TakenDown
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import with_columns
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
        parent = complete(dataset)
        held = dict(_quarantined(dataset, parent))
        if missing := sorted(set(verdicts) - held.keys()):
            raise ConfigError(f"{root}: {missing[0]} is not in quarantine ({len(missing):,} keys)")
        dropped = frozenset(held[key] for key, verdict in verdicts.items() if verdict == "drop")
        generation = revise(
            dataset,
            parent,
            verdicts,
            lambda rows: decide(rows, dataset, info, verdicts, target),
            refused=TakenDown(content_hashes=dropped),
        )
        generation = commit(dataset, generation, lease, by="review")
    return generation


def _quarantined(dataset: Dataset, generation: Generation) -> Iterator[tuple[str, str]]:
    """Key and content hash of each sample in quarantine."""
    columns = ("key", "content_hash")
    for file in generation.quarantine:
        rows = dataset.read_table(file.sidecar_path, columns)
        yield from zip(*(rows[name].to_pylist() for name in columns), strict=True)


def decide(
    rows: pa.Table,
    dataset: Dataset,
    info: DatasetInfo,
    verdicts: Mapping[str, Verdict],
    target: str,
    at_least: Mapping[str, float] = MappingProxyType({}),
) -> pa.Table:
    """Rows of one source, decided by the verdicts; the others are about to be taken down.

    at_least: by key, the probability with which a sample came to be rated, whatever its source
    would have drawn it with.
    """
    if not rows.num_rows:
        return rows
    selection = SelectionConfig.model_validate(info.fingerprint_inputs["selection"])
    rule = load_rule(dataset, rows["source"][0].as_py(), selection)
    keys = rows["key"].to_pylist()
    verdict_N = np.array([verdicts.get(key, "drop") for key in keys], object)
    is_positive_N = verdict_N == "positive"
    # A suspect has one only if a trained model found it; that of a positive is no draw.
    recorded_N = pc.fill_null(rows["inclusion_probability"], 0).to_numpy()
    recorded_N = np.where(pc.equal(rows["label"], "").to_numpy(), recorded_N, np.float32(0))
    rated_N = np.array([at_least.get(key, 0.0) for key in keys], np.float32)
    probability_N, selected_N = poisson_sample(
        rule,
        similarity_B=rows["similarity"].to_numpy(),
        content_hashes=rows["content_hash"].to_pylist(),
        is_positive_B=is_positive_N,
        is_train_B=rows["split"].to_numpy(zero_copy_only=False) == "train",
        at_least_B=np.maximum(rated_N, recorded_N),
    )
    is_positive, is_dropped = pa.array(is_positive_N), pa.array(verdict_N == "drop")
    decided = {
        "label": pc.if_else(is_positive, target, ""),
        "label_state": pc.if_else(is_positive, "verified_present", "verified_absent"),
        "doubt": pa.nulls(rows.num_rows, pa.string()),
        "inclusion_probability": pa.array(probability_N, pa.float32()),
        "selected": pa.array(selected_N),
        "reject_reason": pa.nulls(rows.num_rows, pa.string()),
    }
    return with_columns(
        rows,
        **{name: pc.if_else(is_dropped, rows[name], column) for name, column in decided.items()},
    )
