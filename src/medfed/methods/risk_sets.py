"""Cox's partial likelihood over the rows of one table: risk sets, ties, and everything that is a sum over its events.

Pure functions of arrays, without federation. A stratum has a baseline hazard of its own, so the terms of a
site-stratified model are the sums of what is computed here at each site (Cox 1972; ties: Breslow 1974, Efron 1977).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

TIES = ("efron", "breslow")


@dataclass(frozen=True)
class RiskOrder:
    """Who is at risk when, in one stratum; n patients, E events, K distinct times of events.

    order: (n,) patients by ascending time. events: (E,) places in that order. first: (E,) place of the first patient
    at risk at an event. tied: (E,) events at the same time; place: (E,) its number among them, from 0. starts: (K,)
    first of each time in ``events``; times: (K,). until: (n,) distinct event times up to a patient's own, in order.
    """

    order: IntArray
    events: IntArray
    first: IntArray
    tied: IntArray
    place: IntArray
    starts: IntArray
    times: FloatArray
    until: IntArray

    @classmethod
    def of(cls, times: FloatArray, event: FloatArray) -> "RiskOrder":
        """times, event: (n,). Who is censored at the time of an event is still at risk then."""
        order = np.argsort(times, kind="stable")
        sorted_times = np.asarray(times, dtype=np.float64)[order]
        events = np.flatnonzero(np.asarray(event)[order] > 0)
        at = sorted_times[events]
        distinct, starts, inverse = np.unique(at, return_index=True, return_inverse=True)
        tied = np.diff(np.append(starts, len(at)))[inverse] if len(at) else np.zeros(0, np.int64)
        return cls(
            order=order.astype(np.int64),
            events=events.astype(np.int64),
            first=np.searchsorted(sorted_times, at, side="left").astype(np.int64),
            tied=tied.astype(np.int64),
            place=(np.arange(len(at)) - starts[inverse] if len(at) else tied).astype(np.int64),
            starts=starts.astype(np.int64),
            times=distinct,
            until=np.searchsorted(distinct, sorted_times, side="right").astype(np.int64),
        )


@dataclass(frozen=True)
class PartialLikelihood:
    """Terms at one beta. score (q,); information (q, q); log_likelihood in nats; hazard: (K,) steps of the baseline.

    Of the baseline at x = 0: the k-th step is the sum of 1 / (sum of exp(x beta) over the risk set).
    """

    score: FloatArray
    information: FloatArray
    log_likelihood: float
    hazard: FloatArray


@dataclass(frozen=True)
class _AtRisk:
    risk: FloatArray
    mean: FloatArray
    whole: FloatArray
    per_event: FloatArray
    share: FloatArray
    shift: float


def _at_risk(x: FloatArray, beta: FloatArray, order: RiskOrder, ties: str) -> _AtRisk:
    """Weights (n,), and for each event the mean of x over its risk set (E, q) and the risk set's sum of weights (E,)."""
    eta = x @ beta
    shift = float(eta.max(initial=0.0)) if len(eta) else 0.0
    risk = np.exp(eta - shift)
    weighted = x * risk[:, None]
    later = np.cumsum(risk[::-1])[::-1]
    later_x = np.cumsum(weighted[::-1], axis=0)[::-1]
    events, starts = order.events, order.starts
    share = order.place / order.tied if ties == "efron" else np.zeros(len(events))
    whole, sums = later[order.first], later_x[order.first]
    if ties == "efron" and len(events):
        group = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(events))))
        whole = whole - share * np.add.reduceat(risk[events], starts)[group]
        sums = sums - share[:, None] * np.add.reduceat(weighted[events], starts, axis=0)[group]
    return _AtRisk(risk, sums / whole[:, None], whole, 1.0 / whole, share, shift)


def _by_time(values: FloatArray, order: RiskOrder) -> FloatArray:
    return np.asarray(np.add.reduceat(values, order.starts)) if len(order.starts) else np.zeros(0)


def expected_events(at: _AtRisk, order: RiskOrder, marks: FloatArray | None = None) -> FloatArray:
    """Cumulative hazard of each patient over the own follow-up (n,), every step k of it times ``marks`` (K,).

    With Efron's ties a patient with the event counts for less of the step at the own time.
    """
    own = np.ones(len(order.starts)) if marks is None else marks
    cumulative = np.concatenate([[0.0], np.cumsum(own * _by_time(at.per_event, order))])
    weight = cumulative[order.until]
    if at.share.any():
        less = own * _by_time(at.per_event * at.share, order)
        weight[order.events] -= less[order.until[order.events] - 1]
    return np.asarray(at.risk * weight)


def _information(x: FloatArray, at: _AtRisk, order: RiskOrder, marks: FloatArray | None = None) -> FloatArray:
    """Sum over events of the variance of x in the risk set, times ``marks`` (K,) at its time: (q, q).

    The second moments are added patient by patient, so that no (K, q, q) array is needed.
    """
    weight = expected_events(at, order, marks)
    mean = at.mean if marks is None else at.mean * np.sqrt(marks)[order.until[order.events] - 1][:, None]
    return np.asarray((x * weight[:, None]).T @ x - mean.T @ mean)


def partial_likelihood(x: FloatArray, beta: FloatArray, order: RiskOrder, ties: str) -> PartialLikelihood:
    """Score, information and log-likelihood at ``beta`` (q,). x: (n, q), its rows in ``order.order``.

    A stratum without events has zeros: it says nothing about beta.
    """
    at = _at_risk(x, beta, order, ties)
    own = x[order.events]
    return PartialLikelihood(
        score=own.sum(0) - at.mean.sum(0),
        information=_information(x, at, order),
        log_likelihood=float((own @ beta).sum() - len(own) * at.shift - np.log(at.whole).sum()),
        hazard=_by_time(at.per_event, order) * np.exp(-at.shift),
    )


@dataclass(frozen=True)
class Proportionality:
    """Sums of the test of beta(t) = beta + theta g(t). score (q,): of theta; crossed, own (q, q): information.

    crossed: of theta with beta; own: of theta. residuals (q,): sum of Schoenfeld residuals; marks (3,): events, and
    sums of g and g^2 over events.
    """

    score: FloatArray
    crossed: FloatArray
    own: FloatArray
    residuals: FloatArray
    marks: FloatArray


def proportionality_terms(
    x: FloatArray, beta: FloatArray, order: RiskOrder, ties: str, marks: FloatArray
) -> Proportionality:
    """Sums of the score test of proportional hazards at ``beta``. marks: (K,) g at the times of events, at least 0.

    Grambsch and Therneau 1994; with the information as it is, not its average over time: Therneau and Grambsch 2000,
    section 6.2.
    """
    at = _at_risk(x, beta, order, ties)
    residuals = x[order.events] - at.mean
    own = marks[order.until[order.events] - 1]
    return Proportionality(
        score=own @ residuals,
        crossed=_information(x, at, order, marks),
        own=_information(x, at, order, marks * marks),
        residuals=residuals.sum(0),
        marks=np.array([len(own), own.sum(), (own * own).sum()]),
    )
