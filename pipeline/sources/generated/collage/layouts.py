"""Layouts of collages: functions of a hand that takes images from a pool."""

import itertools
from collections.abc import Callable, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import Dice, compiled
from pipeline.sources.generated import Pixels
from pipeline.sources.generated.collage.pool import Cut


class Hand:
    """Takes images from a pool, and remembers which."""

    def __init__(self, dice: Dice, pool: Sequence[Cut], size: int) -> None:
        self.dice = dice
        self.size = size
        self.taken: list[Cut] = []
        self._pool = pool

    def _take(self) -> Pixels:
        cut = self.dice.pick(self._pool)
        self.taken.append(cut)
        return cut.pixels

    def patch(self, height: int, width: int) -> Pixels:
        """A part of an image, as large as fits or down to a third of that, mirrored or not."""
        image = self._take()
        rows, columns = image.shape[:2]
        scale = min(rows / height, columns / width) * self.dice.between(0.35, 1.0)
        cut_rows = min(max(round(height * scale), 1), rows)
        cut_columns = min(max(round(width * scale), 1), columns)
        y, x = self.dice.below(rows - cut_rows + 1), self.dice.below(columns - cut_columns + 1)
        part = image[y : y + cut_rows, x : x + cut_columns]
        how = cv2.INTER_AREA if scale > 1.5 else cv2.INTER_LINEAR
        patch = np.asarray(cv2.resize(part, (width, height), interpolation=how), np.uint8)
        return patch[:, ::-1] if self.dice.chance(0.5) else patch


def lay_grid(hand: Hand) -> Pixels:
    """Cells of one or of mixed sizes, with or without a gap between."""
    dice, size = hand.dice, hand.size
    pixels = np.empty((size, size, 3), np.uint8)
    pixels[:] = dice.palette(1)[0]
    gap = dice.pick((0, 0, 0, size // 100, size // 40))
    rows, columns = (_cut_points(dice, size, dice.whole(2, 6)) for _ in "yx")
    for y0, y1 in itertools.pairwise(rows):
        for x0, x1 in itertools.pairwise(columns):
            if y1 - y0 > gap and x1 - x0 > gap:
                pixels[y0 : y1 - gap, x0 : x1 - gap] = hand.patch(y1 - y0 - gap, x1 - x0 - gap)
    return pixels


def _cut_points(dice: Dice, size: int, number: int) -> list[int]:
    """Ends of `number` stretches, even or not."""
    even = [size * i // number for i in range(number + 1)]
    if dice.chance(0.5):
        return even
    reach = size // number // 3
    return [0, *(point + dice.whole(-reach, reach) for point in even[1:-1]), size]


def lay_over(hand: Hand) -> Pixels:
    """Patches over a picture, upright or turned."""
    dice, size = hand.dice, hand.size
    pixels = np.ascontiguousarray(hand.patch(size, size))
    for _ in range(dice.whole(3, 12)):
        height, width = (max(round(size * dice.between(0.15, 0.5)), 2) for _ in "yx")
        patch = hand.patch(height, width)
        angle = dice.pick((0.0, dice.between(-45, 45), dice.between(-180, 180)))
        _paste(pixels, patch, dice.below(size), dice.below(size), angle)
    return pixels


def _paste(pixels: Pixels, patch: Pixels, x: int, y: int, angle: float) -> None:
    """Turns a patch by degrees about its centre, which is put at x and y."""
    height, width = patch.shape[:2]
    reach = (height + width) // 2
    left, top = max(x - reach, 0), max(y - reach, 0)
    part = pixels[top : y + reach, left : x + reach]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1)
    turn += np.array([[0, 0, x - left - width / 2], [0, 0, y - top - height / 2]])
    # Pixels outside the patch stay as they are.
    cv2.warpAffine(patch, turn, part.shape[1::-1], dst=part, borderMode=cv2.BORDER_TRANSPARENT)


def blend(hand: Hand) -> Pixels:
    """Pictures mixed by a mask: even, sloping, or of soft patches."""
    dice, size = hand.dice, hand.size
    pixels = np.ascontiguousarray(hand.patch(size, size))
    for _ in range(dice.pick((1, 1, 2))):
        _mix(pixels, np.ascontiguousarray(hand.patch(size, size)), _soft_mask(dice, size))
    return pixels


@compiled
def _mix(pixels: Pixels, others: Pixels, mask: NDArray[np.uint8]) -> None:
    """Keeps pixels where the mask is 0, takes others where it is 255."""
    for y in range(len(pixels)):
        for x in range(len(pixels)):
            share = np.int32(mask[y, x])
            for channel in range(3):
                old, new = np.int32(pixels[y, x, channel]), np.int32(others[y, x, channel])
                pixels[y, x, channel] = (old * (255 - share) + new * share + 127) // 255


def _soft_mask(dice: Dice, size: int) -> NDArray[np.uint8]:
    kind = dice.below(3)
    if kind == 0:
        return np.full((size, size), dice.whole(80, 176), np.uint8)
    coarse = 2 if kind == 1 else dice.whole(3, 8)
    levels = dice.bytes(coarse * coarse).reshape(coarse, coarse)
    if kind == 1:  # two sides, and a slope between
        levels = np.array([[0, 255], [0, 255]], np.uint8)
        levels = levels.T if dice.chance(0.5) else levels
    return np.asarray(cv2.resize(levels, (size, size), interpolation=cv2.INTER_CUBIC), np.uint8)


def lay_strips(hand: Hand) -> Pixels:
    """Stripes of a few pictures in turn: level, upright or slanting."""
    dice, size = hand.dice, hand.size
    pictures = np.stack([hand.patch(size, size) for _ in range(dice.whole(2, 4))])
    across, down = dice.pick(((1, 0), (0, 1), (1, 1), (1, -1), (2, 1)))
    pixels = np.empty((size, size, 3), np.uint8)
    _take_turns(pictures, across, down, max(size // dice.whole(3, 24), 2), pixels)
    return pixels


@compiled
def _take_turns(pictures: Pixels, across: int, down: int, width: int, pixels: Pixels) -> None:
    size = len(pixels)
    for y in range(size):
        for x in range(size):
            which = (across * x + down * y + 2 * size) // width % len(pictures)
            for channel in range(3):
                pixels[y, x, channel] = pictures[which, y, x, channel]


def shuffle_pieces(hand: Hand) -> Pixels:
    """One picture cut into squares that change places, some turned."""
    dice, size = hand.dice, hand.size
    across = dice.whole(2, 8)
    side = -(-size // across)
    picture = hand.patch(side * across, side * across)
    pieces = [
        picture[y : y + side, x : x + side]
        for y in range(0, side * across, side)
        for x in range(0, side * across, side)
    ]
    for i in range(len(pieces) - 1, 0, -1):  # Fisher and Yates
        j = dice.below(i + 1)
        pieces[i], pieces[j] = pieces[j], pieces[i]
    if dice.chance(0.5):
        pieces = [np.rot90(piece, dice.below(4)) for piece in pieces]
    rows = [np.hstack(pieces[i : i + across]) for i in range(0, len(pieces), across)]
    return np.ascontiguousarray(np.vstack(rows)[:size, :size])


LAYOUTS: dict[str, Callable[[Hand], Pixels]] = {
    "grid": lay_grid,
    "overlap": lay_over,
    "blend": blend,
    "strips": lay_strips,
    "jigsaw": shuffle_pieces,
}
