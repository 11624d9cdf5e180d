"""Recursive squares: a square is one random colour, or four squares that are made the same way.

By default the recursion ends at the smallest side that the eye can distinguish.
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


class Params(AddressedParams, frozen=True, extra="forbid"):
    """Settings of the recursion."""

    smallest_side: int = Field(
        4, gt=0, description="Side in pixels of the smallest square; image_size halved n times."
    )
    split_probability: float = Field(
        0.75, ge=0, le=1, description="Of each square, the whole picture included."
    )

    @model_validator(mode="after")
    def _halves_evenly(self) -> Self:
        ratio, rest = divmod(self.image_size, self.smallest_side)
        if rest or ratio < 1 or ratio & (ratio - 1):
            raise ValueError(
                "image_size / smallest_side must be a power of two, "
                f"got {self.image_size} / {self.smallest_side}"
            )
        return self

    @property
    def num_levels(self) -> int:
        """How often the picture can be halved."""
        return (self.image_size // self.smallest_side).bit_length() - 1


class Source(AddressedSource[Params]):
    """Every picture is verified to show no target."""

    def sample(self, index: int) -> RawSample:
        seed = self._params.seed
        pixels = draw(picture_rng("squares", seed, index), self._params)
        return drawn_sample(pixels, uri=f"squares://{seed}/{index}", class_name="squares")


def draw(rng: np.random.Generator, params: Params) -> Pixels:
    """uint8[image_size, image_size, 3]. Draws all levels at once, one raw word per square.

    Raw words, because the stream of a distribution may change with numpy while that of Philox
    does not: the low 24 bits are the colour, the high 32 decide on the split. A square that does
    not split passes its own word on, so its descendants do not split either.
    """
    threshold = np.uint64(round(params.split_probability * 2**32))
    sides = [2**level for level in range(params.num_levels + 1)]
    words = rng.bit_generator.random_raw(sum(side * side for side in sides))
    squares, words = words[:1].reshape(1, 1), words[1:]
    for side in sides[1:]:
        squares = squares.repeat(2, axis=0).repeat(2, axis=1)
        level, words = words[: side * side].reshape(side, side), words[side * side :]
        squares = np.where(squares >> np.uint64(32) < threshold, level, squares)
    channels = squares.astype("<u8").view(np.uint8).reshape(*squares.shape, 8)
    small: Pixels = np.ascontiguousarray(channels[..., :3])
    return small.repeat(params.smallest_side, axis=1).repeat(params.smallest_side, axis=0)


toy = partial(toy_of, Params)
