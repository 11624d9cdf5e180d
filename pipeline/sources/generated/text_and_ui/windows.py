"""Interactive screens: dialogs, applications, forms, icons."""

from pipeline.sources.generated.text_and_ui.screen import Screen
from pipeline.sources.generated.text_and_ui.writing import NUMBERS, TITLE, Colour


def draw_dialog(screen: Screen) -> None:
    """Windows over a desktop, with title, text, controls and buttons; the last one in front."""
    dice, size = screen.dice, screen.size
    for _ in range(dice.pick((1, 1, 2, 3))):
        width, height = (screen.px(dice.between(110, 236)) for _ in "xy")
        height = max(height * 3 // 4, screen.px(80))
        x, y = dice.below(max(size - width, 1)), dice.below(max(size - height, 1))
        _draw_window(screen, x, y, x + width, y + height)


def _draw_window(screen: Screen, x0: int, y0: int, x1: int, y1: int) -> None:
    dice, theme = screen.dice, screen.theme
    radius, shadow = screen.px(dice.pick((0, 0, 4, 8))), screen.px(3)
    screen.box(x0 + shadow, y0 + shadow, x1 + shadow, y1 + shadow, theme.faint, radius=radius)
    screen.box(x0, y0, x1, y1, theme.panel, radius=radius)
    screen.frame(x0, y0, x1, y1, theme.faint)
    bar, font = screen.px(dice.between(14, 22)), screen.font(9)
    title = dice.pick((theme.panel, *theme.accents))
    screen.box(x0, y0, x1, y0 + bar, title, radius=radius)
    screen.text(x0 + bar, y0 + (bar - font.height) // 2, x1 - 3 * bar, _ink_on(title), font,
                manner=TITLE, num_words=3)  # fmt: skip
    for i in range(3):
        at = x1 - bar // 2 - i * bar * 3 // 4
        screen.disc(at, y0 + bar // 2, bar // 4, theme.accents[i])
    pad = screen.px(8)
    foot = y1 - screen.px(26)
    if dice.chance(0.5):
        badge = screen.px(14)
        screen.disc(x0 + pad + badge, y0 + bar + pad + badge, badge, dice.pick(theme.accents))
        screen.paragraph(x0 + 2 * (pad + badge), y0 + bar + pad, x1 - pad, foot, theme.ink, font,
                         leading=round(font.height * 1.3))  # fmt: skip
    else:
        _draw_controls(screen, x0 + pad, y0 + bar + pad, x1 - pad, foot)
    right = x1 - pad
    for i in range(dice.whole(1, 3)):
        left = right - screen.px(dice.between(34, 60))
        _draw_button(screen, left, foot + 2, right, y1 - screen.px(7), is_default=i == 0)
        right = left - pad


def _draw_button(
    screen: Screen, x0: int, y0: int, x1: int, y1: int, *, is_default: bool = False
) -> None:
    dice, theme = screen.dice, screen.theme
    face = theme.accents[0] if is_default else theme.ground
    screen.box(x0, y0, x1, y1, face, radius=screen.px(dice.pick((0, 3, 9))))
    if not is_default:
        screen.frame(x0, y0, x1, y1, theme.faint)
    font = screen.font(8)
    screen.text(x0 + (x1 - x0) // 5, (y0 + y1 - font.height) // 2, x1, _ink_on(face), font,
                manner=TITLE, num_words=1)  # fmt: skip


def _draw_controls(screen: Screen, x0: int, y0: int, x1: int, y1: int) -> None:
    """Ticks, choices, fields, sliders, switches and bars of progress, one below the other."""
    dice, theme, font = screen.dice, screen.theme, screen.font(8)
    pitch, side = round(font.height * 1.8), max(font.height - 1, 5)
    for y in range(y0, y1 - pitch + 1, pitch):
        kind, middle, accent = dice.below(6), y + side // 2, dice.pick(theme.accents)
        half = (x0 + x1) // 2
        if kind == 0:
            screen.box(x0, y, x0 + side, y + side, accent if dice.chance(0.5) else theme.ground)
            screen.frame(x0, y, x0 + side, y + side, theme.ink)
        elif kind == 1:
            screen.disc(x0 + side // 2, middle, side // 2, theme.ink, width=1)
            if dice.chance(0.5):
                screen.disc(x0 + side // 2, middle, max(side // 4, 1), accent)
        elif kind == 2:
            screen.text(x0, y, half, theme.ink, font, manner=TITLE, num_words=2)
            screen.box(half, y - 1, x1, y + side + 2, theme.ground)
            screen.frame(half, y - 1, x1, y + side + 2, theme.faint)
            screen.text(half + 3, y, x1 - 3, theme.ink, font, num_words=dice.below(3))
            continue
        elif kind == 3:
            screen.line([(x0, middle), (x1, middle)], theme.faint, screen.px(2))
            screen.disc(dice.whole(x0, x1), middle, screen.px(5), accent)
            continue
        elif kind == 4:
            at = dice.whole(x0, x1)
            screen.box(x0, y, x1, y + side, theme.ground, radius=side // 2)
            screen.box(x0, y, at, y + side, accent, radius=side // 2)
            continue
        else:
            screen.box(x0, y, x0 + 2 * side, y + side, accent, radius=side // 2)
            at = x0 + (side // 2 if dice.chance(0.5) else side * 3 // 2)
            screen.disc(at, middle, max(side // 2 - 1, 1), theme.ground)
        screen.text(x0 + side * 5 // 2, y, x1, theme.ink, font, num_words=dice.whole(1, 5))


def draw_app(screen: Screen) -> None:
    """An application or a web page: bars, a list at the side, cards, messages or fields."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    font, bar = screen.font(9), screen.px(dice.between(14, 30))
    top = dice.pick((theme.panel, *theme.accents))
    screen.box(0, 0, size, bar, top)
    at = (bar - font.height) // 2
    screen.text(bar // 2, at, size // 2, _ink_on(top), screen.font(10, is_bold=True), manner=TITLE,
                num_words=2)  # fmt: skip
    for i in range(dice.below(4)):
        screen.disc(size - bar // 2 - i * bar, bar // 2, bar // 4, theme.accents[i])
    left = screen.px(dice.between(36, 80)) if dice.chance(0.6) else 0
    if left:
        screen.box(0, bar, left, size, theme.panel)
        chosen, pitch = dice.below(8), round(font.height * 1.7)
        for i, y in enumerate(range(bar + 4, size - pitch, pitch)):
            if i == chosen:
                screen.box(0, y - 2, left, y + font.height + 2, theme.accents[1])
            screen.box(4, y, 4 + font.height, y + font.height, dice.pick(theme.accents), radius=3)
            screen.text(8 + font.height, y, left, theme.ink, font, manner=TITLE, num_words=1)
    body = (left + screen.px(6), bar + screen.px(6), size - screen.px(6), size)
    dice.pick((_draw_cards, _draw_messages, _draw_controls))(screen, *body)


def _draw_cards(screen: Screen, x0: int, y0: int, x1: int, y1: int) -> None:
    dice, theme, font = screen.dice, screen.theme, screen.font(8)
    across, gap = dice.whole(1, 4), screen.px(6)
    width = (x1 - x0 + gap) // across - gap
    height = max(round(width * dice.between(0.6, 1.4)), 3 * font.height)
    radius = screen.px(dice.pick((0, 4, 8)))
    for y in range(y0, y1, height + gap):
        for i in range(across):
            x = x0 + i * (width + gap)
            screen.box(x, y, x + width, y + height, theme.panel, radius=radius)
            photo = y + height * dice.whole(2, 6) // 10
            screen.box(x, y, x + width, photo, dice.pick(theme.accents), radius=radius)
            screen.paragraph(x + 4, photo + 4, x + width - 4, y + height, theme.ink, font,
                             leading=round(font.height * 1.3))  # fmt: skip


def _draw_messages(screen: Screen, x0: int, y0: int, x1: int, y1: int) -> None:
    dice, theme, font = screen.dice, screen.theme, screen.font(screen.dice.between(8, 12))
    y, leading, pad = y0, round(font.height * 1.2), screen.px(5)
    while y < y1:
        is_mine, num_lines = dice.chance(0.5), dice.whole(1, 4)
        width = round((x1 - x0) * dice.between(0.4, 0.8))
        x = x1 - width if is_mine else x0
        face = theme.accents[2] if is_mine else theme.panel
        end = y + num_lines * leading + 2 * pad
        screen.box(x, y, x + width, end, face, radius=screen.px(8))
        screen.paragraph(x + pad, y + pad, x + width - pad, end - pad, _ink_on(face), font,
                         leading=leading)  # fmt: skip
        y = end + pad


def draw_icons(screen: Screen) -> None:
    """Signs of simple form on plates, in rows, with or without their names."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    across = dice.whole(2, 7)
    pitch = size // across
    side = round(pitch * dice.between(0.5, 0.9))
    radius, font = round(side * dice.pick((0.0, 0.2, 0.5))), screen.font(7)
    has_names, has_plates = across < 6 and dice.chance(0.6), dice.chance(0.8)
    for y in range((pitch - side) // 2, size, pitch):
        for x in range((pitch - side) // 2, across * pitch, pitch):
            plate = dice.pick(theme.accents) if has_plates else theme.ground
            if has_plates:
                screen.box(x, y, x + side, y + side, plate, radius=radius)
            sign = _ink_on(plate) if has_plates else dice.pick((theme.ink, *theme.accents))
            _draw_sign(screen, x + side // 2, y + side // 2, max(side // 3, 2), sign)
            if has_names:
                screen.text(x, y + side + 1, x + pitch, theme.ink, font, manner=TITLE, num_words=1)


def _draw_sign(screen: Screen, x: int, y: int, reach: int, colour: Colour) -> None:
    """A ring, a cross, a triangle, bars, a tick, a house, a number, a letter or a person."""
    dice, width = screen.dice, max(reach // 4, 1)
    kind = dice.below(9)
    if kind == 0:
        screen.disc(x, y, reach, colour, width=width)
    elif kind == 1:
        screen.line([(x - reach, y), (x + reach, y)], colour, width * 2)
        screen.line([(x, y - reach), (x, y + reach)], colour, width * 2)
    elif kind == 2:
        flip = dice.pick((-1, 1))
        screen.area([(x - flip * reach, y - reach), (x + flip * reach, y),
                     (x - flip * reach, y + reach)], colour)  # fmt: skip
    elif kind == 3:
        for i in (-1, 0, 1):
            screen.box(x - reach, y + i * reach * 2 // 3 - width // 2, x + reach,
                       y + i * reach * 2 // 3 + width, colour)  # fmt: skip
    elif kind == 4:
        screen.line([(x - reach, y), (x - reach // 3, y + reach), (x + reach, y - reach)], colour,
                    width)  # fmt: skip
    elif kind == 5:
        screen.area([(x, y - reach), (x + reach, y), (x - reach, y)], colour)
        screen.box(x - reach * 2 // 3, y, x + reach * 2 // 3, y + reach, colour)
    elif kind == 6:
        font = screen.font(reach * 2.2 * 256 / screen.size, is_bold=True)
        at = x - reach // 2, y - font.height // 2
        screen.text(*at, x + 2 * reach, colour, font, manner=NUMBERS, num_words=1)
    elif kind == 7:
        screen.frame(x - reach, y - reach * 2 // 3, x + reach, y + reach * 2 // 3, colour, width)
        screen.line([(x - reach, y - reach * 2 // 3), (x, y), (x + reach, y - reach * 2 // 3)],
                    colour, width)  # fmt: skip
    else:
        screen.disc(x, y - reach // 2, reach // 2, colour)
        screen.sector(x, y + reach, reach, 180, 360, colour)


def _ink_on(face: Colour) -> Colour:
    """White or next to black, whichever is easier to read (luma weights of ITU-R BT.601)."""
    return (255, 255, 255) if 299 * face[0] + 587 * face[1] + 114 * face[2] < 140_000 else (15,) * 3
