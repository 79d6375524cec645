"""Area under the ROC curve from groups of patients, never from single ones where a minimum cell holds.

Scores are cut into groups of neighbours, each with at least the minimum of events and of non-events; everybody in a
group counts as tied. With a minimum of 1 nobody is grouped and the area is exact. Variances and the comparison of two
models on the same patients: DeLong, DeLong and Clarke-Pearson 1988, on the (grouped) scores.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FEWEST_GROUPS = 3


@dataclass(frozen=True)
class Area:
    """An AUC with its variance; groups: how many groups of scores it rests on."""

    value: float
    variance: float
    groups: int

    @property
    def shown(self) -> bool:
        """Whether the area may stand in a report: under three groups it says little and is left out."""
        return self.groups >= FEWEST_GROUPS

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Confidence interval on the logit scale, which stays inside 0 to 1."""
        return logit_interval(self.value, self.variance, level)


def logit_interval(value: float, variance: float, level: float = 0.95) -> tuple[float, float]:
    """Interval of an AUC from its variance, on the logit scale (Pepe 2003, section 5.2)."""
    if not 0 < value < 1:
        return (value, value)
    z = float(norm.ppf(0.5 + level / 2))
    middle = np.log(value / (1 - value))
    half = z * np.sqrt(max(variance, 0.0)) / (value * (1 - value))
    low, high = 1 / (1 + np.exp(-(middle - half))), 1 / (1 + np.exp(-(middle + half)))
    return float(low), float(high)


def grouped(scores: FloatArray, outcome: FloatArray, minimum: int) -> tuple[IntArray, int]:
    """Group index (n,) by ascending score, and how many groups: each holds >= ``minimum`` events and non-events.

    Equal scores stay together; what is left at the top joins the last group. No groups (0) when even all patients
    together do not reach the minimum.
    """
    unique, inverse = np.unique(scores, return_inverse=True)
    if minimum <= 1:
        return inverse.astype(np.int64), len(unique)
    events = np.bincount(inverse, weights=outcome, minlength=len(unique))
    patients = np.bincount(inverse, minlength=len(unique))
    group_of = np.zeros(len(unique), np.int64)
    group, have_events, have_others = 0, 0.0, 0.0
    last_full = -1
    for index in range(len(unique)):
        group_of[index] = group
        have_events += events[index]
        have_others += patients[index] - events[index]
        if have_events >= minimum and have_others >= minimum:
            last_full, group = group, group + 1
            have_events = have_others = 0.0
    if last_full < 0:
        return np.zeros(len(scores), np.int64), 0
    return np.minimum(group_of, last_full)[inverse], last_full + 1


def _placements(scores: FloatArray, outcome: FloatArray) -> tuple[FloatArray, FloatArray]:
    """DeLong's structural components: of events (m,) and of non-events (n,); ties count half."""
    event = outcome > 0.5
    all_ranks = rankdata(scores)
    m, n = int(event.sum()), int((~event).sum())
    v10 = (all_ranks[event] - rankdata(scores[event])) / n
    v01 = 1.0 - (all_ranks[~event] - rankdata(scores[~event])) / m
    return v10, v01


def area(scores: FloatArray, outcome: FloatArray, minimum: int = 1) -> Area | None:
    """AUC of ``scores`` (n,) for ``outcome`` (n,) 0/1; None where a class is missing or no group reaches the minimum."""
    groups, count = grouped(scores, outcome, minimum)
    if count == 0 or outcome.min() == outcome.max():
        return None
    v10, v01 = _placements(groups.astype(np.float64), outcome)
    return Area(float(v10.mean()), _variance(v10, v10, v01, v01), count)


def _variance(a10: FloatArray, b10: FloatArray, a01: FloatArray, b01: FloatArray) -> float:
    def covariance(a: FloatArray, b: FloatArray) -> float:
        return float(((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1) / len(a)) if len(a) > 1 else 0.0

    return covariance(a10, b10) + covariance(a01, b01)


def area_difference(
    first: FloatArray, second: FloatArray, outcome: FloatArray, minimum: int = 1
) -> tuple[float, float] | None:
    """AUC of ``first`` minus AUC of ``second`` on the same patients, and the variance of that difference."""
    groups_first, count_first = grouped(first, outcome, minimum)
    groups_second, count_second = grouped(second, outcome, minimum)
    if min(count_first, count_second) < FEWEST_GROUPS or outcome.min() == outcome.max():
        return None
    a10, a01 = _placements(groups_first.astype(np.float64), outcome)
    b10, b01 = _placements(groups_second.astype(np.float64), outcome)
    variance = _variance(a10 - b10, a10 - b10, a01 - b01, a01 - b01)
    return float(a10.mean() - b10.mean()), variance


def roc_points(scores: FloatArray, outcome: FloatArray, minimum: int) -> list[tuple[float, float]]:
    """(false positive rate, true positive rate) at the groups' edges, from (0, 0) to (1, 1)."""
    groups, count = grouped(scores, outcome, minimum)
    if count == 0:
        return []
    events = np.bincount(groups, weights=outcome, minlength=count)[::-1]
    others = np.bincount(groups, weights=1 - outcome, minlength=count)[::-1]
    tpr = np.concatenate([[0.0], np.cumsum(events) / max(events.sum(), 1)])
    fpr = np.concatenate([[0.0], np.cumsum(others) / max(others.sum(), 1)])
    return [(float(x), float(y)) for x, y in zip(fpr, tpr, strict=True)]
