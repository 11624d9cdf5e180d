"""Where leaves fall, and which one is on top at each pixel.

From the topmost down, each leaf takes only what nothing covers yet: the exact picture of a fall
without beginning (Kendall and Thoennes 1999), in which no pixel is painted twice.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pipeline.sources.drawing import State, compiled, next_below, next_unit

Owners = NDArray[np.uint16]  # 0 the ground, else the number of a leaf
Spans = NDArray[np.int32]  # by row: first column of a leaf, and the first behind it

ANY, DISK, SQUARE, TURNED = range(4)  # shapes; ANY is a disk or a polygon
NUM_DIRECTIONS = 1024
_MAX_CORNERS = 8


@compiled
def next_radius(state: State, size: int, smallest: float, largest: float) -> float:
    """Radius of a leaf that reaches into the picture, if all radii follow r^-3.

    Centres of those that do lie in a square of side `size` + 2r; r^-3 times its area is a mixture
    of r^-3, r^-2 and r^-1, each drawn by inversion. None is drawn in vain, and large ones come as
    often as they should.
    """
    low, high = 1 / (largest * largest), 1 / (smallest * smallest)
    cube = size * size * (high - low) / 2
    square = 4 * size * (1 / smallest - 1 / largest)
    rest = 4 * np.log(largest / smallest)
    at, u = (cube + square + rest) * next_unit(state), next_unit(state)
    if at < cube:
        radius = 1 / np.sqrt(low + (high - low) * u)
    elif at < cube + square:
        radius = 1 / (1 / largest + (1 / smallest - 1 / largest) * u)
    else:
        radius = smallest * np.exp(np.log(largest / smallest) * u)
    return float(radius)


@compiled
def fall(
    state: State,
    shape: int,
    radii: tuple[float, float],
    directions: NDArray[np.float64],
    owners: Owners,
) -> int:
    """Fills `owners`, all 0 before; returns how many leaves have fallen.

    Ends when all is covered, or when a point has been under 5 leaves in the mean: what is open
    then, a tenth at most, stays ground.
    """
    size, (smallest, largest) = len(owners), radii
    # 5 to the point: the mean area of a leaf to the mean area of where its centre may be, nearly.
    spread = size * size / (2 * smallest * smallest) + 4 * size / smallest
    max_leaves = int(5 * spread / (np.pi * np.log(largest / smallest)))
    num_open, num_leaves = size * size, 0
    open_in_row = np.full(size, size)
    corners, spans = np.empty((_MAX_CORNERS, 2)), np.empty((size, 2), np.int32)
    while num_open > 0 and num_leaves < min(max_leaves, 65535):
        radius = next_radius(state, size, smallest, largest)
        x = next_unit(state) * (size + 2 * radius) - radius
        y = next_unit(state) * (size + 2 * radius) - radius
        num_leaves += 1
        num_corners = _place_corners(state, shape, x, y, radius, directions, corners)
        top = max(_centres_before(y - radius), 0)
        bottom = min(_centres_before(y + radius), size)
        if num_corners == 0:
            _outline_disk(x, y, radius, top, bottom, spans)
        else:
            _outline_polygon(corners, num_corners, top, bottom, spans)
        for row in range(top, bottom):
            first, last = max(spans[row, 0], 0), max(spans[row, 1], 0)
            if open_in_row[row] and first < last:
                num_new = _claim(owners[row, first:last], num_leaves)
                open_in_row[row] -= num_new
                num_open -= num_new
    return num_leaves


@compiled
def _claim(owners: Owners, leaf: int) -> int:
    """Takes open pixels, without a branch, so that the loop is vectorized."""
    num_new = 0
    for x in range(len(owners)):
        is_open = owners[x] == 0
        num_new += is_open
        owners[x] = leaf if is_open else owners[x]
    return num_new


@compiled
def _place_corners(
    state: State,
    shape: int,
    x: float,
    y: float,
    radius: float,
    directions: NDArray[np.float64],
    corners: NDArray[np.float64],
) -> int:
    """Corners on a circle, in order, so that the leaf is convex; none for a disk."""
    if shape == ANY:
        num_corners = next_below(state, _MAX_CORNERS)
        turn = next_below(state, NUM_DIRECTIONS)
        if num_corners < 3:
            return 0
        slack = NUM_DIRECTIONS // num_corners
        for i in range(num_corners):
            at = turn + i * slack + next_below(state, slack // 2)
            corners[i, 0] = x + radius * directions[at % NUM_DIRECTIONS, 0]
            corners[i, 1] = y + radius * directions[at % NUM_DIRECTIONS, 1]
        return num_corners
    if shape == DISK:
        return 0
    # Half the angle between the diagonals: a square's is an eighth of the circle.
    half, turn = NUM_DIRECTIONS // 8, 0
    if shape == TURNED:
        half = half // 3 + next_below(state, 2 * half // 3)
        turn = next_below(state, NUM_DIRECTIONS)
    for i in range(4):
        at = turn + (i // 2) * (NUM_DIRECTIONS // 2) + (half if i % 2 else NUM_DIRECTIONS - half)
        corners[i, 0] = x + radius * directions[at % NUM_DIRECTIONS, 0]
        corners[i, 1] = y + radius * directions[at % NUM_DIRECTIONS, 1]
    return 4


@compiled
def _outline_disk(x: float, y: float, radius: float, top: int, bottom: int, spans: Spans) -> None:
    for row in range(top, bottom):
        below = row + 0.5 - y
        half = np.sqrt(max(radius * radius - below * below, 0.0))
        spans[row, 0], spans[row, 1] = _centres_before(x - half), _centres_before(x + half)


@compiled
def _outline_polygon(
    corners: NDArray[np.float64], num_corners: int, top: int, bottom: int, spans: Spans
) -> None:
    """Walks along each edge, not across each row: two edges meet a row, however many there are."""
    for row in range(top, bottom):
        spans[row, 0], spans[row, 1] = len(spans), 0
    for i in range(num_corners):
        following = i + 1 if i + 1 < num_corners else 0
        x0, y0, x1, y1 = corners[i, 0], corners[i, 1], corners[following, 0], corners[following, 1]
        first, last = _centres_before(min(y0, y1)), _centres_before(max(y0, y1))
        if first < last:
            slope = (x1 - x0) / (y1 - y0)
            for row in range(max(first, top), min(last, bottom)):
                crossing = _centres_before(x0 + (row + 0.5 - y0) * slope)
                spans[row, 0] = min(spans[row, 0], crossing)
                spans[row, 1] = max(spans[row, 1], crossing)


@compiled
def _centres_before(at: float) -> int:
    """Number of pixels, with centres at 0.5, 1.5, ..., before `at`."""
    return int(np.int32(np.ceil(at - 0.5)))  # 32 bits, which can be converted in parallel


@lru_cache(maxsize=1)
def directions() -> NDArray[np.float64]:
    """Cosine and sine of even directions, rounded so that all machines agree."""
    angle = 2 * np.pi * np.arange(NUM_DIRECTIONS) / NUM_DIRECTIONS
    units = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.asarray(np.rint(units * 2**14) / 2**14, np.float64)
