"""Heads of four-legged animals, in head units: the skull is about 1 from middle to edge."""

from dataclasses import dataclass
from math import cos, sin
from typing import Literal

from pipeline.sources.generated.shapes.canvas import (
    Pen,
    Shape,
    Zone,
    blob,
    limb,
    mirrored,
    oval,
    polygon,
)

Ears = Literal["pointed", "round", "long", "floppy"]


@dataclass(frozen=True)
class Head:
    """A face: lengths in head units, angles in radians from the vertical."""

    ears: Ears
    ear_length: float
    ear_width: float
    ear_angle: float
    width: float
    ruff: float  # tufts of cheek fur, 0 for none
    taper: float  # 0 round chin, 1 narrow
    snout: float  # 0 a cat's two puffs, 1 a long nose
    muzzle: float  # breadth
    nose: float
    eye: float
    eye_gap: float
    slit: bool
    whiskers: float
    tongue: bool = False


def paint_front(pen: Pen, head: Head, *, asleep: bool = False) -> None:
    """Seen from the front, the middle of the skull at the pen's origin."""
    pen.sheet.face = pen.frame
    if head.ears != "floppy":
        _paint_ears(pen, head)
    pen.paint((Zone.HEAD, _skull(head)))
    if head.snout < 0.15:
        _paint_puffs(pen, head)
    else:
        _paint_snout(pen, head)
    if head.ears == "floppy":
        _paint_ears(pen, head)
    for side in (-1, 1):
        _paint_eye(pen, head, side, asleep=asleep)
    _paint_whiskers(pen, head)


def paint_back(pen: Pen, head: Head) -> None:
    """Seen from behind: only ears and skull."""
    pen.paint((Zone.HEAD, _skull(head)))
    _paint_ears(pen, head, from_behind=True)


def paint_profile(pen: Pen, head: Head) -> None:
    """Looking to the right."""
    reach = 0.42 + 0.85 * head.snout
    broad = 0.5 * head.muzzle
    ear = pen.moved((-0.28, -0.42))
    if head.ears != "floppy":
        _paint_ear(ear.moved((0.3, -0.05), 0.92), head, 0.25, seen=True)
    skull = oval((0, 0), (0.82, 0.76))
    snout = limb([(0.3, 0.26), (0.5 + reach * 0.4, 0.3), (0.45 + reach, 0.33)],
                 [1.0, broad * 1.25, broad * (1 - 0.35 * head.snout)])  # fmt: skip
    pen.paint((Zone.HEAD, skull), (Zone.MUZZLE, snout))
    top = 0.33 - broad * 0.25
    tip = 0.45 + reach + broad * 0.32
    pen.paint((Zone.NOSE, oval((tip, top), (head.nose * 0.7, head.nose * 0.6))), outlined=False)
    pen.line(Zone.DARK, [(tip - 0.05, 0.45), (0.55 + reach * 0.4, 0.52), (0.5, 0.46)], 0.035)
    _paint_ear(ear, head, -0.1 if head.ears != "floppy" else 2.9, seen=True)
    eye = pen.moved((0.4, -0.12), head.eye * 0.9)
    eye.paint((Zone.DARK, oval((0, 0), (1.0, 1.05))), outlined=False)
    eye.paint((Zone.IRIS, oval((0.05, 0), (0.8, 0.85))), outlined=False)
    eye.paint((Zone.DARK, oval((0.2, 0), (0.25 if head.slit else 0.5, 0.7))), outlined=False)
    eye.paint((Zone.LIGHT, oval((0.0, -0.35), (0.2, 0.2))), outlined=False)
    for drop in (-0.12, 0.06, 0.2) if head.whiskers else ():
        start = (0.35 + reach, 0.36 + drop * 0.3)
        pen.line(Zone.WHISKER, [start, (start[0] - 0.5 * head.whiskers, 0.45 + drop * 2)], 0.02)


def _skull(head: Head) -> Shape:
    w, chin = head.width, 0.62 * (1 - 0.6 * head.taper)
    cheek = (0.97 + 0.25 * head.ruff) * w
    return mirrored(
        [(0, -0.84), (0.5 * w, -0.72), (0.88 * w, -0.22), (cheek, 0.26 + 0.1 * head.ruff),
         (chin * w, 0.7), (0, 0.86 + 0.1 * head.taper)]
    )  # fmt: skip


def _paint_ears(pen: Pen, head: Head, *, from_behind: bool = False) -> None:
    for side in (-1, 1):
        angle = side * head.ear_angle
        base = pen.moved(
            (side * head.width * 0.98 * sin(head.ear_angle), -0.8 * cos(head.ear_angle))
        )
        if head.ears == "floppy":
            base = pen.moved((side * head.width * 0.72, -0.52))
            angle = side * 2.75
        _paint_ear(base, head, angle, seen=not from_behind)


def _paint_ear(pen: Pen, head: Head, angle: float, *, seen: bool) -> None:
    """One ear whose root is at the origin, pointing up when `angle` is 0."""
    pen = pen.moved((0, 0), 1.0, angle)
    w, h = head.ear_width / 2, head.ear_length
    if head.ears == "round":
        outer, inner = oval((0, -0.3 * h), (w, 0.75 * h)), oval((0, -0.3 * h), (w * 0.6, 0.48 * h))
    elif head.ears == "pointed":
        right = [(w * 0.5, -h * 0.72), (w * 0.92, -h * 0.25), (w, 0.3)]
        outer = polygon([(0, -h), *right, *((-x, y) for x, y in reversed(right))])
        right = [(w * 0.42, -h * 0.4), (w * 0.6, 0.2)]
        inner = polygon([(0, -h * 0.8), *right, *((-x, y) for x, y in reversed(right))])
    else:
        outer = blob([(-w * 0.6, 0.2), (-w, -h * 0.5), (-w * 0.5, -h * 0.92), (w * 0.5, -h * 0.92),
                      (w, -h * 0.5), (w * 0.6, 0.2)])  # fmt: skip
        inner = blob([(-w * 0.3, 0), (-w * 0.55, -h * 0.5), (0, -h * 0.85), (w * 0.55, -h * 0.5),
                      (w * 0.3, 0)])  # fmt: skip
    pen.paint((Zone.EAR, outer))
    if seen and head.ears != "floppy":
        pen.paint((Zone.INNER_EAR, inner), outlined=False)


def _paint_puffs(pen: Pen, head: Head) -> None:
    """A short muzzle: two cushions, a small nose and the split lip below it."""
    m, n = head.muzzle, head.nose
    if m > 1.2:
        pen.paint((Zone.CHEST, blob([(-0.2, -0.1), (0.2, -0.1), (0.3, 0.4), (-0.3, 0.4)])),
                  outlined=False)  # fmt: skip
    pen.paint((Zone.MUZZLE, oval((0, 0.6), (0.2 * m, 0.18 * m))), outlined=False)
    puffs = [(Zone.MUZZLE, oval((x * 0.19 * m, 0.42), (0.24 * m, 0.19 * m))) for x in (-1, 1)]
    pen.paint(*puffs, outlined=False)
    pen.paint((Zone.NOSE, blob([(-n, 0.2), (0, 0.17), (n, 0.2), (0, 0.2 + n * 1.1)])))
    for side in (-1, 1):
        pen.line(Zone.DARK, [(0, 0.22 + n), (side * 0.05, 0.46), (side * 0.2 * m, 0.5)], 0.035)


def _paint_snout(pen: Pen, head: Head) -> None:
    """A muzzle that comes forward: a tapering bridge that ends in a large nose."""
    m, n, drop = head.muzzle, head.nose, 0.3 + 0.5 * head.snout
    narrow = 1 - 0.45 * head.taper
    shape = mirrored(
        [(0, -0.12), (0.2 * m, 0.05), (0.42 * m, drop * 0.75), (0.4 * m * narrow, drop + 0.24),
         (0, drop + 0.42)]
    )  # fmt: skip
    pen.paint((Zone.MUZZLE, shape))
    if head.tongue:
        pen.paint((Zone.INNER_EAR, oval((0.05, drop + 0.44), (0.13, 0.24))))
    pen.paint((Zone.NOSE, mirrored([(0, drop - 0.1), (n, drop - 0.06), (n * 0.8, drop + n * 0.5),
                                    (0, drop + n * 0.9)])))  # fmt: skip
    for side in (-1, 1):
        corner = (side * 0.3 * m * narrow, drop + 0.24)
        pen.line(Zone.DARK, [(0, drop + n * 0.8), (0, drop + 0.22), corner], 0.03)


def _paint_eye(pen: Pen, head: Head, side: int, *, asleep: bool) -> None:
    x, y, e = side * head.eye_gap, -0.06, head.eye
    if asleep:
        pen.line(Zone.DARK, [(x - e, y), (x, y + e * 0.7), (x + e, y)], 0.05)
        return
    eye = pen.moved((x, y), e, side * (-0.3 if head.slit else 0.0))
    eye.paint((Zone.DARK, oval((0, 0), (1.18, 1.0 if head.slit else 1.15))), outlined=False)
    eye.paint((Zone.IRIS, oval((0, 0.04), (1.0, 0.84 if head.slit else 1.0))), outlined=False)
    pupil = (0.3, 0.74) if head.slit else (0.62, 0.66)
    eye.paint((Zone.DARK, oval((0, 0.04), pupil)), outlined=False)
    eye.paint((Zone.LIGHT, oval((-0.28, -0.32), (0.22, 0.22))), outlined=False)


def _paint_whiskers(pen: Pen, head: Head) -> None:
    for side in (-1, 1) if head.whiskers else ():
        for slope in (-0.12, 0.04, 0.2):
            start, end = (side * 0.25, 0.42 + slope * 0.3), side * (0.35 + 0.8 * head.whiskers)
            pen.line(
                Zone.WHISKER, [start, (end * 0.7, 0.4 + slope), (end, 0.42 + slope * 2)], 0.018
            )
