"""Screens: text is legible, stays where it belongs, and each family looks like its name."""

import numpy as np
import pytest

from pipeline.sources.drawing import Dice
from pipeline.sources.generated import Pixels, picture_rng, text_and_ui
from pipeline.sources.generated.text_and_ui.fonts import NUM_SCRIPTS, Font, latin, script
from pipeline.sources.generated.text_and_ui.screen import Screen, choose_theme
from pipeline.sources.generated.text_and_ui.writing import NUMBERS, PROSE, SYMBOLS, TITLE

FONTS = [latin(12), latin(24, is_bold=True), script(12, 0), script(12, 1), script(12, 2)]


def blank(index: int = 0, size: int = 128) -> Screen:
    dice = Dice(picture_rng("test", 0, index))
    screen = Screen(dice, size, choose_theme(dice))
    screen.pixels[:] = 255
    return screen


def draw(family: str, index: int, size: int = 256) -> Pixels:
    params = text_and_ui.Params(image_size=size)
    return text_and_ui.draw(picture_rng(f"text_and_ui.{family}", 0, index), params, family)


@pytest.mark.parametrize("font", FONTS)
def test_every_glyph_has_ink_and_fits_its_line(font: Font) -> None:
    assert font.masks.shape[1] == font.height
    assert (font.masks.max(axis=(1, 2)) > 100).all()
    widths = [int(np.flatnonzero(mask.any(axis=0)).max()) + 1 for mask in font.masks]
    assert (np.array(widths) <= font.masks.shape[2]).all()
    assert len({mask.tobytes() for mask in font.masks}) > 0.9 * len(font.masks)


def test_letters_are_letters() -> None:
    font = latin(32)
    ink = {c: font.masks[ord(c) - 33].astype(int) for c in "lmMoO.|"}
    assert font.advances[ord("m") - 33] > 2 * font.advances[ord("l") - 33]
    assert ink["M"].sum() > ink["l"].sum() > ink["."].sum()
    assert ink["o"].any(axis=1).sum() < ink["O"].any(axis=1).sum(), "small letters are lower"
    column = ink["O"].shape[1] // 3
    assert ink["O"][:, column].max() > 0
    bold, fixed = latin(32, is_bold=True), latin(32, is_fixed=True)
    assert bold.masks.astype(int).sum() > 1.2 * font.masks.astype(int).sum()
    assert len(set(fixed.advances.tolist())) == 1


def test_scripts_differ() -> None:
    sheets = {script(16, number).masks[:16].tobytes() for number in range(NUM_SCRIPTS)}
    assert len(sheets) == NUM_SCRIPTS


@pytest.mark.parametrize("manner", [PROSE, TITLE, NUMBERS, SYMBOLS])
@pytest.mark.parametrize("font", FONTS)
def test_a_line_of_text_stays_in_its_box(font: Font, manner: int) -> None:
    for index in range(10):
        screen = blank(index)
        end = screen.text(20, 40, 100, (0, 0, 0), font, manner=manner)
        rows, columns = np.nonzero(screen.pixels.min(axis=2) < 128)
        assert len(rows) > 0
        assert rows.min() >= 40
        assert rows.max() < 40 + font.height
        # A glyph may reach over its advance by the slant of its last stroke.
        assert columns.min() >= 19
        assert columns.max() <= 102
        assert end <= 100


def test_text_outside_of_the_picture_is_cut_off() -> None:
    screen = blank()
    screen.text(-30, -5, 400, (0, 0, 0), latin(12))
    screen.paragraph(90, 120, 500, 500, (0, 0, 0), latin(12), leading=14)
    assert 0 < (screen.pixels < 128).mean() < 0.5


def test_paragraphs_fill_their_lines() -> None:
    screen = blank()
    screen.paragraph(10, 10, 118, 118, (0, 0, 0), latin(10), leading=12)
    inked = (screen.pixels[..., 0] < 128).any(axis=1)
    tops = np.flatnonzero(np.diff(inked.astype(int)) == 1)
    assert len(tops) >= 8
    assert (screen.pixels[:, 90:110, 0] < 128).any(axis=1).sum() > 20


def test_themes_have_contrast() -> None:
    for index in range(200):
        theme = choose_theme(Dice(picture_rng("theme", 0, index)))
        luma = [np.dot(c, [0.299, 0.587, 0.114]) for c in (theme.ground, theme.ink)]
        assert abs(luma[0] - luma[1]) > 60


@pytest.mark.parametrize("family", ["page", "code", "table"])
def test_pages_have_lines_of_small_marks(family: str) -> None:
    """Text crosses from ink to ground far more often along a line than a picture does."""
    crossings = []
    for index in range(12):
        grey = draw(family, index).mean(axis=2)
        crossings.append((np.abs(np.diff(grey, axis=1)) > 30).mean())
    assert np.median(crossings) > 0.03


@pytest.mark.parametrize("family", ["chart", "dialog", "app", "icons", "sign"])
def test_screens_are_mostly_flat(family: str) -> None:
    for index in range(12):
        pixels = draw(family, index).astype(int)
        flat = (np.abs(np.diff(pixels, axis=1)).max(axis=2) == 0).mean()
        assert flat > 0.4


def test_pictures_are_in_colour() -> None:
    params = text_and_ui.Params()
    spread = [np.ptp(draw(f, i), axis=2).mean() for f in params.families for i in range(8)]
    assert np.median(spread) > 10
