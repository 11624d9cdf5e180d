"""A drawn world: cats, animals that are nearly cats, and things that are not.

Scenes, lights, sizes, places and coats have one distribution for all classes, so that neither
colour nor a thumbnail shows which one it is. Only form does: ears, muzzle, eyes, tail, proportions.
"""

from functools import partial
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from pipeline.dataset.schema import RawSample
from pipeline.sources.generated import (
    AddressedParams,
    AddressedSource,
    Pixels,
    drawn_sample,
    picture_rng,
    toy_of,
)
from pipeline.sources.generated.shapes.animals import FOUR_LEGGED, paint_animal
from pipeline.sources.generated.shapes.canvas import new_pen
from pipeline.sources.generated.shapes.coats import HABITS, choose_coat, mark_zones
from pipeline.sources.generated.shapes.owls import paint_owl
from pipeline.sources.generated.shapes.rendering import render
from pipeline.sources.generated.shapes.scenes import draw_scene
from pipeline.sources.generated.shapes.things import THINGS

GROUPS: dict[str, tuple[str, ...]] = {
    "cat": ("cat",),
    "near": (*(name for name in FOUR_LEGGED if name != "cat"), "owl"),
    "far": tuple(THINGS),
}
CLASS_NAMES = tuple(name for group in GROUPS.values() for name in group)


class Params(AddressedParams, frozen=True, extra="forbid"):
    """Which classes to draw; picture i shows class i modulo their number."""

    content: tuple[str, ...] = Field(
        ("cat",), min_length=1, description='Classes, or the groups "cat", "near", "far".'
    )
    image_size: int = Field(256, ge=64, multiple_of=8, description="Side of a picture in pixels.")
    pictures_per_partition: int = Field(
        64, gt=0, description="Pictures per partition; the default takes about 0.4 s to draw."
    )

    @model_validator(mode="after")
    def _known(self) -> Self:
        if unknown := sorted(set(self.content) - set(GROUPS) - set(CLASS_NAMES)):
            allowed = dict.fromkeys((*GROUPS, *CLASS_NAMES))
            raise ValueError(f"content: {', '.join(unknown)}: none of {', '.join(allowed)}")
        return self

    @property
    def class_names(self) -> tuple[str, ...]:
        """Groups spelled out, each class once."""
        named = (name for entry in self.content for name in GROUPS.get(entry, (entry,)))
        return tuple(dict.fromkeys(named))


class Source(AddressedSource[Params]):
    """Cats are verified present, everything else absent."""

    def sample(self, index: int) -> RawSample:
        names, seed = self._params.class_names, self._params.seed
        name = names[index % len(names)]
        # The class is part of the address: a cat and a tiger of one index share nothing.
        rng = picture_rng(f"shapes.{name}", seed, index)
        return drawn_sample(
            draw(rng, self._params, class_name=name),
            uri=f"shapes.{name}://{seed}/{index}",
            class_name=name,
            label="cat" if name == "cat" else "",
            stratum="near" if name in GROUPS["near"] else "far",
        )


def draw(rng: np.random.Generator, params: Params, *, class_name: str | None = None) -> Pixels:
    """uint8[image_size, image_size, 3]; by default of any class of the params."""
    if class_name is None:
        class_name = params.class_names[int(rng.integers(len(params.class_names)))]
    scene = draw_scene(rng, params.image_size)
    coat = choose_coat(rng, HABITS.get(class_name))
    pen = new_pen(
        params.image_size, scene.centre, scene.scale, mirror=scene.mirror, tilt=scene.tilt
    )
    if class_name in THINGS:
        THINGS[class_name](pen, rng)
    elif class_name == "owl":
        paint_owl(pen, rng=rng)
    else:
        paint_animal(pen, class_name, rng=rng)
    mark_zones(pen.sheet, coat.pattern, rng=rng)
    return render(scene, pen.sheet, coat, rng=rng)


toy = partial(toy_of, Params, content=("cat", "tiger", "chair"))
