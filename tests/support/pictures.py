"""Pictures of a source, and their pixels."""

import itertools

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from pipeline.dataset.schema import RawSample
from pipeline.sources import Source


def first_pictures(source: Source, number: int) -> list[RawSample]:
    samples = (s for p in source.partitions() for s in source.read(p))
    return list(itertools.islice(samples, number))


def pixels_at(image: bytes, side: int) -> NDArray[np.uint8]:
    """pixels_HWC of an encoded image, H = W = `side`."""
    pixels = simplejpeg.decode_jpeg(image, colorspace="RGB")
    return np.asarray(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), np.uint8)
