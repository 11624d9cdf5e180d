"""Things far from any cat, in the coats of animals: furniture, vehicles, plants, scenery, text."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

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

Rng = np.random.Generator

GROUND = 0.9


def _box(left: float, top: float, right: float, bottom: float) -> Shape:
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)])


def _chair(pen: Pen, rng: Rng) -> None:
    back, w = float(rng.uniform(-0.95, -0.5)), float(rng.uniform(0.08, 0.16))
    for x in (-0.42, 0.42):
        pen.paint((Zone.LEG, limb([(x, 0.2), (x * 1.1, 0.92)], [w, w * 0.8])))
    pen.paint((Zone.BODY, _box(-0.48, back, 0.48, 0.1)))
    for x in (-0.24, 0.0, 0.24) if rng.random() < 0.6 else ():
        pen.paint((Zone.CHEST, _box(x - 0.05, back + 0.12, x + 0.05, 0.0)))
    pen.paint((Zone.HEAD, polygon([(-0.5, 0.1), (0.5, 0.1), (0.62, 0.34), (-0.62, 0.34)])))
    for x in (-0.56, 0.56):
        pen.paint((Zone.LEG, limb([(x, 0.36), (x * 1.05, 0.92)], [w, w * 0.8])))


def _sofa(pen: Pen, rng: Rng) -> None:
    for x in (-0.8, 0.8):
        pen.paint((Zone.PAW, _box(x - 0.06, 0.7, x + 0.06, 0.92)))
    back = mirrored([(0, -0.36), (0.7, -0.32), (0.86, -0.1), (0.86, 0.76), (0, 0.76)])
    pen.paint((Zone.BODY, back))
    cushions = int(rng.integers(2, 4))
    for x in np.linspace(-0.72, 0.72, cushions + 1)[:-1]:
        pen.paint((Zone.HEAD, _box(x, 0.2, x + 1.44 / cushions, 0.52)))
        pen.paint((Zone.CHEST, _box(x + 0.12, -0.16, x + 0.5, 0.2)))
    for side in (-1, 1):
        pen.paint((Zone.LEG, limb([(side * 0.84, 0.06), (side * 0.84, 0.7)], [0.26, 0.24])))


def _table(pen: Pen, rng: Rng) -> None:
    w = float(rng.uniform(0.08, 0.16))
    for x in (-0.76, -0.5, 0.5, 0.76):
        pen.paint((Zone.LEG, limb([(x, 0.1), (x, 0.92)], [w, w])))
    pen.paint((Zone.BODY, polygon([(-0.7, -0.15), (0.7, -0.15), (0.95, 0.12), (-0.95, 0.12)])))
    pen.paint((Zone.BODY, _box(-0.95, 0.12, 0.95, 0.26)))
    pen.paint((Zone.HEAD, mirrored([(0, -0.62), (0.2, -0.6), (0.26, -0.3), (0.14, 0), (0, 0)])))
    pen.paint(
        (Zone.IRIS, oval((0.5, -0.08), (0.15, 0.14))),
        (Zone.MUZZLE, oval((-0.5, -0.04), (0.24, 0.08))),
    )


def _lamp(pen: Pen, rng: Rng) -> None:
    low = float(rng.uniform(0.4, 0.75))
    pen.paint((Zone.LEG, limb([(0, -0.3), (0.0, 0.85)], [0.1, 0.1])))
    pen.paint((Zone.HEAD, mirrored([(0, 0.2), (0.25, 0.35), (0.3, 0.65), (0.15, 0.85), (0, 0.85)])))
    pen.paint((Zone.PAW, oval((0, 0.86), (0.4, 0.08))))
    pen.paint((Zone.BODY, polygon([(-0.3, -0.9), (0.3, -0.9), (low, -0.1), (-low, -0.1)])))
    pen.paint((Zone.LIGHT, oval((0, -0.1), (low, 0.07))))


def _wheel(pen: Pen, x: float, r: float) -> None:
    pen.paint((Zone.DARK, oval((x, GROUND - r), (r, r))))
    pen.paint((Zone.MUZZLE, oval((x, GROUND - r), (r * 0.55, r * 0.55))))
    pen.paint((Zone.DARK, oval((x, GROUND - r), (r * 0.15, r * 0.15))), outlined=False)


def _car(pen: Pen, rng: Rng) -> None:
    roof = float(rng.uniform(-0.4, -0.1))
    hull = blob([(-0.95, 0.6), (-0.92, 0.3), (-0.6, 0.18), (-0.4, roof), (0.25, roof), (0.55, 0.18),
                 (0.92, 0.32), (0.96, 0.62), (0.6, 0.76), (-0.6, 0.76)])  # fmt: skip
    pen.paint((Zone.BODY, hull))
    glass = roof + 0.1
    pen.paint((Zone.IRIS, polygon([(-0.42, 0.18), (-0.3, glass), (-0.1, glass), (-0.1, 0.18)])))
    pen.paint((Zone.IRIS, polygon([(0, 0.18), (0, glass), (0.2, glass), (0.42, 0.18)])))
    pen.crease(Zone.BODY, [(-0.05, 0.2), (-0.05, 0.5), (-0.05, 0.72)])
    pen.paint((Zone.LIGHT, oval((0.9, 0.42), (0.07, 0.06))))
    for x in (-0.55, 0.55):
        _wheel(pen, x, 0.24)


def _truck(pen: Pen, rng: Rng) -> None:
    top = float(rng.uniform(-0.8, -0.3))
    pen.paint((Zone.BODY, _box(-0.95, top, 0.35, 0.68)))
    cab = polygon([(0.4, -0.1), (0.75, -0.1), (0.95, 0.3), (0.95, 0.7), (0.4, 0.7)])
    pen.paint((Zone.HEAD, cab))
    pen.paint((Zone.IRIS, polygon([(0.5, 0), (0.7, 0), (0.84, 0.28), (0.5, 0.28)])))
    pen.paint((Zone.CHEST, _box(-0.8, top + 0.2, 0.2, top + 0.45)))
    for x in (-0.65, -0.2, 0.66):
        _wheel(pen, x, 0.2)


def _bicycle(pen: Pen, rng: Rng) -> None:
    r, w = float(rng.uniform(0.34, 0.42)), float(rng.uniform(0.05, 0.09))
    for x in (-0.55, 0.55):
        turn = np.linspace(0, 2 * np.pi, 24)
        ring = [(x + r * np.cos(t), GROUND - r + r * np.sin(t)) for t in turn]
        pen.paint((Zone.DARK, limb(ring, [w] * len(ring))))
        for t in np.arange(4) * np.pi / 4:
            dx, dy = r * np.cos(t), r * np.sin(t)
            pen.line(Zone.WHISKER, [(x - dx, GROUND - r - dy), (x + dx, GROUND - r + dy)], 0.02)
    hub, seat, front = (-0.05, 0.52), (-0.25, -0.15), (0.4, -0.15)
    for start, end in ((hub, seat), (hub, front), (seat, front), ((-0.55, GROUND - r), seat),
                       ((-0.55, GROUND - r), hub), ((0.55, GROUND - r), front)):  # fmt: skip
        pen.paint((Zone.BODY, limb([start, end], [w * 1.3, w * 1.3])))
    pen.paint((Zone.PAW, limb([(-0.4, -0.28), (-0.12, -0.28)], [0.12, 0.08])))
    pen.paint((Zone.PAW, limb([(0.4, -0.15), (0.36, -0.45), (0.6, -0.5)], [w, w, w])))


def _tree(pen: Pen, rng: Rng) -> None:
    pen.paint((Zone.LEG, limb([(0, 0.92), (0.03, 0.3), (0, -0.2)], [0.34, 0.2, 0.12])))
    crown = [(-0.42, 0.0), (0.44, 0.02), (-0.25, -0.45), (0.3, -0.42), (0, -0.2), (0.02, -0.66)]
    for x, y in crown:
        r = float(rng.uniform(0.28, 0.38))
        pen.paint((Zone.BODY, oval((x, y), (r, r * 0.9))))


def _pot_plant(pen: Pen, rng: Rng) -> None:
    for lean in np.linspace(-0.85, 0.85, int(rng.integers(5, 9))):
        tip = (lean, -0.85 + 0.7 * abs(lean) + float(rng.uniform(-0.1, 0.1)))
        leaf = [(0, 0.4), (lean * 0.55, tip[1] * 0.5), tip]
        pen.paint((Zone.BODY, limb(leaf, [0.08, 0.26, 0.03])))
        pen.crease(Zone.BODY, leaf)
    pen.paint((Zone.HEAD, polygon([(-0.38, 0.35), (0.38, 0.35), (0.28, 0.92), (-0.28, 0.92)])))
    pen.paint((Zone.EAR, _box(-0.44, 0.25, 0.44, 0.42)))


def _flower(pen: Pen, rng: Rng) -> None:
    pen.paint((Zone.LEG, limb([(0.1, 0.92), (0.0, 0.4), (0, -0.2)], [0.1, 0.08, 0.07])))
    pen.paint(
        (Zone.PAW, oval((0.3, 0.5), (0.3, 0.12), -0.5)),
        (Zone.PAW, oval((-0.25, 0.62), (0.28, 0.11), 0.5)),
    )
    petals, long = int(rng.integers(5, 10)), float(rng.uniform(0.34, 0.46))
    for turn in np.arange(petals) * 2 * np.pi / petals:
        centre = (long * np.cos(turn), -0.3 + long * np.sin(turn))
        pen.paint((Zone.BODY, oval(centre, (long * 0.75, 1.3 * long * np.pi / petals), turn)))
    pen.paint((Zone.IRIS, oval((0, -0.3), (0.2, 0.2))))


def _house(pen: Pen, rng: Rng) -> None:
    eaves = float(rng.uniform(-0.3, 0.0))
    pen.paint((Zone.PAW, _box(0.3, -0.75, 0.48, eaves)))
    pen.paint((Zone.BODY, _box(-0.7, eaves, 0.7, 0.9)))
    pen.paint((Zone.HEAD, polygon([(-0.9, eaves), (-0.1, -0.85), (0.1, -0.85), (0.9, eaves)])))
    pen.paint((Zone.TAIL, _box(-0.16, 0.4, 0.16, 0.9)))
    for x in (-0.45, 0.45):
        pen.paint((Zone.IRIS, _box(x - 0.15, 0.15, x + 0.15, 0.45)))
        pen.line(Zone.LIGHT, [(x, 0.15), (x, 0.45)], 0.03)


def _mountain(pen: Pen, rng: Rng) -> None:
    for zone, x, y in ((Zone.LEG, -0.5, -0.2), (Zone.LEG, 0.55, -0.1), (Zone.BODY, 0.0, -0.8)):
        peak = (x + float(rng.uniform(-0.1, 0.1)), y)
        slopes = [(x + 0.4, 0.2), (x + 0.75, 0.9), (x - 0.75, 0.9), (x - 0.35, 0.25)]
        pen.paint((zone, polygon([peak, *slopes])))
        pen.paint((Zone.CHEST, polygon([peak, (x + 0.18, y + 0.42), (x + 0.05, y + 0.32),
                                        (x - 0.06, y + 0.45), (x - 0.16, y + 0.4)])))  # fmt: skip
    hills = [(-0.95, 0.7), (-0.3, 0.6), (0.4, 0.7), (0.95, 0.62), (0.95, 0.92), (-0.95, 0.92)]
    pen.paint((Zone.PAW, blob(hills)))


def _sign(pen: Pen, rng: Rng) -> None:
    """A board with lines of made-up letters: strokes between the nodes of a small grid."""
    pen.paint((Zone.LEG, limb([(0, 0.3), (0, 0.92)], [0.14, 0.14])))
    pen.paint(
        (Zone.BODY, _box(-0.92, -0.8, 0.92, 0.45)), (Zone.CHEST, _box(-0.84, -0.72, 0.84, 0.37))
    )
    for y in (-0.6, -0.25, 0.1):
        for x in np.arange(-0.74, float(rng.uniform(0.3, 0.75)), 0.22):
            nodes = rng.integers(0, 3, (int(rng.integers(2, 5)), 2)) * (0.07, 0.1) + (x, y)
            for (ax, ay), (bx, by) in pairwise(nodes.tolist()):
                pen.line(Zone.DARK, [(ax, ay), (bx, by)], 0.04)


THINGS: dict[str, Callable[[Pen, Rng], None]] = {
    "chair": _chair, "sofa": _sofa, "table": _table, "lamp": _lamp, "car": _car, "truck": _truck,
    "bicycle": _bicycle, "tree": _tree, "pot_plant": _pot_plant, "flower": _flower,
    "house": _house, "mountain": _mountain, "sign": _sign,
}  # fmt: skip
