"""`train.mixture`: how often the samples of each source are drawn, and what they then weigh.

Positives and negatives are drawn separately. Each of them is a mix of streams: one per entry of
`train.mixture`, and one of all other sources in their natural proportions. Shares are rounded to
1/1000, so that every 1,000 consecutive positives (or negatives) hold exact counts.

A mixture changes, on purpose, the population that the loss is about. Each sample keeps its
inclusion_probability. `proportion` sets a stream's share of the samples drawn and also its share
of the negatives' weight in the loss (before `max_weight` clips); within the stream, samples still
weigh 1 / inclusion_probability. `repeat` multiplies both natural shares: `repeat: 1` changes
nothing.

Shapes: N rows of the train split, C streams.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from train.config import WINDOW, MixtureEntry, Polarity, TrainConfig
from train.data.order import Stream
from train.data.rows import TrainRows

_log = logging.getLogger(__name__)
_POLARITIES: tuple[Polarity, Polarity] = ("positives", "negatives")
_TOLERANCE = 1e-9  # of sums of shares


@dataclass(frozen=True)
class StreamShare:
    """A stream, and the entry and shards that it comes from."""

    stream: Stream
    entry: MixtureEntry | None  # None: the sources that no entry names
    shards: tuple[int, ...]
    importance_factor: float  # multiplies 1 / pi of its rows

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.stream.shards))

    def repetition(self, num_draws: int) -> float:
        """Draws of each row, out of num_draws of all positives (or of all negatives)."""
        return num_draws * self.stream.count / WINDOW / self.num_rows


@dataclass(frozen=True)
class Mixture:
    """Streams of both classes. draw_rate_N: draws of a row, relative to those without a mixture."""

    positives: tuple[StreamShare, ...]
    negatives: tuple[StreamShare, ...]
    importance_factor_N: NDArray[np.float64]
    draw_rate_N: NDArray[np.float64]


def mix(rows: TrainRows, entries: Sequence[MixtureEntry]) -> Mixture:
    """Raises ConfigError for entries that match no source, overlap, or do not add up."""
    entries_of: dict[Polarity, list[MixtureEntry]] = {"positives": [], "negatives": []}
    for entry in entries:
        entries_of[_polarity_of(entry, rows)].append(entry)
    shares = {
        polarity: _streams_of(rows, polarity, of_polarity)
        for polarity, of_polarity in entries_of.items()
    }
    factors, rates = np.ones(len(rows.shards)), np.ones(len(rows.shards))
    for streams in shares.values():
        num_rows = sum(share.num_rows for share in streams)
        for share in streams:
            factors[list(share.shards)] = share.importance_factor
            rates[list(share.shards)] = share.repetition(num_rows)
    sizes = np.diff(rows.starts)
    return Mixture(
        positives=shares["positives"],
        negatives=shares["negatives"],
        importance_factor_N=np.repeat(factors, sizes),
        draw_rate_N=np.repeat(rates, sizes),
    )


def check_repetition(train_config: TrainConfig, mixture: Mixture) -> None:
    """Raises ConfigError where samples would be drawn more often than their entry allows.

    Warns where positives are drawn more often than train.max_repetition_factor, unless the head is
    a logistic regression, which has one solution however often they are.
    """
    num_positives = train_config.steps * train_config.num_positives
    _refuse_repetition(mixture.positives, num_positives)
    _refuse_repetition(mixture.negatives, train_config.num_samples - num_positives)
    for share in mixture.positives if not train_config.is_logistic else ():
        repetition = share.repetition(num_positives)
        if repetition > train_config.max_repetition_factor:
            _log.warning(
                "each of the %s positives%s is drawn %.0f times, over train.max_repetition_factor "
                "%g; fewer train.steps, a smaller train.positive_share or more positives help",
                f"{share.num_rows:,}", f" of {share.entry.source}" if share.entry else "",
                repetition, train_config.max_repetition_factor,
            )  # fmt: skip


def _refuse_repetition(shares: Sequence[StreamShare], num_draws: int) -> None:
    for share in shares:
        entry, repetition = share.entry, share.repetition(num_draws)
        limit = entry and entry.max_repetition_factor
        if entry and limit and repetition > limit:
            fits = limit * share.num_rows / num_draws
            raise ConfigError(
                f"train.mixture: each of the {share.num_rows:,} samples of {entry.source} would "
                f"be drawn {repetition:.1f} times, over its max_repetition_factor {limit:g}; "
                f"lower its share from {share.stream.count / WINDOW:g} to at most {fits:.3g}, "
                "lower train.steps, or add samples"
            )


def _polarity_of(entry: MixtureEntry, rows: TrainRows) -> Polarity:
    found: list[Polarity] = [
        polarity
        for polarity in _POLARITIES
        if entry.stream in (None, polarity) and _matching_sources(entry, rows, polarity)
    ]
    if not found:
        names = (f"{each}: {', '.join(_sources(rows, each))}" for each in _POLARITIES)
        wanted = "training samples" if entry.stream is None else entry.stream
        raise ConfigError(
            f"train.mixture: no source with {wanted} matches {entry.source!r}. "
            f"Sources are {'; '.join(names)}"
        )
    if len(found) == 2:
        raise ConfigError(
            f"train.mixture: {entry.source!r} has positives and negatives; "
            "add stream: positives or stream: negatives"
        )
    return found[0]


def _shards(rows: TrainRows, polarity: Polarity) -> list[int]:
    """Shards without rows included: the order permutes shards."""
    is_positive = polarity == "positives"
    return [n for n, shard in enumerate(rows.shards) if bool(shard.label) == is_positive]


def _sources(rows: TrainRows, polarity: Polarity) -> list[str]:
    sizes = np.diff(rows.starts)
    return sorted({rows.shards[n].source for n in _shards(rows, polarity) if sizes[n]})


def _matching_sources(entry: MixtureEntry, rows: TrainRows, polarity: Polarity) -> set[str]:
    return {name for name in _sources(rows, polarity) if fnmatchcase(name, entry.source)}


def _streams_of(
    rows: TrainRows, polarity: Polarity, entries: Sequence[MixtureEntry]
) -> tuple[StreamShare, ...]:
    """The streams of all positives or all negatives, those of entries first."""
    groups = _group_shards(rows, polarity, entries)
    sizes = np.diff(rows.starts)
    size_C = np.array([sizes[members].sum() for _, members in groups])
    share_C = _wanted_shares([entry for entry, _ in groups], size_C, polarity)
    count_C = _round_shares(share_C)
    factor_C = _importance_factors(
        share_C,
        count_C / WINDOW,
        np.array([_mean_weight(rows, members) for _, members in groups]),
        np.array([e is not None and e.proportion is not None for e, _ in groups]),
        size_C,
    )
    return tuple(
        StreamShare(
            stream=Stream(
                [range(rows.starts[n], rows.starts[n + 1]) for n in members],
                int(count),
                # By name, so that the order of entries does not matter.
                () if entry is None else (crc32(entry.source.encode()),),
            ),
            entry=entry,
            shards=tuple(members),
            importance_factor=float(factor),
        )
        for (entry, members), count, factor in zip(groups, count_C, factor_C, strict=True)
    )


def _group_shards(
    rows: TrainRows, polarity: Polarity, entries: Sequence[MixtureEntry]
) -> list[tuple[MixtureEntry | None, list[int]]]:
    """The shards of each entry; last, if there are any, those of sources that no entry names."""
    entry_of: dict[str, MixtureEntry] = {}
    for entry in entries:
        for name in _matching_sources(entry, rows, polarity):
            if name in entry_of:
                raise ConfigError(
                    f"train.mixture: source {name} is in {entry_of[name].source!r} and in "
                    f"{entry.source!r}"
                )
            entry_of[name] = entry
    shards = _shards(rows, polarity)
    groups: list[tuple[MixtureEntry | None, list[int]]] = [
        (entry, [n for n in shards if entry_of.get(rows.shards[n].source) is entry])
        for entry in entries
    ]
    if rest := [n for n in shards if rows.shards[n].source not in entry_of]:
        groups.append((None, rest))
    return groups


def _wanted_shares(
    entries: Sequence[MixtureEntry | None], size_C: NDArray[np.int64], polarity: Polarity
) -> NDArray[np.float64]:
    natural_C = size_C / size_C.sum()
    share_C = np.zeros(len(entries))
    for number, entry in enumerate(entries):
        if entry is not None:
            repeated = natural_C[number] * (1.0 if entry.repeat is None else entry.repeat)
            share_C[number] = repeated if entry.proportion is None else entry.proportion
    total = float(share_C.sum())
    listed = ", ".join(
        f"{entry.source} {share:.3g}"
        for entry, share in zip(entries, share_C, strict=True)
        if entry
    )
    if total > 1 + _TOLERANCE:
        raise ConfigError(f"train.mixture: shares of {polarity} add up to {total:.4g} ({listed})")
    if entries[-1] is None:
        share_C[-1] = max(1 - total, 0)
    elif total < 1 - _TOLERANCE:
        raise ConfigError(
            f"train.mixture: shares of {polarity} add up to {total:.4g} ({listed}), and no other "
            "source is left for the rest"
        )
    return share_C


def _mean_weight(rows: TrainRows, members: Sequence[int]) -> float:
    inverse_N = rows.inverse_probability_N
    total = sum(
        float(inverse_N[rows.starts[n] : rows.starts[n + 1]].sum(dtype=np.float64)) for n in members
    )
    return total / int(np.diff(rows.starts)[list(members)].sum())


def _round_shares(share_C: NDArray[np.float64]) -> NDArray[np.int64]:
    """count_C out of `WINDOW`, by largest remainder; at least 1 for every share above 0."""
    exact_C = share_C / share_C.sum() * WINDOW
    count_C: NDArray[np.int64] = np.floor(exact_C).astype(np.int64)
    missing = WINDOW - int(count_C.sum())
    count_C[np.argsort(count_C - exact_C, kind="stable")[:missing]] += 1
    for starved in np.flatnonzero((count_C == 0) & (share_C > _TOLERANCE)):
        count_C[count_C.argmax()] -= 1
        count_C[starved] = 1
    return count_C


def _importance_factors(
    share_C: NDArray[np.float64],
    drawn_C: NDArray[np.float64],
    mean_weight_C: NDArray[np.float64],
    is_stated_C: NDArray[np.bool_],
    size_C: NDArray[np.int64],
) -> NDArray[np.float64]:
    """factor_C that multiplies 1 / pi of each stream's rows; 1 for a stream that is not drawn.

    Let q be a stream's share, Q that share as rounded (drawn_C), w the mean of 1 / pi over its
    rows, and G the streams without a stated proportion. Rows of G weigh q / Q of their 1 / pi, so
    that G has the weight T per share, T = (sum_G q w) / (sum_G q); rows of the others weigh
    q T / (Q w) of theirs, so that each stream has the weight q T. Without G, T is the mean of
    1 / pi.
    """
    natural_share = float(share_C[~is_stated_C].sum())
    if natural_share > _TOLERANCE:
        total = float((share_C * mean_weight_C)[~is_stated_C].sum()) / natural_share
    else:
        total = float(np.average(mean_weight_C, weights=size_C))
    wanted_C = share_C * np.where(is_stated_C, total, mean_weight_C)
    had_C = drawn_C * mean_weight_C
    return np.divide(wanted_C, had_C, out=np.ones_like(wanted_C), where=had_C > 0)
