"""A picture to paint on: text, boxes, lines, discs; and the colours that a screen keeps to."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import Pixels
from pipeline.sources.generated.text_and_ui.fonts import NUM_SCRIPTS, Font, latin, script
from pipeline.sources.generated.text_and_ui.writing import PROSE, Colour, write

# In pixels; few, because the glyphs of each are made once and kept.
_HEIGHTS = (7, 8, 9, 10, 11, 12, 14, 16, 18, 21, 24, 28, 32, 37, 42, 48, 56, 64, 74, 96, 128)


@dataclass(frozen=True)
class Theme:
    """Colours of a screen: light, dark or anything with contrast."""

    ground: Colour
    panel: Colour  # near the ground
    ink: Colour  # far from it
    faint: Colour  # between the two
    accents: tuple[Colour, ...]


def choose_theme(dice: Dice) -> Theme:
    base, tint, *accents = (_colour(row) for row in dice.palette(6, is_vivid=dice.chance(0.8)))
    manner = dice.below(5)
    if manner < 2:
        ground, ink = _mixed(base, (255, 255, 255), dice.pick((0.85, 0.95, 1.0))), (20, 20, 25)
    elif manner < 4:
        ground, ink = _mixed(base, (0, 0, 0), dice.pick((0.75, 0.85, 1.0))), (235, 235, 230)
    else:
        ground, ink = base, (255, 255, 255) if sum(base) < 380 else (0, 0, 0)
    return Theme(
        ground=ground,
        panel=_mixed(_mixed(ground, ink, 0.07), tint, dice.pick((0.0, 0.1, 0.3))),
        ink=_mixed(ink, tint, dice.pick((0.0, 0.15))),
        faint=_mixed(ground, ink, 0.35),
        accents=tuple(accents),
    )


def _mixed(a: Colour, b: Colour, share: float) -> Colour:
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _colour(row: NDArray[np.uint8]) -> Colour:
    red, green, blue = map(int, row)
    return red, green, blue


class Screen:
    """Pixels, and one hand that paints them. Lengths are given for 256 pixels and scaled."""

    def __init__(self, dice: Dice, size: int, theme: Theme) -> None:
        self.dice = dice
        self.size = size
        self.theme = theme
        self.pixels: Pixels = np.empty((size, size, 3), np.uint8)
        self.box(0, 0, size, size, theme.ground)
        self._script = dice.below(NUM_SCRIPTS) if dice.chance(0.2) else None

    def px(self, length: float) -> int:
        return max(round(length * self.size / 256), 1)

    def font(self, height: float, *, is_bold: bool = False, is_fixed: bool = False) -> Font:
        """The next one of `_HEIGHTS`: what is smaller is no longer text."""
        wanted = height * self.size / 256
        pixels = next((h for h in _HEIGHTS if h >= wanted), _HEIGHTS[-1])
        if self._script is not None:
            return script(pixels, self._script)
        return latin(pixels, is_bold=is_bold, is_fixed=is_fixed)

    def box(self, x0: int, y0: int, x1: int, y1: int, colour: Colour, *, radius: int = 0) -> None:
        """Filled; columns x0 to x1 and rows y0 to y1, the last ones excluded."""
        if x1 <= x0 or y1 <= y0:
            return
        radius = min(radius, (x1 - x0 - 1) // 2, (y1 - y0 - 1) // 2)
        if radius <= 0:
            cv2.rectangle(self.pixels, (x0, y0), (x1 - 1, y1 - 1), colour, -1)
            return
        cv2.rectangle(self.pixels, (x0 + radius, y0), (x1 - 1 - radius, y1 - 1), colour, -1)
        cv2.rectangle(self.pixels, (x0, y0 + radius), (x1 - 1, y1 - 1 - radius), colour, -1)
        for x in (x0 + radius, x1 - 1 - radius):
            for y in (y0 + radius, y1 - 1 - radius):
                cv2.circle(self.pixels, (x, y), radius, colour, -1, cv2.LINE_AA)

    def frame(self, x0: int, y0: int, x1: int, y1: int, colour: Colour, width: int = 1) -> None:
        if x1 > x0 and y1 > y0:
            cv2.rectangle(self.pixels, (x0, y0), (x1 - 1, y1 - 1), colour, width)

    def line(self, points: Sequence[tuple[int, int]], colour: Colour, width: int = 1) -> None:
        cv2.polylines(self.pixels, [np.array(points, np.int32)], False, colour, width, cv2.LINE_AA)

    def area(self, points: Sequence[tuple[int, int]], colour: Colour) -> None:
        cv2.fillPoly(self.pixels, [np.array(points, np.int32)], colour, cv2.LINE_AA)

    def disc(self, x: int, y: int, radius: int, colour: Colour, *, width: int = -1) -> None:
        cv2.circle(self.pixels, (x, y), radius, colour, width, cv2.LINE_AA)

    def sector(self, x: int, y: int, radius: int, start: int, end: int, colour: Colour) -> None:
        """Of a disc, from angle to angle in degrees clockwise from the right."""
        if radius > 0:
            cv2.ellipse(
                self.pixels, (x, y), (radius, radius), 0, start, end, colour, -1, cv2.LINE_AA
            )

    def text(
        self,
        x0: int,
        y0: int,
        x1: int,
        colour: Colour,
        font: Font,
        *,
        manner: int = PROSE,
        num_words: int = 1000,
    ) -> int:
        """Words from x0 to x1 at most, on one line, of which y0 is the top; returns their end."""
        return write(
            self.dice.state(), self.pixels, font.masks, font.advances, font.is_latin,
            (x0, y0, x1, y0 + font.height), font.height, colour, manner, num_words,
        )  # fmt: skip

    def paragraph(
        self, x0: int, y0: int, x1: int, y1: int, colour: Colour, font: Font, *, leading: int
    ) -> None:
        """Lines of prose from y0 to y1, one every `leading` pixels."""
        write(
            self.dice.state(), self.pixels, font.masks, font.advances, font.is_latin,
            (x0, y0, x1, y1), leading, colour, PROSE, 100_000,
        )  # fmt: skip
