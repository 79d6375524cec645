"""Plain text tables for a terminal: facts above, columns aligned, Chinese characters two cells wide."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from medfed.language import number


@dataclass(frozen=True)
class Shown:
    """A result for people: facts (name, value), then a table whose first column names the row. All of it text."""

    facts: Sequence[tuple[str, str]]
    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def text_of(tables: Sequence[Shown]) -> str:
    """Tables as plain text, one below the other."""
    return "\n\n".join(text_table(table.facts, table.header, table.rows) for table in tables)


def text_table(facts: Sequence[tuple[str, str]], header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Facts as ``name: value`` lines, then a table whose first column is flush left and whose others are flush right."""
    widest = max((_width(name) for name, _ in facts), default=0)
    lines = [f"{name}{' ' * (widest - _width(name))}  {value}" for name, value in facts]
    table = [list(header), *(list(row) for row in rows)]
    widths = [max(_width(row[index]) for row in table) for index in range(len(header))]
    rule = "─" * (sum(widths) + 2 * (len(widths) - 1))
    body = [
        "  ".join(_padded(cell, width, index) for index, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in table
    ]
    return "\n".join([*lines, rule, body[0], rule, *body[1:], rule])


def p_value(p: float) -> str:
    """A P value as journals print it."""
    if p != p:
        return number(p)
    return "<0.0001" if p < 0.0001 else number(p, 4)


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _padded(text: str, width: int, column: int) -> str:
    space = " " * (width - _width(text))
    return text + space if column == 0 else space + text
