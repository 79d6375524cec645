"""Average effects as a statistician reads them: differences and ratios with intervals, balance, overlap, E-value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medfed.language import number, translator
from medfed.methods.newton import symmetric
from medfed.methods.summaries import group_names
from medfed.methods.tables import Shown, p_value, text_of
from medfed.study import Study

if TYPE_CHECKING:
    from medfed.methods.causal import CausalState

FloatArray = NDArray[np.float64]
_NORMAL_975 = 1.959963984540054
ESTIMATORS = ("ipw", "aipw")


def assemble(state: "CausalState") -> dict[str, Any]:
    """Means under each arm with their covariance, by estimator; balance of columns; overlap; effective sizes."""
    sums, free = state.sums, state.free
    rows = float(sums["fit"][1])
    middle, width = (float(value) for value in state.outcome)
    means = np.asarray(sums["means"])
    covariances = np.stack([_paired(squares) for squares in sums["squares"]]) / rows**2
    # Inverse weighting: each mean also moves with the propensity's coefficients, which move with their scores.
    inverse = np.linalg.inv(state.information[np.ix_(free, free)])
    lean = np.asarray(sums["slope"])[:, free] @ inverse
    cross = np.asarray(sums["cross"])[:, free] @ lean.T
    meat = symmetric(sums["meat"], len(free))[np.ix_(free, free)]
    covariances[0] += (cross + cross.T + lean @ meat @ lean.T) / rows**2
    patients, weight, squares = (np.asarray(sums["weighted"])[:, index] for index in range(3))
    raw, raw_squares = np.asarray(sums["raw_columns"])[:, :, free] / patients[None, :, None]
    spread = np.sqrt(((raw_squares - raw**2) * (patients / (patients - 1))[:, None]).mean(0))
    weighted = np.asarray(sums["weighted_columns"])[:, free] / weight[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        balance = np.stack([(raw[1] - raw[0]) / spread, (weighted[1] - weighted[0]) / spread])
    names = [name for name, kept in zip(state.names, free, strict=True) if kept]
    arms = np.asarray(sums["fit"])
    return {
        "means": middle + width * means,
        "covariances": width**2 * covariances,
        "is_event": bool(state.is_event),
        "deviation": width,
        "patients": rows,
        "arm_patients": np.array([rows - arms[2], arms[2]]),
        "effective": weight**2 / squares,
        "names": names[1:],
        "balance": balance[:, 1:],
        "overlap": np.asarray(sums["overlap"]),
        "propensity": np.asarray(state.propensity)[free],
        "centre": np.asarray(state.centre)[free],
        "scale": np.asarray(state.scale)[free],
        "sites": list(state.sites),
        "held_back": dict(state.held_back),
        "rounds": state.rounds,
    }


def _paired(squares: FloatArray) -> FloatArray:
    return np.array([[squares[0], squares[1]], [squares[1], squares[2]]])


def e_value(ratio: float, lower: float | None = None, upper: float | None = None) -> tuple[float, float]:
    """How strongly an unmeasured confounder would have to be tied to treatment and outcome, each as a risk ratio, to
    explain the ratio away; and its confidence limit nearer to 1 (1 where the interval holds 1).

    VanderWeele and Ding 2017, Ann Intern Med 167: 268.
    """

    def of(value: float) -> float:
        value = 1 / value if value < 1 else value
        return value + float(np.sqrt(value * (value - 1)))

    if lower is None or upper is None:
        return of(ratio), float("nan")
    if lower <= 1 <= upper:
        return of(ratio), 1.0
    return of(ratio), of(lower if ratio > 1 else upper)


@dataclass(frozen=True)
class CausalEffect:
    """What a run of ``Causal`` found. values: its result."""

    study: Study
    values: Mapping[str, Any]

    @property
    def arms(self) -> tuple[str, str]:
        """Codes of the reference and of the other arm, in the order of all figures."""
        reference, other = group_names(self.study)
        return reference, other

    def arm_names(self, lang: str = "en") -> tuple[str, str]:
        """The arms as people read them: the meanings of their codes."""
        codes = self.study.variables[self.study.arm or ""].codes or {}
        reference, other = (self.study.text(codes[arm], lang) for arm in self.arms)
        return reference, other

    def effects(self) -> pd.DataFrame:
        """One row an estimator and measure ("mean of" either arm's code, difference and ratio of the other arm to the
        reference): estimate, standard_error, lower, upper, p. The error of a ratio is that of its logarithm.
        """
        rows = []
        for index, estimator in enumerate(ESTIMATORS):
            (first, second), covariance = self.values["means"][index], self.values["covariances"][index]
            for arm, mean in enumerate((first, second)):
                rows.append(self._row(estimator, f"mean of {self.arms[arm]}", mean, covariance[arm, arm], p=False))
            variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
            rows.append(self._row(estimator, "difference", second - first, variance))
            if self.values["is_event"] and first > 0 and second > 0:
                slope = np.array([-1 / first, 1 / second])
                row = self._row(estimator, "ratio", float(np.log(second / first)), float(slope @ covariance @ slope))
                rows.append({**row, **{key: float(np.exp(row[key])) for key in ("estimate", "lower", "upper")}})
        return pd.DataFrame(rows).set_index(["estimator", "measure"])

    @staticmethod
    def _row(estimator: str, measure: str, estimate: float, variance: float, *, p: bool = True) -> dict[str, Any]:
        error = float(np.sqrt(variance))
        return {
            "estimator": estimator,
            "measure": measure,
            "estimate": float(estimate),
            "standard_error": error,
            "lower": float(estimate) - _NORMAL_975 * error,
            "upper": float(estimate) + _NORMAL_975 * error,
            "p": 2 * float(stats.norm.sf(abs(estimate) / error)) if p else float("nan"),
        }

    to_frame = effects

    def balance(self) -> pd.DataFrame:
        """Standardised mean difference of every column between the arms, before and after weighting."""
        before, after = self.values["balance"]
        return pd.DataFrame({"before": before, "after": after}, index=self.values["names"])

    def overlap(self) -> pd.DataFrame:
        """Patients of each arm by propensity score, in equal bins: low, high, and "patients of" either arm's code."""
        counts = self.values["overlap"]
        edges = np.linspace(0.0, 1.0, len(counts[0]) + 1)
        patients = {f"patients of {arm}": each for arm, each in zip(self.arms, counts, strict=True)}
        return pd.DataFrame({"low": edges[:-1], "high": edges[1:], **patients})

    def e_values(self) -> pd.DataFrame:
        """E-value of each estimator's ratio and of its confidence limit.

        For a number the ratio is exp(0.91 difference / standard deviation) (VanderWeele 2017).
        """
        effects, rows = self.effects(), []
        for estimator in ESTIMATORS:
            if (estimator, "ratio") in effects.index:
                row = effects.loc[(estimator, "ratio")]
                limits = row["estimate"], row["lower"], row["upper"]
            else:
                row = effects.loc[(estimator, "difference")]
                limits = tuple(np.exp(0.91 * row[["estimate", "lower", "upper"]] / self.values["deviation"]))
            point, limit = e_value(*(float(value) for value in limits))
            rows.append({"estimator": estimator, "e_value": point, "e_value_of_limit": limit})
        return pd.DataFrame(rows).set_index("estimator")

    def summary(self, lang: str = "en") -> str:
        """Effects and balance as text tables."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values = self.values
        reference, other = self.arm_names(lang)
        both = {"reference": reference, "arm": other}
        measures = {
            **{f"mean of {code}": _("mean, {arm}").format(arm=name) for code, name in zip(self.arms, (reference, other), strict=True)},
            "difference": _("difference, {arm} less {reference}").format(**both),
            "ratio": _("ratio, {arm} to {reference} (error of its logarithm)").format(**both),
        }  # fmt: skip
        names = {"ipw": _("inverse weighting"), "aipw": _("doubly robust")}

        def by_arm(counts: FloatArray, digits: int) -> str:
            return " + ".join(
                f"{number(value, digits)} ({arm})" for value, arm in zip(counts, both.values(), strict=True)
            )

        facts = [
            (_("Patients"), by_arm(values["arm_patients"], 0)),
            (_("Effective after weighting"), by_arm(values["effective"], 1)),
            (_("Sites"), ", ".join(values["sites"])),
            *((_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["held_back"].items()),
        ]
        for estimator, row in self.e_values().iterrows():
            text = _("{value}, of the confidence limit {limit}").format(
                value=number(row["e_value"], 2), limit=number(row["e_value_of_limit"], 2)
            )
            facts.append((_("E-value, {estimator}").format(estimator=names[str(estimator)]), text))
        rows = []
        for (estimator, measure), row in self.effects().iterrows():
            cells = [number(row[key], 4) for key in ("estimate", "standard_error", "lower", "upper")]
            rows.append([names[estimator], measures[measure], *cells, "" if np.isnan(row["p"]) else p_value(row["p"])])
        header = ["", "", _("estimate"), _("std. error"), _("95% lower"), _("95% upper"), "P"]
        effects = Shown(facts, header, rows)
        balance = [
            [str(name), number(row["before"], 3), number(row["after"], 3)] for name, row in self.balance().iterrows()
        ]
        return [effects, Shown([], [_("standardised difference"), _("before"), _("after")], balance)]
