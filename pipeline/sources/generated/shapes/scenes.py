"""Backdrops and light, drawn before the subject and independent of it."""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from pipeline.sources.generated import Pixels

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Light:
    """How a picture is lit and taken."""

    gain: tuple[float, float, float]  # brightness times tint
    contrast: float
    vignette: float
    direction: float  # radians
    relief: float  # how round the subject looks
    fuzz: float  # in pixels at 256: how far contours fray
    grain: float


@dataclass(frozen=True)
class Scene:
    """A backdrop with a box for the subject; `centre`, `scale` as fractions of the picture."""

    backdrop: Pixels
    centre: tuple[float, float]
    scale: float
    mirror: bool
    tilt: float
    light: Light
    has_foreground: bool


def draw_scene(rng: np.random.Generator, size: int) -> Scene:
    """A scene; its distribution does not depend on the subject."""
    backdrop = _BACKDROPS[int(rng.integers(len(_BACKDROPS)))](rng, size)
    for _ in range(int(rng.integers(0, 4))):
        _draw_clutter(rng, backdrop)
    sigma = size / 256 * float(rng.uniform(0.3, 3.0))
    red, green, blue = (rng.uniform(0.75, 1.2) * rng.uniform(0.92, 1.08, 3)).tolist()
    light = Light(
        gain=(red, green, blue),
        contrast=float(rng.uniform(0.8, 1.2)),
        vignette=float(rng.uniform(0, 0.4)),
        direction=float(rng.uniform(0, 2 * np.pi)),
        relief=float(rng.uniform(0.3, 0.8)),
        fuzz=float(rng.uniform(0.2, 1.3)),
        grain=float(rng.uniform(1, 6)),
    )
    return Scene(
        backdrop=np.asarray(cv2.GaussianBlur(backdrop, (0, 0), sigma), np.uint8),
        centre=(float(rng.uniform(0.4, 0.6)), float(rng.uniform(0.46, 0.6))),
        scale=float(rng.uniform(0.32, 0.52)),
        mirror=bool(rng.random() < 0.5),
        tilt=float(rng.uniform(-0.1, 0.1)),
        light=light,
        has_foreground=bool(rng.random() < 0.25),
    )


def draw_foreground(rng: np.random.Generator, subject: Pixels) -> None:
    """Adds to an RGBA subject what hides a little of it: blades of grass, or a bar."""
    size = len(subject)
    colour = _colour(rng)
    if rng.random() < 0.5:
        for x in rng.uniform(0, size, int(rng.integers(10, 30))):
            tip = (x + rng.uniform(-0.06, 0.06) * size, size * rng.uniform(0.7, 0.92))
            _fill(subject, [(x - size * 0.012, size), tip, (x + size * 0.012, size)],
                  _shaded(colour, rng.uniform(0.7, 1.1)))  # fmt: skip
    else:
        y, thick = size * rng.uniform(0.72, 0.9), size * rng.uniform(0.03, 0.08)
        _fill(subject, [(0, y), (size, y + rng.uniform(-8, 8)), (size, y + thick), (0, y + thick)],
              colour)  # fmt: skip


def _colour(rng: np.random.Generator) -> Colour:
    """Any hue, seldom vivid, and as often the colour of fur as of anything else."""
    if rng.random() < 0.35:
        low = rng.uniform(60, 215)
        return (low * 1.15, low * rng.uniform(0.75, 1.0), low * rng.uniform(0.45, 0.95))
    grey, vivid = rng.uniform(60, 245), rng.uniform(0.05, 0.55)
    red, green, blue = grey * (1 - vivid) + vivid * rng.uniform(0, 255, 3)
    return (float(red), float(green), float(blue))


def _shaded(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255.0, channel * factor) for channel in colour)
    return (red, green, blue)


def _fill(picture: Pixels, points: list[tuple[float, float]], colour: Colour) -> None:
    fixed = np.rint(np.array(points) * 16).astype(np.int32)
    cv2.fillPoly(picture, [fixed], (*colour, 255), cv2.LINE_AA, 4)


def _box(picture: Pixels, left: float, top: float, right: float, bottom: float,
         colour: Colour) -> None:  # fmt: skip
    _fill(picture, [(left, top), (right, top), (right, bottom), (left, bottom)], colour)


def _gradient(size: int, top: Colour, bottom: Colour) -> Pixels:
    column = np.linspace(top, bottom, size)[:, None].clip(0, 255).astype(np.uint8)
    return np.repeat(column, size, axis=1)


def _studio(rng: np.random.Generator, size: int) -> Pixels:
    return _gradient(size, _colour(rng), _colour(rng))


def _room(rng: np.random.Generator, size: int) -> Pixels:
    wall, floor = _colour(rng), _colour(rng)
    picture = _gradient(size, _shaded(wall, 1.1), _shaded(wall, 0.85))
    edge = size * rng.uniform(0.5, 0.8)
    if rng.random() < 0.5:
        step = size * rng.uniform(0.06, 0.16)
        for x in np.arange(0, size, step):
            _box(picture, x, 0, x + step / 2, edge, _shaded(wall, 0.92))
    else:
        x, y, w = rng.uniform((0, 0, 0.2), (0.7, 0.25, 0.4)) * size
        for inset, colour in ((0.0, _shaded(wall, 0.5)), (size * 0.02, _colour(rng))):
            _box(picture, x + inset, y + inset, x + w - inset, y + w - inset, colour)
    _box(picture, 0, edge, size, size, floor)
    for x in np.linspace(-1.5, 2.5, 17) * size:
        start = (int((x + size / 2) / 2), int(edge))
        cv2.line(picture, start, (int(x), size), _shaded(floor, 0.85), 1)
    return picture


def _meadow(rng: np.random.Generator, size: int) -> Pixels:
    picture = _gradient(size, _colour(rng), _colour(rng))
    colour = _colour(rng)
    for level in np.sort(rng.uniform(0.35, 0.8, 3)):
        x = np.linspace(0, size, 12)
        y = size * (level + 0.05 * np.sin(x / size * rng.uniform(4, 12) + rng.uniform(0, 6)))
        colour = _shaded(colour, rng.uniform(0.8, 1.25))
        _fill(picture, [(0, size), *zip(x.tolist(), y.tolist(), strict=True), (size, size)], colour)
    for x, y in rng.uniform((0, 0.75), (1, 1), (40, 2)) * size:
        end = (int(x + rng.uniform(-3, 3)), int(y - size * 0.04))
        cv2.line(picture, (int(x), int(y)), end, _shaded(colour, 0.8), 1, cv2.LINE_AA)
    return picture


def _lights(rng: np.random.Generator, size: int) -> Pixels:
    picture = _gradient(size, _shaded(_colour(rng), 0.8), _shaded(_colour(rng), 0.8))
    for x, y, r in rng.uniform((0, 0, 0.02), (1, 1, 0.09), (16, 3)) * size:
        cv2.circle(picture, (int(x), int(y)), int(r), _colour(rng), -1, cv2.LINE_AA)
    return picture


def _bricks(rng: np.random.Generator, size: int) -> Pixels:
    colour = _colour(rng)
    picture = _gradient(size, _shaded(colour, 0.7), _shaded(colour, 0.7))
    high = size * rng.uniform(0.06, 0.14)
    wide = high * rng.uniform(1, 2.4)
    for row, y in enumerate(np.arange(0, size, high)):
        for x in np.arange(-wide * (row % 2) / 2, size, wide):
            shade = _shaded(colour, rng.uniform(0.85, 1.15))
            _box(picture, x, y, x + wide - 2, y + high - 2, shade)
    return picture


def _trunks(rng: np.random.Generator, size: int) -> Pixels:
    picture = _gradient(size, _colour(rng), _colour(rng))
    colour = _colour(rng)
    for x, w in rng.uniform((-0.05, 0.03), (1, 0.14), (7, 2)) * size:
        foot = size * rng.uniform(0.75, 1.0)
        _fill(picture, [(x, 0), (x + w, 0), (x + w * 1.2, foot), (x - w * 0.2, foot)],
              _shaded(colour, rng.uniform(0.6, 1.1)))  # fmt: skip
    return picture


def _shelves(rng: np.random.Generator, size: int) -> Pixels:
    picture = _gradient(size, _colour(rng), _colour(rng))
    high = size * rng.uniform(0.2, 0.34)
    for y in np.arange(high, size + high, high):
        x = 0.0
        while x < size:
            wide, tall = size * rng.uniform(0.03, 0.09), high * rng.uniform(0.5, 0.9)
            _box(picture, x, y - tall, x + wide, y, _colour(rng))
            x += wide
    return picture


def _cloth(rng: np.random.Generator, size: int) -> Pixels:
    folds = rng.uniform(0.55, 1.25, (int(rng.integers(3, 8)), int(rng.integers(3, 8))))
    shade = cv2.resize(folds.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    colour = np.array(_colour(rng), np.float32)
    return np.asarray(np.clip(shade[..., None] * colour, 0, 255), np.uint8)


_BACKDROPS: tuple[Callable[[np.random.Generator, int], Pixels], ...] = (
    _studio, _room, _meadow, _lights, _bricks, _trunks, _shelves, _cloth,
)  # fmt: skip


def _draw_clutter(rng: np.random.Generator, picture: Pixels) -> None:
    """A ball, a box or a wedge somewhere, so that the subject is not the only form."""
    size = len(picture)
    x, y = rng.uniform(0, 1, 2) * size
    r = size * rng.uniform(0.04, 0.12)
    if (kind := int(rng.integers(3))) == 0:
        cv2.circle(picture, (int(x), int(y)), int(r), _colour(rng), -1, cv2.LINE_AA)
        return
    turn = rng.uniform(0, 2 * np.pi) + np.arange(kind + 2) * 2 * np.pi / (kind + 2)
    corners = zip(x + r * np.cos(turn), y + r * np.sin(turn), strict=True)
    _fill(picture, [(float(cx), float(cy)) for cx, cy in corners], _colour(rng))
