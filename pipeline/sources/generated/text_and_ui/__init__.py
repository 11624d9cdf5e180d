"""Text and user interfaces, as on screens and paper.

Cameras and crawls bring in screenshots, scans, charts and signs, which encoders place far from
everything else; drawn text as training material is after Jaderberg et al., "Synthetic Data and
Artificial Neural Networks for Natural Scene Text Recognition", 2014
(https://arxiv.org/abs/1406.2227).

    page     prose in columns, with headings, boxes and pictures
    code     an editor or a terminal
    sign     a few large words
    table    a spreadsheet, a bill
    chart    bars, lines, areas, points, pies
    dialog   windows with text, controls and buttons
    app      bars, a list at the side, cards, messages, fields
    icons    plates with signs of simple form

Words are random letters at the frequencies of English; one picture in five is in a script that
nobody writes. Glyphs come from the font within Pillow, forms from OpenCV: no file is read.
With the same releases of both, pixels are the same on any machine.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import numpy as np

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import (
    PictureParams,
    PictureSource,
    Pixels,
    all_families,
    three_pictures,
)
from pipeline.sources.generated.text_and_ui.pages import (
    draw_chart,
    draw_code,
    draw_page,
    draw_sign,
    draw_table,
)  # fmt: skip
from pipeline.sources.generated.text_and_ui.screen import Screen, choose_theme
from pipeline.sources.generated.text_and_ui.windows import draw_app, draw_dialog, draw_icons

Family = Literal["page", "code", "sign", "table", "chart", "dialog", "app", "icons"]

_FAMILIES: dict[str, Callable[[Screen], None]] = {
    "page": draw_page,
    "code": draw_code,
    "sign": draw_sign,
    "table": draw_table,
    "chart": draw_chart,
    "dialog": draw_dialog,
    "app": draw_app,
    "icons": draw_icons,
}


class Params(PictureParams, frozen=True, extra="forbid"):
    """Which screens."""

    families: tuple[Family, ...] = all_families(Family)


def draw(rng: np.random.Generator, params: Params, family: str = "") -> Pixels:
    """uint8[image_size, image_size, 3] of a screen or a sheet."""
    dice = Dice(rng)
    screen = Screen(dice, params.image_size, choose_theme(dice))
    _FAMILIES[family or dice.pick(params.families)](screen)
    return screen.pixels


Source = partial(PictureSource, "text_and_ui", draw)
toy = partial(three_pictures, Params)
