"""Bodies of four-legged animals, one function per pose; the ground is at y = 0.92 of the box."""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.sources.generated.shapes.canvas import (
    Pen,
    Shape,
    Zone,
    blob,
    limb,
    mirrored,
    oval,
    tip_of,
)
from pipeline.sources.generated.shapes.heads import Head, paint_back, paint_front, paint_profile

GROUND = 0.92


@dataclass(frozen=True)
class Animal:
    """A head on a body; lengths in units of the box."""

    head: Head
    head_size: float
    girth: float  # 1 a cat's
    leg_length: float
    leg_width: float
    tail_length: float  # 1 reaches as far as the pose lets it; below 0.3 a stub
    tail_width: float
    is_tail_bushy: bool


def sit_front(pen: Pen, animal: Animal) -> None:
    g, w = animal.girth, animal.leg_width
    _paint_tail(pen, animal, [(0.2, 0.84), (0.62, 0.84), (0.84, 0.55), (0.74, 0.2)])
    pen.paint(*((Zone.BODY, oval((x * 0.34 * g, 0.68), (0.27 * g, 0.26))) for x in (-1, 1)))
    pen.paint(*((Zone.PAW, oval((x * 0.42 * g, 0.86), (0.19, 0.08))) for x in (-1, 1)))
    trunk = mirrored([(0, -0.35), (0.24 * g, -0.2), (0.34 * g, 0.2), (0.36 * g, 0.62), (0.2, 0.88),
                      (0, 0.86)])  # fmt: skip
    legs = [limb([(x * 0.17 * g, 0.3), (x * 0.15 * g, 0.6), (x * 0.15 * g, 0.86)], [w * 1.25, w, w])
            for x in (-1, 1)]  # fmt: skip
    pen.paint((Zone.BODY, trunk))
    pen.paint((Zone.CHEST, oval((0, 0.14), (0.19 * g, 0.3))), outlined=False)
    pen.paint(*((Zone.LEG, leg) for leg in legs))
    pen.paint((Zone.BODY, oval((0, 0.25), (0.26 * g, 0.12))), outlined=False)
    pen.paint((Zone.CHEST, oval((0, 0.1), (0.19 * g, 0.27))), outlined=False)
    pen.paint(*((Zone.PAW, oval((x * 0.15 * g, 0.87), (w * 0.62, 0.08))) for x in (-1, 1)))
    paint_front(pen.moved((0, -0.42), animal.head_size), animal.head)


def sit_side(pen: Pen, animal: Animal) -> None:
    _sit_side(pen, animal)
    paint_front(pen.moved((0.24, -0.42), animal.head_size), animal.head)


def sit_profile(pen: Pen, animal: Animal) -> None:
    _sit_side(pen, animal)
    paint_profile(pen.moved((0.26, -0.42), animal.head_size), animal.head)


def stand(pen: Pen, animal: Animal) -> None:
    _stand(pen, animal, stride=0.04)
    paint_front(pen.moved((0.58, _back(animal) - 0.12), animal.head_size), animal.head)


def walk(pen: Pen, animal: Animal) -> None:
    _stand(pen, animal, stride=0.2)
    paint_profile(pen.moved((0.6, _back(animal) - 0.08), animal.head_size), animal.head)


def lie(pen: Pen, animal: Animal) -> None:
    """Like a sphinx: trunk on the ground, forelegs ahead, head up."""
    g, w = animal.girth, animal.leg_width
    _paint_tail(pen, animal, [(-0.7, 0.8), (-0.95, 0.84), (-0.9, 0.6), (-0.75, 0.45)])
    trunk = blob([(-0.82, 0.66), (-0.6, 0.6 - 0.36 * g), (0, 0.6 - 0.3 * g), (0.45, 0.1),
                  (0.66, 0.5), (0.6, 0.88), (-0.7, 0.9)])  # fmt: skip
    pen.paint((Zone.BODY, trunk))
    haunch = oval((-0.5, 0.66), (0.3, 0.25 * g))
    pen.paint((Zone.BODY, haunch))
    pen.paint((Zone.PAW, limb([(-0.5, 0.88), (-0.2, 0.87)], [w * 0.8, w * 0.8])))
    pen.paint((Zone.CHEST, oval((0.5, 0.5), (0.16, 0.26))), outlined=False)
    for shift in (0.0, -0.12):
        pen.paint((Zone.LEG, limb([(0.35 + shift, 0.8), (0.85 + shift, 0.86)], [w, w * 0.9])),
                  (Zone.PAW, oval((0.9 + shift, 0.86), (0.1, w * 0.5))))  # fmt: skip
    paint_front(pen.moved((0.45, -0.1), animal.head_size * 1.05), animal.head)


def loaf(pen: Pen, animal: Animal) -> None:
    """Legs folded away, seen from the front."""
    g = animal.girth
    trunk = mirrored([(0, -0.05), (0.4 * g, 0.05), (0.68 * g, 0.45), (0.66 * g, 0.82), (0.3, 0.92),
                      (0, 0.92)])  # fmt: skip
    pen.paint((Zone.BODY, trunk))
    _paint_tail(pen, animal, [(0.62 * g, 0.72), (0.5 * g, 0.88), (0.2, 0.9), (-0.1, 0.88)])
    pen.paint((Zone.CHEST, oval((0, 0.6), (0.26, 0.24))), outlined=False)
    pen.paint(*((Zone.PAW, oval((x * 0.2, 0.86), (0.15, 0.08))) for x in (-1, 1)))
    paint_front(pen.moved((0, 0.06), animal.head_size * 1.2), animal.head)


def curl(pen: Pen, animal: Animal) -> None:
    """Asleep in a ring, the tail before the nose."""
    g = animal.girth
    pen.paint((Zone.BODY, oval((-0.05, 0.4), (0.82, 0.44 * g + 0.05))))
    pen.crease(Zone.BODY, [(-0.5, 0.1), (-0.2, 0.3), (-0.2, 0.6)])
    head = pen.moved((0.36, 0.42), animal.head_size * 1.05, 0.5)
    paint_front(head, animal.head, asleep=True)
    _paint_tail(pen, animal, [(-0.7, 0.55), (-0.45, 0.82), (0.05, 0.92), (0.5, 0.9)])


def stretch(pen: Pen, animal: Animal) -> None:
    """Rump up, chest down, forelegs ahead."""
    g, w = animal.girth, animal.leg_width
    _paint_tail(pen, animal, [(-0.72, -0.05), (-0.9, -0.35), (-0.75, -0.7), (-0.5, -0.8)])
    for shift in (-0.12, 0.0):
        pen.paint((Zone.LEG, limb([(-0.6 + shift, 0.2), (-0.66 + shift, 0.6), (-0.6 + shift, 0.86)],
                                  [w * 1.7, w, w])),
                  (Zone.PAW, oval((-0.54 + shift, 0.87), (0.12, 0.07))))  # fmt: skip
    for drop in (-0.06, 0.02):
        pen.paint((Zone.LEG, limb([(0.2, 0.6 + drop), (0.5, 0.8 + drop), (0.9, 0.84 + drop)],
                                  [w * 1.3, w, w * 0.9])),
                  (Zone.PAW, oval((0.93, 0.84 + drop), (0.1, 0.07))))  # fmt: skip
    trunk = blob([(-0.82, 0.1), (-0.62, -0.16 * g), (-0.2, 0.12), (0.3, 0.3), (0.45, 0.55),
                  (0.25, 0.76), (-0.25, 0.5), (-0.6, 0.4 * g)])  # fmt: skip
    pen.paint((Zone.BODY, trunk))
    paint_front(pen.moved((0.5, 0.3), animal.head_size), animal.head)


def behind(pen: Pen, animal: Animal) -> None:
    """Sitting, seen from behind."""
    g = animal.girth
    trunk = mirrored([(0, -0.4), (0.24 * g, -0.25), (0.4 * g, 0.25), (0.52 * g, 0.68), (0.34, 0.91),
                      (0, 0.92)])  # fmt: skip
    pen.paint((Zone.BODY, trunk))
    pen.crease(Zone.BODY, [(0, -0.1), (0.02, 0.3), (0, 0.6)])
    _paint_tail(pen, animal, [(0, 0.82), (0.4, 0.88), (0.78, 0.84), (0.9, 0.6)])
    paint_back(pen.moved((0, -0.44), animal.head_size), animal.head)


def face(pen: Pen, animal: Animal) -> None:
    """Head and shoulders."""
    g = animal.girth
    shoulders = mirrored([(0, 0.3), (0.5 * g, 0.5), (0.75 * g, 1.0), (0.7 * g, 1.6), (0, 1.7)])
    pen.paint((Zone.BODY, shoulders))
    pen.paint((Zone.CHEST, oval((0, 1.0), (0.3 * g, 0.45))), outlined=False)
    paint_front(pen.moved((0, 0.08), 0.66 + 0.3 * animal.head_size), animal.head)


POSES: tuple[Callable[[Pen, Animal], None], ...] = (
    sit_front, sit_side, sit_profile, stand, walk, lie, loaf, curl, stretch, behind, face,
)  # fmt: skip


def _back(animal: Animal) -> float:
    """Height of the back of a standing animal."""
    return GROUND - animal.leg_length - 0.5 * animal.girth


def _stand(pen: Pen, animal: Animal, *, stride: float) -> None:
    top, w, d = _back(animal), animal.leg_width, 0.48 * animal.girth
    _paint_tail(pen, animal, [(-0.7, top + 0.14), (-0.88, top - 0.05), (-0.94, top - 0.4),
                              (-0.8, top - 0.66)])  # fmt: skip
    legs: list[tuple[Zone, Shape]] = []
    for x, step in ((-0.42, stride), (0.34, -stride), (-0.58, -stride), (0.48, stride)):
        hip, foot = (x, top + 0.7 * d), (x + step, GROUND - 0.05)
        knee = (x + step * 0.3 - 0.02, (top + d + GROUND) / 2)
        legs.append((Zone.LEG, limb([hip, knee, foot], [w * 1.8, w * 1.1, w])))
        legs.append((Zone.PAW, oval((foot[0] + 0.04, foot[1]), (w * 0.7, 0.07))))
    pen.paint(*legs[:4])
    trunk = blob([(-0.74, top + 0.2), (-0.55, top), (0, top + 0.04), (0.42, top - 0.02),
                  (0.64, top + 0.2), (0.5, top + d), (0, top + d * 0.92),
                  (-0.45, top + d * 0.9)])  # fmt: skip
    pen.paint(*legs[4:], (Zone.BODY, trunk))
    pen.paint((Zone.CHEST, oval((0.54, top + 0.3), (0.1, 0.18))), outlined=False)
    pen.crease(Zone.BODY, [(-0.38, top + 0.25), (-0.32, top + 0.42), (-0.42, top + 0.55)])


def _sit_side(pen: Pen, animal: Animal) -> None:
    g, w = animal.girth, animal.leg_width
    _paint_tail(pen, animal, [(-0.45, 0.84), (-0.75, 0.86), (-0.92, 0.66), (-0.85, 0.35)])
    pen.paint((Zone.LEG, limb([(0.3, 0.2), (0.36, 0.86)], [w * 1.2, w])),
              (Zone.PAW, oval((0.41, 0.87), (w * 0.7, 0.07))))  # fmt: skip
    trunk = blob([(-0.5 * g, 0.86), (-0.52 * g, 0.45), (-0.2, -0.1), (0.12, -0.36), (0.36, -0.1),
                  (0.38, 0.3), (0.26, 0.6), (0.1, 0.88)])  # fmt: skip
    pen.paint((Zone.BODY, trunk),
              (Zone.LEG, limb([(0.2, 0.2), (0.22, 0.86)], [w * 1.4, w])),
              (Zone.PAW, oval((0.27, 0.87), (w * 0.75, 0.07))))  # fmt: skip
    pen.paint((Zone.CHEST, oval((0.27, 0.1), (0.11, 0.24))), outlined=False)
    pen.crease(Zone.BODY, [(-0.3, 0.36), (0.0, 0.42), (0.06, 0.72)])
    pen.paint((Zone.PAW, limb([(-0.25, 0.87), (0.02, 0.87)], [w * 0.8, w * 0.85])))


def _paint_tail(pen: Pen, animal: Animal, path: list[tuple[float, float]]) -> None:
    """Along `path` from the rump, as far as the tail is long."""
    (x, y), length, w = path[0], animal.tail_length, animal.tail_width
    if length < 0.3:
        pen.paint((Zone.TAIL, oval((x + (path[1][0] - x) * 0.25, y), (w, w * 0.9))))
        return
    reach = [(x + (px - x) * length, y + (py - y) * length) for px, py in path]
    widths = (
        [0.7 * w, 1.5 * w, 1.7 * w, 0.5 * w] if animal.is_tail_bushy else [w, w, 0.9 * w, 0.7 * w]
    )
    tail = limb(reach, widths)
    pen.paint((Zone.TAIL, tail))
    pen.paint((Zone.TAIL_TIP, tip_of(tail, 0.25)), outlined=False)
