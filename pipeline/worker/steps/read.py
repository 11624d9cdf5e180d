"""Turns samples into rows: key, hashes, position, split, and the entry's overrides.

The only place where these are made, so that two sources cannot disagree on how.
"""

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

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
)
from pipeline.dataset.taken_down import refuse_taken_down
from pipeline.errors import ConfigError

ADDS = READ_COLUMNS

_SCHEMA = pa.schema([row_schema(1).field(name) for name in READ_COLUMNS])
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
    batches = constrained_batches(
        samples,
        _BYTES_PER_TABLE,
        _SAMPLES_PER_TABLE,
        get_len=lambda each: len(each.sample.image),
        strict=False,
    )
    for batch in itertools.chain(batches, [()]):
        yield refuse_taken_down(read_batch(batch, defaults), taken_down)


def read_batch(samples: Sequence[Positioned], defaults: SourceDefaults) -> pa.Table:
    """Rows with `READ_COLUMNS`; raises ConfigError for a label that is no target."""
    rows = [_read_sample(positioned, defaults) for positioned in samples]
    return pa.Table.from_pylist(rows, schema=_SCHEMA)


def _read_sample(positioned: Positioned, defaults: SourceDefaults) -> dict[str, object]:
    partition, ordinal, sample = positioned
    label = defaults.target or sample.label
    if label and label not in defaults.targets:
        raise ConfigError(
            f"source {defaults.source!r}: {storage.redact(sample.uri)} is labelled {label!r}, "
            f"but the targets are {', '.join(defaults.targets)}"
        )
    state = sample.label_state
    if label:
        state = "verified_present"
    elif state == "unknown" and defaults.label_state is not None:
        state = defaults.label_state
    content_hash = hashlib.sha256(sample.image).hexdigest()
    # Without a group from the source, equal bytes are the leakage unit.
    group = storage.redact(sample.group or content_hash)
    return {
        "key": make_key(defaults.source, partition, ordinal),
        "source": defaults.source,
        "partition": partition,
        "ordinal": ordinal,
        # Rows are stored and shown, and a URI may contain a password or a signature.
        "uri": storage.redact(sample.uri),
        "label": label,
        "label_state": state,
        "class_name": _text(sample.class_name),
        "stratum": None if label else defaults.stratum or sample.stratum,
        "group": group,
        "split": split_of(group, defaults.split_fractions),
        "license": sample.license and storage.redact(sample.license),
        "author": sample.author and storage.redact(sample.author),
        "rotation": sample.rotation,
        "doubt": sample.doubt,
        "content_hash": content_hash,
        "image": None if sample.refused else sample.image,
        "reject_reason": sample.refused,
    }


def _text(value: str | None) -> str | None:
    """Names of folders and values of JSON may not be UTF-8."""
    return None if value is None else storage.escape(value)
