"""`train.mixture`: how often the samples of each source are drawn, and what they then weigh.

Positives and negatives are a stream each, and an entry speaks of its share of one. What no entry
names shares the rest by its size. Shares are rounded to 1/1000, so that every 1,000 consecutive
samples of a stream hold exact counts.

A mixture changes on purpose the population that the loss speaks of. inclusion_probability stays
each sample's own; with `proportion` a share is one of the samples drawn and of the negatives'
weight in the loss (before `max_weight` clips) alike, and within it 1 / inclusion_probability holds
as ever. `repeat` multiplies both as they were: `repeat: 1` changes nothing.

Shapes: N rows of the train split.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from train.config import WINDOW, MixtureEntry, Stream, TrainConfig
from train.data.order import Portion
from train.data.rows import TrainRows


@dataclass(frozen=True)
class Share:
    """A portion of a stream, and what it is made of."""

    portion: Portion
    entry: MixtureEntry | None  # None: all that no entry names
    shards: tuple[int, ...]
    importance_factor: float  # of the 1 / pi of its rows

    @property
    def num_rows(self) -> int:
        return sum(map(len, self.portion.shards))

    def repetition(self, num_draws: int) -> float:
        """Draws of each row where the stream has num_draws."""
        return num_draws * self.portion.count / WINDOW / self.num_rows


@dataclass(frozen=True)
class Mixture:
    """Both streams. draw_rate_N: draws of a row, in units of those without a mixture."""

    positives: tuple[Share, ...]
    negatives: tuple[Share, ...]
    importance_factor_N: NDArray[np.float64]
    draw_rate_N: NDArray[np.float64]


def mix(rows: TrainRows, entries: Sequence[MixtureEntry]) -> Mixture:
    """Raises ConfigError for entries that name no source, overlap, or do not add up."""
    of_stream: dict[Stream, list[MixtureEntry]] = {"positives": [], "negatives": []}
    for entry in entries:
        of_stream[_stream_of(entry, rows)].append(entry)
    shares = {stream: _shares(rows, stream, of_stream[stream]) for stream in of_stream}
    factors, rates = np.ones(len(rows.shards)), np.ones(len(rows.shards))
    for of_one in shares.values():
        num_rows = sum(share.num_rows for share in of_one)
        for share in of_one:
            factors[list(share.shards)] = share.importance_factor
            rates[list(share.shards)] = share.repetition(num_rows)
    sizes = np.diff(rows.starts)
    return Mixture(
        positives=shares["positives"],
        negatives=shares["negatives"],
        importance_factor_N=np.repeat(factors, sizes),
        draw_rate_N=np.repeat(rates, sizes),
    )


def _stream_of(entry: MixtureEntry, rows: TrainRows) -> Stream:
    found: list[Stream] = [
        stream
        for stream in _STREAMS
        if entry.stream in (None, stream) and _matched(entry, rows, stream)
    ]
    if not found:
        named = {stream: _sources(rows, stream) for stream in _STREAMS}
        there = "; ".join(f"{stream}: {', '.join(names)}" for stream, names in named.items())
        where = "training samples" if entry.stream is None else entry.stream
        raise ConfigError(
            f"train.mixture: no source with {where} matches {entry.source!r}. There are {there}"
        )
    if len(found) == 2:
        raise ConfigError(
            f"train.mixture: {entry.source!r} has positives and negatives; "
            "add stream: positives, or negatives"
        )
    return found[0]


_STREAMS: tuple[Stream, Stream] = ("positives", "negatives")


def _shards(rows: TrainRows, stream: Stream) -> list[int]:
    """Also those that are left without rows: an order is one of shards."""
    is_positive = stream == "positives"
    return [n for n, shard in enumerate(rows.shards) if bool(shard.label) == is_positive]


def _sources(rows: TrainRows, stream: Stream) -> list[str]:
    sizes = np.diff(rows.starts)
    return sorted({rows.shards[n].source for n in _shards(rows, stream) if sizes[n]})


def _matched(entry: MixtureEntry, rows: TrainRows, stream: Stream) -> set[str]:
    return {name for name in _sources(rows, stream) if fnmatchcase(name, entry.source)}


def _shares(rows: TrainRows, stream: Stream, entries: Sequence[MixtureEntry]) -> tuple[Share, ...]:
    """The portions of one stream, those of entries first."""
    numbers = _shards(rows, stream)
    entry_of: dict[str, MixtureEntry] = {}
    for entry in entries:
        for name in _matched(entry, rows, stream):
            if name in entry_of:
                raise ConfigError(
                    f"train.mixture: source {name} is in {entry_of[name].source!r} and in "
                    f"{entry.source!r}"
                )
            entry_of[name] = entry
    groups: list[tuple[MixtureEntry | None, list[int]]] = [
        (entry, [n for n in numbers if entry_of.get(rows.shards[n].source) is entry])
        for entry in entries
    ]
    if rest := [n for n in numbers if rows.shards[n].source not in entry_of]:
        groups.append((None, rest))
    sizes = np.diff(rows.starts)
    size_of = np.array([sizes[members].sum() for _, members in groups])
    shares = _exact_shares([entry for entry, _ in groups], size_of, stream)
    counts = round_shares(shares)
    mean_weights = np.array([_mean_weight(rows, members) for _, members in groups])
    is_stated = np.array([e is not None and e.proportion is not None for e, _ in groups])
    factors = importance_factors(shares, counts / WINDOW, mean_weights, is_stated, size_of)
    return tuple(
        Share(
            portion=Portion(
                [range(rows.starts[n], rows.starts[n + 1]) for n in members],
                int(count),
                # By name, so that the order of entries does not matter.
                () if entry is None else (crc32(entry.source.encode()),),
            ),
            entry=entry,
            shards=tuple(members),
            importance_factor=float(factor),
        )
        for (entry, members), count, factor in zip(groups, counts, factors, strict=True)
    )


def _exact_shares(
    entries: Sequence[MixtureEntry | None], size_of: NDArray[np.int64], stream: Stream
) -> NDArray[np.float64]:
    natural = size_of / size_of.sum()
    shares = np.zeros(len(entries))
    for number, entry in enumerate(entries):
        if entry is not None:
            repeated = natural[number] * (1.0 if entry.repeat is None else entry.repeat)
            shares[number] = repeated if entry.proportion is None else entry.proportion
    total = float(shares.sum())
    told = ", ".join(
        f"{entry.source} {share:.3g}"
        for entry, share in zip(entries, shares, strict=False)
        if entry
    )
    if total > 1 + TOLERANCE:
        raise ConfigError(f"train.mixture: shares of {stream} add up to {total:.4g} ({told})")
    if entries[-1] is None:
        shares[-1] = max(1 - total, 0)
    elif total < 1 - TOLERANCE:
        raise ConfigError(
            f"train.mixture: shares of {stream} add up to {total:.4g} ({told}), and no other "
            "source is left for the rest"
        )
    return shares


def _mean_weight(rows: TrainRows, members: Sequence[int]) -> float:
    inverse_N = rows.inverse_probability_N
    total = sum(
        float(inverse_N[rows.starts[n] : rows.starts[n + 1]].sum(dtype=np.float64)) for n in members
    )
    return total / int(np.diff(rows.starts)[list(members)].sum())


TOLERANCE = 1e-9  # of sums of shares


def round_shares(share_C: NDArray[np.float64]) -> NDArray[np.int64]:
    """Counts in `WINDOW`, by largest remainder; none but a share of 0 is left without any."""
    exact_C = share_C / share_C.sum() * WINDOW
    count_C: NDArray[np.int64] = np.floor(exact_C).astype(np.int64)
    missing = WINDOW - int(count_C.sum())
    count_C[np.argsort(count_C - exact_C, kind="stable")[:missing]] += 1
    for starved in np.flatnonzero((count_C == 0) & (share_C > TOLERANCE)):
        count_C[count_C.argmax()] -= 1
        count_C[starved] = 1
    return count_C


def importance_factors(
    share_C: NDArray[np.float64],
    drawn_C: NDArray[np.float64],
    mean_weight_C: NDArray[np.float64],
    is_stated_C: NDArray[np.bool_],
    size_C: NDArray[np.int64],
) -> NDArray[np.float64]:
    """factor_C of the 1 / pi of each portion's rows; 1 for one that is not drawn.

    Let q be a portion's share, Q that share as rounded (drawn_C), w the mean of 1 / pi over its
    rows, and G the portions whose share is not stated, but natural. Rows of G weigh q / Q of their
    1 / pi, so that G has the weight T per share, T = (sum_G q w) / (sum_G q); rows of the others
    weigh q T / (Q w) of theirs, so that each has the weight q T. Without G, T is the mean of
    1 / pi.
    """
    natural_share = float(share_C[~is_stated_C].sum())
    if natural_share > TOLERANCE:
        total = float((share_C * mean_weight_C)[~is_stated_C].sum()) / natural_share
    else:
        total = float(np.average(mean_weight_C, weights=size_C))
    wanted_C = share_C * np.where(is_stated_C, total, mean_weight_C)
    had_C = drawn_C * mean_weight_C
    return np.divide(wanted_C, had_C, out=np.ones_like(wanted_C), where=had_C > 0)


_log = logging.getLogger(__name__)


def check_repetition(train_config: TrainConfig, mixture: Mixture) -> None:
    """Raises ConfigError where a sample would be drawn more often than its entry allows.

    Warns where a positive is drawn more often than the run's max_repetition_factor.
    """
    num_positives = train_config.steps * train_config.num_positives
    _refuse(mixture.positives, num_positives)
    _refuse(mixture.negatives, train_config.num_samples - num_positives)
    _warn(mixture.positives, num_positives, train_config.max_repetition_factor)


def _refuse(shares: Sequence[Share], num_draws: int) -> None:
    for share in shares:
        entry, repetition = share.entry, share.repetition(num_draws)
        limit = entry and entry.max_repetition_factor
        if entry and limit and repetition > limit:
            fits = limit * share.num_rows / num_draws
            raise ConfigError(
                f"train.mixture: each of the {share.num_rows:,} samples of {entry.source} would "
                f"be drawn {repetition:.1f} times, over its max_repetition_factor {limit:g}; "
                f"its share of the stream may be {fits:.3g} at most, is "
                f"{share.portion.count / WINDOW:g}. Fewer train.steps or more samples help, too"
            )


def _warn(positives: Sequence[Share], num_draws: int, limit: float) -> None:
    for share in positives:
        repetition = share.repetition(num_draws)
        if repetition > limit:
            _log.warning(
                "each of the %s positives%s is drawn %.0f times, over train.max_repetition_factor "
                "%g; fewer train.steps, a smaller train.positive_share or more positives help",
                f"{share.num_rows:,}", f" of {share.entry.source}" if share.entry else "",
                repetition, limit,
            )  # fmt: skip
