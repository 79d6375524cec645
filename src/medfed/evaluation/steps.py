"""Evaluation at the sites: what is judged of a model on rows it was not fitted on. These steps keep nothing.

In a study with folds each patient is judged by the model of the fold that left the patient out (``models`` has a row
for each fold); otherwise there is one row. ``overall`` and ``calibration_terms`` are sums; ``site_report`` is one
site's own reply, which the site's policy must list.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import MedfedError
from medfed.evaluation.concordance import area, area_difference, grouped
from medfed.federation.here import Here, fit
from medfed.federation.packages import find_method
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Reply, Sum, step
from medfed.methods.newton import in_study_units, sigmoid
from medfed.methods.recalibration import recalibration_terms
from medfed.methods.weights import effective_patients, ordinary_patients

FloatArray = NDArray[np.float64]

CURVE_GROUPS = 10
TAKES = {
    "models": Input("folds,p", limit=50, model=True, meaning="coefficients"),
    "centres": Input("folds,p", limit=1e9, model=True, meaning="centre"),
    "scales": Input("folds,p", limit=1e9, model=True, meaning="scale"),
}
LARGEST_PREDICTOR = 30.0


def predictors(
    site: Site, models: FloatArray, centres: FloatArray, scales: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Linear predictor (n,) of each patient by the model that did not see the patient; outcome (n,)."""
    features, outcome = site.table.arrays("features", "outcome")
    fold = np.zeros(len(outcome), np.int64)
    if len(models) > 1:
        fold = site.table.arrays("fold")[0].astype(np.int64)
    x = (features - centres[fold]) / scales[fold]
    x[np.isnan(features)] = 0.0
    predictor = np.einsum("ij,ij->i", x, models[fold])
    return np.clip(predictor, -LARGEST_PREDICTOR, LARGEST_PREDICTOR), outcome


def figures(predictor: FloatArray, outcome: FloatArray, minimum: int) -> dict[str, float]:
    """What can be said of predictions on n patients; sums, so that sites add up.

    The area is weighted as a stratified comparison (van Elteren 1960): weight w = events x others / n, so that
    sum(w AUC) / sum(w) compares patients within sites only, with variance sum(w^2 var) / (sum w)^2.
    """
    risk = sigmoid(predictor)
    n, events = float(len(outcome)), float(outcome.sum())
    found = area(predictor, outcome, minimum)
    weight = events * (n - events) / n if found is not None else 0.0
    return {
        "weight": weight,
        "weighted_area": weight * found.value if found is not None else 0.0,
        "weighted_variance": weight * weight * found.standard_error**2 if found is not None else 0.0,
        "rows": n,
        "events": events,
        "expected": float(risk.sum()),
        "squared_error": float(((risk - outcome) ** 2).sum()),
        "log_loss": float((np.logaddexp(0, predictor) - outcome * predictor).sum()),
        "correct": float(((risk > 0.5) == (outcome > 0.5)).sum()),
    }


@step(
    reads=("test", "valid"),
    takes=TAKES,
    releases={
        "weight": Sum(limit_per_row=1),
        "weighted_area": Sum(limit_per_row=1),
        "weighted_variance": Sum(limit_per_row=10),
        "rows": Sum(limit_per_row=1),
        "events": Sum(limit_per_row=1),
        "expected": Sum(limit_per_row=1),
        "squared_error": Sum(limit_per_row=1),
        "log_loss": Sum(limit_per_row=LARGEST_PREDICTOR + 1),
        "correct": Sum(limit_per_row=1),
    },
)
def overall(site: Site, *, models: FloatArray, centres: FloatArray, scales: FloatArray) -> Out:
    """Sums behind AUC (within sites), O/E, Brier score, log-loss and accuracy."""
    predictor, outcome = predictors(site, models, centres, scales)
    return Out(figures(predictor, outcome, site.minimum_cell), effective_patients=_effective(predictor))


@step(
    reads=("test", "valid"),
    takes={**TAKES, "line": Input("2", limit=20, meaning="line")},
    releases={"score": Sum("2", limit_per_row=50), "information": Sum("3", limit_per_row=1000)},
)
def calibration_terms(
    site: Site, *, models: FloatArray, centres: FloatArray, scales: FloatArray, line: FloatArray
) -> Out:
    """Terms of the recalibration line (intercept, slope) at ``line``: score (2,), information (3,)."""
    predictor, outcome = predictors(site, models, centres, scales)
    score, information = recalibration_terms(predictor, outcome, line)
    risk = sigmoid(line[0] + line[1] * predictor)
    # A steep line is as good as a threshold, and a threshold that moves shows who lies between.
    return Out(
        {"score": score, "information": information},
        effective_patients=effective_patients(risk * (1 - risk)),
        ordinary_patients=ordinary_patients(risk * (1 - risk), outcome),
    )


@step(
    reads=("test", "train"),
    takes=TAKES,
    releases={
        "site_area": Reply("3", limit=1e6),
        "site_sums": Reply("6", limit=1e9),
        "site_curve": Reply(f"3,{CURVE_GROUPS}", limit=1e9),
        "local_area": Reply("3", limit=1e6),
        "local_sums": Reply("6", limit=1e9),
        "difference": Reply("3", limit=1e6),
    },
)
def site_report(site: Site, *, models: FloatArray, centres: FloatArray, scales: FloatArray) -> Out:
    """One site's figures of a model, and of the site's own model fitted here by the same method.

    site_area, local_area: (area, variance, groups). site_sums, local_sums: (rows, events, expected, squared error,
    log-loss, correct). site_curve: patients, events and expected in each group of predicted risk, (3, 10), every
    group at the minimum cell. difference: (area of the model minus area of the local one, its variance, known).
    """
    predictor, outcome = predictors(site, models, centres, scales)
    minimum = site.minimum_cell
    # Left out of the fit, all of a site's rows are for judging; a model of its own would be judged on its own rows.
    apart = site.study.evaluation.design == "leave_one_site_out"
    local = None if apart else local_predictor(site)
    known = local is not None
    own = local if local is not None else np.zeros_like(predictor)
    found = area_difference(predictor, own, outcome, minimum) if known else None
    return Out(
        {
            "site_area": _area_values(predictor, outcome, minimum),
            "site_sums": _sum_values(predictor, outcome),
            "site_curve": risk_groups(predictor, outcome, minimum),
            "local_area": _area_values(own, outcome, minimum) if known else np.zeros(3),
            "local_sums": _sum_values(own, outcome) if known else np.zeros(6),
            "difference": np.array([*found, 1.0]) if found is not None else np.zeros(3),
        },
        effective_patients=_effective(predictor),
    )


def _effective(predictor: FloatArray) -> FloatArray:
    risk = sigmoid(predictor)
    return effective_patients(risk * (1 - risk))


def _area_values(predictor: FloatArray, outcome: FloatArray, minimum: int) -> FloatArray:
    found = area(predictor, outcome, minimum)
    return np.array([found.value, found.standard_error**2, found.bins]) if found is not None else np.zeros(3)


def _sum_values(predictor: FloatArray, outcome: FloatArray) -> FloatArray:
    sums = figures(predictor, outcome, 1)
    return np.array([sums[name] for name in ("rows", "events", "expected", "squared_error", "log_loss", "correct")])


def risk_groups(predictor: FloatArray, outcome: FloatArray, minimum: int) -> FloatArray:
    """Patients, events and expected events in at most ten groups of ascending risk, (3, 10); unused groups are 0."""
    wanted = max(minimum, -(-int(outcome.sum()) // CURVE_GROUPS), 1)
    wanted = max(wanted, min(minimum, int((1 - outcome).sum())))
    groups, count = grouped(predictor, outcome, max(wanted, 2))
    table = np.zeros((3, CURVE_GROUPS))
    if count == 0:
        return table
    groups = np.minimum(groups, CURVE_GROUPS - 1).astype(np.int64)
    for index, values in enumerate((np.ones_like(outcome), outcome, sigmoid(predictor))):
        table[index] = np.bincount(groups, weights=values, minlength=CURVE_GROUPS)[:CURVE_GROUPS]
    return table


@step(
    reads=("train",),
    takes={"scale": Input("p", limit=1e9, meaning="scale")},
    releases={"local_coefficients": Reply("2,p", limit=1e6, site_terms=True)},
)
def site_coefficients(site: Site, *, scale: FloatArray) -> Out:
    """This site's own coefficients and their standard errors, (2, p), on everybody's scale; zeros if it can't be fitted."""
    fits = local_fits(site, folds=0)
    if not fits or "covariance" not in fits[0]:
        return Out({"local_coefficients": np.zeros((2, len(scale)))})
    coefficients, covariance = in_study_units(fits[0])
    return Out({"local_coefficients": np.stack([coefficients, np.sqrt(np.diag(covariance))]) * scale})


def local_fits(site: Site, folds: int) -> list[Any]:
    """Fits on this site's own rows alone, by the study's method: one for each fold, or one. Empty where one fails."""
    method = find_method(site.study, site.variant)
    here = Here(site.part, site.study, site.variant)
    try:
        return [fit(method, here.fold(k)) for k in range(folds)] if folds else [fit(method, here)]
    except (MedfedError, FloatingPointError, np.linalg.LinAlgError, ZeroDivisionError):
        return []


def local_predictor(site: Site) -> FloatArray | None:
    """Predictions by the site's own models; None where they can't be fitted."""
    fits = local_fits(site, site.study.parts.folds or 0)
    return predictors(site, **stack_fits(fits))[0] if fits else None


def stack_fits(fits: list[Any]) -> dict[str, FloatArray]:
    """Results of linear methods -> inputs of the steps above, a row for each fold."""
    return {
        "models": np.stack([np.asarray(result["coefficients"]) for result in fits]),
        "centres": np.stack([np.asarray(result["centre"]) for result in fits]),
        "scales": np.stack([np.asarray(result["scale"]) for result in fits]),
    }
