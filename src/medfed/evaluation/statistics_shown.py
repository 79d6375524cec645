"""Results of statistics with their charts: what ``shown`` gives, ``plot(path)`` beside ``summary()`` and ``to_frame()``.

The results themselves belong to the methods and know nothing of drawing.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from medfed.canonical import write_atomically
from medfed.errors import StudyError
from medfed.evaluation.figure import Figure
from medfed.evaluation.statistics_charts import (
    balance_figure,
    coefficients_figure,
    differences_figure,
    histogram_figure,
    meta_figure,
    overlap_figures,
)
from medfed.evaluation.svg import WIDTH, element, write
from medfed.language import translator
from medfed.methods.causal_result import CausalEffect
from medfed.methods.compare import Comparison
from medfed.methods.describe import Description
from medfed.methods.glm_result import GlmFit
from medfed.methods.meta_analysis import MetaResult
from medfed.methods.table_one import Table1

_HEAD, _GAP = 34.0, 30.0
_SIZE = re.compile(r'viewBox="0 0 ([\d.]+) ([\d.]+)"')


class Drawn:
    """A result that has charts."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        """Its charts, the most telling one first."""
        raise NotImplementedError

    def plot(self, path: Path | str, lang: str = "en") -> Path:
        """Write the charts into one SVG file, one below the other. Raises StudyError where there is none to draw."""
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise StudyError(f"{path}: charts are drawn as SVG; give the file a name that ends in .svg")
        found = self.figures(lang)
        if not found:
            raise StudyError(translator(lang)("this result has no chart; its numbers stand in the table"))
        write_atomically(path, stacked(found).encode())
        return path


def stacked(figures: Sequence[Figure]) -> str:
    """One SVG of several figures, each under its title."""
    parts: list[str] = []
    top, widest = 0.0, float(WIDTH)
    for figure in figures:
        size = _SIZE.search(figure.svg)
        width, height = (float(size[1]), float(size[2])) if size else (float(WIDTH), 300.0)
        placed = re.sub(r' style="[^"]*"', "", figure.svg, count=1)
        placed = placed.replace("<svg ", f'<svg x="0" y="{top + _HEAD:g}" width="{width:g}" height="{height:g}" ', 1)
        parts += [write(0, top + 18, figure.title, bold=True), placed]
        top, widest = top + _HEAD + height + _GAP, max(widest, width)
    return element(
        "svg", element("rect", width=widest + 40.0, height=top + 20.0, x=-20.0, y=-20.0, fill="#ffffff"), *parts,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"-20 -20 {widest + 40:g} {top + 20:g}", width=widest + 40.0,
        height=top + 20.0, font_family="sans-serif", font_size=15,
    )  # fmt: skip


class Model(Drawn, GlmFit):
    """A generalised linear model with its forest."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [coefficients_figure(self, lang)]


class Baseline(Drawn, Table1):
    """Table 1 with its standardised differences."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [differences_figure(self, lang)]


class Described(Drawn, Description):
    """A description with a histogram of every number."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [histogram_figure(self, name, name, lang) for name in self.values["numbers"]]


class Compared(Drawn, Comparison):
    """Tests, which have no chart."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return []


class Pooled(Drawn, MetaResult):
    """A meta-analysis with its forest."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [meta_figure(self, lang)]


class Effect(Drawn, CausalEffect):
    """An average effect with balance and overlap."""

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [balance_figure(self, lang), *overlap_figures(self, lang)]
