"""Collages: patches of other sources' pictures, side by side, over and into each other.

Patches keep texture and colour and lose form, so that a network must look at form: jigsaws after
Noroozi and Favaro, ECCV 2016 (https://arxiv.org/abs/1603.09246), blends after Zhang et al.,
"mixup", ICLR 2018 (https://arxiv.org/abs/1710.09412), patches over pictures after Yun et al.,
"CutMix", ICCV 2019 (https://arxiv.org/abs/1905.04899).

    grid      cells, each with a patch
    overlap   patches of all sizes, some turned, over a picture
    blend     two or three pictures, mixed everywhere or more and more to one side
    strips    stripes of two to four pictures in turn
    jigsaw    one picture, its pieces shuffled

A collage must show no target, so only samples without one are cut: those verified absent, or
unknown ones of a source with `allow_unknown`. Picture i is a function of the seed, of i and of the
sources' content. Reading is bounded: several pictures share a pool, which is the first images of a
few partitions. libjpeg decodes and OpenCV scales: with the same releases of both, bytes are the
same on any machine.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.dataset.schema import RawSample
from pipeline.sources.drawing import Dice
from pipeline.sources.generated import (
    AddressedSource,
    PictureParams,
    Pixels,
    all_families,
    drawn_sample,
    picture_rng,
    toy_of,
)
from pipeline.sources.generated.collage.layouts import LAYOUTS, Hand
from pipeline.sources.generated.collage.pool import Cut, Origin, PoolReader
from pipeline.storage import FileVersion

Family = Literal["grid", "overlap", "blend", "strips", "jigsaw"]


class Params(PictureParams, frozen=True, extra="forbid"):
    """Sources of patches, and which collages are made of them."""

    sources: tuple[Origin, ...] = Field(
        min_length=1, description="E.g. [{kind: squares}]; each gives as many images to a pool."
    )
    families: tuple[Family, ...] = all_families(Family)
    max_partitions: int = Field(
        64, ge=1, description="Partitions to cut from, of each source the first ones."
    )
    pool_size: int = Field(24, ge=1, le=1024, description="Images in memory to cut from.")
    pictures_per_pool: int = Field(256, ge=1, description="Collages of one pool.")


class Source(AddressedSource[Params]):
    """Endless unless `num_pictures` is set, even if its sources end."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self._reader = _open_reader(params)
        self._last_pool: tuple[int, Sequence[Cut]] = (-1, ())

    def files(self) -> Iterator[FileVersion]:
        return self._reader.files()

    def sample(self, index: int) -> RawSample:
        params = self._params
        number, pool = self._last_pool
        if number != index // params.pictures_per_pool:
            number = index // params.pictures_per_pool
            pool = self._reader.read(number, seed=params.seed, pool_size=params.pool_size)
            self._last_pool = number, pool
        family = params.families[index % len(params.families)]
        name = f"collage.{family}"
        hand = _hand(picture_rng(name, params.seed, index), params, pool)
        pixels = LAYOUTS[family](hand)
        sample = drawn_sample(pixels, uri=f"{name}://{params.seed}/{index}", class_name=name)
        return replace(
            sample,
            license=_joined(cut.license for cut in hand.taken),
            author=_joined(cut.author for cut in hand.taken),
        )


def draw(
    rng: np.random.Generator, params: Params, family: str = "", *, pool: Sequence[Cut] | None = None
) -> Pixels:
    """uint8[image_size, image_size, 3]; by default of the first pool."""
    if pool is None:
        pool = _open_reader(params).read(0, seed=params.seed, pool_size=params.pool_size)
    hand = _hand(rng, params, pool)
    return LAYOUTS[family or hand.dice.pick(params.families)](hand)


def _open_reader(params: Params) -> PoolReader:
    return PoolReader(
        params.sources, max_partitions=params.max_partitions, image_size=params.image_size
    )


def _hand(rng: np.random.Generator, params: Params, pool: Sequence[Cut]) -> Hand:
    return Hand(Dice(rng), pool, params.image_size)


def _joined(names: Iterator[str | None]) -> str | None:
    """Each once, in order: a collage owes to all whose pictures it was cut from."""
    return "; ".join(sorted({name for name in names if name})) or None


_SQUARES = Origin(kind="squares", params={"image_size": 64, "num_pictures": 8})
toy = partial(toy_of, Params, sources=(_SQUARES,))
