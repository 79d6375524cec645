"""Are the predicted risks true? Observed over expected, calibration line, Brier score, table by risk, and the repair.

Everything but the bootstrap follows from sums over patients, so sums over sites give the same figures. The repair is
the intercept alone, held by a normal prior: few local patients are enough for it. Nothing here knows of federation.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from medfed.evaluation.intervals import Estimate, wald

FloatArray = NDArray[np.float64]

PRIOR_SD = 1.5
_TOLERANCE = 1e-10


@dataclass(frozen=True)
class RiskSums:
    """Sums over patients with predicted risk r and outcome y, which sites may add with ``+``.

    variance: of r (1 - r), the variance of the number of events if the risks are true. squared_error: of (y - r)^2;
    its squares give the interval. log_loss: in nats.
    """

    rows: float
    events: float
    expected: float
    variance: float
    squared_error: float
    squared_error_squares: float
    log_loss: float

    def __add__(self, other: "RiskSums") -> "RiskSums":
        return RiskSums(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


def risk_sums(risk: ArrayLike, outcome: ArrayLike) -> RiskSums:
    """Sums of a site: predicted risks (n,) in 0 to 1, outcomes 0/1 (n,)."""
    r, y = np.asarray(risk, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    if not np.all((r >= 0) & (r <= 1)):
        raise ValueError("a predicted risk lies between 0 and 1")
    _require_outcome(r, y)
    error = (y - r) ** 2
    log_loss = -np.log(np.clip(np.where(y == 1, r, 1 - r), 1e-15, None))
    columns = (np.ones_like(y), y, r, r * (1 - r), error, error**2, log_loss)
    return RiskSums(*(float(column.sum()) for column in columns))


def observed_to_expected(
    observed: float, expected: float, rows: float | None = None, *, level: float = 0.95
) -> Estimate:
    """Events observed over the sum of predicted risks, which is taken as known.

    rows: patients; the interval is the exact binomial one (Clopper & Pearson 1934), cautious where risks differ
    between patients. Without rows: exact Poisson (Garwood 1936), for counts over person-time.
    """
    if not (expected > 0 and observed >= 0):
        raise ValueError("observed over expected needs a positive number of expected events")
    tail = (1 - level) / 2
    if rows is None:
        low = 0.0 if observed == 0 else float(special.gammaincinv(observed, tail))
        high = float(special.gammainccinv(observed + 1, tail))
    else:
        low = 0.0 if observed == 0 else rows * float(special.betaincinv(observed, rows - observed + 1, tail))
        high = rows if observed == rows else rows * float(special.betaincinv(observed + 1, rows - observed, 1 - tail))
    return Estimate(observed / expected, low / expected, high / expected)


@dataclass(frozen=True)
class Brier:
    """score: mean squared error of the risks; scaled: 1 - score / (score of giving everybody the event rate), so 1 is
    perfect and 0 is no better than the rate; None where all outcomes are the same (Steyerberg et al. 2010)."""

    score: Estimate
    scaled: float | None


def brier(sums: RiskSums, *, level: float = 0.95) -> Brier:
    """Brier score with the normal interval of a mean, from sums over at least 2 patients."""
    if sums.rows < 2:
        raise ValueError("a Brier score with an interval needs at least 2 patients")
    score, rate = sums.squared_error / sums.rows, sums.events / sums.rows
    spread = max(sums.squared_error_squares / sums.rows - score**2, 0.0)
    by_rate = rate * (1 - rate)
    interval = wald(score, math.sqrt(spread / (sums.rows - 1)), level=level)
    bounded = Estimate(score, max(interval.low, 0.0), min(interval.high, 1.0))
    return Brier(bounded, 1 - score / by_rate if by_rate > 0 else None)


@dataclass(frozen=True)
class RecalibrationTerms:
    """Of logit(risk) = a + b lp: score (2,), information (2, 2), log-likelihood in nats. Sites add with ``+``."""

    score: FloatArray
    information: FloatArray
    log_likelihood: float

    def __add__(self, other: "RecalibrationTerms") -> "RecalibrationTerms":
        return RecalibrationTerms(
            self.score + other.score,
            self.information + other.information,
            self.log_likelihood + other.log_likelihood,
        )


def recalibration_terms(predictor: ArrayLike, outcome: ArrayLike, a: float, b: float) -> RecalibrationTerms:
    """Terms at intercept a and slope b: linear predictors (n,), outcomes 0/1 (n,). Cox 1958."""
    lp, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    _require_outcome(lp, y)
    eta = a + b * lp
    risk = special.expit(eta)
    residual, weight = y - risk, risk * (1 - risk)
    across = weight @ lp
    return RecalibrationTerms(
        np.array([residual.sum(), residual @ lp]),
        np.array([[weight.sum(), across], [across, weight @ lp**2]]),
        float(y @ eta - np.logaddexp(0, eta).sum()),
    )


@dataclass(frozen=True)
class CalibrationLine:
    """logit(true risk) = intercept + slope x linear predictor. Perfect: 0 and 1; slope under 1: risks too extreme.

    covariance: (2, 2); zero for a slope that was held at 1 (the intercept is then calibration in the large).
    """

    intercept: Estimate
    slope: Estimate
    covariance: FloatArray


def calibration_line(
    terms: Callable[[float, float], RecalibrationTerms], *, slope: bool = True, level: float = 0.95
) -> CalibrationLine | None:
    """Maximum likelihood by Newton's method; ``terms(a, b)`` gives the sums over one site, or over all of them.

    slope: False holds it at 1. None where no finite estimate exists: one class, a constant predictor, separation.
    """
    free = 2 if slope else 1
    line = np.array([0.0, 0.0 if slope else 1.0])
    now = terms(line[0], line[1])
    for _ in range(40):
        information = now.information[:free, :free]
        if not np.linalg.cond(information) < 1e13 or information[0, 0] < 1e-9:
            return None
        change = np.zeros(2)
        change[:free] = np.linalg.solve(information, now.score[:free])
        change, after = _uphill(terms, line, change, now)
        line, now = line + change, after
        if np.abs(change).max() < _TOLERANCE * (1 + np.abs(line).max()):
            covariance = np.zeros((2, 2))
            covariance[:free, :free] = np.linalg.inv(now.information[:free, :free])
            error = np.sqrt(np.diag(covariance))
            return CalibrationLine(
                wald(float(line[0]), float(error[0]), level=level),
                wald(float(line[1]), float(error[1]), level=level),
                covariance,
            )
    return None


def recalibrate(
    predictor: ArrayLike, outcome: ArrayLike, *, slope: bool = True, level: float = 0.95
) -> CalibrationLine | None:
    """``calibration_line`` of one set of patients: linear predictors (n,), outcomes 0/1 (n,)."""
    return calibration_line(lambda a, b: recalibration_terms(predictor, outcome, a, b), slope=slope, level=level)


def updated_intercept(predictor: ArrayLike, outcome: ArrayLike, prior_sd: float = PRIOR_SD) -> float:
    """The change of intercept that fits local patients best, under a normal prior (0, prior_sd^2): posterior mode.

    predictor, outcome: (n,). With no patient it is 0. Steyerberg et al. 2004 (updating the intercept).
    """
    lp, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    _require_outcome(lp, y)
    return float(_updated_intercepts(lp[None], y[None], prior_sd, np.zeros(1))[0])


def ratios_after_update(
    predictor: ArrayLike,
    outcome: ArrayLike,
    *,
    rng: np.random.Generator,
    patients: int = 50,
    draws: int = 1000,
    prior_sd: float = PRIOR_SD,
) -> FloatArray:
    """Observed over expected in the whole hospital, (draws,), after updating on ``patients`` drawn with replacement."""
    lp, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    _require_outcome(lp, y)
    drawn = rng.integers(len(lp), size=(draws, patients))
    changes = _updated_intercepts(lp[drawn], y[drawn], prior_sd, np.zeros(draws))
    return np.array([y.sum() / special.expit(lp + change).sum() for change in changes])


@dataclass(frozen=True)
class PatientsNeeded:
    """patients: enough, or None where even ``most`` are not. shares: for each number tried, the share of draws inside
    the limits."""

    patients: int | None
    most: int
    shares: dict[int, float] = field(default_factory=dict)


def patients_needed(
    predictor: ArrayLike,
    outcome: ArrayLike,
    *,
    rng: np.random.Generator,
    share: float = 0.9,
    low: float = 0.9,
    high: float = 1.1,
    draws: int = 1000,
    prior_sd: float = PRIOR_SD,
    most: int = 1000,
    step: int = 5,
) -> PatientsNeeded:
    """How many local patients an intercept update needs, so that ``share`` of draws end with O/E in low to high.

    predictor, outcome: (n,), the whole hospital, over which O/E is taken; patients are drawn from it with
    replacement, nested: more patients are the same ones and more. From the number found on, up to ``most``, every
    number tried holds; a model that is right by chance before it has learned anything doesn't count. To ``step``
    patients; below 2 steps isn't looked at.
    """
    lp, y = np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)
    _require_outcome(lp, y)
    ends = _change_for(lp, y.sum() / high), _change_for(lp, y.sum() / low)
    drawn = rng.integers(len(lp), size=(draws, most))
    changes = np.zeros(draws)
    shares: dict[int, float] = {}

    def holds(patients: int) -> bool:
        nonlocal changes
        first = drawn[:, :patients]
        changes = _updated_intercepts(lp[first], y[first], prior_sd, changes)
        shares[patients] = float(np.mean((changes >= ends[0]) & (changes <= ends[1])))
        return shares[patients] >= share

    tried = [most]
    while tried[-1] > 2 * step:
        tried.append(max(2 * step, step * round(tried[-1] / 1.4 / step)))
    failed, enough = 0, 0
    for patients in tried:
        if not holds(patients):
            failed = patients
            break
        enough = patients
    while enough - failed > step and failed:
        middle = step * round((enough + failed) / 2 / step)
        if middle in (enough, failed):
            break
        if holds(middle):
            enough = middle
        else:
            failed = middle
    return PatientsNeeded(enough or None, most, dict(sorted(shares.items())))


def _updated_intercepts(lp: FloatArray, y: FloatArray, prior_sd: float, start: FloatArray) -> FloatArray:
    """Posterior modes (draws,) for lp, y (draws, n); Newton from ``start`` (draws,).

    Steps are held to 1: along it the curvature changes by a factor e at most, so each step shrinks the gradient
    (to at most 0.72 of what it was) and the method can't circle.
    """
    change, precision = start.copy(), 1 / prior_sd**2
    events = y.sum(1)
    moving = np.arange(len(change))
    for _ in range(200):
        risk = special.expit(lp[moving] + change[moving, None])
        gradient = events[moving] - risk.sum(1) - precision * change[moving]
        curvature = (risk * (1 - risk)).sum(1) + precision
        step = np.clip(gradient / curvature, -1.0, 1.0)
        change[moving] += step
        moving = moving[np.abs(step) > _TOLERANCE]
        if len(moving) == 0:
            break
    return change


def _change_for(lp: FloatArray, expected: float) -> float:
    """The change of intercept at which the summed risks (n,) equal ``expected``; infinite where no change does."""
    if not 0 < expected < len(lp):
        return -math.inf if expected <= 0 else math.inf
    low, high = -50 - float(lp.max()), 50 - float(lp.min())
    for _ in range(100):
        middle = (low + high) / 2
        if special.expit(lp + middle).sum() < expected:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _uphill(
    terms: Callable[[float, float], RecalibrationTerms],
    line: FloatArray,
    change: FloatArray,
    now: RecalibrationTerms,
) -> tuple[FloatArray, RecalibrationTerms]:
    """The step, halved while it lowers the likelihood by more than rounding."""
    after = now
    for _ in range(30):
        after = terms(*(line + change))
        if after.log_likelihood >= now.log_likelihood - 1e-9 * (1 + abs(now.log_likelihood)):
            break
        change = change / 2
    return change, after


def _require_outcome(values: FloatArray, outcome: FloatArray) -> None:
    if values.ndim != 1 or values.shape != outcome.shape or not np.isfinite(values).all():
        raise ValueError("predictions and outcomes need one finite number for each patient")
    if not np.isin(outcome, (0, 1)).all():
        raise ValueError("outcomes are 0 or 1")
