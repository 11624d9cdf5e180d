"""Recursive squares: a square is one random colour, or four squares that are each the same again.

The recursion ends at the smallest side that the eye still tells apart.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from pydantic import BaseModel, Field, model_validator

from pipeline.dataset.schema import Partition, RawSample
from pipeline.sources.generated import Pixels, addressed_partitions, read_pictures


class Params(BaseModel, frozen=True, extra="forbid"):
    """Settings of the recursion; picture i depends on `seed`, the sides and the probability."""

    seed: int = Field(0, description="another seed, other pictures")
    image_size: int = Field(256, gt=0, description="side of a picture in pixels")
    smallest_side: int = Field(4, gt=0, description="side in pixels below which nothing splits")
    split_probability: float = Field(
        0.75, ge=0, le=1, description="of each square, the whole picture included"
    )
    num_pictures: int | None = Field(None, ge=0, description="null never ends")
    pictures_per_partition: int = Field(256, gt=0, description="about 0.1 s of work")

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


class Source:
    """Endless unless `num_pictures` says otherwise; every picture is verified to show no target."""

    def __init__(self, params: Params) -> None:
        self._params = params
        self.is_endless = params.num_pictures is None

    def partitions(self) -> Iterator[Partition]:
        return addressed_partitions(self._params.num_pictures, self._params.pictures_per_partition)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        first, last = partition.locator
        return read_pictures(
            Partition(partition.id, [first + start, last]),
            generator="squares",
            seed=self._params.seed,
            draw=lambda rng: (draw(rng, self._params), "squares"),
        )


def draw(rng: np.random.Generator, params: Params) -> Pixels:
    """uint8[image_size, image_size, 3]. Takes all levels at once, one raw word a square.

    Raw words, because the stream of a distribution may change with numpy while that of Philox
    does not: the low 24 bits are the colour, the high 32 decide on the split. A square that does
    not split hands its own word down, so its descendants do not split either.
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


def toy(directory: Path) -> Params:  # noqa: ARG001 - a generator needs no files
    """Three pictures."""
    return Params(image_size=64, num_pictures=3)
