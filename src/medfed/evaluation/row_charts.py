"""Charts whose rows carry a name, a number and its interval: forest, dots and bars.

The numbers stand beside what is drawn, so that nobody has to read a value off an axis; a row that may not be shown
says why in its place. All three share one layout: names, details, drawing, numbers.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from medfed.evaluation.figure import Figure, Form, Table, interval_text, two_digits, value_text, why_text
from medfed.evaluation.svg import (
    INK,
    MUTED,
    RULE,
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
    log_scale,
    marker,
    style_of,
    text_width,
    tooltip,
    wrap,
    write,
)
from medfed.language import percent, translator

_LINE = 17.0
_GAP = 20.0
_NARROWEST_PLOT = 200.0
# "(95% interval)" over the numbers of a drawing: its table has a column of its own for that.
_ASIDE = re.compile(r" ?[(（][^()（）]*[)）]$")


@dataclass(frozen=True)
class Estimated:
    """A named value with its interval (an end of None is infinite), or the reason why it is not shown.

    detail: what stands beside the name ("26 of 283"). total: drawn as a diamond below a rule.
    """

    name: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    detail: str = ""
    why: str = ""
    total: bool = False


@dataclass(frozen=True)
class _Row:
    name: str
    what: Estimated
    style: Style
    shape: str
    starts_group: bool = True
    name_lines: list[str] = field(default_factory=list)
    detail_lines: list[str] = field(default_factory=list)
    why_lines: list[str] = field(default_factory=list)
    room_below: float = 0.0

    @property
    def own_height(self) -> float:
        """Without the name, which may stand beside several rows."""
        lines = max(1, len(self.detail_lines), len(self.why_lines))
        return _LINE * lines + (9 if self.shape != "point in group" else 5)

    @property
    def height(self) -> float:
        return self.own_height + self.room_below


def forest(
    rows: Sequence[Estimated],
    *,
    title: str,
    caption: str,
    heads: tuple[str, str, str],
    favours: tuple[str, str] | None = None,
    lang: str = "en",
    form: Form = two_digits,
) -> Figure:
    """Ratios with intervals on a log scale, one line at 1; totals as diamonds.

    heads: over names, details and numbers. favours: what lies left and right of 1.
    """
    drawn = [_Row(row.name, row, style_of(0), "diamond" if row.total else "square") for row in rows]
    svg = _draw(drawn, title=title, heads=heads, reference=1.0, favours=favours, log=True, lang=lang, form=form)
    return Figure(svg, title, caption, _table(drawn, heads, form, lang), numbers_drawn=True)


def dots(
    groups: Sequence[tuple[str, Sequence[Estimated]]],
    *,
    title: str,
    caption: str,
    heads: tuple[str, str, str],
    reference: float | None = None,
    styles: Sequence[str] = (),
    lang: str = "en",
    form: Form = two_digits,
) -> Figure:
    """Groups (sites) of points with intervals, a row for each member (local, federated, pooled) in its own style.

    reference: a value with a line of its own, as 0.5 for an AUC or 1 for observed over expected. styles: names in the
    order of styles, so that a name looks the same in every figure.
    """
    names = list(dict.fromkeys([*styles, *(row.name for _, members in groups for row in members)]))
    drawn = [
        _Row(group if index == 0 else "", row, style_of(names.index(row.name)), "point in group", index == 0)
        for group, members in groups
        for index, row in enumerate(members)
    ]
    svg = _draw(drawn, title=title, heads=heads, reference=reference, lang=lang, form=form)
    named = [_Row(group, row, style_of(0), "") for group, members in groups for row in members]
    return Figure(svg, title, caption, _table(named, heads, form, lang, names_in_detail=True), numbers_drawn=True)


def bars(
    rows: Sequence[Estimated],
    *,
    title: str,
    caption: str,
    heads: tuple[str, str, str],
    lang: str = "en",
    form: Form = two_digits,
) -> Figure:
    """Values from 0 as bars, with intervals as whiskers where there are any."""
    drawn = [_Row(row.name, row, style_of(0), "bar") for row in rows]
    svg = _draw(drawn, title=title, heads=heads, reference=0.0, lang=lang, form=form)
    return Figure(svg, title, caption, _table(drawn, heads, form, lang), numbers_drawn=True)


def _table(
    rows: Sequence[_Row], heads: tuple[str, str, str], form: Form, lang: str, *, names_in_detail: bool = False
) -> Table:
    _ = translator(lang)
    with_detail = names_in_detail or any(row.what.detail for row in rows)
    cells = []
    for row in rows:
        what = row.what
        detail = what.name + (f" ({what.detail})" if what.detail else "") if names_in_detail else what.detail
        value = why_text(what.why, _) if what.value is None else form(what.value)
        interval = "" if what.value is None else interval_text(what.low, what.high, form, _)
        cells.append((row.name, *([detail] if with_detail else []), value, interval))
    value_head = _ASIDE.sub("", heads[2])
    columns = (heads[0], *([heads[1]] if with_detail else []), value_head, _("95% interval"))
    return Table(columns, tuple(cells))


def _draw(
    rows: Sequence[_Row],
    *,
    title: str,
    heads: tuple[str, str, str],
    reference: float | None,
    lang: str,
    form: Form,
    favours: tuple[str, str] | None = None,
    log: bool = False,
) -> str:
    _ = translator(lang)
    in_groups = any(row.shape == "point in group" for row in rows)
    details = [row.what.name if in_groups else row.what.detail for row in rows]
    numbers = [value_text(row.what.value, row.what.low, row.what.high, form, _) for row in rows]
    name_width = _column((*(row.name for row in rows), heads[0]), 190)
    detail_width = _column((*details, heads[1]), 150) if any(details) else 0.0
    number_width = max(text_width(number) for number in [*numbers, ""])
    detail_at = name_width + _GAP
    left = detail_at + (detail_width + _GAP if detail_width else 0.0)
    right = max(WIDTH - number_width - _GAP, left + _NARROWEST_PLOT)

    laid = [
        replace(
            row,
            name_lines=wrap(row.name, name_width),
            detail_lines=wrap(detail, detail_width or 150),
            why_lines=wrap(why_text(row.what.why, _), WIDTH - left, SMALL) if row.what.value is None else [],
        )
        for row, detail in zip(rows, details, strict=True)
    ]
    laid = _with_room_for_names(laid)
    head_lines = [wrap(head, width) for head, width in zip(heads, (name_width, detail_width or 150, 300), strict=True)]
    top = _LINE * max(len(lines) for lines in head_lines) + 12
    height = top + sum(row.height for row in laid)
    scale = _scale(rows, reference, left + 6, right - 6, log=log)

    parts = [*_heads(head_lines, detail_at if detail_width else None, left, top)]
    parts += _axis(scale, top, height, reference, scale.percent_form if form is percent else scale.form)
    y = top
    for row, text in zip(laid, numbers, strict=True):
        if row.what.value is None:
            parts.append(_blank(scale, y, row.height))
        if y > top and row.starts_group and (in_groups or row.what.total):
            parts.append(line(0, y, WIDTH, y, colour=RULE if in_groups else MUTED))
        parts += _row(row, text, y, scale, detail_at, in_groups)
        y += row.height
    bottom = height + 24
    if favours:
        written, below = _favours(favours, scale(reference or 1.0), height + 28)
        parts += written
        bottom = height + 28 + below + 4
    return drawing(WIDTH, bottom, title, parts)


def _with_room_for_names(rows: Sequence[_Row]) -> list[_Row]:
    """Rows in which a long name finds its height: that of its group, or more room below the group's last row."""
    found = list(rows)
    starts = [index for index, row in enumerate(rows) if row.starts_group]
    for start, stop in pairwise([*starts, len(rows)]):
        needed = _LINE * len(rows[start].name_lines) + 9
        missing = needed - sum(row.own_height for row in rows[start:stop])
        if missing > 0:
            found[stop - 1] = replace(rows[stop - 1], room_below=missing)
    return found


def _column(words: Sequence[str], widest: float) -> float:
    return min(max((text_width(word) for word in words), default=0.0) + 4, widest)


def _scale(rows: Sequence[_Row], reference: float | None, start: float, stop: float, *, log: bool) -> Scale:
    """Everything finite fits, but an interval may not squeeze the others: ratios are cut at 8 times the values."""
    values = [row.what.value for row in rows if row.what.value is not None and (row.what.value > 0 or not log)]
    ends = [end for row in rows for end in (row.what.low, row.what.high) if end is not None and math.isfinite(end)]
    ends = [end for end in ends if end > 0 or not log]
    anchors = values + ([reference] if reference is not None else [])
    if not anchors:
        anchors = [1.0] if log else [0.0, 1.0]
    low, high = min([*anchors, *ends]), max([*anchors, *ends])
    if log:
        return log_scale(max(low, min(anchors) / 8), min(high, max(anchors) * 8), start, stop)
    room = 0.02 * (high - low)
    low = low if reference == low else low - room
    return linear_scale(low, high + room, start, stop, most=max(2, int((stop - start) / 60)))


def _heads(head_lines: list[list[str]], detail_at: float | None, left: float, top: float) -> list[str]:
    places = [(0.0, "start", head_lines[0]), (left if detail_at is None else detail_at, "start", head_lines[1])]
    if detail_at is None:
        places = places[:1]
    places.append((float(WIDTH), "end", head_lines[2]))
    parts = [line(0, top - 4, WIDTH, top - 4, colour=MUTED)]
    for x, anchor, lines in places:
        for index, text in enumerate(reversed(lines)):
            parts.append(write(x, top - 12 - index * _LINE, text, anchor=anchor, bold=True, size=SMALL))
    return parts


def _axis(scale: Scale, top: float, bottom: float, reference: float | None, form: Form) -> list[str]:
    parts = []
    for tick in scale.ticks:
        parts.append(line(scale(tick), top, scale(tick), bottom, kind="grid"))
        label = write(scale(tick), bottom + 18, form(tick), anchor="middle", size=SMALL, colour=MUTED, kind="tick x")
        parts.append(label)
    if reference is not None:
        parts.append(line(scale(reference), top, scale(reference), bottom, colour=INK, width=1.2, kind="reference"))
    parts.append(line(scale.start, bottom, scale.stop, bottom, colour=MUTED))
    return parts


def _row(row: _Row, text: str, y: float, scale: Scale, detail_at: float, in_groups: bool) -> list[str]:
    what, middle = row.what, y + (row.own_height if in_groups else row.height) / 2
    # A group's name begins beside its first row and may go on beside the next ones.
    lower = _LINE * (len(row.name_lines) - 1) / 2 if in_groups else 0.0
    parts = _block(row.name_lines, 0, middle + lower, bold=what.total or in_groups)
    parts += _block(row.detail_lines, detail_at, middle, bold=what.total)
    if what.value is None:
        return parts + _block(row.why_lines, scale.start, middle, size=SMALL, colour=MUTED, italic=True, kind="why")
    tip = f"{row.name or what.name}: {text}"
    parts += _block([text], WIDTH, middle, anchor="end", bold=what.total, kind="number")
    if row.shape == "bar":
        parts.append(_bar(what.value, scale, middle, tip))
    if row.shape != "diamond":
        parts += _whisker(what, scale, middle, INK if row.shape == "bar" else row.style.colour)
    if row.shape == "diamond":
        parts.append(_diamond(what, scale, middle, tip))
    elif row.shape != "bar" and scale.holds(what.value):
        style = Style(row.style.colour, "square") if row.shape == "square" else row.style
        parts.append(marker(scale(what.value), middle, style, tip=tip))
    return parts


def _block(lines: Sequence[str], x: float, middle: float, **look: Any) -> list[str]:
    """Lines of text centred on a height."""
    first = middle - (len(lines) - 1) * _LINE / 2 + look.get("size", SIZE) * 0.36
    return [write(x, first + index * _LINE, words, **look) for index, words in enumerate(lines) if words]


def _blank(scale: Scale, y: float, height: float) -> str:
    """White under a sentence, so that grid lines don't strike it through."""
    return box(scale.start - 7, y, WIDTH - scale.start + 7, height, fill="#ffffff")


def _bar(value: float, scale: Scale, middle: float, tip: str) -> str:
    x, zero = scale(value), scale(0.0)
    return element(
        "rect", *tooltip(tip), x=min(x, zero), y=middle - 8, width=abs(x - zero), height=16.0, fill="#9dbfdd",
        stroke=style_of(0).colour, class_="mark", data_x=float(x), data_y=float(middle),
    )  # fmt: skip


def _whisker(what: Estimated, scale: Scale, middle: float, colour: str) -> list[str]:
    if what.low is None and what.high is None:
        return []
    parts, ends = [], []
    for end, edge, turn in ((what.low, scale.start, 1), (what.high, scale.stop, -1)):
        if end is not None and scale.holds(end):
            ends.append(scale(end))
            parts.append(line(scale(end), middle - 4, scale(end), middle + 4, colour=colour, width=1.4))
        else:
            ends.append(edge)
            tip = (
                f"{edge:.2f},{middle:.2f} {edge + turn * 7:.2f},{middle - 4:.2f} {edge + turn * 7:.2f},{middle + 4:.2f}"
            )
            parts.append(element("polygon", points=tip, fill=colour, class_="beyond"))
    return [line(ends[0], middle, ends[1], middle, colour=colour, width=1.6, kind="interval"), *parts]


def _diamond(what: Estimated, scale: Scale, middle: float, tip: str) -> str:
    value = what.value if what.value is not None else 1.0
    x = scale(value)
    low = scale(what.low) if what.low is not None else scale.start
    high = scale(what.high) if what.high is not None else scale.stop
    corners = f"{low:.2f},{middle:.2f} {x:.2f},{middle - 8:.2f} {high:.2f},{middle:.2f} {x:.2f},{middle + 8:.2f}"
    return element(
        "polygon", *tooltip(tip), points=corners, fill=style_of(0).colour, class_="mark", data_x=x, data_y=middle
    )


def _favours(favours: tuple[str, str], reference: float, y: float) -> tuple[list[str], float]:
    """What lies left and right of the line at 1, each on its own side; and how high that is."""
    left = wrap(f"← {favours[0]}", reference - 10, SMALL)
    right = wrap(f"{favours[1]} →", WIDTH - reference - 10, SMALL)
    look = {"size": SMALL, "kind": "favours"}
    lines = max(len(left), len(right))
    parts = _block(left, reference - 10, y + _LINE * len(left) / 2, anchor="end", **look)
    parts += _block(right, reference + 10, y + _LINE * len(right) / 2, **look)
    return parts, _LINE * lines
