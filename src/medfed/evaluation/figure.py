"""What every chart returns: a drawing, its title and caption, and the same numbers as a table."""

from collections.abc import Callable
from dataclasses import dataclass

from medfed.language import Translate, number

Form = Callable[[float], str]


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; the first column names the row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Which columns hold numbers only, to be set flush right."""
        return tuple(
            index > 0 and any(row[index] for row in self.rows) and all(looks_numeric(row[index]) for row in self.rows)
            for index in range(len(self.columns))
        )


def looks_numeric(cell: str) -> bool:
    """Whether a cell starts as a number does."""
    return cell in ("", "–") or cell.lstrip("−<∞")[:1].isdigit() or cell.startswith(("∞", "−∞"))


@dataclass(frozen=True)
class Figure:
    """svg: text of one SVG element, everything in it escaped. table: what is drawn, in numbers.

    numbers_drawn: all of the table stands in the drawing too, so that paper need not repeat it.
    """

    svg: str
    title: str
    caption: str
    table: Table
    numbers_drawn: bool = False


def two_digits(value: float) -> str:
    """The usual form of a ratio, an AUC, a slope."""
    return number(value, 2)


def interval_text(low: float | None, high: float | None, form: Form, _: Translate) -> str:
    """ "0.34 to 0.83"; an end that does not exist is infinite; empty without an interval."""
    if low is None and high is None:
        return ""
    ends = [form(low) if low is not None else "−∞", form(high) if high is not None else "∞"]
    return _("{low} to {high}").format(low=ends[0], high=ends[1])


def value_text(value: float | None, low: float | None, high: float | None, form: Form, _: Translate) -> str:
    """ "0.53 (0.34 to 0.83)"."""
    if value is None:
        return ""
    inside = interval_text(low, high, form, _)
    return f"{form(value)} ({inside})" if inside else form(value)


def why_text(why: str, _: Translate) -> str:
    """Why there is no number. ``why`` is a sentence of ours, translated already."""
    return _("not shown: {why}").format(why=why)
