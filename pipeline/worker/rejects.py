"""Stops a run when too much of its input is bad."""

from collections.abc import Mapping, Sequence

import pyarrow as pa

from pipeline.config.schema import SourceEntry
from pipeline.dataset.metadata import Counts, add_counts
from pipeline.dataset.schema import Partition, RejectReason
from pipeline.errors import InfinegError, TooManyRejects

_MIN_READ_TO_STOP = 100
# Reasons that mean bad data. The others are about labels and do not stop a run.
_BAD_DATA = frozenset(
    {
        RejectReason.UNREADABLE,
        RejectReason.TRUNCATED,
        RejectReason.TOO_SMALL,
        RejectReason.TOO_LARGE,
        RejectReason.BAD_ASPECT,
        RejectReason.UNSUPPORTED_MODE,
        RejectReason.CRASHED,
        RejectReason.PRIVATE_ADDRESS,
    }
)
_ARE_YOURS = "If the private addresses are yours, set `params.allow_private: true`."
_OPEN_IT = "Open that file: it may be an error page, or cut off."


def check_rejects(
    entry: SourceEntry,
    partitions: Sequence[Partition],
    counts: Sequence[Counts],
    rows: pa.Table,
) -> None:
    """Raises TooManyRejects if the rejects of a span exceed `max_reject_fraction` of its source.

    counts: of the parts of the span so far; rows: of its last part.
    """
    total = add_counts(counts)
    bad = {reason: n for reason, n in total.rejected.items() if reason in _BAD_DATA}
    num_bad = sum(bad.values())
    if total.read < _MIN_READ_TO_STOP or num_bad <= entry.max_reject_fraction * total.read:
        return
    commonest = sorted(bad.items(), key=lambda item: -item[1])
    reasons = rows["reject_reason"].to_pylist()
    examples = (
        uri
        for uri, reason in zip(rows["uri"].to_pylist(), reasons, strict=True)
        if reason in _BAD_DATA
    )
    # After the limit was lowered, all of them may be in parts that are committed already.
    example = next(examples, "in an earlier part")
    where = " to ".join(dict.fromkeys((partitions[0].id, partitions[-1].id)))
    advice = (
        "Raise `max_reject_fraction` of this entry only if the source is known to be like this, "
        "then run again: it resumes."
    )
    if num_bad == total.read:
        advice = f"{_advice(bad)} Replace the files or check its params, {_again(entry.name)}."
    raise TooManyRejects(
        f"source {entry.name!r}, partition {where}: {num_bad:,} of {total.read:,} samples "
        f"rejected ({', '.join(f'{reason} {n:,}' for reason, n in commonest)}), limit "
        f"{entry.max_reject_fraction:.0%}. Example: {example}. {advice}"
    )


def refuse_unusable(source: str, num_read: int, rejected: Mapping[str, int], example: str) -> None:
    """Raises an InfinegError for a source, of any size, of which no sample is usable.

    rejected: by reason; example: the URI of a sample, if there is one.
    """
    bad = {reason: n for reason, n in rejected.items() if reason in _BAD_DATA}
    if sum(bad.values()) < num_read:
        return
    again = _again(source)
    if not num_read:
        raise InfinegError(
            f"source {source!r}: no sample in it; check its params, e.g. which classes it leaves "
            f"out, {again}"
        )
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(bad.items()))
    raise TooManyRejects(
        f"source {source!r}: none of its {num_read:,} samples is usable ({reasons}). Example: "
        f"{example}. {_advice(bad)} Replace the files or check its params, {again}."
    )


def _advice(bad: Mapping[str, int]) -> str:
    return _ARE_YOURS if RejectReason.PRIVATE_ADDRESS in bad else _OPEN_IT


def _again(source: str) -> str:
    return (
        f"then remove plans/{source}.json of the data set, if it is there, so that the source is "
        "read again"
    )
