"""Generators: endless sources that draw picture `i` of a seed, the same anywhere.

Every module offers `draw(rng, params) -> uint8 pixels HWC` beside the names of any source; what
they share - addresses, partitions, encoding - is here.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.records import Partition, RawSample, Stratum

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
