"""Numbers as text: two significant digits, percentages, "1 in N"."""

import math
from collections.abc import Mapping
from typing import Any


def format_percent(share: float | None) -> str:
    """Two significant digits of the distance to 0 or 1: 98.3 %, 0.012 %, 99.987 %."""
    if share is None:
        return "n/a"
    distance = 100 * min(share, 1 - share)
    digits = 1 - math.floor(math.log10(distance)) if distance > 1e-9 else 0
    return f"{100 * share:.{max(0, min(digits, 8))}f} %"


def format_figure(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def format_interval(rate: Mapping[str, Any]) -> str:
    return f"{format_percent(rate['low'])} to {format_percent(rate['high'])}"


def one_in(share: float) -> str:
    """0.0037 -> "1 in 270", with two significant digits; the share is in (0, 1]."""
    number = 1 / share
    digits = max(0, math.floor(math.log10(number)) - 1)
    return f"1 in {round(number, -digits):,.0f}" if number >= 10 else f"1 in {number:.2g}"


def in_hundred(share: float) -> str:
    """0.972 -> "97 in 100"; never rounded to all or none."""
    if 0.995 <= share < 1:
        return "more than 99 in 100"
    if 0 < share < 0.005:
        return "less than 1 in 100"
    return f"{100 * share:.0f} in 100"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """1 picture, 1,200 pictures."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def join_words(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
