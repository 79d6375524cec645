"""Survival results with their tables and charts: a Cox model as a forest, curves over the numbers at risk."""

from collections.abc import Mapping, Sequence
from typing import Any

from medfed.evaluation.figure import Figure
from medfed.evaluation.statistics_shown import Drawn
from medfed.evaluation.survival_charts import hazard_ratio_figure, kaplan_meier_figure
from medfed.methods.cox_fit import CoxFit
from medfed.methods.kaplan_meier_fit import KaplanMeierFit
from medfed.methods.tables import Shown


class HazardRatios(Drawn, CoxFit):
    """A Cox or discrete-hazards model with its forest."""

    @property
    def values(self) -> Mapping[str, Any]:
        return self.result

    def tables(self, lang: str = "en") -> list[Shown]:
        """Coefficients under the facts of the fit, and the test of proportional hazards where there is one."""
        found = [Shown(self.facts(lang), *self.coefficient_table(lang))]
        if len(self.proportionality):
            found.append(Shown((), *self.proportionality_table(lang)))
        return found

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        return [hazard_ratio_figure(self, lang)]


class Curves(Drawn, KaplanMeierFit):
    """Kaplan-Meier curves with the numbers at risk."""

    @property
    def values(self) -> Mapping[str, Any]:
        return self.result

    def tables(self, lang: str = "en") -> list[Shown]:
        """One row a group, under who was counted, the tests, and what merging changes."""
        return [Shown(self.facts(lang), *self.group_table(lang))]

    def figures(self, lang: str = "en") -> Sequence[Figure]:
        told = any(len(self.curve(group).time) > 1 for group in self.groups)
        return [kaplan_meier_figure(self, lang)] if told else []
