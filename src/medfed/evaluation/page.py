"""One self-contained HTML page from blocks of content: inline CSS, no script, nothing loaded from a network.

A page is written by whoever knows its content; here it is only set. Every text is escaped by the template engine, and
the page forbids itself to load anything.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from medfed.evaluation.figure import Figure, Table, looks_numeric
from medfed.evaluation.svg import text_width
from medfed.language import Translate, translator


@dataclass(frozen=True)
class Text:
    """A paragraph. lead: larger; note: smaller; verdict: a statement that stands out."""

    text: str
    look: Literal["plain", "lead", "note", "verdict"] = "plain"


@dataclass(frozen=True)
class Notice:
    """Something that has to be seen: what the page is not, or who stands apart."""

    text: str
    look: Literal["information", "warning"] = "information"


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Tabled:
    """A table that stands by itself, with its caption."""

    caption: str
    table: Table
    total: bool = False


@dataclass(frozen=True)
class Facts:
    """Pairs of name and value."""

    pairs: tuple[tuple[str, str], ...]


Block = Text | Notice | Bullets | Heading | Tabled | Facts | Figure


@dataclass(frozen=True)
class Section:
    """A part of the page with its place in the list of contents. new_page: begins one when printed."""

    anchor: str
    title: str
    blocks: Sequence[Block]
    new_page: bool = False


@dataclass(frozen=True)
class Head:
    """The first screen: what was asked, and the answer."""

    kicker: str
    title: str
    question: str
    answer: str
    detail: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    notices: tuple[Notice, ...] = ()
    other_language: tuple[str, str, str] | None = field(default=None)


# A cell or column head narrower than this many pixels stays on one line.
_SHORT = 70


@cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("medfed.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["kind"] = lambda block: type(block).__name__
    found.filters["marked"] = _marked
    found.tests["unbroken"] = lambda cell: looks_numeric(cell) or text_width(cell) < _SHORT
    return found


_RAISED = re.compile(r"(?<=10)\^(−?\d+)")


def _marked(text: str) -> Markup:
    """Escaped text in which `words between backticks` are set as code, and 10^-3 with a raised exponent."""
    parts = [_RAISED.sub(r"<sup>\1</sup>", str(escape(part))) for part in text.split("`")]
    return Markup("".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts)))


def render_page(head: Head, sections: Sequence[Section], *, lang: str, foot: Sequence[str] = ()) -> str:
    """The page as text. Raises MedfedError for an unknown language."""
    _: Translate = translator(lang)
    template = _environment().get_template("page.html")
    return template.render(head=head, sections=sections, lang=lang, foot=foot, _=_)
