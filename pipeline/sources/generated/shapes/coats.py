"""Coats: colours and markings for the zones of any subject, animal or thing.

One set for all of them, so that colour never shows the class: cats are striped and
orange too, and so are sofas.
"""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.sources.generated.shapes.canvas import (
    MARK_MASK,
    OUTLINE_BIT,
    ZONE_SHIFT,
    Sheet,
    Zone,
    Zones,
)

Colour = NDArray[np.float64]
Pattern = Literal["plain", "stripes", "spots", "patches", "two_patches"]
PATTERNS: tuple[Pattern, ...] = ("plain", "stripes", "spots", "patches", "two_patches")

_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": (44, 41, 42), "grey": (128, 130, 136), "blue": (98, 108, 124),
    "white": (236, 233, 226), "cream": (230, 208, 170), "ginger": (216, 132, 60),
    "red": (178, 84, 46), "brown": (116, 80, 54), "chocolate": (84, 58, 46),
    "sand": (192, 164, 124), "pink": (226, 152, 148),
}  # fmt: skip
_FUR = tuple(name for name in _COLOURS if name != "pink")
_IRISES = ((150, 176, 70), (226, 180, 60), (204, 126, 40), (110, 160, 196), (112, 72, 40))

_MARKED = (Zone.BODY, Zone.HEAD, Zone.EAR, Zone.LEG, Zone.TAIL)
_PALE = (Zone.CHEST, Zone.MUZZLE)
_ENDS = (Zone.EAR, Zone.PAW, Zone.TAIL, Zone.TAIL_TIP)
_FIELD_REDUCTION = 4


@dataclass(frozen=True)
class Habit:
    """The usual coat of a kind of animal: of half of them, or of all if `strict`."""

    patterns: tuple[Pattern, ...] = PATTERNS
    colours: tuple[str, ...] = _FUR
    has_pale: bool | None = None
    strict: bool = False


HABITS = {
    "tiger": Habit(("stripes",), ("ginger", "ginger", "sand", "white"), True, strict=True),
    "fox": Habit(("plain",), ("ginger", "red", "grey"), True),
    "bear": Habit(("plain",), ("brown", "chocolate", "black", "sand", "white"), False),
    "rabbit": Habit(("plain", "patches"), ("grey", "brown", "white", "sand"), None),
    "owl": Habit(("spots", "plain"), ("brown", "grey", "sand", "white"), True),
}


@dataclass(frozen=True)
class Coat:
    """`planes` is uint8[4, 256]: R, G, B and A for each byte of a marked zone map; NONE is 0."""

    planes: NDArray[np.uint8]
    pattern: Pattern


def choose_coat(rng: np.random.Generator, habit: Habit | None) -> Coat:
    """A coat from the shared set, or from a kind's habit."""
    wanted = habit if habit and (habit.strict or rng.random() < 0.5) else Habit()
    pattern = wanted.patterns[int(rng.integers(len(wanted.patterns)))]
    base = _colour(rng, wanted.colours)
    has_pale = wanted.has_pale
    if has_pale is None:
        has_pale = bool(rng.random() < 0.45)
    is_dark = base.sum() < 260
    mark = _colour(rng, ("white", "cream", "ginger") if is_dark else ("black", "brown", "red"))
    if pattern == "stripes":
        mark = base * (1.6 if is_dark else rng.uniform(0.3, 0.62))
    pale = _colour(rng, ("white", "cream")) if has_pale else base * 1.08
    ends = base
    if (draw := rng.random()) < 0.2:
        ends = _colour(rng, ("black", "chocolate", "blue"))
    elif draw < 0.4:
        ends = pale
    second = _colour(rng, ("black", "chocolate", "grey"))
    skin = _colour(rng, ("pink", "black", "pink", "chocolate"))
    iris = np.array(_IRISES[int(rng.integers(len(_IRISES)))], np.float64)
    zones = _zone_colours(base, pale=pale, ends=ends, skin=skin, iris=iris)
    return Coat(_planes(zones, mark, second), pattern)


def _colour(rng: np.random.Generator, names: tuple[str, ...]) -> Colour:
    shade = np.array(_COLOURS[names[int(rng.integers(len(names)))]], np.float64)
    return shade * rng.uniform(0.85, 1.12) + rng.uniform(-8, 8, 3)


def _zone_colours(
    base: Colour, *, pale: Colour, ends: Colour, skin: Colour, iris: Colour
) -> dict[Zone, Colour]:
    colours = dict.fromkeys(Zone, base)
    colours |= dict.fromkeys(_PALE, pale) | dict.fromkeys(_ENDS, ends)
    colours |= {
        Zone.LEG: 0.75 * base + 0.25 * ends,
        Zone.INNER_EAR: 0.4 * base + 0.6 * np.array(_COLOURS["pink"]),
        Zone.NOSE: skin,
        Zone.IRIS: iris,
        Zone.DARK: np.array([26.0, 22, 24]),
        Zone.LIGHT: np.array([250.0, 250, 246]),
        Zone.WHISKER: np.array([240.0, 238, 232]) if base.sum() < 560 else 0.4 * base,
    }
    return colours


def _planes(zones: dict[Zone, Colour], mark: Colour, second: Colour) -> NDArray[np.uint8]:
    table = np.full((256, 4), 255.0)
    for zone, plain in zones.items():
        for bits, colour in enumerate((plain, mark, second)):
            table[zone << ZONE_SHIFT | bits, :3] = colour
            table[zone << ZONE_SHIFT | OUTLINE_BIT | bits, :3] = colour * 0.52
    table[: 1 << ZONE_SHIFT] = 0
    return np.ascontiguousarray(table.clip(0, 255).astype(np.uint8).T)


def mark_zones(sheet: Sheet, pattern: Pattern, *, rng: np.random.Generator) -> None:
    """Writes the pattern's marks into the zones that can bear them."""
    if pattern == "plain":
        return
    side = len(sheet.zones) // _FIELD_REDUCTION
    if pattern == "stripes":
        marks = _enlarged(_stripes(sheet, rng=rng), sheet) > rng.uniform(0.1, 0.4)
    elif pattern == "spots":
        marks = _enlarged(_noise(rng, cells=int(rng.integers(22, 40)), side=side), sheet) > 0.3
    else:
        marks = _enlarged(_noise(rng, cells=int(rng.integers(5, 9)), side=side), sheet) > 0.1
    bits: Zones = marks.view(np.uint8)
    if pattern == "two_patches":
        other = _enlarged(_noise(rng, cells=int(rng.integers(5, 9)), side=side), sheet) > 0.2
        bits[other] = 2
    allowed = np.zeros(256, np.uint8)
    for zone in _MARKED:
        allowed[zone << ZONE_SHIFT : (zone + 1) << ZONE_SHIFT] = MARK_MASK
    sheet.zones |= bits & np.asarray(cv2.LUT(sheet.zones, allowed), np.uint8)


def _enlarged(field: NDArray[np.float32], sheet: Sheet) -> NDArray[np.float32]:
    side = len(sheet.zones)
    return np.asarray(cv2.resize(field, (side, side)), np.float32)


def _noise(rng: np.random.Generator, *, cells: int, side: int) -> NDArray[np.float32]:
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)


def _stripes(sheet: Sheet, *, rng: np.random.Generator) -> NDArray[np.float32]:
    """Across the trunk, round the legs and the tail, and fanning out from the middle of a face."""
    step = _FIELD_REDUCTION
    zones = sheet.zones[step // 2 :: step, step // 2 :: step] >> ZONE_SHIFT
    side = len(zones)
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / np.float32(side)
    sway = _noise(rng, cells=6, side=side) * np.float32(0.02)
    waves = np.float32(rng.uniform(9, 17) * 2 * np.pi)
    field = np.sin((x + sway) * waves)
    across = np.isin(zones, (Zone.LEG, Zone.TAIL))
    field = np.where(across, np.sin((y + x * np.float32(0.4) + sway) * waves), field)
    if sheet.face is not None:
        inverse = np.linalg.inv(np.vstack([sheet.face, [0, 0, 1]]))[:2].astype(np.float32)
        pixels = np.stack([x, y], axis=-1) * np.float32(len(sheet.zones))
        local = pixels @ inverse[:, :2].T + inverse[:, 2]
        angle = np.arctan2(local[..., 0], np.float32(0.35) - local[..., 1])
        away = np.hypot(local[..., 0] * np.float32(0.8), local[..., 1] - np.float32(0.2))
        fan = np.cos(angle * np.float32(13)) - (away < 0.5) * np.float32(2)
        field = np.where(np.isin(zones, (Zone.HEAD, Zone.EAR)), fan, field)
    return np.asarray(field, np.float32)
