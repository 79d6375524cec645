"""Survival curves and comparisons from counts by cell of time: Kaplan-Meier, Nelson-Aalen, RMST, bands, log-rank.

Pure functions of counts. Events of a cell happen at its end, where all who leave in it are still at risk.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.stats import chi2, norm

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """One group's curve; all (cells,). time: ends of cells. variance: Greenwood's sum, var(log S).

    hazard, hazard_variance: Nelson-Aalen's cumulative hazard and its variance (Aalen 1978).
    """

    time: FloatArray
    at_risk: FloatArray
    events: FloatArray
    censored: FloatArray
    survival: FloatArray
    variance: FloatArray
    hazard: FloatArray
    hazard_variance: FloatArray


def curve_of(time: FloatArray, events: FloatArray, censored: FloatArray) -> Curve:
    """Kaplan and Meier 1958; Greenwood 1926. (cells,) each."""
    leaving = events + censored
    at_risk = np.cumsum(leaving[::-1])[::-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(at_risk > 0, events / at_risk, 0.0)
        step = np.where(at_risk > events, events / (at_risk * (at_risk - events)), np.where(events > 0, np.inf, 0.0))
        hazard_step = np.where(at_risk > 0, events / at_risk**2, 0.0)
    return Curve(
        time=time,
        at_risk=at_risk,
        events=events,
        censored=censored,
        survival=np.asarray(np.cumprod(1.0 - share), dtype=np.float64),
        variance=np.cumsum(step),
        hazard=np.cumsum(share),
        hazard_variance=np.cumsum(hazard_step),
    )


def intervals(curve: Curve, width: FloatArray, transform: str) -> tuple[FloatArray, FloatArray]:
    """Lower and upper limits (cells,) of S at ``width`` times its standard error, on a scale: log-log, log or plain.

    width: (cells,), the normal quantile for pointwise limits. Kalbfleisch and Prentice 2002, section 1.4.
    """
    survival, error = curve.survival, np.sqrt(curve.variance)
    with np.errstate(divide="ignore", invalid="ignore"):
        if transform == "log-log":
            reach = np.exp(width * error / np.log(survival))
            low, high = survival ** (1.0 / reach), survival**reach
        elif transform == "log":
            low, high = survival * np.exp(-width * error), survival * np.exp(width * error)
        elif transform == "plain":
            low, high = survival * (1.0 - width * error), survival * (1.0 + width * error)
        else:
            raise ValueError(f"transform is 'log-log', 'log' or 'plain', not {transform!r}")
    # Nobody has had the event yet: S is 1 without error. Everybody has: 0.
    certain = (survival >= 1.0) | (survival <= 0.0)
    low, high = np.where(certain, survival, low), np.where(certain, survival, high)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def pointwise(curve: Curve, level: float = 0.95, transform: str = "log-log") -> tuple[FloatArray, FloatArray]:
    """Limits (cells,) that hold S at one time with probability ``level``."""
    return intervals(curve, np.full(len(curve.time), norm.ppf(0.5 + level / 2)), transform)


def band(
    curve: Curve, kind: str = "hall-wellner", level: float = 0.95, transform: str = "log-log"
) -> tuple[FloatArray, FloatArray]:
    """Limits (cells,) that hold the whole curve at once with probability ``level``; NaN where it says nothing.

    hall-wellner (Hall and Wellner 1980): from the start to the last time with S above 0. equal-precision (Nair 1984):
    from the first time with an event on. Both as in Klein and Moeschberger 2003, section 4.4.
    """
    patients = float(curve.at_risk[0])
    used = (curve.survival > 0) & (curve.survival < 1) & np.isfinite(curve.variance)
    if not used.any():
        return np.full(len(curve.time), np.nan), np.full(len(curve.time), np.nan)
    scaled = patients * curve.variance[used]
    place = scaled / (1.0 + scaled)
    error = np.sqrt(curve.variance)
    if kind == "hall-wellner":
        critical = hall_wellner_critical(float(place[-1]), level)
        with np.errstate(divide="ignore", invalid="ignore"):
            width = critical * (1.0 + patients * curve.variance) / (np.sqrt(patients) * error)
    elif kind == "equal-precision":
        width = np.full(len(curve.time), equal_precision_critical(float(place[0]), float(place[-1]), level))
    else:
        raise ValueError(f"kind is 'hall-wellner' or 'equal-precision', not {kind!r}")
    low, high = intervals(curve, np.where(used, width, 0.0), transform)
    return np.where(used, low, np.nan), np.where(used, high, np.nan)


def bridge_below(limit: float, until: float) -> float:
    """Probability that a Brownian bridge stays within ``limit`` on [0, until]. Hall and Wellner 1980, equation 2.9."""
    if until >= 1.0 - 1e-12:
        j = np.arange(1, 101)
        return float(1.0 + 2.0 * ((-1.0) ** j * np.exp(-2.0 * j**2 * limit**2)).sum())
    spread = np.sqrt(until * (1.0 - until))
    slope, inverse = np.sqrt((1.0 - until) / until), 1.0 / (1.0 - until)
    j = np.arange(1, 101)
    inner = norm.cdf(slope * limit * (2 * j + inverse)) - norm.cdf(slope * limit * (2 * j - inverse))
    series = ((-1.0) ** j * np.exp(-2.0 * j**2 * limit**2) * inner).sum()
    return float(1.0 - 2.0 * norm.sf(limit / spread) + 2.0 * series)


def hall_wellner_critical(until: float, level: float) -> float:
    """What |Brownian bridge| on [0, until] stays below with probability ``level``."""
    widest = min(until, 0.5)
    lowest = 0.9 * float(norm.ppf(0.5 + level / 2)) * np.sqrt(widest * (1.0 - widest))
    return float(brentq(lambda limit: bridge_below(limit, until) - level, lowest, 10.0))


def equal_precision_critical(start: float, until: float, level: float) -> float:
    """What |bridge(u)| / sqrt(u (1 - u)) on [start, until] stays below with probability ``level``.

    Miller and Siegmund 1982, equation 8: an asymptotic tail, good from 90 % on. Never below the pointwise quantile.
    """
    odds = np.log(until * (1.0 - start) / (start * (1.0 - until)))

    def beyond(limit: float) -> float:
        density = float(norm.pdf(limit))
        return 4.0 * density / limit + density * (limit - 1.0 / limit) * float(odds)

    pointwise_quantile = float(norm.ppf(0.5 + level / 2))
    if beyond(pointwise_quantile) <= 1.0 - level:
        return pointwise_quantile
    return float(brentq(lambda limit: beyond(limit) - (1.0 - level), pointwise_quantile, 20.0))


def quantile_time(curve: Curve, share: float = 0.5) -> float:
    """The first time (end of a cell) at which S is ``share`` or lower; infinite where follow-up ends before."""
    reached = np.flatnonzero(curve.survival <= share + 1e-12)
    return float(curve.time[reached[0]]) if len(reached) else float("inf")


def restricted_mean(curve: Curve, until: float) -> tuple[float, float]:
    """Mean time to the event, cut at ``until``, and its standard error: the area under S.

    Royston and Parmar 2013; the variance sums, over event times, squared area to come x Greenwood's step.
    """
    edges = np.concatenate([[0.0], np.minimum(curve.time, until)])
    heights = np.concatenate([[1.0], curve.survival])
    pieces = np.append(np.diff(edges), max(until - edges[-1], 0.0)) * heights
    to_come = np.cumsum(pieces[::-1])[::-1][1:]
    steps = np.diff(curve.variance, prepend=0.0)
    counted = (curve.time < until) & np.isfinite(steps)
    return float(pieces.sum()), float(np.sqrt((to_come[counted] ** 2 * steps[counted]).sum()))


@dataclass(frozen=True)
class LogRank:
    """Test that all groups have one hazard. observed, expected: (groups,); variance of their difference (groups, groups)."""

    chi2: float
    df: int
    p: float
    observed: FloatArray
    expected: FloatArray
    variance: FloatArray


def log_rank_sums(events: FloatArray, leaving: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Observed and expected events (groups,) and the variance (groups, groups), from counts (cells, groups).

    Hypergeometric, given who is at risk at each time (Mantel 1966).
    """
    at_risk = np.cumsum(leaving[::-1], axis=0)[::-1]
    everyone, all_events = at_risk.sum(1), events.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(everyone[:, None] > 0, at_risk / everyone[:, None], 0.0)
        spread = np.where(everyone > 1, all_events * (everyone - all_events) / (everyone - 1.0), 0.0)
    variance = np.diag((share * spread[:, None]).sum(0)) - (share * spread[:, None]).T @ share
    return events.sum(0), (share * all_events[:, None]).sum(0), variance


def log_rank(observed: FloatArray, expected: FloatArray, variance: FloatArray) -> LogRank:
    """The test from its sums; over strata, from their totals. Groups without expected events are left out."""
    kept = np.flatnonzero(expected > 0)
    df = max(len(kept) - 1, 0)
    difference = (observed - expected)[kept][:df]
    try:
        statistic = float(difference @ np.linalg.solve(variance[np.ix_(kept[:df], kept[:df])], difference))
    except np.linalg.LinAlgError:
        statistic = float("nan")
    return LogRank(statistic, df, float(chi2.sf(statistic, df)) if df else float("nan"), observed, expected, variance)


def lowest_survival(merged: Curve, width: NDArray[np.int64]) -> FloatArray:
    """How low the curve on the declared intervals can be at the end of each merged cell (cells,), which are so many wide.

    There all who are censored in a cell left before its first event; ``merged.survival`` is how high it can be.
    """
    left = np.where(width > 1, merged.at_risk - merged.censored, merged.at_risk)
    with np.errstate(divide="ignore", invalid="ignore"):
        kept = np.where(left > 0, (left - merged.events) / left, 0.0)
    return np.asarray(np.cumprod(kept), dtype=np.float64)
