"""A fitted generalised linear model as a statistician reads it: coefficient table, tests, fit, in study units.

``assemble`` turns a method's state into plain values that are stored with a run; ``GlmFit`` shows them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from medfed.language import number, translator
from medfed.methods.families import has_free_dispersion
from medfed.methods.newton import symmetric
from medfed.methods.tables import Shown, p_value, text_of

if TYPE_CHECKING:
    from medfed.methods.glm import Glm, GlmState

FloatArray = NDArray[np.float64]

_LINKS = {"binomial": "logit", "gaussian": "identity"}
_KINDS = ("model", "HC0", "site")


def assemble(method: "Glm", state: "GlmState") -> dict[str, Any]:
    """Everything that is known of a finished fit, in study units: arrays, numbers and texts.

    names, coefficients (k,) and covariances {model, HC0, site: (k, k)}; an alpha that was estimated is the last of them.
    tests: {term: {wald, likelihood_ratio: [statistic, degrees of freedom, p]}}; "all terms" against none of them.
    """
    fit, errors = state.fits["all"], state.fits["errors"]
    q, shape, own = len(state.names), int(method.estimates_alpha), int(method.site_effects)
    free = slice(own, None)
    log_likelihood, deviance, pearson, patients = (float(value) for value in fit["fit"][:4])
    weight = patients_weight(method, fit["fit"])
    parameters = q + shape - own + own * len(fit["sites"])
    freedom = weight - parameters
    dispersion = pearson / freedom if has_free_dispersion(method.family) else 1.0
    back = _to_study_units(state, fit["theta"], shape=shape)[free, free]
    coefficients = (back @ np.asarray(fit["theta"])[free])[: q - own]
    if method.family == "gaussian" and not own:
        coefficients[0] += state.outcome[0]
    alpha = float(np.exp(fit["theta"][q])) if shape else method.alpha
    covariances: dict[str, FloatArray] = {}
    if not method.l1:
        penalty = np.where((np.arange(q + shape) > 0) & (np.arange(q + shape) < q), method.l2, 0.0)
        information = np.asarray(fit["information"]) + np.diag(penalty)
        covariances["model"] = back @ np.linalg.inv(information[free, free]) @ back.T * dispersion
    for kind in ("HC0", "site"):
        if kind in errors:
            factor = _small_sample(len(fit["sites"]), patients, parameters) if kind == "site" else 1.0
            covariances[kind] = back @ _sandwich(errors[kind], q, free, shape=shape) @ back.T * factor
    used = method.covariance if method.covariance in covariances else "model"
    squared = float(state.outcome[1]) ** 2  # Gaussian models are fitted on a standardised outcome
    found: dict[str, Any] = {
        "family": method.family,
        "link": _LINKS.get(method.family, "log"),
        "formula": state.formula,
        "outcome_name": state.outcome_name,
        "names": [*state.names[own:], *["alpha"] * shape],
        "terms": [*state.terms[own:], *["alpha"] * shape],
        "coefficients": np.append(coefficients, [alpha] * shape),
        "covariances": covariances,
        "covariance_used": used if covariances else "none",
        "alpha": alpha,
        "dispersion": dispersion * squared,
        "deviance": deviance * squared,
        "null_deviance": float(state.fits["null"]["fit"][1]) * squared if "null" in state.fits else -1.0,
        "pearson": pearson * squared,
        "log_likelihood": _log_likelihood(method, state, log_likelihood, deviance * squared, weight),
        "patients": patients,
        "weight": weight,
        "parameters": parameters,
        "site_effects": method.site_effects,
        "l1": method.l1,
        "l2": method.l2,
        "kkt": float(fit["kkt"]),
        "sites": list(fit["sites"]),
        "held_back": dict(state.held_back),
        "rounds": int(fit["rounds"]),
        "objectives": list(state.curve),
        "tests": {},
    }
    if covariances and not method.penalised:
        found["tests"] = _tests(state, found, dispersion, fixed=not has_free_dispersion(method.family))
    return found


def patients_weight(method: "Glm", sums: FloatArray) -> float:
    """How many patients the rows stand for: rows, or the sum of frequencies. sums: "fit" of a total of ``glm_terms``."""
    return float(sums[4] if method.weights == "frequency" else sums[3])


def null_fit(method: "Glm", formula: str, sums: FloatArray) -> dict[str, Any] | None:
    """The fit without terms, where the sums of the fit with them tell it: an intercept that is a mean. Else None.

    sums: "fit" of a total of ``glm_terms``.
    """
    weight, outcomes, squares = float(sums[4]), float(sums[6]), float(sums[7])
    other = method.penalised or method.site_effects or "offset(" in formula
    if other or method.family not in ("binomial", "gaussian"):
        return None
    mean = outcomes / weight
    if method.family == "binomial":
        deviance = -2.0 * weight * (mean * np.log(mean) + (1 - mean) * np.log1p(-mean))
    else:
        deviance = squares - weight * mean * mean
    return {"fit": np.array([-0.5 * deviance, deviance])}


def _to_study_units(state: "GlmState", theta: FloatArray, *, shape: int) -> FloatArray:
    """(m, m): from changes of standardised coefficients (and log alpha) to changes in study units (and alpha)."""
    q = len(state.names)
    back = np.zeros((q + shape, q + shape))
    back[:q, :q] = np.diag(1.0 / state.scale)
    back[0, :q] = -state.centre / state.scale
    back[0, 0] = 1.0
    back[:q, :q] *= state.outcome[1]
    if shape:
        back[q, q] = np.exp(theta[q])
    return back


def _sandwich(sums: Mapping[str, Any], q: int, free: slice, *, shape: int) -> FloatArray:
    """Inverse information x meat x inverse information, standardised; log alpha last."""
    bread, meat = np.zeros((q + shape, q + shape)), np.zeros((q + shape, q + shape))
    for index, (matrix, name) in enumerate(((bread, "information"), (meat, "meat"))):
        matrix[:q, :q] = symmetric(sums[name], q)
        if shape:
            matrix[q], matrix[:, q] = sums["shape"][index], sums["shape"][index]
    inverse = np.linalg.inv(bread[free, free])
    return np.asarray(inverse @ meat[free, free] @ inverse * sums["unit"])


def _small_sample(clusters: int, rows: float, parameters: int) -> float:
    """The usual correction of clustered errors: G / (G - 1) x (n - 1) / (n - k)."""
    return clusters / max(clusters - 1, 1) * (rows - 1) / max(rows - parameters, 1.0)


def _log_likelihood(method: "Glm", state: "GlmState", value: float, deviance: float, weight: float) -> float:
    """Nats; the Gaussian one at the dispersion that maximises it, the gamma one at Pearson's."""
    if method.family == "gaussian":
        logs = 0.0 if method.weights == "frequency" else 0.5 * float(state.fits["all"]["fit"][5])
        return float(-0.5 * weight * (np.log(2 * np.pi * deviance / weight) + 1.0) + logs)
    return float(state.fits["errors"].get("log_likelihood", value))


def _tests(state: "GlmState", found: Mapping[str, Any], dispersion: float, *, fixed: bool) -> dict[str, Any]:
    tests: dict[str, Any] = {}
    terms, covariance = np.array(found["terms"]), found["covariances"][found["covariance_used"]]
    full = state.fits["all"]["fit"]
    for term in dict.fromkeys(state.terms):
        if term == "intercept":
            continue
        chosen = np.flatnonzero(terms == term)
        estimate = found["coefficients"][chosen]
        statistic = float(estimate @ np.linalg.solve(covariance[np.ix_(chosen, chosen)], estimate))
        tests[term] = {"wald": _chi_square(statistic, len(chosen))}
        if f"without {term}" in state.fits:
            less = state.fits[f"without {term}"]["fit"]
            tests[term]["likelihood_ratio"] = _chi_square(_ratio(full, less, dispersion, fixed=fixed), len(chosen))
    freedom = sum(term not in ("intercept", "alpha") for term in found["terms"])
    if freedom:
        ratio = _ratio(full, state.fits["null"]["fit"], dispersion, fixed=fixed)
        tests["all terms"] = {"likelihood_ratio": _chi_square(ratio, freedom)}
    return tests


def _ratio(full: FloatArray, less: FloatArray, dispersion: float, *, fixed: bool) -> float:
    """Twice the gain in log-likelihood; with a dispersion that is estimated, the drop in deviance over it."""
    return float(2.0 * (full[0] - less[0]) if fixed else (less[1] - full[1]) / dispersion)


def _chi_square(statistic: float, freedom: int) -> list[float]:
    return [statistic, float(freedom), float(stats.chi2.sf(max(statistic, 0.0), freedom))]


def _digits(error: float) -> int:
    """Decimals that show an estimate of this standard error: four, or as many as the error's second figure takes."""
    return max(4, 1 - math.floor(math.log10(error))) if math.isfinite(error) and error > 0 else 4


@dataclass(frozen=True)
class GlmFit:
    """A fitted model. values: the result of a run of ``Glm``."""

    values: Mapping[str, Any]

    @property
    def names(self) -> list[str]:
        return list(self.values["names"])

    @property
    def params(self) -> "pd.Series[float]":
        """Coefficients on the scale of the linear predictor, in study units."""
        return pd.Series(np.asarray(self.values["coefficients"]), index=self.names)

    def cov_params(self, kind: str | None = None) -> pd.DataFrame:
        """Covariance of the coefficients. kind: model | HC0 | site; the one that the study chose where it is None."""
        covariances = self.values["covariances"]
        kind = kind or str(self.values["covariance_used"])
        if kind not in covariances:
            known = ", ".join(covariances) or "none, since the fit has an l1 penalty"
            raise ValueError(f"this fit has no covariance {kind!r}; it has: {known}")
        return pd.DataFrame(np.asarray(covariances[kind]), index=self.names, columns=self.names)

    @property
    def bse(self) -> "pd.Series[float]":
        """Standard errors; NaN in a fit with an l1 penalty, which has none."""
        if not self.values["covariances"]:
            return pd.Series(np.nan, index=self.names)
        return pd.Series(np.sqrt(np.diag(self.cov_params())), index=self.names)

    @property
    def pvalues(self) -> "pd.Series[float]":
        """Two-sided, of Wald's z."""
        return pd.Series(2.0 * stats.norm.sf(np.abs(self.params / self.bse)), index=self.names)

    @property
    def aic(self) -> float:
        return float(-2 * self.values["log_likelihood"] + 2 * self.values["parameters"])

    def conf_int(self, level: float = 0.95) -> pd.DataFrame:
        """Wald intervals, on the scale of the linear predictor."""
        half = float(stats.norm.ppf(0.5 + level / 2)) * self.bse
        return pd.DataFrame({"lower": self.params - half, "upper": self.params + half})

    def to_frame(self, *, exponentiate: bool = False) -> pd.DataFrame:
        """One row a coefficient: estimate, standard_error, z, p, lower, upper; exponentiated: ratios instead."""
        frame = pd.DataFrame(
            {
                "estimate": self.params,
                "standard_error": self.bse,
                "z": self.params / self.bse,
                "p": self.pvalues,
                **self.conf_int(),
            }
        )
        if exponentiate:
            frame[["estimate", "lower", "upper"]] = np.exp(frame[["estimate", "lower", "upper"]])
            frame = frame.drop(index=[name for name in ("alpha",) if name in frame.index])
        return frame

    def tests(self) -> pd.DataFrame:
        """One row a term and test: statistic, degrees_of_freedom, p."""
        rows = [
            {"term": term, "test": test, "statistic": found[0], "degrees_of_freedom": int(found[1]), "p": found[2]}
            for term in [*dict.fromkeys(self.values["terms"]), "all terms"]  # stored results are in the order of names
            for test, found in sorted(self.values["tests"].get(term, {}).items(), reverse=True)
        ]
        return pd.DataFrame(rows, columns=["term", "test", "statistic", "degrees_of_freedom", "p"])

    def summary(self, lang: str = "en") -> str:
        """The fit as a text table."""
        return text_of(self.tables(lang))

    def tables(self, lang: str = "en") -> list[Shown]:
        """What ``summary`` prints, for pages as well."""
        _ = translator(lang)
        values = self.values
        ratio = {"logit": _("odds ratio"), "log": _("ratio")}.get(str(values["link"]))
        covariance = {
            "model": _("model"), "HC0": _("robust (HC0)"), "site": _("clustered by site"), "none": _("none (lasso)"),
        }  # fmt: skip
        facts = [
            (_("Model"), _("{family}, {link} link").format(family=values["family"], link=values["link"])),
            (_("Formula"), str(values["formula"])),
            (_("Patients"), number(values["patients"], 0)),
            (_("Sites"), ", ".join(values["sites"])),
            *((_("Not counted"), f"{site}: {_(why['reason'])}") for site, why in values["held_back"].items()),
            (_("Site effects"), _("one a site, kept there") if values["site_effects"] else _("none")),
            (_("Standard errors"), covariance[str(values["covariance_used"])]),
            (_("Log-likelihood"), number(values["log_likelihood"], 4)),
            (_("Deviance"), number(values["deviance"], 4)),
            # A penalised fit has fewer degrees of freedom than coefficients, and so no AIC.
            *([] if values["l1"] or values["l2"] else [("AIC", number(self.aic, 2))]),
            (_("Dispersion"), number(values["dispersion"], 6)),
        ]
        if values["l1"] or values["l2"]:
            penalty = f"l1 {values['l1']:g}, l2 {values['l2']:g}"
            facts.append((_("Penalty (numbers standardised, codes as 0 and 1)"), penalty))
        if values["l1"]:
            facts.append((_("Largest violation of optimality"), f"{values['kkt']:.1e}"))
        header = ["", _("estimate"), _("std. error"), "z", "P>|z|", _("95% lower"), _("95% upper")]
        rows = []
        ratios = self.to_frame(exponentiate=True) if ratio else None
        words = {"intercept": _("intercept"), "all terms": _("all terms")}
        for name, row in self.to_frame().iterrows():
            digits = _digits(row["standard_error"])
            cells = [
                words.get(str(name), str(name)),
                *(number(row[key], digits) for key in ("estimate", "standard_error")),
            ]
            cells += [number(row["z"], 4), p_value(row["p"]), *(number(row[key], digits) for key in ("lower", "upper"))]
            if ratios is not None:
                known = name in ratios.index and name != "intercept"
                cells.append(number(float(ratios.loc[name, "estimate"]), 3) if known else "")
            rows.append(cells)
        names = {"wald": _("Wald"), "likelihood_ratio": _("likelihood ratio")}
        tests = [
            [
                words.get(row["term"], row["term"]),
                names[row["test"]],
                number(row["statistic"], 4),
                str(row["degrees_of_freedom"]),
                p_value(row["p"]),
            ]
            for _index, row in self.tests().iterrows()
        ]
        found = [Shown(facts, [*header, *([ratio] if ratio else [])], rows)]
        if len(kinds := list(values["covariances"])) > 1:
            errors = {kind: np.sqrt(np.diag(self.cov_params(kind))) for kind in sorted(kinds, key=_KINDS.index)}
            each = [
                [
                    words.get(name, name),
                    *(number(float(error[index]), _digits(float(error[index]))) for error in errors.values()),
                ]
                for index, name in enumerate(self.names)
            ]
            found.append(Shown([], [_("std. error"), *(covariance[kind] for kind in errors)], each))
        return [*found, *([Shown([], ["", _("test"), _("statistic"), _("df"), "P"], tests)] if tests else [])]
