"""A picture to paint on: text, boxes, lines, discs; and the colours that a screen keeps to."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.drawing import Dice, State, compiled, next_below
from pipeline.sources.generated import Pixels
from pipeline.sources.generated.text_and_ui.fonts import NUM_SCRIPTS, Font, latin, script

Colour = tuple[int, int, int]

# Glyphs of a to z in English text, each as often as in a thousand letters (Norvig 2013).
_FREQUENCIES = (
    80, 15, 33, 38, 125, 24, 19, 51, 76, 2, 5, 41, 25, 72, 76, 21, 1, 63, 65, 93, 27, 11, 17, 2,
    17, 1,
)  # fmt: skip
_LETTERS = np.repeat(np.arange(26), _FREQUENCIES).astype(np.int32) + ord("a") - 33
_LENGTHS = np.repeat(np.arange(1, 12), (3, 17, 21, 16, 11, 9, 8, 6, 4, 3, 2)).astype(np.int32)
# In pixels; few, because the glyphs of each are made once and kept.
_HEIGHTS = (7, 8, 9, 10, 11, 12, 14, 16, 18, 21, 24, 28, 32, 37, 42, 48, 56, 64, 74, 96, 128)
PROSE, TITLE, NUMBERS, SYMBOLS = range(4)  # what is written


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
            x0, y0, x1, y0 + font.height, font.height, colour, manner, num_words,
        )  # fmt: skip

    def paragraph(
        self, x0: int, y0: int, x1: int, y1: int, colour: Colour, font: Font, *, leading: int
    ) -> None:
        """Lines of prose from y0 to y1, one every `leading` pixels."""
        write(
            self.dice.state(), self.pixels, font.masks, font.advances, font.is_latin,
            x0, y0, x1, y1, leading, colour, PROSE, 100_000,
        )  # fmt: skip


@compiled
def write(
    state: State,
    pixels: Pixels,
    masks: NDArray[np.uint8],
    advances: NDArray[np.int32],
    is_latin: bool,
    x0: int,
    y0: int,
    x1: int,
    y1: int,
    leading: int,
    colour: Colour,
    manner: int,
    num_words: int,
) -> int:
    """Writes words that mean nothing into a box, line by line; returns where the last one ends."""
    word = np.empty(16, np.int32)
    space = max(masks.shape[1] // 4, 2)
    end = x0
    is_first = True
    for y in range(y0, y1 - masks.shape[1] + 1, leading):
        x = x0
        while num_words > 0:
            length = _choose_word(state, manner, is_first, word)
            if not is_latin:
                for i in range(length):
                    word[i] %= len(masks)
            width = 0
            for i in range(length):
                width += advances[word[i]]
            if x + width > x1 and x > x0:
                break
            for i in range(length):
                if x + advances[word[i]] > x1:
                    break
                _paint_glyph(pixels, masks, word[i], x, y, colour)
                x += advances[word[i]]
            end = x
            is_first = word[length - 1] == ord(".") - 33
            x += space
            num_words -= 1
            if manner == PROSE and is_first and next_below(state, 4) == 0:
                break  # the last line of a paragraph
    return int(end)


@compiled
def _choose_word(state: State, manner: int, is_first: bool, word: NDArray[np.int32]) -> int:
    """Fills `word` with glyphs, at most 12; returns how many."""
    if manner == NUMBERS:
        length = 1 + next_below(state, 6)
        for i in range(length):
            word[i] = ord("0") - 33 + next_below(state, 10)
        if length > 3:
            word[length - 3] = ord(".") - 33 if next_below(state, 2) else ord(",") - 33
        return length
    length = int(_LENGTHS[next_below(state, len(_LENGTHS))])
    for i in range(length):
        word[i] = _LETTERS[next_below(state, len(_LETTERS))]
    if manner == SYMBOLS and next_below(state, 2) == 0:
        word[length] = 33 - 33 + next_below(state, 15)  # punctuation: ! to /
        length += 1
        if next_below(state, 3) == 0:
            word[0] = ord("(") - 33
    if manner == TITLE or (is_first and manner == PROSE):
        word[0] -= 32 if word[0] >= ord("a") - 33 else 0
    if manner == PROSE:
        mark = next_below(state, 24)
        if mark < 4:
            word[length] = ord(".") - 33 if mark < 2 else ord(",") - 33
            length += 1
    return length


@compiled
def _paint_glyph(
    pixels: Pixels, masks: NDArray[np.uint8], glyph: int, x: int, y: int, colour: Colour
) -> None:
    size = len(pixels)
    for row in range(max(0, -y), min(masks.shape[1], size - y)):
        for column in range(max(0, -x), min(masks.shape[2], size - x)):
            cover = np.int32(masks[glyph, row, column])
            if cover > 0:
                for channel in range(3):
                    below = np.int32(pixels[y + row, x + column, channel])
                    across = np.int32(colour[channel]) - below
                    pixels[y + row, x + column, channel] = below + across * cover // 255
