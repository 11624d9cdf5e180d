"""Owls: two legs, two big eyes, and tufts that pass for a cat's ears."""

import numpy as np

from pipeline.sources.generated.shapes.canvas import Pen, Zone, limb, mirrored, oval, polygon


def paint_owl(pen: Pen, *, rng: np.random.Generator) -> None:
    """Perched upright: face discs, a beak, folded wings, and tufts that pass for ears."""
    g, tuft = float(rng.uniform(0.85, 1.15)), float(rng.uniform(0, 1))
    is_close = bool(rng.random() < 0.25)
    pen = pen.moved((0, 0.45), 1.45) if is_close else pen
    pen.paint((Zone.TAIL, polygon([(-0.2, 0.6), (0.2, 0.6), (0.26, 0.98), (-0.26, 0.98)])))
    trunk = mirrored([(0, -0.5), (0.4 * g, -0.35), (0.56 * g, 0.2), (0.42 * g, 0.72), (0, 0.88)])
    pen.paint((Zone.BODY, trunk))
    pen.paint((Zone.CHEST, mirrored([(0, -0.2), (0.3 * g, 0.05), (0.28 * g, 0.55), (0, 0.82)])),
              outlined=False)  # fmt: skip
    for row, y in enumerate((0.1, 0.26, 0.42, 0.58)):
        for x in np.arange(-1.5, 2) * 0.13 + 0.06 * (row % 2):
            pen.crease(Zone.CHEST, [(x - 0.05, y), (x, y + 0.05), (x + 0.05, y)])
    for side in (-1, 1):
        wing = limb([(side * 0.5 * g, -0.12), (side * 0.56 * g, 0.3), (side * 0.36 * g, 0.8)],
                    [0.22, 0.3, 0.08])  # fmt: skip
        pen.paint((Zone.LEG, wing))
        for toe in (-0.07, 0.0, 0.07):
            pen.paint(
                (Zone.NOSE, limb([(side * 0.17, 0.82), (side * 0.17 + toe, 0.92)], [0.06, 0.05]))
            )
    _paint_owl_face(pen.moved((0, -0.42), 0.46 * g), tuft)


def _paint_owl_face(pen: Pen, tuft: float) -> None:
    pen.sheet.face = pen.frame
    skull = mirrored([(0, -0.78), (0.6, -0.74), (1.02, -0.2), (0.9, 0.5), (0, 0.85)])
    ears = [polygon([(x * 0.35, -0.6), (x * 0.85, -0.75 - 0.5 * tuft), (x * 0.92, -0.3)])
            for x in (-1, 1)] if tuft > 0.4 else []  # fmt: skip
    pen.paint(*((Zone.EAR, ear) for ear in ears), (Zone.HEAD, skull))
    for side in (-1, 1):
        pen.paint((Zone.MUZZLE, oval((side * 0.43, 0.0), (0.46, 0.54), side * -0.2)))
        pen.paint((Zone.IRIS, oval((side * 0.4, -0.04), (0.27, 0.27))))
        pen.paint((Zone.DARK, oval((side * 0.4, -0.04), (0.16, 0.16))), outlined=False)
        pen.paint((Zone.LIGHT, oval((side * 0.4 - 0.08, -0.13), (0.06, 0.06))), outlined=False)
    pen.paint((Zone.NOSE, mirrored([(0, 0.02), (0.12, 0.16), (0.05, 0.36), (0, 0.48)])))
