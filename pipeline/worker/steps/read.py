"""Turns samples into rows: key, hashes, position, split, and the entry's overrides.

The only place where these are made, so that two sources cannot disagree on how.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import pyarrow as pa
from more_itertools import constrained_batches

from pipeline import storage
from pipeline.config.schema import Config, SourceEntry
from pipeline.dataset.keys import make_key, split_of
from pipeline.dataset.metadata import TakenDown
from pipeline.dataset.schema import (
    READ_COLUMNS,
    LabelState,
    Positioned,
    Split,
    Stratum,
    row_schema,
    with_columns,
)
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.errors import ConfigError

ADDS = READ_COLUMNS

# Of a sample as its source has it, whatever the config.
FACT_COLUMNS = tuple(name for name in READ_COLUMNS if name not in ("key", "source", "split"))

_SCHEMA = pa.schema([row_schema(1).field(name) for name in READ_COLUMNS])
_FACTS = pa.schema([_SCHEMA.field(name) for name in FACT_COLUMNS])
_LABELLED_BY = ["partition", "ordinal", "uri", "label", "label_state", "stratum", "group"]
_LABELLED = ("key", "source", "label", "label_state", "stratum", "split")
# Original images in memory at once; a larger one is alone.
_SAMPLES_PER_TABLE, _BYTES_PER_TABLE = 64, 256 << 20


@dataclass(frozen=True, kw_only=True)
class SourceDefaults:
    """The values that the config gives to every sample of a source."""

    source: str
    targets: tuple[str, ...]
    split_fractions: Mapping[Split, float]
    target: str | None = None  # positives: every sample shows this
    stratum: Stratum | None = None
    label_state: LabelState | None = None  # for samples whose source does not know

    @classmethod
    def of(cls, config: Config, entry: SourceEntry) -> Self:
        is_positive = config.role_of(entry) == "positive"
        return cls(
            source=entry.name,
            targets=config.target_names,
            split_fractions=config.split.fractions,
            target=(entry.target or config.target_names[0]) if is_positive else None,
            stratum=entry.stratum,
            label_state=entry.label_state,
        )


def read_rows(
    samples: Iterable[Positioned], defaults: SourceDefaults, taken_down: TakenDown
) -> Iterator[pa.Table]:
    """Tables of rows, read but not decoded; the last one is empty."""
    for facts in read_facts(samples):
        yield refuse_taken_down(label_rows(facts, defaults), taken_down)


def read_batch(samples: Sequence[Positioned], defaults: SourceDefaults) -> pa.Table:
    """Rows with `READ_COLUMNS`; raises ConfigError for a label that is no target."""
    return label_rows(_facts_of(samples), defaults)


def read_facts(samples: Iterable[Positioned]) -> Iterator[pa.Table]:
    """Tables of what does not depend on a config, `FACT_COLUMNS`; the last one is empty."""
    batches = constrained_batches(
        samples,
        _BYTES_PER_TABLE,
        _SAMPLES_PER_TABLE,
        get_len=lambda each: len(each.sample.image),
        strict=False,
    )
    for batch in itertools.chain(batches, [()]):
        yield _facts_of(batch)


def label_rows(facts: pa.Table, defaults: SourceDefaults) -> pa.Table:
    """Adds what a config gives: rows with the columns of `facts`, and all of `READ_COLUMNS`.

    facts: without `image`, none is added. Raises ConfigError for a label that is no target.
    """
    labelled = [_label(row, defaults) for row in facts.select(_LABELLED_BY).to_pylist()]
    columns = {
        name: pa.array([row[name] for row in labelled], _SCHEMA.field(name).type)
        for name in _LABELLED
    }
    rows = with_columns(facts, **columns)
    return rows.select(
        [name for name in READ_COLUMNS if name in rows.column_names]
        + [name for name in facts.column_names if name not in READ_COLUMNS]
    )


def _facts_of(samples: Sequence[Positioned]) -> pa.Table:
    return pa.Table.from_pylist([_read_sample(each) for each in samples], schema=_FACTS)


def _read_sample(positioned: Positioned) -> dict[str, object]:
    partition, ordinal, sample = positioned
    content_hash = hashlib.sha256(sample.image).hexdigest()
    return {
        "partition": partition,
        "ordinal": ordinal,
        # Rows are stored and shown, and a URI may contain a password or a signature.
        "uri": storage.redact(sample.uri),
        "label": sample.label,
        "label_state": sample.label_state,
        "class_name": _text(sample.class_name),
        "stratum": sample.stratum,
        # Without a group from the source, equal bytes are the leakage unit.
        "group": storage.redact(sample.group or content_hash),
        "license": sample.license and storage.redact(sample.license),
        "author": sample.author and storage.redact(sample.author),
        "rotation": sample.rotation,
        "doubt": sample.doubt,
        "content_hash": content_hash,
        "image": None if sample.refused else sample.image,
        "reject_reason": sample.refused,
    }


def _label(row: Mapping[str, Any], defaults: SourceDefaults) -> dict[str, object]:
    label = defaults.target or row["label"]
    if label and label not in defaults.targets:
        raise ConfigError(
            f"source {defaults.source!r}: {row['uri']} is labelled {label!r}, "
            f"but the targets are {', '.join(defaults.targets)}"
        )
    state = row["label_state"]
    if label:
        state = "verified_present"
    elif state == "unknown" and defaults.label_state is not None:
        state = defaults.label_state
    return {
        "key": make_key(defaults.source, row["partition"], row["ordinal"]),
        "source": defaults.source,
        "label": label,
        "label_state": state,
        "stratum": None if label else defaults.stratum or row["stratum"],
        "split": split_of(row["group"], defaults.split_fractions),
    }


def _text(value: str | None) -> str | None:
    """Names of folders and values of JSON may not be UTF-8."""
    return None if value is None else storage.escape(value)
