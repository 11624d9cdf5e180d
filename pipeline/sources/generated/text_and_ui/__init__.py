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
from pipeline.sources.generated import PictureParams, PictureSource, Pixels, all_families, toy_of
from pipeline.sources.generated.text_and_ui import pages, windows
from pipeline.sources.generated.text_and_ui.screen import Screen, choose_theme

Family = Literal["page", "code", "sign", "table", "chart", "dialog", "app", "icons"]

_FAMILIES: dict[str, Callable[[Screen], None]] = {
    "page": pages.draw_page,
    "code": pages.draw_code,
    "sign": pages.draw_sign,
    "table": pages.draw_table,
    "chart": pages.draw_chart,
    "dialog": windows.draw_dialog,
    "app": windows.draw_app,
    "icons": windows.draw_icons,
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
toy = partial(toy_of, Params)
