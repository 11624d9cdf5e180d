"""Generators: endless sources that draw picture `i` of a seed, the same anywhere.

Every module offers `draw(rng, params) -> uint8 pixels HWC` beside the names of any source; what
they share - addresses, partitions, encoding - is here, what they draw with is in
`pipeline.sources.drawing`.
A generator of several families of pictures is its drawing functions and this:

    class Params(PictureParams, frozen=True, extra="forbid"):
        families: tuple[Literal["dots", "lines"], ...] = Field(("dots", "lines"), min_length=1)

    def draw(rng, params, family=""):
        return draw_family({"dots": _draw_dots, "lines": _draw_lines}, rng, params, family)

    Source = partial(PictureSource, "doodles", draw)
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from pydantic import BaseModel, Field

from pipeline.dataset.schema import Partition, RawSample, Stratum

Pixels = NDArray[np.uint8]


def picture_rng(generator: str, seed: int, index: int) -> np.random.Generator:
    """The random stream of one picture: a pure function of its address.

    Philox is counter based and its raw stream is fixed by its authors (Salmon et al. 2011), so
    the same address draws the same picture on any machine.
    """
    digest = hashlib.blake2b(f"{generator}/{seed}/{index}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))


def addressed_partitions(
    num_pictures: int | None, pictures_per_partition: int
) -> Iterator[Partition]:
    """Consecutive runs of indices, `[first, last)`; endless when `num_pictures` is None."""
    for number in itertools.count():
        first = number * pictures_per_partition
        last = first + pictures_per_partition
        if num_pictures is not None:
            last = min(last, num_pictures)
            if first >= last:
                return
        yield Partition(f"{number:09d}", [first, last], last - first)


def encode(pixels: Pixels) -> bytes:
    """JPEG at quality 90, 4:2:0: what the build writes, so that it passes through unchanged."""
    jpeg: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=90, colorspace="RGB", colorsubsampling="420"
    )
    return jpeg


def drawn_sample(
    pixels: Pixels,
    *,
    uri: str,
    class_name: str,
    stratum: Stratum | None = "generated",
    label: str = "",
) -> RawSample:
    """A drawing's label is known: what was drawn is there, and nothing else is."""
    return RawSample(
        uri=uri,
        image=encode(pixels),
        label=label,
        label_state="verified_present" if label else "verified_absent",
        class_name=class_name,
        stratum=None if label else stratum,
    )


def read_pictures(
    partition: Partition,
    *,
    generator: str,
    seed: int,
    draw: Callable[[np.random.Generator], tuple[Pixels, str]],
) -> Iterator[RawSample]:
    """Draws one partition of stratum "generated". `draw` returns pixels and the class name."""
    first, last = partition.locator
    for index in range(first, last):
        pixels, class_name = draw(picture_rng(generator, seed, index))
        yield drawn_sample(pixels, uri=f"{generator}://{seed}/{index}", class_name=class_name)


class PictureParams(BaseModel, frozen=True, extra="forbid"):
    """What every generator of families is told. Picture i is of family i modulo their number."""

    families: tuple[str, ...]
    seed: int = Field(0, description="another seed, other pictures")
    image_size: int = Field(256, ge=32, le=4096, description="side of a picture in pixels")
    num_pictures: int | None = Field(None, ge=0, description="null never ends")
    pictures_per_partition: int = Field(256, gt=0, description="about 0.2 s of work")


P = TypeVar("P", bound=PictureParams)


class PictureSource(Generic[P]):
    """Draws of every family in turn; every picture is verified to show no target."""

    def __init__(
        self, generator: str, draw: Callable[[np.random.Generator, P, str], Pixels], params: P
    ) -> None:
        self._generator = generator
        self._draw = draw
        self._params = params
        self.is_endless = params.num_pictures is None

    def partitions(self) -> Iterator[Partition]:
        return addressed_partitions(self._params.num_pictures, self._params.pictures_per_partition)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """The same without the first `start`, which cost nothing."""
        first, last = partition.locator
        families, seed = self._params.families, self._params.seed
        for index in range(first + start, last):
            family = families[index % len(families)]
            # The family is part of the address: two families of one index share nothing.
            name = f"{self._generator}.{family}"
            pixels = self._draw(picture_rng(name, seed, index), self._params, family)
            yield drawn_sample(pixels, uri=f"{name}://{seed}/{index}", class_name=name)


def draw_family(
    families: Mapping[str, Callable[[np.random.Generator, int], Pixels]],
    rng: np.random.Generator,
    params: PictureParams,
    family: str,
) -> Pixels:
    """uint8[image_size, image_size, 3] of that family; of one of the params' where "" is named."""
    if not family:
        family = params.families[int(rng.integers(len(params.families)))]
    return families[family](rng, params.image_size)
