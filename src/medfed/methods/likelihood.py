"""One step up a log-likelihood from its summed score and information, and why a fit can't go on, in words.

Shared by the survival models. Steps that lose likelihood are halved; a likelihood without a maximum (monotone: a
covariate orders the events perfectly) and collinear covariates are told with the covariate's name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError

FloatArray = NDArray[np.float64]

LARGEST_COEFFICIENT = 20.0
_NOTHING_YET = -1e300
_LONGEST_STEP = 5.0  # in standard deviations of a feature: a longer step is shortened, not believed
_FLAT = 1e-9  # smallest eigenvalue of the information, scaled to a unit diagonal, that is not called collinear


@dataclass(frozen=True)
class Ascent:
    """Where a fit stands. beta, base (q,): the point to ask about, and the last one accepted; delta (q,): the step
    taken from ``base``; log_likelihood: at ``base``; change: largest entry of the last full step, in units of beta.
    """

    beta: FloatArray
    base: FloatArray
    delta: FloatArray
    log_likelihood: float
    change: float
    halvings: int
    rounds: int


def at_zero(q: int) -> Ascent:
    """The start of a fit of q coefficients."""
    return starting_at(np.zeros(q))


def starting_at(beta: FloatArray) -> Ascent:
    """The start of a fit at ``beta`` (q,)."""
    return Ascent(beta, beta, np.zeros(len(beta)), _NOTHING_YET, 1e300, 0, 0)


def climb(
    state: Ascent,
    score: FloatArray,
    information: FloatArray,
    log_likelihood: float,
    names: Sequence[str],
    *,
    same: bool,
) -> Ascent:
    """The next point, from the terms at ``state.beta``: score (q,), information (q, q). names: (q,) for messages.

    same: whether they speak of the same patients as those of the round before; else likelihoods can't be compared.
    Raises FederationError for collinear covariates, one that never varies, and a likelihood without a maximum.
    """
    slack = 1e-9 * (abs(log_likelihood) + 1.0)
    if same and state.log_likelihood > _NOTHING_YET and not log_likelihood >= state.log_likelihood - slack:
        if state.halvings >= 20:
            raise FederationError(
                "the fit does not climb: twenty halvings of a step still lose likelihood; check the data"
            )
        delta = 0.5 * state.delta
        return Ascent(
            state.base + delta, state.base, delta, state.log_likelihood, float(np.abs(delta).max(initial=0.0)),
            state.halvings + 1, state.rounds + 1,
        )  # fmt: skip
    if state.rounds == 0:
        refuse_collinear(information, names)
    delta = solve(information, score, names)
    change = float(np.abs(delta).max(initial=0.0))
    worst = int(np.abs(delta).argmax()) if len(delta) else 0
    # A step that promises next to no likelihood and is still long: the information fades as beta grows.
    flat = state.rounds >= 2 and change > 0.3 and 0.5 * float(score @ delta) < 1e-3
    if change > _LONGEST_STEP:
        delta = delta * (_LONGEST_STEP / change)
    beta = state.beta + delta
    if flat or np.abs(beta).max(initial=0.0) > LARGEST_COEFFICIENT:
        worst = worst if flat else int(np.abs(beta).argmax())
        raise FederationError(
            f"the fit runs away: the likelihood is monotone in {names[worst]!r}, which orders the events perfectly (as "
            "where a group has no events); leave it out, or join its level with another"
        )
    return Ascent(beta, state.beta, delta, log_likelihood, change, 0, state.rounds + 1)


def solve(information: FloatArray, score: FloatArray, names: Sequence[str]) -> FloatArray:
    """The Newton step (q,). FederationError where the information is singular."""
    try:
        delta = np.linalg.solve(information, score)
    except np.linalg.LinAlgError:
        delta = np.full(len(score), np.nan)
    if not np.isfinite(delta).all():
        raise FederationError(
            f"the information matrix of {', '.join(names)} is singular: a group without events, or collinear features; "
            "leave one out"
        )
    return np.asarray(delta)


def secant(correction: FloatArray, second: FloatArray, step: FloatArray, fall: FloatArray) -> FloatArray:
    """What to take off ``second`` (q, q) so that it explains how the score fell over the last step: (q, q), rank one more.

    For a fit that has no exact information: symmetric rank-one update of the correction, not taken where it would be
    unstable or leave no positive definite matrix (Nocedal and Wright 2006, section 6.2). step, fall: (q,).
    """
    missing = second @ step - fall - correction @ step
    along = float(missing @ step)
    if not abs(along) > 1e-8 * float(np.linalg.norm(missing) * np.linalg.norm(step)):
        return correction
    updated = correction + np.outer(missing, missing) / along
    scale = 1.0 / np.sqrt(np.maximum(np.diag(second), 1e-300))
    smallest = np.linalg.eigvalsh((second - updated) * scale[:, None] * scale)[0]
    return updated if smallest > 1e-3 else np.zeros_like(correction)


def refuse_collinear(information: FloatArray, names: Sequence[str]) -> None:
    """FederationError that names the covariates of which a combination never varies. information: (q, q) at beta = 0."""
    diagonal = np.diag(information)
    for index in np.flatnonzero(~(diagonal > 1e-9)).tolist():
        raise FederationError(
            f"{names[index]!r} does not vary among the patients who are compared (in a stratified model: within a site); "
            "leave it out"
        )
    if not len(diagonal):
        return
    scale = 1.0 / np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(information * scale[:, None] * scale)
    if values[0] < _FLAT:
        loads = np.abs(vectors[:, 0])
        together = [names[index] for index in np.flatnonzero(loads > 0.1 * loads.max()).tolist()]
        raise FederationError(f"{' and '.join(map(repr, together))} are collinear; leave one of them out")
