"""Does the model rank patients rightly? AUC and ROC curve from binned scores, or exactly from scores.

What leaves a site are counts of events and non-events by score bin, neighbours merged to the minimum cell; from the
sums over sites the AUC, its interval and its curve follow. Exact scores are for a site's own eyes, and for public data.
Bins always run from the lowest score to the highest. Nothing here knows of federation.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

from medfed.evaluation.intervals import Estimate, normal_quantile, two_sided_p

FloatArray = NDArray[np.float64]

FEWEST_BINS = 3


def normal_edges(mean: float, sd: float, bins: int) -> FloatArray:
    """Interior edges (bins - 1,) that cut a normal law into equally likely bins: a grid from public sums alone.

    Meant for a linear predictor (mean and SD over the training sites) or a covariate (a model's centre and scale).
    """
    if bins < 2 or not sd > 0:
        raise ValueError("a grid needs at least 2 bins and a positive standard deviation")
    return np.asarray(mean + sd * special.ndtri(np.arange(1, bins) / bins))


def counts_by_bin(scores: ArrayLike, outcome: ArrayLike, edges: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Events and non-events, each (bins,), of scores (n,) with outcome 0/1 (n,); edges (bins - 1,), increasing."""
    score, event = _scores(scores, outcome)
    grid = np.asarray(edges, dtype=np.float64)
    index = np.searchsorted(grid, score, side="right")
    return _count(index[event], len(grid) + 1), _count(index[~event], len(grid) + 1)


def merge_bins(events: ArrayLike, nonevents: ArrayLike, minimum: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Merge neighbouring bins until every group holds at least ``minimum`` events and as many non-events.

    events, nonevents: (bins,) counts of one site. Returns events, nonevents and boundary, each (bins,): a group's
    totals stand in its last bin with zeros before it, and boundary is 1 where a bin's upper edge ends a group. A site
    that can't form even one group returns zeros alone ("not shown"). With a minimum of 1 nothing is merged.

    Zero cells are not let through either: "no event among these 12 patients" says something of each of them. Edges
    are tried in one public order, coarse to fine (middle, quarters, eighths, ...), and kept where both sides stay
    large enough, so that different sites keep the same edges and ``common_bins`` has something left; from the left
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
class CommonBins:
    """Groups that all shown sites share. events, nonevents: (groups,), true totals over those sites;
    last_bin: (groups,) index of each group's last bin on the common grid; sites: how many sites are shown."""

    events: FloatArray
    nonevents: FloatArray
    last_bin: NDArray[np.intp]
    sites: int

    def totals(self, values_total: ArrayLike) -> FloatArray:
        """Another summed quantity (bins,), grouped by ``totals_of_groups`` at every site -> (groups,)."""
        value = np.asarray(values_total, dtype=np.float64)
        return _between(value, self.last_bin) if len(self.last_bin) else np.zeros(0)


def common_bins(
    events_total: ArrayLike, nonevents_total: ArrayLike, boundary_total: ArrayLike, sites: int
) -> CommonBins:
    """Exact totals over sites in the ranges whose ends every shown site has; arguments are sums of ``merge_bins``.

    events_total, nonevents_total, boundary_total: (bins,); sites: how many answered. A shown site's last bin is
    always an end, so the last entry of ``boundary_total`` counts the sites shown; those not shown added zeros.
    Between two shared ends each site's groups lie whole, hence sums there are what unmerged counts would give.
    """
    event, nonevent = _pair(events_total, nonevents_total)
    ends = np.rint(np.asarray(boundary_total, dtype=np.float64))
    shown = int(ends[-1])
    if ends.max() > shown or shown > sites:
        raise ValueError(f"boundaries of {int(ends.max())} sites do not fit {shown} sites shown of {sites}")
    if shown == 0:
        return CommonBins(np.zeros(0), np.zeros(0), np.zeros(0, dtype=np.intp), 0)
    last = np.flatnonzero(ends == shown)
    return CommonBins(_between(event, last), _between(nonevent, last), last, shown)


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


def cautious_difference(
    first: Auc, second: Auc, *, correlation_at_least: float = -1.0, level: float = 0.95
) -> AucDifference:
    """Difference of two binned AUCs on the same patients, whose joint counts no site releases.

    The interval is the widest that ``correlation_at_least`` between the two estimates allows: -1 assumes nothing and
    always holds DeLong's. Two fits of one model on much the same covariates are positively correlated, so 0 will do for
    them; for models on different covariates it needn't.
    """
    a, b = first.standard_error, second.standard_error
    variance = a * a + b * b - 2 * correlation_at_least * a * b
    return _difference(first.value - second.value, math.sqrt(max(variance, 0.0)), level)


def within_site_auc(aucs: Sequence[Auc], *, level: float = 0.95) -> Estimate | None:
    """How well patients are ranked among those of their own site: pairs across sites are not compared.

    Mean of the sites' AUCs weighted by events x non-events / (patients + 1) (van Elteren 1960: the best weights where
    the score ranks by chance), sites independent. None without a site. It needs no shared edges, so it can be shown
    where ``common_bins`` has fewer than 3; it doesn't see differences of risk between sites, hence is not the AUC
    over all patients.
    """
    if not aucs:
        return None
    share = np.array([auc.events * auc.nonevents / (auc.events + auc.nonevents + 1.0) for auc in aucs])
    weight = share / share.sum()
    value = float(weight @ np.array([auc.value for auc in aucs]))
    error = float(np.sqrt(weight**2 @ np.array([auc.standard_error for auc in aucs]) ** 2))
    m, n = float(sum(auc.events for auc in aucs)), float(sum(auc.nonevents for auc in aucs))
    return Estimate(value, *_auc_interval(value, error, m, n, level))


@dataclass(frozen=True)
class RocCurve:
    """Points (k,) from (0, 0) to (1, 1): share of non-events and of events at or above each bin, highest bin first."""

    false_positive_rate: FloatArray
    true_positive_rate: FloatArray


def roc_points(events: ArrayLike, nonevents: ArrayLike) -> RocCurve | None:
    """ROC curve of counts (bins,); the area under its straight lines is the AUC. None with one class only."""
    event, nonevent = _pair(events, nonevents)
    if event.sum() == 0 or nonevent.sum() == 0:
        return None
    used = event + nonevent > 0
    true, false = np.cumsum(event[used][::-1]), np.cumsum(nonevent[used][::-1])
    return RocCurve(np.concatenate([[0.0], false / false[-1]]), np.concatenate([[0.0], true / true[-1]]))


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
    low = 0.0 if value <= tiny else float(optimize.brentq(distance, tiny, value - tiny))
    high = 1.0 if value >= 1 - tiny else float(optimize.brentq(distance, value + tiny, 1 - tiny))
    return low, high


def _placements(scores: ArrayLike, outcome: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Share of non-events below each event (m,), and of events above each non-event (n,); ties half."""
    score, event = _scores(scores, outcome)
    m, n = int(event.sum()), int((~event).sum())
    if min(m, n) == 0:
        return np.zeros(m), np.zeros(n)
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
