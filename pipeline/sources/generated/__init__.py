"""Generators: endless sources that draw picture `i` of a seed, the same on any machine.

Every module has `draw(rng, params) -> uint8 pixels HWC` besides the names of any source. Addresses,
partitions and encoding are here, drawing tools in `pipeline.sources.drawing`. A generator of
several families of pictures is its drawing functions and this:

    Family = Literal["dots", "lines"]

    class Params(PictureParams, frozen=True, extra="forbid"):
        families: tuple[Family, ...] = all_families(Family)

    def draw(rng, params, family=""):
        return draw_family({"dots": _draw_dots, "lines": _draw_lines}, rng, params, family)

    Source = partial(PictureSource, "doodles", draw)
    toy = partial(toy_of, Params)
"""

import abc
import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

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


def encode(pixels: Pixels) -> bytes:
    """JPEG at quality 90, 4:2:0, as the build writes it, so that it passes through unchanged."""
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
    """A drawing's label is known: it shows what was drawn and nothing else."""
    return RawSample(
        uri=uri,
        image=encode(pixels),
        label=label,
        label_state="verified_present" if label else "verified_absent",
        class_name=class_name,
        stratum=None if label else stratum,
    )


class AddressedParams(BaseModel, frozen=True, extra="forbid"):
    """Settings of every generator; picture i depends on the seed and on i."""

    seed: int = Field(0, description="Another seed, other pictures.")
    image_size: int = Field(256, gt=0, description="Side of a picture in pixels.")
    num_pictures: int | None = Field(None, ge=0, description="Default: the source never ends.")
    pictures_per_partition: int = Field(
        256, gt=0, description="Pictures per partition; the default takes about 0.2 s to draw."
    )


A = TypeVar("A", bound=AddressedParams)


class AddressedSource(abc.ABC, Generic[A]):
    """Draws `sample(index)` for every index, endlessly unless `num_pictures` is set."""

    def __init__(self, params: A) -> None:
        self._params = params
        self.is_endless = params.num_pictures is None

    @abc.abstractmethod
    def sample(self, index: int) -> RawSample:
        """A pure function of the params and the index."""

    def partitions(self) -> Iterator[Partition]:
        """Consecutive runs of indices, `[first, last)`."""
        num_pictures, size = self._params.num_pictures, self._params.pictures_per_partition
        for number in itertools.count():
            first, last = number * size, (number + 1) * size
            if num_pictures is not None:
                last = min(last, num_pictures)
                if first >= last:
                    return
            yield Partition(f"{number:09d}", [first, last], last - first)

    def read(self, partition: Partition) -> Iterator[RawSample]:
        return self.read_from(partition, 0)

    def read_from(self, partition: Partition, start: int) -> Iterator[RawSample]:
        """Without the first `start`, which are not drawn."""
        first, last = partition.locator
        return self.read_at(partition, range(start, last - first))

    def read_at(self, partition: Partition, ordinals: Sequence[int]) -> Iterator[RawSample]:
        return (self.sample(partition.locator[0] + ordinal) for ordinal in ordinals)


def toy_of(params: type[A], directory: Path, **given: Any) -> A:  # noqa: ARG001
    """Three pictures as the `toy` of a generator, which needs no files."""
    return params(image_size=64, num_pictures=3, **given)


def all_families(literal: object) -> Any:
    """The field `families`; `literal` is the Literal of their names, all of them the default."""
    return Field(
        get_args(literal), min_length=1, description="Picture i is of family i modulo their number."
    )


class PictureParams(AddressedParams, frozen=True, extra="forbid"):
    """Settings of every generator of families."""

    families: tuple[str, ...]
    image_size: int = Field(256, ge=32, le=4096, description="Side of a picture in pixels.")


P = TypeVar("P", bound=PictureParams)


class PictureSource(AddressedSource[P]):
    """Draws all families in turn; every picture is verified to show no target."""

    def __init__(
        self, generator: str, draw: Callable[[np.random.Generator, P, str], Pixels], params: P
    ) -> None:
        super().__init__(params)
        self._generator = generator
        self._draw = draw

    def sample(self, index: int) -> RawSample:
        families, seed = self._params.families, self._params.seed
        family = families[index % len(families)]
        # The family is part of the address: two families of one index share nothing.
        name = f"{self._generator}.{family}"
        pixels = self._draw(picture_rng(name, seed, index), self._params, family)
        return drawn_sample(pixels, uri=f"{name}://{seed}/{index}", class_name=name)


def draw_family(
    families: Mapping[str, Callable[[np.random.Generator, int], Pixels]],
    rng: np.random.Generator,
    params: PictureParams,
    family: str,
) -> Pixels:
    """uint8[image_size, image_size, 3] of a family; "" is any of the params."""
    if not family:
        family = params.families[int(rng.integers(len(params.families)))]
    return families[family](rng, params.image_size)
