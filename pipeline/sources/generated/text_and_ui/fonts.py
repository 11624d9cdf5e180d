"""Glyphs as masks, ready to be painted: Pillow's own font, and scripts that nobody reads."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.sources.drawing import Dice

_CHARACTERS = [chr(code) for code in range(33, 127)]
NUM_SCRIPTS = 12
_SCALE = 4  # strokes are drawn as much larger, and reduced


@dataclass(frozen=True)
class Font:
    """Of glyph g, `masks[g]` is the coverage, 0 to 255, and `advances[g]` the step in pixels."""

    masks: NDArray[np.uint8]  # glyph, row, column
    advances: NDArray[np.int32]
    height: int  # of a line without leading
    is_latin: bool  # glyph g is the character 33 + g


@lru_cache(maxsize=128)
def latin(height: int, *, is_bold: bool = False, is_fixed: bool = False) -> Font:
    """The font that Pillow carries within (Aileron); where a glyph ends does not depend on others.

    FreeType makes the masks, once; another release may round a few of them otherwise.
    """
    face = ImageFont.load_default(height * 0.8)
    assert isinstance(face, ImageFont.FreeTypeFont), "a Pillow without FreeType"
    ascent, _ = face.getmetrics()
    advances = np.array([round(face.getlength(c)) + is_bold for c in _CHARACTERS], np.int32)
    width = int(advances.max()) + 2
    masks = np.zeros((len(_CHARACTERS), height, width), np.uint8)
    for glyph, character in enumerate(_CHARACTERS):
        image = Image.new("L", (width, height))
        ImageDraw.Draw(image).text((0, ascent), character, fill=255, font=face, anchor="ls")
        masks[glyph] = np.asarray(image)
    if is_bold:
        masks[:, :, 1:] = np.maximum(masks[:, :, 1:], masks[:, :, :-1])
    if is_fixed:
        advances[:] = round(face.getlength("m"))
    return Font(masks, advances, height, is_latin=True)


@lru_cache(maxsize=128)
def script(height: int, number: int) -> Font:
    """Signs of a few strokes each, that no people writes: of all the scripts a font may lack.

    Every third is dense and square, every third round, every third hangs from a line.
    """
    dice = Dice(np.random.Generator(np.random.Philox(key=number)))
    manner = number % 3
    large = height * _SCALE
    width = large if manner == 0 else large * 2 // 3
    pen = max(large // 11, 1)
    masks = np.zeros((48, height, width // _SCALE), np.uint8)
    for glyph in range(len(masks)):
        sheet = np.zeros((large, width), np.uint8)
        if manner == 2:
            cv2.line(sheet, (0, large // 4), (width, large // 4), 255, pen)
        for _ in range(dice.whole(5, 9) if manner == 0 else dice.whole(2, 4)):
            _stroke(dice, sheet, manner, pen)
        masks[glyph] = cv2.resize(sheet, masks.shape[:0:-1], interpolation=cv2.INTER_AREA)
    gap = 0 if manner == 2 else 1
    advances = np.full(len(masks), masks.shape[2] + gap, np.int32)
    return Font(masks, advances, height, is_latin=False)


def _stroke(dice: Dice, sheet: NDArray[np.uint8], manner: int, pen: int) -> None:
    """On a grid of 5 x 5: level or upright, an arc, or from anywhere to anywhere."""
    height, width = sheet.shape
    x0, y0, x1, y1 = (dice.whole(1, 4) for _ in range(4))
    if manner == 0:
        x1, y1 = (x1, y0) if dice.chance(0.5) else (x0, y1)
    ends = [(x * width // 5, y * height // 5) for x, y in ((x0, y0), (x1, y1))]
    if manner == 1 and dice.chance(0.6):
        axes = (dice.whole(1, 2) * width // 6, dice.whole(1, 2) * height // 6)
        start = 90 * dice.below(4)
        cv2.ellipse(sheet, ends[0], axes, 0, start, start + dice.pick((180, 270, 360)), 255, pen)
    else:
        cv2.line(sheet, ends[0], ends[1], 255, pen)
