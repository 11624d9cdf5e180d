"""Cats, and the four-legged animals that are nearly cats: each a range of builds, any pose."""

from dataclasses import fields

import numpy as np

from pipeline.sources.generated.shapes.canvas import Pen
from pipeline.sources.generated.shapes.heads import Ears, Head
from pipeline.sources.generated.shapes.poses import POSES, Animal

Span = tuple[float, float]


class Build:
    """Proportions of one kind of animal; each length of head and body is uniform in its span."""

    def __init__(self, *, ears: Ears, slit: bool, is_tail_bushy: bool, **spans: Span) -> None:
        self.ears = ears
        self.slit = slit
        self.is_tail_bushy = is_tail_bushy
        self.spans = spans


# fmt: off
_BUILDS: dict[str, tuple[Build, ...]] = {
    "cat": (
        Build(  # short-haired
            ears="pointed", slit=True, is_tail_bushy=False,
            ear_length=(0.68, 0.9), ear_width=(0.6, 0.72), ear_angle=(0.6, 0.74), width=(1, 1.12),
            ruff=(0, 0.35), taper=(0, 0.15), snout=(0, 0), muzzle=(0.85, 1.05), nose=(0.085, 0.11),
            eye=(0.24, 0.31), eye_gap=(0.42, 0.48), whiskers=(0.6, 1),
            head_size=(0.36, 0.42), girth=(0.78, 1), leg_length=(0.4, 0.5), leg_width=(0.13, 0.17),
            tail_length=(0.85, 1.1), tail_width=(0.08, 0.11),
        ),
        Build(  # long-haired
            ears="pointed", slit=True, is_tail_bushy=True,
            ear_length=(0.6, 0.74), ear_width=(0.58, 0.68), ear_angle=(0.66, 0.8),
            width=(1.08, 1.2), ruff=(0.5, 1), taper=(0, 0.1), snout=(0, 0), muzzle=(0.85, 1),
            nose=(0.08, 0.1), eye=(0.24, 0.3), eye_gap=(0.43, 0.5), whiskers=(0.6, 1),
            head_size=(0.38, 0.44), girth=(1, 1.2), leg_length=(0.34, 0.42), leg_width=(0.17, 0.2),
            tail_length=(0.8, 1), tail_width=(0.13, 0.17),
        ),
        Build(  # slender
            ears="pointed", slit=True, is_tail_bushy=False,
            ear_length=(0.95, 1.2), ear_width=(0.66, 0.8), ear_angle=(0.66, 0.8),
            width=(0.88, 0.98), ruff=(0, 0.1), taper=(0.2, 0.45), snout=(0, 0), muzzle=(0.75, 0.9),
            nose=(0.08, 0.1), eye=(0.23, 0.28), eye_gap=(0.38, 0.44), whiskers=(0.5, 0.9),
            head_size=(0.31, 0.36), girth=(0.64, 0.78), leg_length=(0.48, 0.58),
            leg_width=(0.1, 0.13), tail_length=(1, 1.2), tail_width=(0.06, 0.08),
        ),
    ),
    "tiger": (Build(
        ears="round", slit=False, is_tail_bushy=False,
        ear_length=(0.42, 0.52), ear_width=(0.5, 0.6), ear_angle=(0.78, 0.9),
        width=(1.12, 1.25), ruff=(0.8, 1.3), taper=(0, 0.1), snout=(0, 0), muzzle=(1.45, 1.7),
        nose=(0.19, 0.24), eye=(0.12, 0.15), eye_gap=(0.42, 0.48), whiskers=(0.3, 0.6),
        head_size=(0.36, 0.42), girth=(1.15, 1.35), leg_length=(0.36, 0.46),
        leg_width=(0.21, 0.26), tail_length=(0.9, 1.1), tail_width=(0.1, 0.13),
    ),),
    "fox": (Build(
        ears="pointed", slit=False, is_tail_bushy=True,
        ear_length=(0.85, 1.1), ear_width=(0.55, 0.66), ear_angle=(0.5, 0.62), width=(1, 1.12),
        ruff=(0.9, 1.3), taper=(0.75, 1), snout=(0.75, 1), muzzle=(0.8, 0.95),
        nose=(0.13, 0.16), eye=(0.12, 0.15), eye_gap=(0.4, 0.46), whiskers=(0, 0.3),
        head_size=(0.33, 0.38), girth=(0.74, 0.9), leg_length=(0.46, 0.56),
        leg_width=(0.1, 0.13), tail_length=(0.95, 1.15), tail_width=(0.19, 0.24),
    ),),
    "dog": (
        Build(  # hound
            ears="floppy", slit=False, is_tail_bushy=False,
            ear_length=(0.85, 1.15), ear_width=(0.5, 0.66), ear_angle=(0.6, 0.7),
            width=(0.82, 0.92), ruff=(0, 0.1), taper=(0.1, 0.4), snout=(0.7, 1),
            muzzle=(1.1, 1.35), nose=(0.18, 0.23), eye=(0.13, 0.17), eye_gap=(0.36, 0.42),
            whiskers=(0, 0),
            head_size=(0.34, 0.4), girth=(0.85, 1.05), leg_length=(0.46, 0.6),
            leg_width=(0.14, 0.18), tail_length=(0.6, 0.9), tail_width=(0.07, 0.1),
        ),
        Build(  # shepherd
            ears="pointed", slit=False, is_tail_bushy=True,
            ear_length=(0.85, 1.05), ear_width=(0.42, 0.52), ear_angle=(0.36, 0.46),
            width=(0.82, 0.92), ruff=(0.2, 0.5), taper=(0.3, 0.6), snout=(0.85, 1),
            muzzle=(1, 1.2), nose=(0.17, 0.2), eye=(0.12, 0.15), eye_gap=(0.36, 0.42),
            whiskers=(0, 0),
            head_size=(0.33, 0.38), girth=(0.9, 1.1), leg_length=(0.5, 0.6),
            leg_width=(0.13, 0.17), tail_length=(0.8, 1), tail_width=(0.11, 0.14),
        ),
        Build(  # lap dog
            ears="floppy", slit=False, is_tail_bushy=False,
            ear_length=(0.6, 0.8), ear_width=(0.5, 0.62), ear_angle=(0.6, 0.7), width=(0.95, 1.08),
            ruff=(0.2, 0.6), taper=(0, 0.2), snout=(0.3, 0.5), muzzle=(1.2, 1.4),
            nose=(0.18, 0.23), eye=(0.17, 0.22), eye_gap=(0.4, 0.46), whiskers=(0, 0),
            head_size=(0.38, 0.44), girth=(0.9, 1.1), leg_length=(0.3, 0.38),
            leg_width=(0.14, 0.17), tail_length=(0.45, 0.65), tail_width=(0.08, 0.14),
        ),
    ),
    "rabbit": (Build(
        ears="long", slit=False, is_tail_bushy=False,
        ear_length=(1.5, 1.9), ear_width=(0.44, 0.56), ear_angle=(0.22, 0.36),
        width=(0.78, 0.88), ruff=(0.2, 0.5), taper=(0.2, 0.4), snout=(0, 0),
        muzzle=(0.75, 0.9), nose=(0.09, 0.12), eye=(0.17, 0.21), eye_gap=(0.52, 0.6),
        whiskers=(0.3, 0.7),
        head_size=(0.33, 0.38), girth=(0.95, 1.15), leg_length=(0.26, 0.34),
        leg_width=(0.13, 0.16), tail_length=(0.1, 0.2), tail_width=(0.13, 0.17),
    ),),
    "bear": (Build(
        ears="round", slit=False, is_tail_bushy=False,
        ear_length=(0.4, 0.5), ear_width=(0.48, 0.56), ear_angle=(0.74, 0.86), width=(1, 1.12),
        ruff=(0.1, 0.4), taper=(0, 0.1), snout=(0.2, 0.35), muzzle=(1.25, 1.5),
        nose=(0.19, 0.24), eye=(0.09, 0.12), eye_gap=(0.34, 0.4), whiskers=(0, 0),
        head_size=(0.33, 0.39), girth=(1.25, 1.5), leg_length=(0.34, 0.44),
        leg_width=(0.24, 0.3), tail_length=(0.1, 0.2), tail_width=(0.08, 0.11),
    ),),
}
# fmt: on

FOUR_LEGGED = tuple(_BUILDS)


def paint_animal(pen: Pen, name: str, *, rng: np.random.Generator) -> None:
    """One of FOUR_LEGGED, in a build and a pose chosen by `rng`."""
    build = _BUILDS[name][int(rng.integers(len(_BUILDS[name])))]
    head = {name: float(rng.uniform(*span)) for name, span in build.spans.items()}
    body = {each.name: head.pop(each.name) for each in fields(Animal) if each.name in head}
    has_tongue = name == "dog" and bool(rng.random() < 0.4)
    face = Head(ears=build.ears, slit=build.slit, tongue=has_tongue, **head)
    animal = Animal(head=face, is_tail_bushy=build.is_tail_bushy, **body)
    POSES[int(rng.integers(len(POSES)))](pen, animal)
