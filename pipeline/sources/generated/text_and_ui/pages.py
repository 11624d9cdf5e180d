"""Written and plotted screens: pages, code, signs, tables, charts."""

from pipeline.sources.generated.text_and_ui.fonts import Font
from pipeline.sources.generated.text_and_ui.screen import Screen
from pipeline.sources.generated.text_and_ui.writing import NUMBERS, PROSE, SYMBOLS, TITLE, Colour


def draw_page(screen: Screen) -> None:
    """Columns of prose with headings, and sometimes a picture or a box in their midst."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    font = screen.font(dice.between(7, 15))
    leading = round(font.height * dice.between(1.0, 1.5))
    margin, num_columns = screen.px(dice.between(6, 30)), dice.pick((1, 1, 1, 2, 3))
    y = margin
    if dice.chance(0.6):
        title = screen.font(dice.between(16, 32), is_bold=True)
        screen.text(margin, y, size - margin, theme.ink, title, manner=TITLE)
        y += title.height + leading // 2
        if dice.chance(0.3):
            screen.line([(margin, y), (size - margin, y)], theme.faint)
            y += leading // 2
    pitch = (size - 2 * margin) // num_columns
    for column in range(num_columns):
        x0 = margin + column * pitch
        _fill_column(screen, x0, y, x0 + pitch - screen.px(6), size - margin, font, leading)


def _fill_column(
    screen: Screen, x0: int, y0: int, x1: int, y1: int, font: Font, leading: int
) -> None:
    dice, theme = screen.dice, screen.theme
    y = y0
    while y < y1 - leading:
        kind = dice.below(8)
        end = min(y + leading * dice.whole(2, 9), y1)
        if kind == 0:
            screen.box(x0, y, x1, end, dice.pick(theme.accents), radius=screen.px(3))
        elif kind == 1:
            bold = screen.font(font.height * 256 / screen.size * 1.2, is_bold=True)
            screen.text(x0, y, x1, dice.pick((theme.ink, *theme.accents)), bold, manner=TITLE)
            end = y + bold.height + leading // 3
        elif kind == 2:
            screen.box(x0, y, x1, end, theme.panel)
            screen.paragraph(
                x0 + leading // 2, y, x1 - leading // 2, end, theme.ink, font, leading=leading
            )
        else:
            screen.paragraph(x0, y, x1, end, theme.ink, font, leading=leading)
        y = end + leading // 2


def draw_code(screen: Screen) -> None:
    """Lines indented by steps, each word of a colour of its own; an editor or a terminal."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    font = screen.font(dice.between(7, 13), is_fixed=True)
    leading, step = round(font.height * dice.between(1.0, 1.3)), int(font.advances[0]) * 2
    x0, y = screen.px(4), screen.px(3)
    if dice.chance(0.5):  # tabs on top
        tab = screen.px(dice.between(40, 70))
        screen.box(0, 0, size, leading + y, theme.panel)
        screen.box(0, 0, tab, leading + y, theme.ground)
        screen.text(x0, y, tab, theme.ink, font, num_words=1, manner=SYMBOLS)
        y += leading + screen.px(3)
    gutter = screen.px(22) if dice.chance(0.6) else 0
    depth, line = 0, dice.below(900)
    colours = (theme.ink, theme.ink, *theme.accents[:3])
    while y + font.height <= size:
        if gutter:
            screen.text(x0, y, gutter, theme.faint, font, manner=NUMBERS, num_words=1)
        x = x0 + gutter + depth * step
        if dice.chance(0.08):
            screen.text(x, y, size, theme.faint, font, num_words=dice.whole(3, 8))  # a comment
        elif dice.chance(0.88):
            for _ in range(dice.whole(1, 4)):
                x = screen.text(
                    x, y, size, dice.pick(colours), font, num_words=dice.whole(1, 2), manner=SYMBOLS
                )
                x += step // 2
        depth = min(max(depth + dice.pick((-1, 0, 0, 0, 1)), 0), 5)
        y, line = y + leading, line + 1


def draw_sign(screen: Screen) -> None:
    """A few large words: a poster, a label, a road sign, a caption across the picture."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    ground = dice.pick((theme.ground, *theme.accents))
    ink: Colour = (255, 255, 255) if sum(ground) < 380 else (15, 15, 15)
    inset = screen.px(dice.between(4, 50))
    if dice.chance(0.3):
        screen.disc(size // 2, size // 2, size // 2 - inset // 2, ground)
    else:
        screen.box(inset, inset, size - inset, size - inset, ground, radius=screen.px(14))
    if dice.chance(0.5):
        rim = inset + screen.px(5)
        screen.frame(rim, rim, size - rim, size - rim, ink, screen.px(3))
    height = dice.between(22, 70)
    font = screen.font(height, is_bold=dice.chance(0.7))
    num_lines = max(1, min((size - 2 * inset) // font.height - 1, dice.whole(1, 5)))
    y = (size - num_lines * font.height) // 2
    for _ in range(num_lines):
        manner = dice.pick((TITLE, TITLE, PROSE, NUMBERS))
        x = inset + screen.px(dice.between(8, 30))
        screen.text(x, y, size - inset, ink, font, manner=manner, num_words=dice.whole(1, 2))
        y += font.height
    if dice.chance(0.4):
        small = screen.font(9)
        screen.text(inset + screen.px(9), size - inset - 2 * small.height, size - inset, ink, small)


def draw_table(screen: Screen) -> None:
    """Rows and columns of numbers and words: a spreadsheet, a timetable, a bill."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    font = screen.font(dice.between(7, 13))
    pitch = round(font.height * dice.between(1.2, 2.0))
    left, top = screen.px(dice.between(0, 16)), screen.px(dice.between(0, 30))
    edges, x = [left], left
    while x < size:
        x += screen.px(dice.between(24, 80))
        edges.append(x)
    is_numeric = [dice.chance(0.6) for _ in edges]
    has_rules, is_striped = dice.chance(0.6), dice.chance(0.5)
    header = dice.pick((theme.panel, *theme.accents))
    ink_on_header: Colour = (255, 255, 255) if sum(header) < 380 else (15, 15, 15)
    screen.box(left, top, size, top + pitch, header)
    for row, y in enumerate(range(top, size, pitch)):
        if row and row % 2 and is_striped:
            screen.box(left, y, size, y + pitch, theme.panel)
        for x0, x1, numeric in zip(edges, edges[1:], is_numeric, strict=False):
            if row and dice.chance(0.12):
                continue  # an empty cell
            colour = theme.ink if row else ink_on_header
            manner = TITLE if not row else NUMBERS if numeric else PROSE
            at = y + (pitch - font.height) // 2
            screen.text(x0 + 3, at, x1 - 2, colour, font, manner=manner, num_words=2 - numeric)
        if has_rules:
            screen.line([(left, y), (size, y)], theme.faint)
    if has_rules:
        for x in edges:
            screen.line([(x, top), (x, size)], theme.faint)


def draw_chart(screen: Screen) -> None:
    """Bars, lines, an area, points or a pie, with axes, ticks and a title."""
    dice, theme, size = screen.dice, screen.theme, screen.size
    font = screen.font(8)
    left, right = screen.px(dice.between(16, 40)), size - screen.px(dice.between(6, 20))
    top, bottom = screen.px(dice.between(20, 40)), size - screen.px(dice.between(16, 34))
    screen.text(left, screen.px(4), right, theme.ink, screen.font(13, is_bold=True), manner=TITLE,
                num_words=3)  # fmt: skip
    kind = dice.below(5)
    if kind == 4:
        _draw_pie(screen, (left + right) // 2, (top + bottom) // 2, (bottom - top) // 2 - 2)
        return
    for y in range(bottom, top, -max((bottom - top) // dice.whole(3, 7), 4)):
        screen.line([(left, y), (right, y)], theme.faint)
        screen.text(1, y - font.height // 2, left - 1, theme.ink, font, manner=NUMBERS, num_words=1)
    if kind == 0:
        _draw_bars(screen, left, top, right, bottom)
    else:
        for colour in theme.accents[: dice.whole(1, 4)]:
            number = dice.whole(4, 40)
            steps = [round((right - left) * i / (number - 1)) + left for i in range(number)]
            points = list(zip(steps, _walk(screen, top, bottom, number), strict=True))
            if kind == 1:
                screen.line(points, colour, screen.px(dice.pick((1, 2))))
            elif kind == 2:
                screen.area([(left, bottom), *points, (right, bottom)], colour)
            else:
                for x, y in points:
                    screen.disc(x, y, screen.px(dice.pick((1, 2, 3))), colour)
    screen.line([(left, top), (left, bottom), (right, bottom)], theme.ink)
    for x in range(left, right - screen.px(20), screen.px(dice.between(26, 50))):
        screen.text(x, bottom + 2, x + screen.px(24), theme.ink, font, num_words=1, manner=NUMBERS)


def _walk(screen: Screen, top: int, bottom: int, number: int) -> list[int]:
    """A random walk that stays inside."""
    dice, y, levels = screen.dice, screen.dice.whole(top, bottom), []
    reach = max((bottom - top) // dice.whole(3, 12), 1)
    for _ in range(number):
        y = min(max(y + dice.whole(-reach, reach), top), bottom)
        levels.append(y)
    return levels


def _draw_bars(screen: Screen, left: int, top: int, right: int, bottom: int) -> None:
    dice, theme = screen.dice, screen.theme
    number, num_series = dice.whole(3, 12), dice.pick((1, 1, 2, 3))
    pitch = (right - left) / number
    for i in range(number):
        for k in range(num_series):
            x = left + round(pitch * (i + 0.15 + 0.7 * k / num_series))
            end = max(x + round(pitch * 0.65 / num_series), x + 1)
            screen.box(x, dice.whole(top, bottom), end, bottom, theme.accents[k])


def _draw_pie(screen: Screen, x: int, y: int, radius: int) -> None:
    dice, theme = screen.dice, screen.theme
    start, number = dice.below(360), dice.whole(2, 7)
    cuts = sorted(dice.below(360) for _ in range(number - 1))
    for i, (first, last) in enumerate(zip([0, *cuts], [*cuts, 360], strict=True)):
        colour = (*theme.accents, theme.faint, theme.ink)[i % (len(theme.accents) + 2)]
        screen.sector(x, y, radius, start + first, start + last, colour)
    if dice.chance(0.4):
        screen.disc(x, y, radius // 2, theme.ground)
