"""Does the model rank patients rightly? AUC from counts by score bin, or exactly from scores.

A site's figures rest on counts of events and non-events by score bin, neighbours merged to the minimum cell. Bins run
from the lowest score to the highest. Nothing here knows of federation.
"""

import math
from bisect import bisect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medfed.evaluation.intervals import normal_quantile, two_sided_p

FloatArray = NDArray[np.float64]

FEWEST_BINS = 3


def merge_bins(events: ArrayLike, nonevents: ArrayLike, minimum: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Merge neighbouring bins until every group holds at least ``minimum`` events and as many non-events.

    events, nonevents: (bins,) counts of one site. Returns events, nonevents and boundary, each (bins,): a group's
    totals stand in its last bin with zeros before it, and boundary is 1 where a bin's upper edge ends a group. A site
    that can't form even one group returns zeros alone ("not shown"). With a minimum of 1 nothing is merged.

    Zero cells are not let through either: "no event among these 12 patients" says something of each of them. Edges
    are tried in one public order, coarse to fine (middle, quarters, eighths, ...), and kept where both sides stay
    large enough; from the left
    only where that order ends with fewer than 3 groups. The same counts give the same groups, so asking again reveals
    nothing; a second grid with edges a little apart would, by subtraction: one grid a model and part.
    """
    event, nonevent = _pair(events, nonevents)
    bins = len(event)
    if minimum <= 1:
        return event.copy(), nonevent.copy(), np.ones(bins)
    above = np.concatenate([[0.0], np.cumsum(event)])
    below = np.concatenate([[0.0], np.cumsum(nonevent)])

    def large(start: int, stop: int) -> bool:
        return bool(min(above[stop] - above[start], below[stop] - below[start]) >= minimum)

    boundary = np.zeros(bins)
    if not large(0, bins):
        return np.zeros(bins), np.zeros(bins), boundary
    ends = _coarse_to_fine(bins, large)
    if len(ends) < FEWEST_BINS:
        ends = max(ends, _from_the_left(bins, large), key=len)
    boundary[np.array(ends) - 1] = 1.0
    return totals_of_groups(event, boundary), totals_of_groups(nonevent, boundary), boundary


def totals_of_groups(values: ArrayLike, boundary: ArrayLike) -> FloatArray:
    """Any per-bin sums (bins,) of a site, such as summed risks, in the groups that ``merge_bins`` made: (bins,).

    All zero where the site is not shown.
    """
    value, end = np.asarray(values, dtype=np.float64), np.asarray(boundary) > 0
    totals = np.zeros(len(value))
    if end.any():
        totals[end] = _between(value, np.flatnonzero(end))
    return totals


@dataclass(frozen=True)
class Auc:
    """P(an event scores higher than a non-event), a tie counted half, with its interval.

    standard_error: DeLong's (0 where the ranking is perfect, or one class has a single patient).
    least, most: the AUC if every tied pair were ranked wrong, right: what binning may hide.
    bins: distinct scores or non-empty bins.
    """

    value: float
    low: float
    high: float
    standard_error: float
    least: float
    most: float
    events: int
    nonevents: int
    bins: int


def auc_of_bins(
    events: ArrayLike, nonevents: ArrayLike, *, level: float = 0.95, fewest_bins: int = FEWEST_BINS
) -> Auc | None:
    """AUC of counts (bins,), as if each score were its bin's rank; None ("not shown") under ``fewest_bins`` non-empty
    bins or with one class only.

    Variance of DeLong, DeLong & Clarke-Pearson 1988 for grouped data; interval on the logit scale (Pepe 2003, 5.2),
    or Newcombe's score-type interval (2006, method 5) where that variance is zero.
    """
    event, nonevent = _pair(events, nonevents)
    used = event + nonevent > 0
    event, nonevent = event[used], nonevent[used]
    m, n = event.sum(), nonevent.sum()
    if len(event) < fewest_bins or m == 0 or n == 0:
        return None
    over_nonevents = (np.cumsum(nonevent) - nonevent / 2) / n
    under_events = 1 - (np.cumsum(event) - event / 2) / m
    value = float(event @ over_nonevents / m)
    standard_error = 0.0
    if m > 1 and n > 1:
        spread_events = event @ (over_nonevents - value) ** 2 / (m - 1)
        spread_nonevents = nonevent @ (under_events - value) ** 2 / (n - 1)
        standard_error = math.sqrt(spread_events / m + spread_nonevents / n)
    ties = float(event @ nonevent / (2 * m * n))
    low, high = _auc_interval(value, standard_error, float(m), float(n), level)
    return Auc(value, low, high, standard_error, value - ties, value + ties, round(m), round(n), len(event))


def auc_of_scores(scores: ArrayLike, outcome: ArrayLike, *, level: float = 0.95) -> Auc | None:
    """Exact AUC of scores (n,) for outcome 0/1 (n,); None with one class only. Same variance and interval as above."""
    score, event = _scores(scores, outcome)
    distinct, index = np.unique(score, return_inverse=True)
    bins = len(distinct)
    return auc_of_bins(_count(index[event], bins), _count(index[~event], bins), level=level, fewest_bins=1)


@dataclass(frozen=True)
class AucDifference:
    """First AUC minus second. p_value: two-sided, normal."""

    value: float
    low: float
    high: float
    standard_error: float
    p_value: float


def auc_difference(
    first: ArrayLike, second: ArrayLike, outcome: ArrayLike, *, level: float = 0.95
) -> AucDifference | None:
    """Difference of two models' AUCs on the same patients: scores (n,), (n,), outcome 0/1 (n,).

    None where a class has fewer than 2 patients. DeLong, DeLong & Clarke-Pearson 1988, with midranks (Sun & Xu 2014).
    """
    by_model = [_placements(scores, outcome) for scores in (first, second)]
    m, n = len(by_model[0][0]), len(by_model[0][1])
    if min(m, n) < 2:
        return None
    value = float(by_model[0][0].mean() - by_model[1][0].mean())
    events = by_model[0][0] - by_model[1][0]
    nonevents = by_model[0][1] - by_model[1][1]
    return _difference(value, math.sqrt(events.var(ddof=1) / m + nonevents.var(ddof=1) / n), level)


def _auc_interval(value: float, error: float, m: float, n: float, level: float) -> tuple[float, float]:
    z = normal_quantile(level)
    if error > 0 and 0 < value < 1:
        half = z * error / (value * (1 - value))
        logit = special.logit(value)
        return float(special.expit(logit - half)), float(special.expit(logit + half))
    mean_size = (m + n) / 2 - 1

    def distance(theta: float) -> float:
        pairs = 1 + mean_size * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (value - theta) ** 2 - z * z * theta * (1 - theta) * pairs / (m * n)

    tiny = 1e-12
    from scipy import optimize  # half a second, for one root: not when the command starts

    low = 0.0 if value <= tiny else float(optimize.brentq(distance, tiny, value - tiny))
    high = 1.0 if value >= 1 - tiny else float(optimize.brentq(distance, value + tiny, 1 - tiny))
    return low, high


def _placements(scores: ArrayLike, outcome: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Share of non-events below each event (m,), and of events above each non-event (n,); ties half."""
    score, event = _scores(scores, outcome)
    m, n = int(event.sum()), int((~event).sum())
    if min(m, n) == 0:
        return np.zeros(m), np.zeros(n)
    from scipy import stats

    ranks = stats.rankdata(score)
    return (
        (ranks[event] - stats.rankdata(score[event])) / n,
        1 - (ranks[~event] - stats.rankdata(score[~event])) / m,
    )


def _difference(value: float, error: float, level: float) -> AucDifference:
    half = normal_quantile(level) * error
    return AucDifference(value, value - half, value + half, error, two_sided_p(value, error))


@lru_cache(maxsize=32)
def _edge_order(bins: int) -> tuple[int, ...]:
    """Interior edges 1 .. bins - 1, halves first, then quarters, ..."""
    order, waiting = [], [(0, bins)]
    for start, stop in waiting:
        if stop - start > 1:
            middle = (start + stop) // 2
            order.append(middle)
            waiting += [(start, middle), (middle, stop)]
    return tuple(order)


def _coarse_to_fine(bins: int, large: Callable[[int, int], bool]) -> list[int]:
    ends = [0, bins]
    for edge in _edge_order(bins):
        place = bisect(ends, edge)
        if large(ends[place - 1], edge) and large(edge, ends[place]):
            ends.insert(place, edge)
    return ends[1:]


def _from_the_left(bins: int, large: Callable[[int, int], bool]) -> list[int]:
    """As many groups as can be; what remains on the right joins the last."""
    ends = [0]
    for edge in range(1, bins + 1):
        if large(ends[-1], edge):
            ends.append(edge)
    return [*ends[1:-1], bins]


def _between(values: FloatArray, last: NDArray[np.intp]) -> FloatArray:
    """Sums (groups,) of values (bins,) from after one group's last bin to the next group's; bins after all are 0."""
    starts = np.concatenate([[0], last[:-1] + 1])
    return np.asarray(np.add.reduceat(values, starts), dtype=np.float64)


def _count(index: NDArray[np.intp], bins: int) -> FloatArray:
    return np.bincount(index, minlength=bins).astype(np.float64)


def _pair(events: ArrayLike, nonevents: ArrayLike) -> tuple[FloatArray, FloatArray]:
    event, nonevent = np.asarray(events, dtype=np.float64), np.asarray(nonevents, dtype=np.float64)
    if event.ndim != 1 or event.shape != nonevent.shape or len(event) == 0:
        raise ValueError("events and non-events need one count for each bin of the same grid")
    if not (np.all(event >= 0) and np.all(nonevent >= 0)):
        raise ValueError("counts of events and non-events are never negative or missing")
    return event, nonevent


def _scores(scores: ArrayLike, outcome: ArrayLike) -> tuple[FloatArray, NDArray[np.bool_]]:
    score, event = np.asarray(scores, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if score.ndim != 1 or score.shape != event.shape or not np.isfinite(score).all():
        raise ValueError("scores and outcomes need one finite number for each patient")
    if not np.isin(event, (0, 1)).all():
        raise ValueError("outcomes are 0 or 1")
    return score, event == 1
