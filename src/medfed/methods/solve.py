"""The coordinator's half of a fit: from summed score and information to the next coefficients. No federation here.

Newton steps, ridge and lasso (proximal Newton by coordinate descent, certified by its Karush-Kuhn-Tucker residual;
Lee, Sun and Saunders 2014), and what a singular information matrix says about the columns behind it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.federation import TooSteep
from medfed.federation.gate import CONCENTRATED, LIGHT, OVER_LIMIT
from medfed.methods.wide_ranges import Ranges, too_wide

FloatArray = NDArray[np.float64]


def collinear(names: Sequence[str], information: FloatArray) -> list[str]:
    """The columns behind the smallest eigenvalue of an information matrix (m, m) that is singular; else none.

    Judged on the matrix scaled to a diagonal of ones, so that units do not count.
    """
    diagonal = np.diag(information)
    if not (np.isfinite(information).all() and (diagonal > 0).all()):
        return [name for name, value in zip(names, diagonal, strict=True) if not value > 0] or list(names)
    root = np.sqrt(diagonal)
    values, vectors = np.linalg.eigh(information / np.outer(root, root))
    if values[0] > 1e-11:
        return []
    share = np.abs(vectors[:, 0]) / np.abs(vectors[:, 0]).max()
    return [names[index] for index in np.argsort(-share, kind="stable") if share[index] > 1e-3]


def refuse_collinear(names: Sequence[str], information: FloatArray) -> None:
    """Raise FederationError, naming the columns, where the information matrix is singular."""
    found = collinear(names, information) if len(names) else []
    if not found:
        return
    if len(found) == 1:
        raise FederationError(
            f"{found[0]!r} never varies among the patients who were counted; leave it out of the formula"
        )
    shown = ", ".join(repr(name) for name in found[:6]) + (" and others" if len(found) > 6 else "")
    raise FederationError(
        f"the information matrix is singular: {shown} are collinear, each follows from the others; leave one out of the "
        "formula, or set an l2 penalty"
    )


def held_back(problem: FederationError) -> bool:
    """Whether sites refused what the sums rest on, as they do where an outcome is separated; not that a site was away."""
    return isinstance(problem, TooSteep) or any(why in str(problem) for why in (CONCENTRATED, LIGHT, OVER_LIMIT))


def separated(names: Sequence[str], theta: FloatArray, wide: Ranges) -> FederationError:
    """The sentence for a fit whose coefficients grow without end; the steepest column is named, the intercept is none.

    wide: columns whose coefficient may be large for their range alone (``scaled_by_range``).
    """
    steepest = names[1 + int(np.abs(theta[1 : len(names)]).argmax())]
    if steepest in wide:
        return too_wide(steepest, wide, "it separates the outcome")
    return FederationError(
        f"the fit runs away: {steepest!r} separates the outcome perfectly, or nearly so; leave it out, merge its levels, or "
        "set an l2 penalty"
    )


def refuse_singular(
    names: Sequence[str],
    theta: FloatArray,
    information: FloatArray,
    free: NDArray[np.bool_],
    wide: Ranges,
    *,
    curved: bool,
) -> None:
    """Raise FederationError for free columns that are collinear; or separated, where information vanished on the way.

    theta, free (m,), information (m, m) begin with the columns of ``names``. wide: see ``separated``. curved: whether information depends on theta.
    """
    columns = np.flatnonzero(free[: len(names)])
    try:
        refuse_collinear([names[int(index)] for index in columns], information[np.ix_(columns, columns)])
    except FederationError:
        if curved and np.abs(theta[1 : len(names)]).max(initial=0.0) > 8:
            raise separated(names, theta, wide) from None
        raise


def newton_step(
    theta: FloatArray, score: FloatArray, information: FloatArray, l2: FloatArray, *, shape: bool = False
) -> FloatArray:
    """The change of theta (m,) towards the maximum of log-likelihood - sum of (l2 / 2) theta^2.

    shape: whether the last one is log alpha, in which the log-likelihood need not be concave: where it is not, alpha
    moves a bounded step uphill by itself.
    """
    if not len(theta):
        return np.zeros(0)
    gradient, curvature = score - l2 * theta, information + np.diag(l2)
    if not shape:
        return _solve(curvature, gradient)
    bread, cross = curvature[:-1, :-1], curvature[:-1, -1]
    direct = _solve(bread, gradient[:-1]) if len(theta) > 1 else np.zeros(0)
    rest = curvature[-1, -1] - (cross @ _solve(bread, cross) if len(theta) > 1 else 0.0)
    if not rest > 0:
        return np.append(direct, 0.5 * np.sign(gradient[-1]))
    last = (gradient[-1] - cross @ direct) / rest
    return np.append(direct - (_solve(bread, cross) * last if len(theta) > 1 else 0.0), last)


def _solve(matrix: FloatArray, vector: FloatArray) -> FloatArray:
    root = np.sqrt(np.diag(matrix))
    return np.asarray(np.linalg.solve(matrix / np.outer(root, root), vector / root) / root)


def kkt_residual(theta: FloatArray, score: FloatArray, l1: FloatArray, l2: FloatArray) -> float:
    """How far theta (m,) is from optimal under the penalty: the largest violation of the optimality conditions.

    score (m,): of the log-likelihood at theta. Where a coefficient is not 0, the score equals the penalty's slope;
    where it is, the score is within l1. Nats per unit of theta.
    """
    gradient = score - l2 * theta
    violation = np.where(theta != 0, np.abs(gradient - l1 * np.sign(theta)), np.maximum(np.abs(gradient) - l1, 0.0))
    return float(violation.max(initial=0.0))


def lasso_step(
    theta: FloatArray, score: FloatArray, information: FloatArray, l1: FloatArray, l2: FloatArray
) -> FloatArray:
    """The change of theta (m,) that maximises the quadratic model of the log-likelihood minus both penalties.

    Coordinate descent to machine precision: m is small beside the patients, so this costs nothing.
    """
    new, diagonal = theta.copy(), np.diag(information) + l2
    slope = score - l2 * theta  # of the quadratic model at ``new``
    for _ in range(100_000):
        largest = 0.0
        for j in range(len(theta)):
            if not diagonal[j] > 0:
                continue
            free = new[j] + slope[j] / diagonal[j]
            target = np.sign(free) * max(abs(free) - l1[j] / diagonal[j], 0.0)
            move = target - new[j]
            if move != 0.0:
                new[j] = target
                slope -= move * information[j]
                slope[j] -= move * l2[j]
                largest = max(largest, abs(move) * float(np.sqrt(diagonal[j])))
        if largest < 1e-15 * max(1.0, float(np.sqrt(diagonal.max(initial=0.0)))):
            break
    return new - theta
