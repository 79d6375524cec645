"""What one would find with every hospital's rows in one place: the oracle for the demo's answer.

It shares no code with the method it checks: the regression is statsmodels', the risk ratio is counted here.
Only where one process holds all tables (the demo, the tests); no site is ever asked for this.
"""

import importlib
import math
import warnings
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medfed.errors import MedfedError
from medfed.study import Study

_NORMAL_975 = 1.959963984540054


class Rows(Protocol):
    """What is read of a study table's view."""

    def arrays(self, *names: str) -> tuple[NDArray[Any], ...]: ...


def pooled_answer(study: Study, hospitals: Mapping[str, Rows]) -> dict[str, Any]:
    """Logistic regression and risk ratio over the rows of all ``hospitals`` together.

    study: names an arm of two levels; hospitals: by name, those whose answers were counted, all with rows.
    Returns ``patients``, ``events`` and ``risk`` by arm level; ``risk_ratio`` and ``risk_ratio_interval``
    (on the log scale, Katz et al. 1978; absent if an arm has no event); of the regression ``coefficients``
    and ``standard_errors`` by column of the design, and for the arm ``adjusted_odds_ratio`` with its
    ``adjusted_odds_ratio_interval``, ``adjusted_log_odds_ratio`` and ``standard_error``. Intervals: 95 %,
    Wald.
    Raises MedfedError if statsmodels is missing, there are no hospitals, or the regression has no answer.
    """
    if not hospitals:
        raise MedfedError("No hospital was counted, so there is nothing to compare; see why each was held back.")
    parts = [hospitals[name].arrays("features", "outcome", "arm") for name in sorted(hospitals)]
    features, outcome, arm = (np.concatenate([part[i] for part in parts]) for i in range(3))
    names = [column.name for column in study.design.columns]
    coefficients, errors = _logit(features, outcome)
    treated = next(i for i, column in enumerate(study.design.columns) if column.variable == study.arm)
    levels = list(study.variables[str(study.arm)].codes or ())
    return {
        **_risks(outcome, arm, levels),
        "coefficients": dict(zip(names, coefficients.tolist(), strict=True)),
        "standard_errors": dict(zip(names, errors.tolist(), strict=True)),
        "adjusted_log_odds_ratio": float(coefficients[treated]),
        "standard_error": float(errors[treated]),
        "adjusted_odds_ratio": math.exp(coefficients[treated]),
        "adjusted_odds_ratio_interval": _interval(float(coefficients[treated]), float(errors[treated])),
    }


def _risks(outcome: NDArray[Any], arm: NDArray[Any], levels: list[str]) -> dict[str, Any]:
    patients = [int((arm == level).sum()) for level in range(len(levels))]
    events = [int(outcome[arm == level].sum()) for level in range(len(levels))]
    risk = [event / patient if patient else math.nan for event, patient in zip(events, patients, strict=True)]
    answer: dict[str, Any] = {
        "patients": dict(zip(levels, patients, strict=True)),
        "events": dict(zip(levels, events, strict=True)),
        "risk": dict(zip(levels, risk, strict=True)),
    }
    if min(events) > 0:
        variance = sum(1 / event - 1 / patient for event, patient in zip(events, patients, strict=True))
        ratio = risk[1] / risk[0]
        answer["risk_ratio"] = ratio
        answer["risk_ratio_interval"] = _interval(math.log(ratio), math.sqrt(variance))
    return answer


def _logit(features: NDArray[Any], outcome: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Coefficients and standard errors (p,) of a logistic regression, by statsmodels."""
    try:
        statsmodels: Any = importlib.import_module("statsmodels.api")
    except ImportError:
        raise MedfedError(
            "The comparison with pooled data needs statsmodels, which is not installed; run: pip install 'medfed[demo]'"
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what they say is read from ``converged``
            fit = statsmodels.Logit(outcome, features).fit(method="newton", tol=1e-14, maxiter=50, disp=0)
        answered = fit.mle_retvals["converged"] and np.isfinite(fit.bse).all()
    except np.linalg.LinAlgError:
        answered = False
    if not answered:
        raise MedfedError(
            "The pooled regression has no answer: a covariate separates the outcome or is constant; "
            "remove it from the study."
        )
    return np.asarray(fit.params), np.asarray(fit.bse)


def _interval(centre: float, error: float) -> list[float]:
    return [math.exp(centre - _NORMAL_975 * error), math.exp(centre + _NORMAL_975 * error)]
