"""Painting subjects as zones: the part of the subject that each pixel shows, without colour.

A zone map is one byte a pixel at twice the size of the picture. That makes painting cheap, leaves
antialiasing to one reduction at the end, and lets any coat be laid over any form.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Zones = NDArray[np.uint8]

SUPERSAMPLING = 2
_SUBPIXEL_BITS = 4


_T = np.linspace(0, 1, 6, endpoint=False)
# What each of four knots adds at steps between the second and the third.
_SPLINE = np.stack(
    [
        -_T + 2 * _T**2 - _T**3, 2 - 5 * _T**2 + 3 * _T**3, _T + 4 * _T**2 - 3 * _T**3,
        _T**3 - _T**2,
    ], axis=1,
) / 2  # fmt: skip
_TURN = np.linspace(0, 2 * np.pi, 28, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)


class Zone(IntEnum):
    """Parts by their role in a coat; things borrow them, so that all share one set of colours."""

    NONE = 0
    BODY = 1
    CHEST = 2
    HEAD = 3
    EAR = 4
    INNER_EAR = 5
    LEG = 6
    PAW = 7
    TAIL = 8
    TAIL_TIP = 9
    MUZZLE = 10
    NOSE = 11
    IRIS = 12
    DARK = 13
    LIGHT = 14
    WHISKER = 15


# A byte of the zone map: the zone, whether it is an outline, and one of three marks of the coat.
ZONE_SHIFT = 3
OUTLINE_BIT = 4
MARK_MASK = 3


@dataclass(frozen=True)
class Shape:
    """A closed outline, or a stroke where `widths` gives the full width at each point."""

    points: Points
    widths: NDArray[np.float64] | None = None


def polygon(points: Sequence[tuple[float, float]]) -> Shape:
    return Shape(np.array(points, np.float64))


def blob(points: Sequence[tuple[float, float]]) -> Shape:
    """The closed Catmull-Rom spline through `points`."""
    knots = np.array(points, np.float64)
    return Shape(_catmull_rom(np.vstack([knots[-1:], knots, knots[:2]])))


def mirrored(points: Sequence[tuple[float, float]]) -> Shape:
    """A blob that is symmetric about x = 0, given its right half from top to bottom."""
    left = [(-x, y) for x, y in reversed(points) if x > 0]
    return blob([*points, *left])


def oval(centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Shape:
    """`angle` in radians."""
    along, across = radii
    cos, sin = np.cos(angle), np.sin(angle)
    axes = np.array([[along * cos, along * sin], [-across * sin, across * cos]])
    return Shape(_CIRCLE @ axes + centre)


def limb(points: Sequence[tuple[float, float]], widths: Sequence[float]) -> Shape:
    """A round-ended stroke along the spline through `points`, its width changing smoothly."""
    knots = np.column_stack([np.array(points, np.float64), np.array(widths, np.float64)])
    ends = np.vstack([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    curve = np.vstack([_catmull_rom(ends), knots[-1:]])
    return Shape(curve[:, :2], curve[:, 2])


def tip_of(stroke: Shape, fraction: float) -> Shape:
    """The last `fraction` of a limb."""
    assert stroke.widths is not None
    first = int(len(stroke.points) * (1 - fraction))
    return Shape(stroke.points[first:], stroke.widths[first:])


def _catmull_rom(knots: Points) -> Points:
    """Curve from the second knot up to, without, the last but one (Catmull and Rom 1974)."""
    windows = np.stack([knots[:-3], knots[1:-2], knots[2:-1], knots[3:]], axis=1)
    curve: Points = (_SPLINE @ windows).reshape(-1, knots.shape[1])
    return curve


@dataclass
class Sheet:
    """The zone map being painted, and where on it the face is, for coats that follow it."""

    zones: Zones
    face: Points | None = None


@dataclass(frozen=True)
class Pen:
    """Paints in its own coordinates: x right, y down, [-1, 1] across the subject's box."""

    sheet: Sheet
    frame: Points  # 2 x 3, to subpixels of the sheet
    outline: float  # half width of an outline in pixels of the sheet

    def moved(self, to: tuple[float, float], size: float = 1.0, angle: float = 0.0) -> "Pen":
        """A pen whose origin is `to`, whose unit is `size`, turned by `angle` radians."""
        cos, sin = size * np.cos(angle), size * np.sin(angle)
        local = np.array([[cos, -sin, to[0]], [sin, cos, to[1]], [0.0, 0.0, 1.0]])
        return Pen(self.sheet, self.frame @ local, self.outline)

    @property
    def unit(self) -> float:
        """Pixels of the sheet to one unit."""
        return float(np.sqrt(abs(np.linalg.det(self.frame[:, :2]))))

    def paint(self, *parts: tuple[Zone, Shape], outlined: bool = True) -> None:
        """Paints parts as one: their outlines first, so that none runs where two parts join."""
        if outlined:
            for zone, shape in parts:
                self._trace(shape, zone << ZONE_SHIFT | OUTLINE_BIT, self.outline)
        for zone, shape in parts:
            self._trace(shape, zone << ZONE_SHIFT, 0.0)

    def line(self, zone: Zone, points: Sequence[tuple[float, float]], width: float) -> None:
        """A line that follows the spline through `points`; `width` in units."""
        self._trace(limb(points, [width] * len(points)), zone << ZONE_SHIFT, 0.0)

    def crease(self, zone: Zone, points: Sequence[tuple[float, float]]) -> None:
        """A fold in a part, in the colour of its outline."""
        stroke = limb(points, [self.outline * 1.4 / self.unit] * len(points))
        self._trace(stroke, zone << ZONE_SHIFT | OUTLINE_BIT, 0.0)

    def _trace(self, shape: Shape, value: int, grow: float) -> None:
        pixels = shape.points @ self.frame[:, :2].T + self.frame[:, 2]
        fixed = np.rint(pixels * (1 << _SUBPIXEL_BITS)).astype(np.int32)
        zones = self.sheet.zones
        if shape.widths is None:
            if grow:
                thick = max(1, round(2 * grow))
                cv2.polylines(zones, [fixed], True, value, thick, cv2.LINE_8, _SUBPIXEL_BITS)
            else:
                cv2.fillPoly(zones, [fixed], value, cv2.LINE_8, _SUBPIXEL_BITS)
            return
        widths = np.maximum(np.rint(shape.widths * self.unit + 2 * grow), 1).astype(int).tolist()
        ends = fixed.tolist()
        for start, end, width in zip(ends, ends[1:], widths, strict=False):
            cv2.line(zones, start, end, value, width, cv2.LINE_8, _SUBPIXEL_BITS)


def new_pen(
    size: int, centre: tuple[float, float], scale: float, *, mirror: bool, tilt: float
) -> Pen:
    """A pen on an empty sheet for a picture of `size` pixels.

    `centre` and `scale` place the subject's box, as fractions of the picture: from the middle of
    the box to its edge is `scale`; `tilt` in radians.
    """
    side = size * SUPERSAMPLING
    sheet = Sheet(np.zeros((side, side), np.uint8))
    flip = -1.0 if mirror else 1.0
    cos, sin = side * scale * np.cos(tilt), side * scale * np.sin(tilt)
    frame = np.array([[flip * cos, -sin, side * centre[0]], [flip * sin, cos, side * centre[1]]])
    return Pen(sheet, frame, outline=max(1.0, side * scale * 0.012))
