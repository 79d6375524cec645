"""Exponential families and their links, as functions of the linear predictor: what a generalised linear model sums.

Binomial (logit), Gaussian (identity), Poisson (log), gamma (log) and negative binomial of the second kind (log;
variance mu + alpha mu^2). McCullagh and Nelder 1989, chapters 2 and 8; Hilbe 2011, chapter 8. No federation here.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, gammaln, polygamma, xlogy

FloatArray = NDArray[np.float64]
FAMILIES = ("binomial", "gaussian", "poisson", "gamma", "negative_binomial")


@dataclass(frozen=True)
class Derivatives:
    """Of each row's log-likelihood in the linear predictor eta, times its weight: (n,) each.

    residual: first derivative. expected, observed: minus the second one, in expectation and as it is; the same for
    canonical links. log_likelihood, deviance: of all rows, nats; without what depends on the dispersion alone in
    Gaussian (minus half the residual sum of squares) and gamma models.
    """

    residual: FloatArray
    expected: FloatArray
    observed: FloatArray
    log_likelihood: float
    deviance: float


@dataclass(frozen=True)
class ShapeDerivatives:
    """Of the negative binomial's log-likelihood in tau = log alpha: score (n,), minus the second derivatives (n,)."""

    score: FloatArray
    with_eta: FloatArray
    curvature: FloatArray


def has_free_dispersion(family: str) -> bool:
    """Whether the dispersion is estimated (by Pearson's statistic) and not 1."""
    return family in ("gaussian", "gamma")


def is_canonical(family: str) -> bool:
    """Whether expected and observed information agree."""
    return family in ("binomial", "gaussian", "poisson")


def link(family: str, mean: float) -> float:
    """The linear predictor at a mean."""
    if family == "gaussian":
        return mean
    if family == "binomial":
        return float(np.log(mean) - np.log1p(-mean))
    return float(np.log(mean))


def is_possible(family: str, y: FloatArray) -> bool:
    """Whether every outcome is one that the family can have."""
    if family == "gamma":
        return bool((y > 0).all())
    if family in ("poisson", "negative_binomial"):
        return bool((y >= 0).all())
    return bool(((y >= 0) & (y <= 1)).all()) if family == "binomial" else bool(np.isfinite(y).all())


def derivatives(family: str, eta: FloatArray, y: FloatArray, w: FloatArray | float, alpha: float) -> Derivatives:
    """Derivatives at eta (n,) of outcomes y (n,) with weights w (n,) or 1. alpha: of the negative binomial."""
    if family == "binomial":
        return _binomial(eta, y, w)
    if family == "gaussian":
        residual = y - eta
        squares = _total(w * residual * residual)
        weight = np.broadcast_to(np.asarray(w, dtype=np.float64), eta.shape)
        return Derivatives(w * residual, weight, weight, -0.5 * squares, squares)
    mean = np.exp(eta)
    if family == "poisson":
        log_likelihood = _total(w * (y * eta - mean - gammaln(y + 1.0)))
        deviance = 2.0 * _total(w * (xlogy(y, y) - y * eta - (y - mean)))
        return Derivatives(w * (y - mean), w * mean, w * mean, log_likelihood, deviance)
    if family == "gamma":
        ratio = y / mean
        weight = np.broadcast_to(np.asarray(w, dtype=np.float64), eta.shape)
        deviance = 2.0 * _total(w * (ratio - 1.0 - np.log(ratio)))
        return Derivatives(w * (ratio - 1.0), weight, w * ratio, -_total(w * (ratio + eta)), deviance)
    return _negative_binomial(eta, mean, y, w, alpha)


def _binomial(eta: FloatArray, y: FloatArray, w: FloatArray | float) -> Derivatives:
    # One exponential and one logarithm a row: this is the inner loop of a large logistic fit.
    small = np.exp(-np.abs(eta))
    odds = 1.0 / (1.0 + small)
    risk = np.where(eta >= 0, odds, small * odds)
    log_likelihood = _total(w * (y * eta - np.maximum(eta, 0.0) + np.log(odds)))
    weight = w * (small * odds * odds)
    return Derivatives(w * (y - risk), weight, weight, log_likelihood, -2.0 * log_likelihood)


def _negative_binomial(
    eta: FloatArray, mean: FloatArray, y: FloatArray, w: FloatArray | float, alpha: float
) -> Derivatives:
    size, spread = 1.0 / alpha, 1.0 + alpha * mean
    constant = gammaln(y + size) - gammaln(size) - gammaln(y + 1.0)
    log_likelihood = _total(w * (y * (np.log(alpha) + eta) - (y + size) * np.log(spread) + constant))
    deviance = 2.0 * _total(w * (xlogy(y, y) - y * eta - (y + size) * np.log((y + size) / (mean + size))))
    expected = w * mean / spread
    return Derivatives(
        w * (y - mean) / spread, expected, expected * (1.0 + alpha * y) / spread, log_likelihood, deviance
    )


def shape_derivatives(eta: FloatArray, y: FloatArray, w: FloatArray | float, alpha: float) -> ShapeDerivatives:
    """Derivatives in tau = log alpha, for alpha by maximum likelihood. Lawless 1987, section 2."""
    size, mean = 1.0 / alpha, np.exp(eta)
    total = size + mean
    first = digamma(y + size) - digamma(size) + np.log(size / total) + 1.0 - (y + size) / total
    second = polygamma(1, y + size) - polygamma(1, size) + alpha - 2.0 / total + (y + size) / (total * total)
    mixed = (y - mean) * mean / (total * total)
    return ShapeDerivatives(
        score=w * (-size * first), with_eta=w * (size * mixed), curvature=-w * (size * first + size * size * second)
    )


def gamma_log_likelihood(
    y: FloatArray, eta: FloatArray, w: FloatArray | float, dispersion: float, *, frequency: bool
) -> float:
    """Log-likelihood of gamma outcomes at a dispersion, nats. The weight divides the dispersion, or counts patients."""
    shape: Any = 1.0 / dispersion if frequency else w / dispersion
    ratio = y * np.exp(-eta)
    each = shape * np.log(shape * ratio) - shape * ratio - gammaln(shape) - np.log(y)
    return _total(w * each if frequency else each)


def weight_at(family: str, mean: float, alpha: float) -> float:
    """Expected weight of a row at a mean: what all rows weigh where nothing is known of them; 0 where it has no bounds to fall from."""
    if family == "binomial":
        return mean * (1 - mean)
    if family == "poisson":
        return mean
    return mean / (1 + alpha * mean) if family == "negative_binomial" else 1.0


def pearson(family: str, derived: Derivatives, eta: FloatArray, y: FloatArray, w: FloatArray | float) -> float:
    """Pearson's statistic, sum of w (y - mu)^2 / variance at dispersion 1."""
    if family == "gaussian":
        return derived.deviance
    if family == "gamma":
        ratio = y * np.exp(-eta) - 1.0
        return _total(w * ratio * ratio)
    # With a log or logit link the squared residual over the expected weight is it: both hold w once.
    with np.errstate(divide="ignore", invalid="ignore"):
        each = derived.residual * derived.residual / derived.expected
    return _total(np.where(derived.expected > 0, each, 0.0))


def site_effect(family: str, eta: FloatArray, y: FloatArray, w: FloatArray | float, alpha: float) -> float:
    """The intercept a that maximises the log-likelihood of these rows at eta + a, by Newton's method (concave in a).

    NaN where the rows say nothing about any coefficient: no event or nothing but events, or all counts zero.
    """
    weight = np.broadcast_to(np.asarray(w, dtype=np.float64), eta.shape)
    total = float(weight.sum())
    mean = float((weight * y).sum()) / total if total > 0 else 0.0
    if family == "gaussian":
        return mean - float((weight * eta).sum()) / total
    if not mean > 0 or (family == "binomial" and not mean < 1):
        return float("nan")
    if family == "gamma":
        return float(np.log((weight * y * np.exp(-eta)).sum() / total))
    a = link(family, mean) - float((weight * eta).sum()) / total
    for _ in range(100):
        at = derivatives(family, eta + a, y, w, alpha)
        slope, curvature = float(at.residual.sum()), float(at.observed.sum())
        move = slope / curvature if curvature > 0 else np.sign(slope)
        a += float(np.clip(move, -2.0, 2.0))
        if abs(move) < 1e-13 * max(1.0, abs(a)):
            break
    return a


def _total(values: Any) -> float:
    return float(np.sum(values))
