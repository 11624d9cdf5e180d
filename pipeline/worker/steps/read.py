"""Makes rows of what a source yields: key, hashes, position, split, and the entry's overrides.

The one place where these are made, so that two sources cannot disagree on how.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.dataset.keys import make_key, split_of
from pipeline.dataset.metadata import TakenDown, is_taken_down
from pipeline.dataset.schema import (
    READ_COLUMNS,
    LabelState,
    Positioned,
    RejectReason,
    Split,
    Stratum,
    row_schema,
    with_columns,
)
from pipeline.errors import ConfigError

ADDS = READ_COLUMNS


_SCHEMA = pa.schema([row_schema(1).field(name) for name in READ_COLUMNS])


@dataclass(frozen=True, kw_only=True)
class SourceDefaults:
    """Where samples come from, and what the config says of all of them."""

    source: str
    targets: tuple[str, ...]
    split_fractions: Mapping[Split, float]
    target: str | None = None  # positives: every sample shows this
    stratum: Stratum | None = None
    label_state: LabelState | None = None


def read_batch(samples: Sequence[Positioned], origin: SourceDefaults) -> pa.Table:
    """Rows with `READ_COLUMNS`; raises ConfigError for a label that is no target."""
    rows = [_read_sample(positioned, origin) for positioned in samples]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _read_sample(positioned: Positioned, origin: SourceDefaults) -> dict[str, object]:
    partition, ordinal, sample = positioned
    label = origin.target or sample.label
    if label and label not in origin.targets:
        raise ConfigError(
            f"source {origin.source!r}: {storage.redact(sample.uri)} is labelled {label!r}, "
            f"but the targets are {', '.join(origin.targets)}"
        )
    state = sample.label_state
    if label:
        state = "verified_present"
    elif state == "unknown" and origin.label_state is not None:
        state = origin.label_state
    content_hash = hashlib.sha256(sample.image).hexdigest()
    # Where nothing else is known, equal bytes are the leakage unit.
    group = storage.redact(sample.group or content_hash)
    return {
        "key": make_key(origin.source, partition, ordinal),
        "source": origin.source,
        "partition": partition,
        "ordinal": ordinal,
        # Rows are stored and shown, and an address may hold a password or a signature.
        "uri": storage.redact(sample.uri),
        "label": label,
        "label_state": state,
        "class_name": sample.class_name,
        "stratum": None if label else origin.stratum or sample.stratum,
        "group": group,
        "split": split_of(group, origin.split_fractions),
        "license": sample.license,
        "author": sample.author,
        "rotation": sample.rotation,
        "doubt": sample.doubt,
        "content_hash": content_hash,
        "image": sample.image,
        "reject_reason": None,
    }


def refuse_batch(rows: pa.Table, taken_down: TakenDown) -> pa.Table:
    """Rejects the rows that are taken down; their image goes."""
    refused = is_taken_down(rows, taken_down)
    reasons = pc.if_else(refused, RejectReason.TAKEN_DOWN.value, rows["reject_reason"])
    images = pc.if_else(refused, pa.scalar(None, pa.large_binary()), rows["image"])
    return with_columns(rows, reject_reason=reasons, image=images)
