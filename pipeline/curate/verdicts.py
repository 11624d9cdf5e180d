"""What a person says of suspected positives becomes a generation.

positive   it shows the target: selected, with probability 1
negative   it does not: it is drawn as any other candidate of its source; one that a trained model
           suspected, with the probability that mining gave it
drop       neither: it is out, and out of the quarantine
"""

import csv
import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.config.selection import SelectionConfig
from pipeline.dataset import manifest
from pipeline.dataset.commit import commit
from pipeline.dataset.lease import hold_lease
from pipeline.dataset.metadata import DatasetInfo, Generation
from pipeline.dataset.revise import revise
from pipeline.dataset.schema import RejectReason
from pipeline.errors import ConfigError
from pipeline.selection.rule import draw, load_rule

Verdict = Literal["positive", "negative", "drop"]
VERDICTS: dict[str, Verdict] = {"positive": "positive", "negative": "negative", "drop": "drop"}


def read_verdicts(uri: str) -> dict[str, Verdict]:
    """A CSV with the columns key and verdict; raises ConfigError that names the line at fault."""
    text = storage.read_bytes(uri).decode("utf-8-sig")
    rows = csv.DictReader(io.StringIO(text))
    verdicts: dict[str, Verdict] = {}
    for row in rows:
        key, verdict = row.get("key"), VERDICTS.get(row.get("verdict") or "")
        if not key or verdict is None:
            raise ConfigError(
                f"{storage.redact(uri)}, line {rows.line_num}: wanted columns key and verdict, the "
                f"latter one of {', '.join(VERDICTS)}, got {row}"
            )
        verdicts[key] = verdict
    return verdicts


def apply_verdicts(root: str, verdicts: Mapping[str, Verdict], *, target: str) -> Generation:
    """Commits a generation that heeds the verdicts.

    Raises ConfigError where a key is not in quarantine, or `target` is no target.
    """
    info = manifest.require_info(root)
    if target not in info.targets:
        raise ConfigError(f"--target {target}: the data set has {', '.join(info.targets)}")
    with hold_lease(root) as lease:
        parent = manifest.read_generation(root)
        held = {
            key
            for file in parent.quarantine
            for key in manifest.read_table(root, file.sidecar_path, ["key"])["key"].to_pylist()
        }
        if missing := sorted(set(verdicts) - held):
            raise ConfigError(f"{root}: {missing[0]} is not in quarantine ({len(missing):,} keys)")
        generation = revise(
            root, parent, verdicts, lambda rows: _decide(rows, root, info, verdicts, target)
        )
        commit(root, generation, lease)
    return generation


def _decide(
    rows: pa.Table, root: str, info: DatasetInfo, verdicts: Mapping[str, Verdict], target: str
) -> pa.Table:
    """Rows of one source as the verdicts have it."""
    if not rows.num_rows:
        return rows
    selection = SelectionConfig.model_validate(info.fingerprint_inputs["selection"])
    rule = load_rule(root, rows["source"][0].as_py(), selection)
    verdict_N = np.array([verdicts[key] for key in rows["key"].to_pylist()], object)
    is_positive_N, is_dropped_N = verdict_N == "positive", verdict_N == "drop"
    probability_N, selected_N = draw(
        rule,
        similarity_B=rows["similarity"].to_numpy(),
        content_hashes=rows["content_hash"].to_pylist(),
        is_positive_B=is_positive_N,
        is_train_B=rows["split"].to_numpy(zero_copy_only=False) == "train",
        # Of suspects, only those of a trained model have one.
        at_least_B=pc.fill_null(rows["inclusion_probability"], 0).to_numpy(),
    )
    is_positive = pa.array(is_positive_N)
    present = pa.scalar("verified_present"), pa.scalar("verified_absent")
    dropped = pa.scalar(RejectReason.TAKEN_DOWN.value), pa.scalar(None, pa.string())
    decided = {
        "label": pc.if_else(is_positive, target, ""),
        "label_state": pc.if_else(is_positive, *present),
        "doubt": pa.nulls(rows.num_rows, pa.string()),
        "inclusion_probability": pa.array(probability_N, pa.float32(), mask=is_dropped_N),
        "selected": pa.array(selected_N & ~is_dropped_N),
        "reject_reason": pc.if_else(pa.array(is_dropped_N), *dropped),
    }
    for name, column in decided.items():
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return rows
