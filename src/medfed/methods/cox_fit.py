"""What a Cox or discrete-hazards run found, as a statistician reads it: tables, tests, curves of a patient.

Made from a run's result and its study; nothing here asks a site. Names follow lifelines: ``to_frame``, ``summary``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from medfed.errors import StudyError
from medfed.language import Translate, number, percent, translator
from medfed.methods.newton import sigmoid
from medfed.methods.text_table import text_table
from medfed.study import Study

FloatArray = NDArray[np.float64]


def p_text(p: float) -> str:
    """A P value as papers print it: three digits, or "< 0.001"."""
    return "–" if np.isnan(p) else "< 0.001" if p < 0.001 else number(p, 3)


@dataclass(frozen=True)
class Test:
    """A chi-square test."""

    __test__ = False

    chi2: float
    df: int
    p: float


@dataclass(frozen=True)
class CoxFit:
    """result: of ``cox.Cox``, ``unstratified_cox.UnstratifiedCox`` or ``discrete_hazards.DiscreteHazards``."""

    study: Study
    result: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Features in order: "age", "disease=renal"."""
        return self.study.design.names[1:]

    @property
    def coefficients(self) -> FloatArray:
        """Log hazard ratios (q,), per unit of each feature; log odds ratios of the hazard in discrete time."""
        return np.asarray(self.result["coefficients"])

    @property
    def covariance(self) -> FloatArray:
        return np.asarray(self.result["covariance"])

    @cached_property
    def standard_errors(self) -> FloatArray:
        return np.sqrt(np.diag(self.covariance))

    @property
    def is_discrete(self) -> bool:
        return bool(self.result["model"] == "discrete_hazards")

    def intervals(self, level: float = 0.95) -> FloatArray:
        """Lower and upper limits of the coefficients (q, 2), Wald."""
        reach = norm.ppf(0.5 + level / 2) * self.standard_errors
        return np.stack([self.coefficients - reach, self.coefficients + reach], axis=1)

    def to_frame(self, level: float = 0.95) -> pd.DataFrame:
        """One row a feature, with the columns of lifelines: coef, exp(coef), se(coef), limits of both, z, p."""
        limits, z = self.intervals(level), self.coefficients / self.standard_errors
        share = f"{100 * level:g}%"
        return pd.DataFrame(
            {
                "coef": self.coefficients,
                "exp(coef)": np.exp(self.coefficients),
                "se(coef)": self.standard_errors,
                f"coef lower {share}": limits[:, 0],
                f"coef upper {share}": limits[:, 1],
                f"exp(coef) lower {share}": np.exp(limits[:, 0]),
                f"exp(coef) upper {share}": np.exp(limits[:, 1]),
                "z": z,
                "p": 2 * norm.sf(np.abs(z)),
            },
            index=pd.Index(self.names, name="covariate"),
        )

    @property
    def likelihood_ratio(self) -> Test:
        """All coefficients against none."""
        twice = 2.0 * (float(self.result["log_likelihood"]) - float(self.result["null_log_likelihood"]))
        return Test(twice, len(self.names), float(chi2.sf(max(twice, 0.0), len(self.names))))

    @property
    def wald(self) -> Test:
        """All coefficients against 0, by their covariance."""
        found = float(self.coefficients @ np.linalg.solve(self.covariance, self.coefficients))
        return Test(found, len(self.names), float(chi2.sf(found, len(self.names))))

    @property
    def proportionality(self) -> pd.DataFrame:
        """Test of proportional hazards by variable, and over all (row "GLOBAL"). Empty in discrete time."""
        tests = self.result.get("proportionality")
        if not tests:
            return pd.DataFrame(columns=["chi2", "df", "p"])
        rows = {**{name: tests["variables"][name] for name in self._variables(tests)}, "GLOBAL": tests["all"]}
        return pd.DataFrame.from_dict(rows, orient="index", columns=["chi2", "df", "p"])

    def _variables(self, tests: Mapping[str, Any]) -> list[str]:
        order = [column.variable for column in self.study.design.columns[1:]]
        return [name for name in dict.fromkeys(order) if name in tests["variables"]]

    @property
    def baseline(self) -> pd.DataFrame:
        """Cumulative hazard and survival at the end of each cell of the grid, of a patient at the mean of every numeric
        feature and the reference of every coded one. StudyError where sites have hazards of their own.
        """
        return self.predict({})

    def predict(self, patient: Mapping[str, float | str]) -> pd.DataFrame:
        """Cumulative hazard and survival over time of a patient: numbers and codes by variable, others as in ``baseline``.

        StudyError for a variable or code that the model does not have, and for a model stratified by site.
        """
        shift = self._linear_predictor(patient)
        if self.is_discrete:
            ends = np.asarray(self.result["cells"]["cuts"]) * float(self._time.interval or 1.0)
            survival = np.cumprod(1.0 - sigmoid(np.asarray(self.result["alpha"]) + shift))
            return pd.DataFrame({"time": ends, "cumulative_hazard": -np.log(survival), "survival": survival})
        if "baseline" not in self.result:
            raise StudyError(
                "in a model stratified by site each site has a baseline hazard of its own; ask for `baseline_by_site`, or "
                "fit unstratified_cox.UnstratifiedCox"
            )
        found = self.result["baseline"]
        hazard = np.asarray(found["cumulative_hazard"]) * np.exp(shift)
        return pd.DataFrame({"time": found["time"], "cumulative_hazard": hazard, "survival": np.exp(-hazard)})

    def _linear_predictor(self, patient: Mapping[str, float | str]) -> float:
        columns, centre = self.study.design.columns[1:], np.asarray(self.result["centre"])[1:]
        known = {column.variable for column in columns}
        total = 0.0
        for name, value in patient.items():
            if name not in known:
                raise StudyError(f"the model has no variable {name!r}; it has {', '.join(sorted(known))}")
            codes = self.study.variables[name].codes
            if codes is not None and value not in codes:
                raise StudyError(f"{value!r} is no code of {name!r}; it has {', '.join(codes)}")
        for column, middle, coefficient in zip(columns, centre, self.coefficients, strict=True):
            if column.variable not in patient:
                continue
            value = patient[column.variable]
            x = float(value == column.level) if column.kind == "indicator" else float(value)
            total += float(coefficient) * (x - float(middle))
        return total

    @property
    def _time(self) -> Any:
        return self.study.variables[self.study.time or ""]

    def summary(self, lang: str = "en") -> str:
        """The fit as text: who was counted, coefficients, tests, C-index, and what the time grid changes."""
        _ = translator(lang)
        lines = [self._title(_), "", *(f"{name}: {value}" for name, value in self._counts(_))]
        if self.result["held_back"]:
            lines.append(_("Not counted: {sites}").format(sites=", ".join(self.result["held_back"])))
        lines += ["", text_table(*self.coefficient_table(lang)), ""]
        lines += [f"{name}: {value}" for name, value in self._tests(_)]
        lines += [*self._order(_), *self._grid(_)]
        if len(self.proportionality):
            lines += ["", text_table(*self.proportionality_table(lang))]
        return "\n".join(lines)

    def facts(self, lang: str = "en") -> list[tuple[str, str]]:
        """What stands above the coefficients, as names and values: counts, tests, C-index, the time grid."""
        _ = translator(lang)
        found = [(_("Model"), self._title(_)), *self._counts(_), *self._tests(_)]
        for line in (*self._order(_), *self._grid(_)):
            name, *value = re.split(": |：", line, maxsplit=1)
            found.append((name, "".join(value)))
        return found

    def _counts(self, _: Translate) -> list[tuple[str, str]]:
        result = self.result
        return [
            (_("Sites counted"), number(len(result["sites"]), 0)),
            (_("Patients"), number(result["patients"], 0)),
            (_("Events"), number(result["events"], 0)),
            (_("Follow-up"), f"{number(result['follow_up'], 0)} {self._time.unit}"),
            (_("Rounds"), number(result["rounds"], 0)),
        ]

    def _tests(self, _: Translate) -> list[tuple[str, str]]:
        tests = ((_("Likelihood ratio test"), self.likelihood_ratio), (_("Wald test"), self.wald))
        return [(name, _test_text(test, _)) for name, test in tests]

    def coefficient_table(self, lang: str = "en") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and rows of ``to_frame``, for people."""
        _ = translator(lang)
        ratio = _("Odds ratio of the hazard") if self.is_discrete else _("Hazard ratio")
        heads = ("", _("Coefficient"), _("Standard error"), ratio, _("95% interval"), "z", "P")
        rows: list[tuple[str, ...]] = []
        for name, row in self.to_frame().iterrows():
            inside = _("{low} to {high}").format(
                low=number(row["exp(coef) lower 95%"], 3), high=number(row["exp(coef) upper 95%"], 3)
            )
            rows.append(
                (str(name), number(row["coef"], 4), number(row["se(coef)"], 4), number(row["exp(coef)"], 3), inside,
                 number(row["z"], 2), p_text(row["p"]))
            )  # fmt: skip
        return heads, rows

    def proportionality_table(self, lang: str = "en") -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Heads and rows of ``proportionality``, for people."""
        _ = translator(lang)
        rows: list[tuple[str, ...]] = [
            (_("all together") if name == "GLOBAL" else str(name), number(row["chi2"], 2), number(row["df"], 0),
             p_text(row["p"]))
            for name, row in self.proportionality.iterrows()
        ]  # fmt: skip
        return (_("Proportional hazards"), "chi2", "df", "P"), rows

    def _title(self, _: Translate) -> str:
        if self.is_discrete:
            return _("Discrete-time hazards, logistic, one hazard in each cell of the time grid")
        ties = {"efron": "Efron", "breslow": "Breslow"}[str(self.result["ties"])]
        if self.result["strata"] == "site":
            return _("Cox regression stratified by site, exact ({ties} ties)").format(ties=ties)
        return _("Cox regression with one baseline hazard, on the time grid ({ties} ties)").format(ties=ties)

    def _order(self, _: Translate) -> list[str]:
        lines = []
        if within := self.result.get("concordance"):
            lines.append(
                _("C-index within sites: {value} (standard error {error}, {pairs} pairs)").format(
                    value=number(within["value"], 3), error=number(within["standard_error"], 3),
                    pairs=number(within["pairs"], 0),
                )
            )  # fmt: skip
        if across := self.result.get("concordance_across"):
            lines.append(
                _(
                    "C-index over all pairs: {value} (standard error {error}; scores in {groups} groups, which within sites "
                    "moves it by {moved})"
                ).format(
                    value=number(across["value"], 3), error=number(across["standard_error"], 3),
                    groups=across["groups"], moved=number(across["grouping_error"], 4),
                )
            )  # fmt: skip
        return lines

    def _grid(self, _: Translate) -> list[str]:
        lines = []
        if cells := self.result.get("cells"):
            lines.append(
                _("Time grid: {declared} declared intervals merged to {cells} cells").format(
                    declared=self._time.intervals, cells=len(cells["events"])
                )
            )
        if "grid_difference" in self.result:
            largest = np.nanmax(np.abs(np.asarray(self.result["grid_difference"]) / self.standard_errors), initial=0.0)
            lines.append(
                _(
                    "What the grid changes, measured in the model stratified by site: at most {share} of a standard error"
                ).format(share=percent(float(largest)))
            )
        return lines


def _test_text(test: Test, _: Translate) -> str:
    return f"chi2 {number(test.chi2, 2)}, df {test.df}, P {p_text(test.p)}"
