"""The little that charts are drawn with: escaped SVG elements, text that is measured, scales and their ticks.

No fonts are loaded, so widths are estimated on the safe side; a Chinese character is one em wide. Nothing here knows
what a chart means.
"""

import math
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from medfed.language import number, percent

INK = "#16191d"
MUTED = "#545c66"
RULE = "#d7dbe0"
PALE = "#eef1f4"
WIDTH = 720
SIZE = 13
SMALL = 12

_FAMILY = (
    "'Helvetica Neue', Helvetica, Arial, 'Liberation Sans', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', "
    "'Noto Sans SC', sans-serif"
)


@dataclass(frozen=True)
class Style:
    """How one series is told from another: by colour, and in greyscale still by marker, fill and dash."""

    colour: str
    marker: str
    dash: str = ""


# Dark to light in greyscale; blue, orange, black and green as colour-blind readers tell apart (Okabe & Ito 2008).
STYLES = (
    Style("#0b4f8a", "circle"),
    Style("#d86f00", "square", "7 4"),
    Style("#30353b", "hollow-diamond", "2 3"),
    Style("#008060", "triangle", "10 3 2 3"),
    Style("#8a4a86", "hollow-circle", "4 2"),
    Style("#7a6a00", "hollow-square", "1 4"),
)


def style_of(index: int) -> Style:
    """Style of the series at this place."""
    return STYLES[index % len(STYLES)]


def element(name: str, *children: str, **attributes: object) -> str:
    """One SVG element; attribute names may end in an underscore, and _ stands for -. Children are SVG already."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_plain(value))}"'
        for key, value in attributes.items()
        if value is not None and value != ""
    )
    return f"<{name}{words}>{''.join(children)}</{name}>" if children else f"<{name}{words}/>"


def _plain(value: object) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def drawing(width: float, height: float, label: str, parts: Iterable[str]) -> str:
    """The whole SVG, as wide as its place on the page but never stretched; ``label`` is what a screen reader says."""
    return element(
        "svg", *parts, xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_plain(width)} {_plain(height)}", role="img",
        aria_label=label, font_family=_FAMILY, font_size=SIZE, fill=INK,
        style=f"width:100%;max-width:{_plain(width)}px;height:auto",
    )  # fmt: skip


def write(
    x: float, y: float, content: str, *, anchor: str = "start", colour: str = "", size: int = SIZE, bold: bool = False,
    italic: bool = False, kind: str = "",
) -> str:  # fmt: skip
    """A line of text with its baseline at y."""
    return element(
        "text", escape(content), x=float(x), y=float(y), text_anchor="" if anchor == "start" else anchor, fill=colour,
        font_size="" if size == SIZE else size, font_weight="600" if bold else "",
        font_style="italic" if italic and not _is_wide(content) else "", class_=kind,
    )  # fmt: skip


def line(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    colour: str = RULE,
    width: float = 1.0,
    dash: str = "",
    kind: str = "",
) -> str:
    """A straight line."""
    return element(
        "line", x1=float(x1), y1=float(y1), x2=float(x2), y2=float(y2), stroke=colour, stroke_width=width,
        stroke_dasharray=dash, class_=kind,
    )  # fmt: skip


def box(
    x: float, y: float, width: float, height: float, *, fill: str, kind: str = "", stroke: str = "", tip: str = ""
) -> str:
    """A rectangle, with a tip for the mouse."""
    return element(
        "rect", *tooltip(tip), x=float(x), y=float(y), width=float(max(width, 0.0)), height=float(max(height, 0.0)),
        fill=fill, stroke=stroke, class_=kind,
    )  # fmt: skip


def path(points: Sequence[tuple[float, float]], style: Style, *, kind: str = "", tip: str = "") -> str:
    """A line through points, in the style of a series."""
    where = "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return element(
        "path", *tooltip(tip), d=where, fill="none", stroke=style.colour, stroke_width=2, stroke_dasharray=style.dash,
        stroke_linejoin="round", class_=kind,
    )  # fmt: skip


def tooltip(tip: str) -> tuple[str, ...]:
    """An SVG title element, if there is something to say."""
    return (element("title", escape(tip)),) if tip else ()


def marker(x: float, y: float, style: Style, *, radius: float = 5.0, tip: str = "", kind: str = "mark") -> str:
    """A point in the style of a series; its place is also in data-x and data-y, whatever its shape."""
    hollow = style.marker.startswith("hollow-")
    shape = style.marker.removeprefix("hollow-")
    r = radius
    corners = {
        "square": [(-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)],
        "diamond": [(0, -1.25), (1.25, 0), (0, 1.25), (-1.25, 0)],
        "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
    }
    look = {
        "fill": "#ffffff" if hollow else style.colour,
        "stroke": style.colour,
        "stroke_width": 1.8 if hollow else 1,
        "class_": kind,
        "data_x": float(x),
        "data_y": float(y),
    }
    if shape == "circle":
        return element("circle", *tooltip(tip), cx=float(x), cy=float(y), r=float(r), **look)
    where = " ".join(f"{x + a * r:.2f},{y + b * r:.2f}" for a, b in corners[shape])
    return element("polygon", *tooltip(tip), points=where, **look)


def _is_wide(content: str) -> bool:
    """Whether a text has Chinese characters, which have no italics."""
    return any(unicodedata.east_asian_width(letter) in "WF" for letter in content)


def text_width(content: str, size: int = SIZE) -> float:
    """Estimated width in user units: wide East Asian characters 1 em, others by kind."""
    total = 0.0
    for letter in content:
        if _is_wide(letter):
            total += 1.0
        elif letter in "iljtfrI.,:;'|!()[] ·":
            total += 0.36
        elif letter.isupper() or letter in "mwMW%@—−":
            total += 0.75
        else:
            total += 0.6
    return total * size


def wrap(content: str, width: float, size: int = SIZE) -> list[str]:
    """Lines no wider than ``width``: broken at spaces, or between Chinese characters; a longer word is cut."""
    lines, now = [], ""
    for piece in _pieces(content, width, size):
        if now and text_width(now + piece.rstrip(), size) > width:
            lines.append(now.rstrip())
            now = piece.lstrip()
        else:
            now += piece
    return [*lines, now.rstrip()] if now.strip() or not lines else lines


_NEVER_FIRST = "，。；：、）》」』！？,.;:)%"
_NEVER_LAST = "（《「『“("


def _pieces(content: str, width: float, size: int) -> list[str]:
    pieces: list[str] = []
    for letter in content:
        wide = _is_wide(letter)
        after_wide = bool(pieces) and _is_wide(pieces[-1][-1])
        last = pieces[-1][-1] if pieces else ""
        may_break = (wide or after_wide) and letter not in _NEVER_FIRST and last not in _NEVER_LAST
        starts = not pieces or pieces[-1].endswith(" ") or may_break
        if starts or text_width(pieces[-1] + letter, size) > width:
            pieces.append(letter)
        else:
            pieces[-1] += letter
    return pieces


@dataclass(frozen=True)
class Scale:
    """Values from low to high drawn from ``start`` to ``stop``, ``log`` for ratios. ticks: the values to name."""

    low: float
    high: float
    start: float
    stop: float
    ticks: tuple[float, ...]
    log: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value; outside values are put at the end."""
        if self.log:
            share = math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        share = min(max(share, 0.0), 1.0)
        return self.start + share * (self.stop - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies on the scale."""
        return self.low * (1 - 1e-9) - 1e-12 <= value <= self.high * (1 + 1e-9) + 1e-12

    @property
    def form(self) -> Callable[[float], str]:
        """How ticks are written: as many digits as they need, the same for all of a linear scale."""
        if self.log:
            return lambda value: f"{value:g}"
        digits = _digits_of(self.ticks)
        return lambda value: number(value, digits)

    @property
    def percent_form(self) -> Callable[[float], str]:
        """The same where values are shares."""
        digits = max(0, _digits_of(self.ticks) - 2)
        return lambda value: percent(value, digits)


def _digits_of(ticks: Sequence[float]) -> int:
    step = min((b - a for a, b in pairwise(ticks)), default=1.0)
    return max(0, -math.floor(math.log10(step) + 1e-9))


def linear_scale(low: float, high: float, start: float, stop: float, *, most: int = 6, snug: bool = False) -> Scale:
    """A scale with round ticks, widened to whole ticks unless ``snug``."""
    if not high > low:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / max(most, 1))
    first, last = (math.ceil, math.floor) if snug else (math.floor, math.ceil)
    # A limit that is a tick but for rounding error counts as that tick.
    slack = 1e-9 if snug else -1e-9
    begin, end = first(low / step - slack), last(high / step + slack)
    ticks = tuple(round(index * step, 12) for index in range(begin, end + 1))
    if not snug:
        low, high = ticks[0], ticks[-1]
    return Scale(low, high, start, stop, ticks)


def _round_step(wanted: float) -> float:
    power = 10.0 ** math.floor(math.log10(wanted))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= wanted * (1 - 1e-9))


def log_scale(low: float, high: float, start: float, stop: float, *, most: int = 7) -> Scale:
    """A scale for ratios, widened to the next of 1, 2, 5 x 10^k; decades alone where those are too many."""
    for factors in ((1.0, 2.0, 5.0), (1.0,)):
        steps = [f * 10.0**k for k in range(-9, 10) for f in factors]
        below = [s for s in steps if s <= low * (1 + 1e-9)] or steps[:1]
        above = [s for s in steps if s >= high * (1 - 1e-9)] or steps[-1:]
        ticks = tuple(s for s in steps if below[-1] <= s <= above[0])
        if len(ticks) <= most:
            break
    else:
        every = math.ceil(len(ticks) / most)
        ticks = tuple(dict.fromkeys((*ticks[::every], ticks[-1])))
    return Scale(ticks[0], ticks[-1], start, stop, ticks, log=True)
