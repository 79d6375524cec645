"""Charts of a report: pure functions from plain data to a Figure, drawn as SVG without a plotting library.

Here are those with two axes and the flow of rows; forest, dots and bars come from ``row_charts``. All are dark on
white, told apart in greyscale, and all text in them is escaped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from medfed.evaluation.figure import Figure, Form, Table, interval_text
from medfed.evaluation.row_charts import Estimated, bars, dots, forest
from medfed.evaluation.svg import (
    INK,
    MUTED,
    PALE,
    SIZE,
    SMALL,
    WIDTH,
    Scale,
    Style,
    box,
    drawing,
    element,
    line,
    linear_scale,
    marker,
    path,
    style_of,
    text_width,
    tooltip,
    wrap,
    write,
)
from medfed.language import number, percent, translator

__all__ = [
    "CalibrationGroup", "Dropped", "Estimated", "Figure", "Line", "Roc", "Table",
    "bars", "calibration", "curve", "dots", "flow", "forest", "histogram", "roc",
]  # fmt: skip

_SQUARE = 310.0
_LINE = 17.0


@dataclass(frozen=True)
class Line:
    """One line of a curve: x (n,) increasing, y (n,)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def curve(
    lines: Sequence[Line],
    *,
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    lang: str = "en",
    form: Form = lambda value: number(value, 4),
) -> Figure:
    """Lines over rounds (or any x), each named at its end."""
    top, bottom, left = 34.0, 290.0, 56.0
    names = [wrap(each.name, 150) if len(lines) > 1 else [] for each in lines]
    label_width = max((text_width(words) for wrapped in names for words in wrapped), default=0.0)
    right = WIDTH - (label_width + 34 if label_width else 12.0)
    x_all, y_all = [x for each in lines for x in each.x], [y for each in lines for y in each.y]
    x_scale = linear_scale(min(x_all), max(x_all), left, right, most=8, snug=True)
    x_scale = _whole_ticks(x_scale)
    y_scale = linear_scale(min(y_all), max(y_all), bottom, top, most=5)
    parts = [write(0, 14, y_label, bold=True, size=SMALL), *_axes(x_scale, y_scale, x_label)]
    for index, each in enumerate(lines):
        style = style_of(index)
        points = [(x_scale(x), y_scale(y)) for x, y in zip(each.x, each.y, strict=True)]
        parts.append(path(points, style, tip=each.name))
        shown = points if len(points) <= 25 else points[-1:]
        parts += [marker(x, y, style, radius=3.4) for x, y in shown]
    if label_width:
        heights = [_LINE * len(wrapped) for wrapped in names]
        places = _apart([y_scale(each.y[-1]) for each in lines], heights, top - 8, bottom + 8)
        for index, (wrapped, place) in enumerate(zip(names, places, strict=True)):
            start = place - (len(wrapped) - 1) * _LINE / 2 + SIZE * 0.36
            parts.append(marker(right + 18, place, style_of(index), radius=4, kind="sample"))
            parts += [write(right + 30, start + i * _LINE, words, kind="label") for i, words in enumerate(wrapped)]
    xs = sorted(set(x_all))
    found = [dict(zip(each.x, each.y, strict=True)) for each in lines]
    rows = tuple((f"{x:g}", *(form(values[x]) if x in values else "–" for values in found)) for x in xs)
    names_or_label = tuple(each.name for each in lines) if len(lines) > 1 else (y_label,)
    return Figure(drawing(WIDTH, bottom + 46, title, parts), title, caption, Table((x_label, *names_or_label), rows))


def _whole_ticks(scale: Scale) -> Scale:
    """Rounds have no halves."""
    whole = tuple(dict.fromkeys(tick for tick in scale.ticks if abs(tick - round(tick)) < 1e-9))
    return Scale(scale.low, scale.high, scale.start, scale.stop, whole or scale.ticks)


def _apart(wanted: Sequence[float], heights: Sequence[float], top: float, bottom: float) -> list[float]:
    """Centres near the wanted ones whose labels don't overlap, in the same order from top to bottom."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    centres = [0.0] * len(wanted)
    edge = top
    for index in order:
        centres[index] = max(wanted[index], edge + heights[index] / 2)
        edge = centres[index] + heights[index] / 2
    edge = bottom
    for index in reversed(order):
        centres[index] = min(centres[index], edge - heights[index] / 2)
        edge = centres[index] - heights[index] / 2
    return centres


def _axes(x_scale: Scale, y_scale: Scale, x_label: str, form: Form | None = None) -> list[str]:
    """Grid, ticks and the label below; the vertical axis is named at the top by its chart."""
    parts = []
    for tick in y_scale.ticks:
        parts.append(line(x_scale.start, y_scale(tick), x_scale.stop, y_scale(tick), kind="grid"))
        label = (form or y_scale.form)(tick)
        parts.append(
            write(x_scale.start - 8, y_scale(tick) + 4, label, anchor="end", size=SMALL, colour=MUTED, kind="tick y")
        )
    bottom = y_scale.start
    for tick in x_scale.ticks:
        parts.append(line(x_scale(tick), bottom, x_scale(tick), bottom + 5, colour=MUTED))
        label = (form or x_scale.form)(tick)
        parts.append(write(x_scale(tick), bottom + 19, label, anchor="middle", size=SMALL, colour=MUTED, kind="tick x"))
    parts.append(line(x_scale.start, bottom, x_scale.stop, bottom, colour=MUTED))
    middle = (x_scale.start + x_scale.stop) / 2
    parts.append(write(middle, bottom + 39, x_label, anchor="middle", bold=True, size=SMALL))
    return parts


@dataclass(frozen=True)
class Roc:
    """A ROC curve: points (k,) from (0, 0) to (1, 1); note: what stands below its name, as its AUC."""

    name: str
    false_positive_rate: Sequence[float]
    true_positive_rate: Sequence[float]
    note: str = ""


def roc(curves: Sequence[Roc], *, title: str, caption: str, lang: str = "en") -> Figure:
    """ROC curves in a square, each named beside it; the diagonal is chance. Up to ``STYLES`` of them can be told apart."""
    _ = translator(lang)
    left, top = 52.0, 30.0
    x_scale, y_scale = _unit_square(1.0, left, top)
    parts = [write(0, 14, _("Sensitivity"), bold=True, size=SMALL)]
    parts += _axes(x_scale, y_scale, _("1 − specificity"))
    parts.append(line(left, top + _SQUARE, left + _SQUARE, top, colour=MUTED, dash="3 4", kind="chance"))
    at = top + 14
    label_left = left + _SQUARE + 36
    rows = []
    for index, each in enumerate(curves):
        style = style_of(index)
        pairs = list(zip(each.false_positive_rate, each.true_positive_rate, strict=True))
        points = [(x_scale(x), y_scale(y)) for x, y in pairs]
        parts.append(path(points, style, tip=each.name))
        if len(points) <= 40:
            parts += [marker(x, y, style, radius=3.2) for x, y in points[1:-1]]
        at = _legend(parts, each.name, each.note, style, label_left, at)
        rows += [(each.name, number(x, 3), number(y, 3)) for x, y in pairs]
    table = Table((_("Model"), _("1 − specificity"), _("Sensitivity")), tuple(rows))
    height = max(top + _SQUARE + 46, at)
    return Figure(drawing(WIDTH, height, title, parts), title, caption, table)


def _legend(parts: list[str], name: str, note: str, style: Style, left: float, at: float) -> float:
    """A sample of line and marker, a name and a note below it; returns where the next one starts."""
    parts.append(path([(left, at - 4), (left + 34, at - 4)], style))
    parts.append(marker(left + 17, at - 4, style, radius=4, kind="sample"))
    width = WIDTH - left - 44
    for bold, content in ((True, name), (False, note)):
        for words in wrap(content, width) if content else []:
            parts.append(write(left + 44, at, words, bold=bold, kind="label"))
            at += _LINE
    return at + 9


def _unit_square(high: float, left: float, top: float) -> tuple[Scale, Scale]:
    ticks = linear_scale(0.0, high, 0.0, 1.0, most=5).ticks
    return (
        Scale(0.0, ticks[-1], left, left + _SQUARE, ticks),
        Scale(0.0, ticks[-1], top + _SQUARE, top, ticks),
    )


@dataclass(frozen=True)
class CalibrationGroup:
    """Patients of similar predicted risk: how many, mean predicted risk, observed share and its interval."""

    patients: int
    predicted: float
    observed: float
    low: float
    high: float


def calibration(groups: Sequence[CalibrationGroup], *, title: str, caption: str, lang: str = "en") -> Figure:
    """Observed against predicted risk by group, with intervals; patients and figures of each group beside it."""
    _ = translator(lang)
    left, top = 52.0, 30.0
    highest = max((max(group.high, group.predicted) for group in groups), default=1.0)
    x_scale, y_scale = _unit_square(min(max(highest, 0.05), 1.0), left, top)
    parts = [
        write(0, 14, _("Observed risk"), bold=True, size=SMALL),
        *_axes(x_scale, y_scale, _("Predicted risk"), x_scale.percent_form),
    ]
    parts.append(line(left, top + _SQUARE, left + _SQUARE, top, colour=MUTED, dash="3 4", kind="ideal"))
    style = style_of(0)
    at = top + 6
    columns = (label_left := left + _SQUARE + 70, label_left + 84, float(WIDTH))
    heads = (_("Patients"), _("Predicted"), _("Observed (95% interval)"))
    for x, head in zip(columns, heads, strict=True):
        for index, words in enumerate(reversed(wrap(head, 150 if x == WIDTH else 80, SMALL))):
            parts.append(write(x, at - index * _LINE + 6, words, anchor="end", bold=True, size=SMALL))
    parts.append(line(label_left - 50, at + 14, WIDTH, at + 14, colour=MUTED))
    rows = []
    for group in groups:
        at += 24
        x, y = x_scale(group.predicted), y_scale(group.observed)
        parts += _vertical_interval(x, y_scale(group.low), y_scale(group.high), style)
        inside = interval_text(group.low, group.high, percent, _)
        cells = (number(group.patients, 0), percent(group.predicted), f"{percent(group.observed)} ({inside})")
        parts.append(marker(x, y, style, tip=" · ".join(cells)))
        parts += [write(x, at + 8, cell, anchor="end", size=SMALL) for x, cell in zip(columns, cells, strict=True)]
        rows.append((cells[0], cells[1], percent(group.observed), inside))
    table = Table((*heads[:2], _("Observed"), _("95% interval")), tuple(rows))
    height = max(top + _SQUARE + 46, at + 20)
    return Figure(drawing(WIDTH, height, title, parts), title, caption, table, numbers_drawn=True)


def _vertical_interval(x: float, low: float, high: float, style: Style) -> list[str]:
    return [
        line(x, low, x, high, colour=style.colour, width=1.6, kind="interval"),
        line(x - 4, low, x + 4, low, colour=style.colour, width=1.4),
        line(x - 4, high, x + 4, high, colour=style.colour, width=1.4),
    ]


def histogram(
    edges: Sequence[float],
    counts: Sequence[int | None],
    *,
    title: str,
    caption: str,
    x_label: str,
    y_label: str,
    lang: str = "en",
) -> Figure:
    """Counts between edges (bins + 1,); a count of None is one that may not be shown, drawn as an empty place.

    Area is the count: a bar wider than the narrowest is lower by as much.
    """
    _ = translator(lang)
    top, bottom, left = 34.0, 270.0, 56.0
    x_scale = linear_scale(edges[0], edges[-1], left, WIDTH - 12.0, most=9, snug=True)
    narrowest = min(high - low for low, high in pairwise(edges))
    heights = [
        (count or 0) * narrowest / (high - low) for count, (low, high) in zip(counts, pairwise(edges), strict=True)
    ]
    y_scale = linear_scale(0, max([*heights, 1]), bottom, top, most=5)
    parts = [write(0, 14, y_label, bold=True, size=SMALL), *_axes(x_scale, y_scale, x_label)]
    hidden = _("under the smallest count that may be seen")
    rows = []
    for (low, high), count, height in zip(pairwise(edges), counts, heights, strict=True):
        start, stop = x_scale(low), x_scale(high)
        name = _("{low} to {high}").format(low=f"{low:g}", high=f"{high:g}")
        shown = hidden if count is None else number(count, 0)
        rows.append((name, shown))
        if count is None:
            parts.append(
                box(start + 1, bottom - 14, stop - start - 2, 14, fill="#ffffff", stroke=MUTED, tip=f"{name}: {shown}")
            )
            parts.append(write((start + stop) / 2, bottom - 3, "?", anchor="middle", size=SMALL, colour=MUTED))
            continue
        y = y_scale(height)
        parts.append(
            element(
                "rect", *tooltip(f"{name}: {shown}"), x=start + 0.75, y=y, width=max(stop - start - 1.5, 0.5),
                height=bottom - y, fill="#5b8fbf", class_="mark", data_x=(start + stop) / 2, data_y=y,
            )
        )  # fmt: skip
        if text_width(shown, SMALL) < stop - start - 4:
            parts.append(write((start + stop) / 2, y - 5, shown, anchor="middle", size=SMALL, kind="number"))
    return Figure(drawing(WIDTH, bottom + 46, title, parts), title, caption, Table((x_label, y_label), tuple(rows)))


@dataclass(frozen=True)
class Dropped:
    """Rows that were left out, and why."""

    reason: str
    count: int


def flow(
    start: tuple[str, int],
    dropped: Sequence[Dropped],
    kept: tuple[str, int],
    *,
    title: str,
    caption: str,
    dropped_head: str,
    lang: str = "en",
) -> Figure:
    """What came in, what was left out and why, what stays: the flow diagram of a trial's report (CONSORT)."""
    _ = translator(lang)
    width, side = 230.0, 300.0
    lines = [(each, wrap(each.reason, WIDTH - side - 110, SMALL)) for each in dropped]
    inner = sum(18.0 * len(words) for each, words in lines) + (10 if dropped else 0)
    head_lines = wrap(dropped_head, WIDTH - side - 40)
    side_height = 16 + 18 * len(head_lines) + inner
    box_height = 58.0
    gap = max(side_height + 30, 60.0) if dropped else 44.0
    end_top = box_height + gap
    middle = width / 2
    turn = box_height + gap / 2
    parts = [line(middle, box_height, middle, end_top - 6, colour=INK, width=1.4)]
    parts.append(element("path", d=f"M{middle - 5:.2f} {end_top - 8:.2f}h10l-5 8z", fill=INK))
    share = (
        _("{share} of {whole}").format(share=percent(kept[1] / start[1]), whole=number(start[1], 0)) if start[1] else ""
    )
    parts += _flow_box(0, 0, width, box_height, start[0], number(start[1], 0), "")
    parts += _flow_box(0, end_top, width, box_height, kept[0], number(kept[1], 0), share)
    if dropped:
        top = turn - side_height / 2
        parts.append(line(middle, turn, side - 7, turn, colour=INK, width=1.4))
        parts.append(element("path", d=f"M{side - 8:.2f} {turn - 5:.2f}v10l8 -5z", fill=INK))
        parts.append(box(side, top, WIDTH - side - 1, side_height, fill="#ffffff", stroke=MUTED))
        at = top + 22
        for words in head_lines:
            parts.append(write(side + 16, at, words, bold=True))
            at += 18
        at += 4
        for each, reason in lines:
            parts.append(write(WIDTH - 16, at, number(each.count, 0), anchor="end", kind="number"))
            for words in reason:
                parts.append(write(side + 16, at, words, size=SMALL))
                at += 18
    rows = [(start[0], number(start[1], 0)), *((each.reason, f"−{number(each.count, 0)}") for each in dropped)]
    table = Table((_("Step"), _("Rows")), (*rows, (kept[0], number(kept[1], 0))))
    svg = drawing(WIDTH, end_top + box_height + 2, title, parts)
    return Figure(svg, title, caption, table, numbers_drawn=True)


def _flow_box(x: float, y: float, width: float, height: float, name: str, count: str, note: str) -> list[str]:
    words = wrap(name, width - 24, SMALL)[:2]
    return [
        box(x + 1, y + 1, width - 2, height - 2, fill=PALE, stroke=MUTED),
        *(write(x + 14, y + 20 + i * 15, text, size=SMALL) for i, text in enumerate(words)),
        write(x + 14, y + height - 13, count, size=19, bold=True, kind="number"),
        *([write(x + width - 14, y + height - 14, note, anchor="end", size=SMALL, colour=MUTED)] if note else []),
    ]
