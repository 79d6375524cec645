"""Tables as plain text, for summaries on a terminal: columns line up, Chinese characters being twice as wide."""

import unicodedata
from collections.abc import Sequence


def width_of(text: str) -> int:
    """Places that a text takes on a terminal."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a line of headings; the first column flush left, the others flush right."""
    table = [list(columns), *(list(row) for row in rows)]
    widths = [max(width_of(row[index]) for row in table) for index in range(len(columns))]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    lines = []
    for row in table:
        cells = [
            cell + " " * (width - width_of(cell)) if index == 0 else " " * (width - width_of(cell)) + cell
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([rule, lines[0], rule, *lines[1:], rule])
