"""Scores cut into groups of neighbours, so that an area under the curve never rests on single patients.

Each group holds at least the minimum of events and of non-events; everybody in it counts as tied. With a minimum of 1
nobody is grouped and the area is exact.
"""

import numpy as np
from numpy.typing import NDArray

from medfed.evaluation.discrimination import FEWEST_BINS, Auc, auc_difference, auc_of_scores, merge_bins

FloatArray = NDArray[np.float64]


def grouped(scores: FloatArray, outcome: FloatArray, minimum: int) -> tuple[FloatArray, int]:
    """Group index (n,) by ascending score, and how many groups. Equal scores stay together.

    No groups (0) when even all patients together do not reach the minimum.
    """
    unique, inverse = np.unique(scores, return_inverse=True)
    if minimum <= 1:
        return inverse.astype(np.float64), len(unique)
    events = np.bincount(inverse, weights=outcome, minlength=len(unique))
    patients = np.bincount(inverse, minlength=len(unique))
    boundary = merge_bins(events, patients - events, minimum)[2]
    count = int(boundary.sum())
    group_of = np.concatenate([[0.0], np.cumsum(boundary)[:-1]])
    return group_of[inverse], count


def area(scores: FloatArray, outcome: FloatArray, minimum: int = 1) -> Auc | None:
    """AUC (DeLong's variance) of the grouped scores; None where a class is missing or no group reaches the minimum."""
    groups, count = grouped(scores, outcome, minimum)
    return auc_of_scores(groups, outcome) if count else None


def area_difference(
    first: FloatArray, second: FloatArray, outcome: FloatArray, minimum: int = 1
) -> tuple[float, float] | None:
    """AUC of ``first`` minus AUC of ``second`` on the same patients, and the variance of that difference."""
    groups_first, count_first = grouped(first, outcome, minimum)
    groups_second, count_second = grouped(second, outcome, minimum)
    if min(count_first, count_second) < FEWEST_BINS or outcome.min() == outcome.max():
        return None
    found = auc_difference(groups_first, groups_second, outcome)
    return (found.value, found.standard_error**2) if found is not None else None
