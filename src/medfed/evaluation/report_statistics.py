"""Statistics in a report: the tables that a method's summary prints."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from medfed.evaluation.figure import Figure, Table
from medfed.evaluation.page import Block, Facts, Section, Tabled, Text
from medfed.evaluation.report_data import StatisticsShown
from medfed.evaluation.report_labels import Labels
from medfed.evaluation.statistics_results import PRIVATE, SURVIVAL, shown
from medfed.language import LANGUAGES, number
from medfed.study import Study


def statistics_figures(kind: str, values: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """What ``StatisticsShown`` describes, from a run's result."""
    found = shown(kind, values, study)
    tables = {
        lang: [
            {
                "facts": [list(fact) for fact in table.facts],
                "columns": list(table.header),
                "rows": [list(r) for r in table.rows],
            }
            for table in found.tables(lang)
        ]
        for lang in LANGUAGES
    }
    drawn = {}
    if kind in SURVIVAL:
        drawn = {lang: [_as_data(figure) for figure in found.figures(lang)] for lang in LANGUAGES}  # type: ignore[attr-defined]
    patients = values["patients"]["value"] if isinstance(values["patients"], Mapping) else np.sum(values["patients"])
    return {"kind": kind, "patients": float(patients), "tables": tables, "figures": drawn}


def _as_data(figure: Figure) -> dict[str, Any]:
    return {
        "svg": figure.svg,
        "title": figure.title,
        "caption": figure.caption,
        "columns": list(figure.table.columns),
        "rows": [list(row) for row in figure.table.rows],
    }


_LONGEST_FACT = 60  # what is longer is a sentence


def _names(labels: Labels) -> dict[str, str]:
    _ = labels.translate
    return {
        "glm": _("Model"),
        "table1": _("Table 1"),
        "describe": _("Description"),
        "compare": _("Comparison"),
        "meta": _("Meta-analysis"),
        "effect": _("Average effect"),
        "cox": _("Hazard ratios"),
        "cox_one_hazard": _("Hazard ratios"),
        "hazards": _("Hazard ratios"),
        "km": _("Survival"),
        "private_describe": _("Description with noise"),
        "private_glm": _("Model of noisy sums"),
        "private_fedavg": _("Model of noisy sums"),
    }


def statistics_answer(statistics: StatisticsShown, labels: Labels) -> tuple[str, str]:
    """What stands at the head of the report: what was asked, of how many."""
    _ = labels.translate
    sites = sum(site.counted for site in labels.data.sites)
    said = _("{what} of {patients} patients at {sites} sites")
    if statistics.kind in PRIVATE:
        said = _("{what} of about {patients} patients at {sites} sites")
    return said.format(
        what=_names(labels).get(statistics.kind, statistics.kind), patients=number(statistics.patients, 0), sites=sites
    ), ""


def statistics_section(statistics: StatisticsShown, labels: Labels) -> Section:
    """The method's tables."""
    blocks: list[Block] = []
    for table in statistics.tables[labels.lang]:
        short = tuple(fact for fact in table.facts if len(fact[1]) <= _LONGEST_FACT)
        if short:
            blocks.append(Facts(short))
        blocks += [Text(f"{name}: {value}") for name, value in table.facts if len(value) > _LONGEST_FACT]
        blocks.append(Tabled("", Table(tuple(table.columns), tuple(tuple(row) for row in table.rows))))
    for drawn in statistics.figures.get(labels.lang, []):
        numbers = Table(tuple(drawn.columns), tuple(tuple(row) for row in drawn.rows))
        blocks.append(Figure(drawn.svg, drawn.title, drawn.caption, numbers))
    return Section("statistics", _names(labels).get(statistics.kind, statistics.kind), blocks)
