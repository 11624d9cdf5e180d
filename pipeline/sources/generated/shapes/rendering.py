"""From a scene, a painted subject and a coat to the pixels of a picture."""

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.generated import Pixels
from pipeline.sources.generated.shapes.canvas import Sheet
from pipeline.sources.generated.shapes.coats import Coat
from pipeline.sources.generated.shapes.scenes import Light, Scene, draw_foreground

Plane = NDArray[np.float32]


def render(scene: Scene, sheet: Sheet, coat: Coat, *, rng: np.random.Generator) -> Pixels:
    """uint8[H, W, 3]: the subject coloured, frayed, put on its backdrop, rounded, and lit."""
    size, light = len(scene.backdrop), scene.light
    subject = _frayed(_coloured(sheet, coat, size), light.fuzz * size / 256, rng=rng)
    if scene.has_foreground:
        draw_foreground(rng, subject)
    *colours, alpha = cv2.split(subject)
    cover = alpha.astype(np.float32) / np.float32(255)
    level = _level(light, size)
    fur = cv2.blur(_bytes(rng, size), (1, 5)).astype(np.float32) * np.float32(0.0016) + 0.8
    near = _relief(cover, light) * fur * level
    far = (1 - cover) * (1 - _shadow(cover)) * level
    grain = (_bytes(rng, size).astype(np.float32) - 127.5) * np.float32(light.grain / 128)
    grain += np.float32(118 * (1 - light.contrast))
    planes = [
        cv2.add(
            cv2.multiply(ours, near, scale=gain, dtype=cv2.CV_32F),
            cv2.multiply(theirs, far, scale=gain, dtype=cv2.CV_32F) + grain,
            dtype=cv2.CV_8U,
        )
        for ours, theirs, gain in zip(colours, cv2.split(scene.backdrop), light.gain, strict=True)
    ]
    return np.asarray(cv2.merge(planes), np.uint8)


def _coloured(sheet: Sheet, coat: Coat, size: int) -> Pixels:
    """RGBA, the colours already multiplied by alpha, so that a contour brings in no backdrop."""
    planes = (cv2.LUT(sheet.zones, table) for table in coat.planes)
    reduced = [cv2.resize(plane, (size, size), interpolation=cv2.INTER_AREA) for plane in planes]
    return np.asarray(cv2.merge(reduced), np.uint8)


def _frayed(picture: Pixels, fuzz: float, *, rng: np.random.Generator) -> Pixels:
    """Moves every pixel by up to `fuzz` pixels of smooth noise: contours turn to fur."""
    size = len(picture)
    x, y = _grid(size)
    noise = [_bytes(rng, size // 2).astype(np.float32) / np.float32(127.5) - 1 for _ in "xy"]
    dx, dy = (cv2.resize(plane * np.float32(fuzz), (size, size)) for plane in noise)
    return np.asarray(cv2.remap(picture, x + dx, y + dy, cv2.INTER_LINEAR), np.uint8)


def _relief(cover: Plane, light: Light) -> Plane:
    """Brightness of the subject as if it were round: lighter towards the light, dark at the rim.

    A shape shifted one way minus the shape shifted the other way is a slope; most of it is from
    above, whatever the light, as it is outdoors and in.
    """
    size = len(cover)
    small = cv2.resize(cover, (size // 4, size // 4), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), size / 90)
    reach = size / 50
    dx, dy = reach * np.cos(light.direction), reach * np.sin(light.direction) - reach
    toward = cv2.warpAffine(soft, np.array([[1, 0, dx], [0, 1, dy]]), soft.shape[::-1])
    away = cv2.warpAffine(soft, np.array([[1, 0, -dx], [0, 1, -dy]]), soft.shape[::-1])
    shade = 1 + light.relief * ((away - toward) * 0.6 + (soft - 0.8) * 0.45)
    large = cv2.resize(shade.clip(0.4, 1.35), (size, size))
    return np.asarray(large, np.float32)


def _shadow(cover: Plane) -> Plane:
    """A soft shadow around and below the subject."""
    size = len(cover)
    small = cv2.resize(cover, (size // 8, size // 8), interpolation=cv2.INTER_AREA)
    soft = cv2.GaussianBlur(small, (0, 0), size / 110)
    down = cv2.warpAffine(soft, np.array([[1, 0, 0], [0, 1, size / 130]]), soft.shape[::-1])
    return np.asarray(cv2.resize(down, (size, size)), np.float32) * np.float32(0.45)


def _level(light: Light, size: int) -> Plane:
    """Brightness over the picture: the vignette, and a slope along the light."""
    corner, x, y = _falloff(size)
    slope = np.float32(np.cos(light.direction)) * x + np.float32(np.sin(light.direction)) * y
    level = 1 - np.float32(light.vignette) * corner + np.float32(0.15) * slope
    return np.asarray(level * np.float32(light.contrast), np.float32)


def _bytes(rng: np.random.Generator, size: int) -> Pixels:
    return np.frombuffer(rng.bytes(size * size), np.uint8).reshape(size, size)


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    y, x = np.mgrid[0:size, 0:size].astype(np.float32)
    return x, y


@lru_cache(maxsize=4)
def _falloff(size: int) -> tuple[Plane, Plane, Plane]:
    """How far a pixel is from the middle, squared, 1 in the corners; and x and y, [-1, 1]."""
    half = np.float32(size / 2)
    x, y = (np.asarray(plane / half - 1, np.float32) for plane in _grid(size))
    return np.asarray((x * x + y * y) / 2, np.float32), x, y
