"""Exact logistic and linear regression by Newton's method (IRLS): the pooled fit, in six to eight rounds.

Sites return score and information, sums over their patients; the coordinator solves. A ridge penalty (l2 / 2) x sum of
squares may be laid on all standardised coefficients but the intercept. McCullagh and Nelder 1989, section 2.5;
federated: Wu et al. 2012 (GLORE).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.federation import Federation
from medfed.federation.site import Site, Sites
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.solve import held_back
from medfed.methods.standardise import CENTRE, SCALE, moments, standardise, standardised, standardised_stack
from medfed.methods.weights import effective_patients, ordinary_patients
from medfed.study import Study

FloatArray = NDArray[np.float64]

COEFFICIENTS = Input("p", limit=20.0, meaning="coefficients")
RUNS_AWAY = (
    "the logistic fit runs away: the outcome is separated perfectly by a feature; leave it out, or set an l2 penalty"
)
_TERMS = {
    "score": Sum("p", limit_per_row=50),
    "information": Sum("triangle(p)", limit_per_row=2500),
    "log_likelihood": Sum(limit_per_row=1000),
    "rows": Sum(limit_per_row=1),
}


def sigmoid(eta: FloatArray) -> FloatArray:
    """1 / (1 + exp(-eta)), without overflow."""
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * eta)))


def upper(matrix: FloatArray) -> FloatArray:
    """The upper triangle of symmetric matrices (..., p, p) as vectors (..., p (p + 1) / 2): half the numbers leave."""
    rows, columns = np.triu_indices(matrix.shape[-1])
    return np.ascontiguousarray(matrix[..., rows, columns])


def symmetric(triangle: FloatArray, p: int) -> FloatArray:
    """The matrix (p, p) whose upper triangle ``upper`` wrote."""
    matrix = np.zeros((p, p))
    rows, columns = np.triu_indices(p)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix


@step(reads="train", takes={"beta": COEFFICIENTS, "centre": CENTRE, "scale": SCALE}, releases=_TERMS)
def logistic_terms(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Score (p,), information (p (p + 1) / 2,) and log-likelihood (nats) of the logistic model at ``beta``."""
    x, y = standardised(site, centre, scale)
    eta = x @ beta
    risk = sigmoid(eta)
    weights = risk * (1 - risk)
    return Out(
        {
            "score": x.T @ (y - risk),
            "information": upper((x * weights[:, None]).T @ x),
            "log_likelihood": (y * eta - np.logaddexp(0, eta)).sum(),
            "rows": float(len(y)),
        },
        effective_patients=float(effective_patients(weights)),
        ordinary_patients=float(ordinary_patients(weights, y)),
    )


@logistic_terms.batched
def _(sites: Sites, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    x, y = standardised_stack(sites, centre, scale)
    eta = x @ beta
    risk = sigmoid(eta)
    weights = risk * (1 - risk) * sites.mask
    across = x.transpose(0, 2, 1)
    return Out(
        {
            "score": (across @ ((y - risk) * sites.mask)[..., None])[..., 0],
            "information": upper(across @ (x * weights[..., None])),
            "log_likelihood": ((y * eta - np.logaddexp(0, eta)) * sites.mask).sum(1),
            "rows": sites.rows.astype(np.float64),
        },
        effective_patients=effective_patients(weights),
        ordinary_patients=ordinary_patients(weights, y, sites.mask),
    )


@step(
    reads="train",
    takes={"beta": Input("p", limit=1e6), "centre": CENTRE, "scale": SCALE},
    releases={**_TERMS, "score": Sum("p", limit_per_row=1e6), "log_likelihood": Sum(limit_per_row=1e9)},
)
def linear_terms(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Score and information of least squares at ``beta``; ``log_likelihood`` is minus half the residual sum of squares."""
    x, y = standardised(site, centre, scale)
    residual = y - x @ beta
    return Out(
        {
            "score": x.T @ residual,
            "information": upper(x.T @ x),
            "log_likelihood": -0.5 * float(residual @ residual),
            "rows": float(len(y)),
        }
    )


@dataclass(frozen=True)
class NewtonState:
    """beta (p,) standardised; information (p, p) without penalty, at the beta before; change: largest last update.

    sites: who was counted in the last round; a fit ends only on a round with the same sites as the one before.
    curve: mean log-loss (nats a patient) at the start of each round; half the mean squared residual in linear models.
    """

    beta: FloatArray
    information: FloatArray
    log_likelihood: float
    patients: float
    centre: FloatArray
    scale: FloatArray
    change: float
    rounds: int
    sites: list[str]
    settled: bool
    curve: list[float]


@dataclass(frozen=True)
class Newton:
    """Settings: family (logistic | gaussian), l2 (penalty (l2 / 2) x sum of squares, intercept free), tolerance."""

    family: str = "logistic"
    l2: float = 0.0
    tolerance: float = 1e-10
    most_rounds: int = 30

    @property
    def steps(self) -> tuple[Step, ...]:
        return (moments, logistic_terms if self.family == "logistic" else linear_terms)

    def __post_init__(self) -> None:
        if self.family not in ("logistic", "gaussian"):
            raise ValueError(f"family is 'logistic' or 'gaussian', not {self.family!r}")
        if self.l2 < 0 or self.tolerance <= 0 or self.most_rounds < 1:
            raise ValueError("l2 is 0 or more, tolerance above 0, most_rounds at least 1")

    def start(self, study: Study) -> NewtonState:
        p = len(study.design.columns)
        zeros = np.zeros(p)
        return NewtonState(zeros, np.zeros((p, p)), 0.0, 0.0, zeros, np.ones(p), 1e300, 0, [], False, [])

    def advance(self, federation: Federation, state: NewtonState) -> NewtonState:
        centre, scale = (state.centre, state.scale) if state.rounds else standardise(federation)
        terms = logistic_terms if self.family == "logistic" else linear_terms
        try:
            total = federation.sum(terms, beta=state.beta, centre=centre, scale=scale)
        except FederationError as problem:
            # Where the outcome is separated the weights vanish, and sites hold such sums back.
            far = np.abs(state.beta[1:]).max(initial=0.0) > 3 and state.change > 0.3
            if self.family == "logistic" and far and held_back(problem):
                raise FederationError(RUNS_AWAY) from None
            raise
        p = len(state.beta)
        penalty = self.l2 * (np.arange(p) > 0)
        information = symmetric(total["information"], p)
        try:
            delta = np.linalg.solve(information + np.diag(penalty), total["score"] - penalty * state.beta)
        except np.linalg.LinAlgError:
            delta = np.full(p, np.nan)
        if not np.isfinite(delta).all():
            raise FederationError(
                "the information matrix is singular: two features are collinear, or one never varies; "
                "leave one out, or set an l2 penalty"
            )
        beta = state.beta + delta
        change = float(np.abs(delta).max())
        if self.family == "logistic" and np.abs(beta).max() > COEFFICIENTS.limit:
            raise FederationError(RUNS_AWAY)
        sites = list(total.sites)
        return NewtonState(
            beta=beta,
            information=information,
            log_likelihood=float(total["log_likelihood"]),
            patients=float(total["rows"]),
            centre=centre,
            scale=scale,
            change=change,
            rounds=state.rounds + 1,
            sites=sites,
            curve=[*state.curve, -float(total["log_likelihood"] / total["rows"])],
            settled=change < self.tolerance and (sites == list(state.sites) or self.family == "gaussian"),
        )

    def done(self, state: NewtonState) -> bool:
        if not state.settled and state.rounds >= self.most_rounds:
            raise FederationError(
                f"no convergence in {state.rounds} rounds (last change {state.change:.2g}, tolerance {self.tolerance:.2g}); "
                "sites that come and go, or near-separation, keep it moving: raise most_rounds or set an l2 penalty"
            )
        return bool(state.settled)

    def result(self, state: NewtonState) -> Mapping[str, Any]:
        penalty = self.l2 * (np.arange(len(state.beta)) > 0)
        covariance = np.linalg.inv(state.information + np.diag(penalty))
        if self.family == "gaussian":
            freedom = max(state.patients - len(state.beta), 1.0)
            covariance = covariance * (-2.0 * state.log_likelihood / freedom)
        return {
            "coefficients": state.beta,
            "covariance": covariance,
            "standard_errors": np.sqrt(np.diag(covariance)),
            "centre": state.centre,
            "scale": state.scale,
            "log_likelihood": state.log_likelihood,
            "patients": state.patients,
            "rounds": state.rounds,
            "curve": list(state.curve),
            "sites": list(state.sites),
        }


def in_study_units(result: Mapping[str, Any]) -> tuple[FloatArray, FloatArray]:
    """Coefficients (p,) and covariance (p, p) per unit of each feature, instead of per standard deviation."""
    scale, centre = np.asarray(result["scale"]), np.asarray(result["centre"])
    transform = np.diag(1.0 / scale)
    transform[0] = -centre / scale
    transform[0, 0] = 1.0
    coefficients = transform @ np.asarray(result["coefficients"])
    return coefficients, transform @ np.asarray(result["covariance"]) @ transform.T
