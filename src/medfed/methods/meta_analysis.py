"""Meta-analysis of the sites' own estimates: common effect, random effects (DerSimonian-Laird, REML), Hartung-Knapp.

Each site estimates the effect on its own patients and gives the estimate and its standard error, where its policy lets
figures of this site alone be seen (``site_terms_visible``, and the figure's name under ``replies``). Others are left out
and named. DerSimonian and Laird 1986; Viechtbauer 2005; Hartung and Knapp 2001; Higgins and Thompson 2002.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medfed.errors import FederationError, MedfedError, StudyError
from medfed.federation.call import Failure
from medfed.federation.federation import Federation
from medfed.federation.here import Here, fit
from medfed.federation.site import Site
from medfed.federation.step import Out, Reply, Step, step
from medfed.language import number, percent, translator
from medfed.methods.families import FAMILIES
from medfed.methods.glm import Glm
from medfed.methods.tables import Shown, p_value, text_of
from medfed.study import Study
from medfed.study.formula import default_formula, parse_formula

FloatArray = NDArray[np.float64]

CRUDE = ("log_odds_ratio", "log_risk_ratio", "risk_difference", "mean_difference")
NOT_FITTED = "its own patients give no estimate: too few, or an outcome that is separated"


@step(reads="train", releases={"site_effect": Reply("4", limit=1e9, site_terms=True)})
def site_effect(site: Site) -> Out:
    """This site's own estimate of the effect, its standard error, its patients; whether it could be estimated.

    Of two arms from their counts or means, or a coefficient of a model fitted to this site's patients alone.
    """
    measure = str(site.settings["measure"])
    if measure in CRUDE:
        found, fewest = _crude(site, measure)
    else:
        found, fewest = _coefficient(site), float("inf")
    estimate, error = found if found is not None else (0.0, 0.0)
    return Out(
        {"site_effect": np.array([estimate, error, float(site.table.rows), float(found is not None)])},
        effective_patients=fewest,
    )


def _crude(site: Site, measure: str) -> tuple[tuple[float, float] | None, float]:
    """Estimate and standard error between the second arm and the first, and how many patients the smallest cell has.

    Where a cell is empty, half a patient is added to each (Haldane 1956), except to risk differences.
    """
    arm, outcome = site.table.arrays("arm", "outcome")
    first, second = outcome[arm == 0], outcome[arm == 1]
    sizes = np.array([len(second), len(first)], dtype=np.float64)
    if measure == "mean_difference":
        if sizes.min() < 2:
            return None, float(sizes.min())
        variances = np.array([second.var(ddof=1), first.var(ddof=1)])
        error = float(np.sqrt((variances / sizes).sum()))
        return ((float(second.mean() - first.mean()), error) if error > 0 else None), float(sizes.min())
    events = np.array([second.sum(), first.sum()])
    fewest = float(np.minimum(events, sizes - events).min())
    if sizes.min() < 1:
        return None, 0.0
    if measure == "risk_difference":
        risks = events / sizes
        error = float(np.sqrt((risks * (1 - risks) / sizes).sum()))
        return ((float(risks[0] - risks[1]), error) if error > 0 else None), fewest
    if fewest == 0:
        events, sizes = events + 0.5, sizes + 1.0
    if measure == "log_odds_ratio":
        odds = events / (sizes - events)
        error = float(np.sqrt((1 / events + 1 / (sizes - events)).sum()))
        return (float(np.log(odds[0] / odds[1])), error), fewest
    risks = events / sizes
    return (float(np.log(risks[0] / risks[1])), float(np.sqrt((1 / events - 1 / sizes).sum()))), fewest


def _coefficient(site: Site) -> tuple[float, float] | None:
    settings = site.settings
    model = Glm(formula=str(settings["formula"]), family=str(settings["family"]), alpha=float(settings["alpha"]))
    try:
        found = fit(model, Here(site.part, site.study, site.variant))
        index = list(found["names"]).index(_column(site.study, settings))
        variance = float(np.asarray(found["covariances"]["model"])[index, index])
    except (MedfedError, FloatingPointError, ZeroDivisionError, np.linalg.LinAlgError):
        return None
    return float(found["coefficients"][index]), float(np.sqrt(variance))


def _column(study: Study, settings: Mapping[str, Any]) -> str:
    """The coefficient that is asked for: the first of the arm's where the study names none."""
    if settings["column"]:
        return str(settings["column"])
    text = str(settings["formula"]) or default_formula(study.variables)
    columns = parse_formula(text, study.variables, study.outcome).columns
    return next((column.name for column in columns if column.term == study.arm), "")


@dataclass(frozen=True)
class MetaState:
    """effects: {site: [estimate, standard error, patients]}. left_out: {site: why}."""

    effects: dict[str, Any]
    left_out: dict[str, Any]
    rounds: int


@dataclass(frozen=True)
class MetaAnalysis:
    """Settings: measure (log_odds_ratio | log_risk_ratio | risk_difference | mean_difference of two arms, or coefficient
    of a model: formula, family and alpha as in ``Glm``, column its name).
    """

    measure: str = "log_odds_ratio"
    formula: str = ""
    family: str = "binomial"
    alpha: float = 0.0
    column: str = ""

    steps: ClassVar[tuple[Step, ...]] = (site_effect,)

    def __post_init__(self) -> None:
        if self.measure not in (*CRUDE, "coefficient"):
            raise ValueError(f"measure is {', '.join(CRUDE)} or coefficient, not {self.measure!r}")
        if self.family not in FAMILIES:
            raise ValueError(f"family is one of {', '.join(FAMILIES)}, not {self.family!r}")

    def start(self, study: Study) -> MetaState:
        if self.measure == "coefficient":
            text = self.formula or default_formula(study.variables)
            names = parse_formula(text, study.variables, study.outcome).names
            column = _column(study, {"column": self.column, "formula": self.formula})
            if column not in names:
                raise StudyError(
                    f"study {study.name!r}: the model has no coefficient {column!r}; `column` is one of {', '.join(names)}"
                )
        elif study.arm is None or len(study.variables[study.arm].codes or ()) != 2:
            raise StudyError(
                f"study {study.name!r}: {self.measure} compares two arms; give a variable `role: arm` two codes"
            )
        elif (self.measure == "mean_difference") != (study.variables[study.outcome].type == "number"):
            raise StudyError(
                f"study {study.name!r}: a mean_difference is of an outcome that is a number, the other measures of an event"
            )
        return MetaState({}, {}, 0)

    def advance(self, federation: Federation, state: MetaState) -> MetaState:
        effects: dict[str, Any] = {}
        left_out: dict[str, Any] = {}
        for site, reply in federation.gather(site_effect).items():
            if isinstance(reply, Failure):
                left_out[site] = {"kind": reply.kind, "reason": reply.reason}
            elif not reply["site_effect"][3] > 0:
                left_out[site] = {"kind": "failed", "reason": NOT_FITTED}
            else:
                effects[site] = np.asarray(reply["site_effect"][:3])
        if len(effects) < 2:
            reasons = "; ".join(f"{site}: {why['reason']}" for site, why in left_out.items())
            raise FederationError(
                f"a meta-analysis needs the estimates of at least two sites, and {len(effects)} gave one ({reasons}). A site "
                "lists `site_effect` under replies and sets site_terms_visible in its policy; the total of a secure sum "
                "needs neither"
            )
        return MetaState(effects, left_out, state.rounds + 1)

    def done(self, state: MetaState) -> bool:
        return state.rounds > 0

    def result(self, state: MetaState) -> Mapping[str, Any]:
        table = np.stack([state.effects[site] for site in sorted(state.effects)])
        return {
            "measure": self.measure,
            "sites": sorted(state.effects),
            "estimates": table[:, 0],
            "standard_errors": table[:, 1],
            "patients": table[:, 2],
            "left_out": dict(state.left_out),
            "held_back": dict(state.left_out),
            "rounds": state.rounds,
            **pooled(table[:, 0], table[:, 1] ** 2),
        }


def pooled(estimates: FloatArray, variances: FloatArray) -> dict[str, Any]:
    """Every model of estimates (k,) with within-site variances (k,): {model: [estimate, standard error, lower, upper, p]}.

    Intervals of 95 %: normal, except Hartung and Knapp's, which is Student's t with k - 1 degrees of freedom. q: Cochran's,
    its p; i_squared: max(0, (q - (k - 1)) / q); tau_squared_dl, tau_squared_reml; prediction: 95 % interval of the effect
    at another site, at REML's variance, t with k - 2 (Higgins et al. 2009), NaN with fewer than 3 sites.
    """
    k = len(estimates)
    weights = 1 / variances
    common = float(weights @ estimates / weights.sum())
    q = float(weights @ (estimates - common) ** 2)
    excess = weights.sum() - (weights**2).sum() / weights.sum()
    dl = max(0.0, (q - (k - 1)) / float(excess))
    reml = tau_squared_reml(estimates, variances, dl)
    found: dict[str, Any] = {"common": _normal(common, float(1 / np.sqrt(weights.sum())))}
    for name, tau in (("dersimonian_laird", dl), ("reml", reml)):
        mean, error = _mean(estimates, variances + tau)
        found[name] = _normal(mean, error)
        w = 1 / (variances + tau)
        adjusted = float(np.sqrt((w @ (estimates - mean) ** 2) / ((k - 1) * w.sum())))
        half = float(stats.t.ppf(0.975, k - 1)) * adjusted
        p = 2 * float(stats.t.sf(abs(mean) / adjusted, k - 1)) if adjusted > 0 else float("nan")
        found[f"{name}_hartung_knapp"] = np.array([mean, adjusted, mean - half, mean + half, p])
    mean, error = _mean(estimates, variances + reml)
    reach = float(stats.t.ppf(0.975, k - 2)) * float(np.sqrt(reml + error**2)) if k > 2 else float("nan")
    return {
        "models": found,
        "q": q,
        "q_p": float(stats.chi2.sf(q, k - 1)),
        "i_squared": max(0.0, (q - (k - 1)) / q) if q > 0 else 0.0,
        "tau_squared_dl": dl,
        "tau_squared_reml": reml,
        "prediction": np.array([mean - reach, mean + reach]),
    }


def _mean(estimates: FloatArray, variances: FloatArray) -> tuple[float, float]:
    weights = 1 / variances
    return float(weights @ estimates / weights.sum()), float(1 / np.sqrt(weights.sum()))


def _normal(estimate: float, error: float) -> FloatArray:
    half = float(stats.norm.ppf(0.975)) * error
    return np.array(
        [estimate, error, estimate - half, estimate + half, 2 * float(stats.norm.sf(abs(estimate) / error))]
    )


def tau_squared_reml(estimates: FloatArray, variances: FloatArray, start: float) -> float:
    """Variance between sites by restricted maximum likelihood, 0 at least: Fisher scoring. Viechtbauer 2005, eq. 16."""
    tau = start
    for _ in range(1000):
        weights = 1 / (variances + tau)
        mean = float(weights @ estimates / weights.sum())
        squares = weights**2
        gain = float(squares @ ((estimates - mean) ** 2 - variances)) / float(squares.sum()) + 1 / float(weights.sum())
        new = max(0.0, gain)
        if abs(new - tau) < 1e-14 * max(tau, 1e-6):
            return new
        tau = new
    return tau


@dataclass(frozen=True)
class MetaResult:
    """What a run of ``MetaAnalysis`` found. values: its result."""

    values: Mapping[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """One row a site, then one a model: estimate, standard_error, lower, upper, p, weight (of REML, a site's share)."""
        values = self.values
        estimates, errors = np.asarray(values["estimates"]), np.asarray(values["standard_errors"])
        weights = 1 / (errors**2 + values["tau_squared_reml"])
        columns = ["estimate", "standard_error", "lower", "upper", "p"]
        sites = pd.DataFrame([_normal(e, s) for e, s in zip(estimates, errors, strict=True)], values["sites"], columns)
        models = pd.DataFrame(list(values["models"].values()), list(values["models"]), columns)
        return pd.concat([sites.assign(weight=weights / weights.sum()), models])

    def summary(self, lang: str = "en") -> str:
        """The meta-analysis as a text table; ratios where the measure is a logarithm."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values = self.values
        logged = str(values["measure"]).startswith("log_")
        names = {
            "common": _("common effect"),
            "dersimonian_laird": _("random effects, DerSimonian-Laird"),
            "dersimonian_laird_hartung_knapp": _("the same, Hartung-Knapp"),
            "reml": _("random effects, REML"),
            "reml_hartung_knapp": _("the same, Hartung-Knapp"),
        }
        facts = [
            (_("Measure"), str(values["measure"])),
            (
                _("Heterogeneity"),
                f"Q {number(values['q'], 3)}, P {p_value(values['q_p'])}, I² {percent(values['i_squared'])}",
            ),
            ("τ²", f"{number(values['tau_squared_reml'], 4)} (REML), {number(values['tau_squared_dl'], 4)} (DL)"),
        ]
        facts += [(_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["left_out"].items()]
        rows = []
        for name, row in self.to_frame().iterrows():
            shown = [row[key] for key in ("estimate", "lower", "upper")]
            cells = [number(value, 4) for value in shown] + [number(row["standard_error"], 4), p_value(row["p"])]
            ratio = [f"{number(np.exp(shown[0]), 3)} ({number(np.exp(shown[1]), 3)}, {number(np.exp(shown[2]), 3)})"]
            weight = "" if np.isnan(row["weight"]) else percent(row["weight"])
            rows.append([names.get(str(name), str(name)), *cells, weight, *(ratio if logged else [])])
        header = ["", _("estimate"), _("95% lower"), _("95% upper"), _("std. error"), "P", _("weight")]
        return [Shown(facts, [*header, *([_("ratio")] if logged else [])], rows)]
