"""Do hazard ratios stay the same over time? The test on Schoenfeld residuals, from sums over events.

The alternative is beta(t) = beta + theta g(t). The score test of theta uses the information at each event (Therneau and
Grambsch 2000, section 6.2; R's cox.zph since survival 3.0); the older one takes its average over time (Grambsch and
Therneau 1994; lifelines). Both are sums, so both are exact across sites.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2

from medfed.study import Study

FloatArray = NDArray[np.float64]

TRANSFORMS = ("identity", "log")


def marks_of(study: Study, times: FloatArray, transform: str, lost: FloatArray | None = None) -> FloatArray:
    """g(t) of event times (K,), from 1 to 2: the test is the same for any a + b g, and weights may not be negative.

    lost: (K,) share with an event before each time, by Kaplan and Meier, where the transform is "km".
    """
    if transform == "km" and lost is not None:
        return 1.0 + lost
    variable = study.variables[study.time or ""]
    last, interval = variable.last_time, variable.interval or 1.0
    if transform == "log":
        return np.asarray(1.0 + np.log1p(times / interval) / np.log1p(last / interval))
    return np.asarray(1.0 + times / last)


def proportionality_test(
    study: Study,
    transform: str,
    information: FloatArray,
    score: FloatArray,
    crossed: FloatArray,
    own: FloatArray,
    residuals: FloatArray,
    marks: FloatArray,
) -> dict[str, Any]:
    """The test by variable and over all. Sums over events as in ``risk_sets.Proportionality``; information: (q, q).

    A coded variable is tested by all its levels together. Returns nested dicts of chi2, df, p by variable, "all"
    for the global test, and "averaged" with the older statistic, one a feature.
    """
    tests: dict[str, Any] = {}
    names = [column.variable for column in study.design.columns[1:]]
    adjusted = np.linalg.solve(information, crossed)
    left_over = own - crossed.T @ adjusted
    for name in dict.fromkeys(names):
        chosen = np.array([index for index, other in enumerate(names) if other == name])
        tests[name] = _chi2(score[chosen], left_over[np.ix_(chosen, chosen)])
    tests = {"transform": transform, "variables": tests, "all": _chi2(score, left_over)}
    events, mean = marks[0], marks[1] / marks[0]
    spread = marks[2] - events * mean * mean
    covariance = np.linalg.inv(information)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = events * covariance @ (score - mean * residuals)
        averaged = scaled**2 / (events * spread * np.diag(covariance))
    tests["averaged"] = {"chi2": averaged, "p": np.asarray(chi2.sf(averaged, 1))}
    return tests


def _chi2(score: FloatArray, information: FloatArray) -> dict[str, float]:
    """Score test of as many parameters as ``score`` has; NaN where all events come at one time."""
    rank = len(score)
    try:
        statistic = float(score @ np.linalg.solve(information, score))
    except np.linalg.LinAlgError:
        statistic = float("nan")
    return {"chi2": statistic, "df": float(rank), "p": float(chi2.sf(statistic, rank))}
