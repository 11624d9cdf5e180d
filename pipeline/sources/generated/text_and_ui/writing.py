"""Words that mean nothing, painted glyph by glyph."""

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_below
from pipeline.sources.generated import Pixels

Colour = tuple[int, int, int]

PROSE, TITLE, NUMBERS, SYMBOLS = range(4)  # what is written

# Glyphs of a to z in English text, each as often as in a thousand letters (Norvig 2013).
_FREQUENCIES = (
    80, 15, 33, 38, 125, 24, 19, 51, 76, 2, 5, 41, 25, 72, 76, 21, 1, 63, 65, 93, 27, 11, 17, 2,
    17, 1,
)  # fmt: skip
_LETTERS = np.repeat(np.arange(26), _FREQUENCIES).astype(np.int32) + ord("a") - 33
_LENGTHS = np.repeat(np.arange(1, 12), (3, 17, 21, 16, 11, 9, 8, 6, 4, 3, 2)).astype(np.int32)


@compiled
def write(
    state: State,
    pixels: Pixels,
    masks: NDArray[np.uint8],
    advances: NDArray[np.int32],
    is_latin: bool,
    box: tuple[int, int, int, int],
    leading: int,
    colour: Colour,
    manner: int,
    num_words: int,
) -> int:
    """Writes words that mean nothing into a box, line by line; returns where the last one ends."""
    x0, y0, x1, y1 = box
    word, space = np.empty(16, np.int32), max(masks.shape[1] // 4, 2)
    end, is_first = x0, True
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
