"""The climb up a likelihood: steps that lose are halved, long ones shortened, and what has no maximum is told."""

from collections.abc import Callable

import numpy as np
import pytest

from medfed.errors import FederationError
from medfed.methods.likelihood import Ascent, at_zero, climb, refuse_collinear, secant, starting_at

Terms = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray, float]]


def climbed(terms: Terms, start: np.ndarray, names: tuple[str, ...], rounds: int = 60) -> Ascent:
    state = starting_at(start)
    while state.change > 1e-10 or state.halvings:
        assert state.rounds < rounds
        score, information, value = terms(state.beta)
        state = climb(state, score, information, value, names, same=True)
    return state


def test_a_newton_step_that_overshoots_is_halved() -> None:
    """Newton on -sqrt(1 + b^2) diverges from |b| > 1; its step from 3 is -30."""

    def terms(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        root = np.sqrt(1 + b @ b)
        return -b / root, np.eye(1) / root**3, -float(root)

    found = climbed(terms, np.array([3.0]), ("x",))
    assert abs(found.beta[0]) < 1e-8


def test_likelihoods_of_other_patients_are_not_compared() -> None:
    state = climb(at_zero(1), np.array([1.0]), np.eye(1), -10.0, ("x",), same=True)
    lower = climb(state, np.array([0.5]), np.eye(1), -20.0, ("x",), same=False)
    assert (lower.halvings, lower.beta[0]) == (0, 1.5)
    halved = climb(state, np.array([0.5]), np.eye(1), -20.0, ("x",), same=True)
    assert (halved.halvings, halved.beta[0]) == (1, 0.5)


def test_twenty_halvings_without_gain_are_said() -> None:
    state = climb(at_zero(1), np.array([1.0]), np.eye(1), -10.0, ("x",), same=True)
    for _ in range(20):
        state = climb(state, np.array([0.5]), np.eye(1), -20.0, ("x",), same=True)
    with pytest.raises(FederationError, match="twenty halvings of a step still lose likelihood"):
        climb(state, np.array([0.5]), np.eye(1), -20.0, ("x",), same=True)


def test_a_likelihood_without_a_maximum_names_the_feature() -> None:
    def terms(b: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Rising for ever in the second coefficient."""
        gain = 5 * np.exp(-b[1])
        return np.array([-b[0], gain]), np.diag([1.0, gain]), -0.5 * b[0] ** 2 - gain

    with pytest.raises(FederationError, match="the likelihood is monotone in 'dose'"):
        climbed(terms, np.zeros(2), ("age", "dose"))


def test_collinear_and_constant_features_are_named_and_others_are_not() -> None:
    x = np.random.default_rng(0).normal(size=(100, 4))
    x[:, 2] = 2 * x[:, 0]
    names = ("age", "weight", "age in months", "height")
    with pytest.raises(FederationError, match="^'age' and 'age in months' are collinear; leave one of them out$"):
        refuse_collinear(x.T @ x, names)
    x[:, 2] = 0
    with pytest.raises(FederationError, match="^'age in months' does not vary among the patients who are compared"):
        refuse_collinear(x.T @ x, names)


def test_secants_learn_what_the_second_moments_leave_out() -> None:
    """Quadratic: after as many steps as coefficients the correction is exact."""
    rng = np.random.default_rng(3)
    root = rng.normal(size=(6, 6))
    truth, drift = root @ root.T + np.eye(6), np.diag([0.3, 0.2, 0.1, 0.05, 0.0, 0.4])
    correction = np.zeros((6, 6))
    for _ in range(6):
        step = rng.normal(size=6)
        correction = secant(correction, truth + drift, step, truth @ step)
    assert np.abs(correction - drift).max() < 1e-6
