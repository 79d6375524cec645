"""The noise has the law it claims. Statistical tests fail by chance once in 10^9 runs each."""

import itertools
import math
import random
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from medfed.privacy import noise
from medfed.privacy.noise import (
    SMALLEST_SCALE,
    add_by_unit,
    clip_to_grid,
    discrete_gaussian,
    discrete_laplace,
    discreteness,
    exceeds_exp,
    poisson_sample,
    share_distance,
    share_scale,
    total_limbs,
    total_word,
)

ERROR_RATE = 1e-9


def weights(scale: float, most: int) -> np.ndarray:
    values = np.exp(-(np.arange(-most, most + 1) ** 2) / (2.0 * scale * scale))
    return values / values.sum()


def chi_square_p(drawn: np.ndarray, expected: np.ndarray, most: int) -> float:
    """p-value of draws against probabilities of -most .. most; cells expected under 10 times are put together."""
    observed = np.bincount(np.clip(drawn, -most, most) + most, minlength=2 * most + 1)
    often = expected * len(drawn) >= 10
    seen = np.append(observed[often], observed[~often].sum())
    wanted = np.append(expected[often], expected[~often].sum()) * len(drawn)
    return float(stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue)


@pytest.mark.parametrize("scale", [1, 2, 3, 7])
def test_draws_have_the_discrete_gaussians_probabilities(scale: int) -> None:
    drawn = discrete_gaussian(scale, 400_000)
    assert chi_square_p(drawn, weights(scale, 12 * scale), 12 * scale) > ERROR_RATE


def test_laplace_draws_have_their_probabilities() -> None:
    expected = np.exp(-np.abs(np.arange(-60, 61)) / 4.0)
    assert chi_square_p(discrete_laplace(4, 400_000), expected / expected.sum(), 60) > ERROR_RATE


@pytest.mark.parametrize("scale", [SMALLEST_SCALE, 2**43 + 7, 2**56])
def test_wide_draws_are_normal_in_shape_scale_and_lowest_bits(scale: int) -> None:
    drawn = discrete_gaussian(scale, 200_000)
    assert stats.kstest(drawn / scale, "norm").pvalue > ERROR_RATE
    assert stats.chisquare(np.bincount(drawn & 255, minlength=256)).pvalue > ERROR_RATE


def test_a_comparison_in_doubt_is_decided_by_exact_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every comparison called doubtful, the law is the same."""
    monkeypatch.setattr(noise, "_MARGIN", 2.0)
    drawn = discrete_gaussian(2, 6_000)
    assert chi_square_p(drawn, weights(2, 24), 24) > ERROR_RATE


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**7), st.integers(10**4, 10**9), st.integers(-3, 3))
def test_the_exact_comparison_agrees_with_mpmath_next_to_the_boundary(top: int, bottom: int, away: int) -> None:
    gamma = Fraction(top, bottom)
    with mpmath.workdps(400):
        # 64 bits at the boundary, and further bits that put the number just below or above it.
        chance = mpmath.exp(-mpmath.mpf(top) / bottom)
        bits = int(mpmath.floor(chance * mpmath.mpf(2) ** 576)) + away * 2**40
        if not 0 <= bits < 2**576 or top == 0:
            return
        words = [(bits >> (64 * place)) & (2**64 - 1) for place in range(8, -1, -1)]
        expected = mpmath.mpf(bits) / mpmath.mpf(2) ** 576 >= chance
    stream = iter(words[1:])
    follow = random.Random(1)

    def more(count: int) -> bytes:
        assert count == 8
        return next(stream, follow.getrandbits(64)).to_bytes(8, "little")

    if away != 0:
        assert exceeds_exp(words[0], gamma, more) == bool(expected)


def test_nothing_exceeds_a_certain_event() -> None:
    assert not exceeds_exp(2**64 - 1, Fraction(0), lambda count: b"\xff" * count)


@pytest.mark.parametrize("scale", [0, 2**56 + 1])
def test_a_scale_that_the_sampler_can_not_hold_is_refused(scale: int) -> None:
    with pytest.raises(ValueError, match="grid units"):
        discrete_gaussian(scale, 1)


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [34, 40])
@pytest.mark.parametrize("shares", [1, 3, 67, 200])
def test_shares_add_up_to_the_variance_and_to_no_more_than_rounding(shares: int, bits: int) -> None:
    scale = share_scale(1.7, shares, bits)
    wanted = Fraction(1.7) ** 2 * 4**bits
    assert shares * Fraction(scale) ** 2 >= wanted
    assert shares * Fraction(scale - 1) ** 2 < wanted
    total = sum(discrete_gaussian(scale, 20_000).astype(object) for _ in range(shares)) if shares < 10 else None
    if total is not None:
        assert stats.kstest(np.array(total / (1.7 * 2**bits), dtype=float), "norm").pvalue > ERROR_RATE


@pytest.mark.parametrize(("sigma", "shares", "bits"), [(2.0**-11, 1, 40), (2.0**17, 1, 40), (1.0, 1, 29), (1.0, 5, 31)])
def test_noise_that_the_grid_can_not_hold_is_refused(sigma: float, shares: int, bits: int) -> None:
    with pytest.raises(ValueError, match=f"grid of 2.-{bits}"):
        share_scale(sigma, shares, bits)


@pytest.mark.parametrize(("variance", "shares"), list(itertools.product(["0.25", "0.5", "1"], [2, 3, 5])))
def test_the_sum_of_shares_is_as_near_to_the_law_as_the_theorem_says(variance: str, shares: int) -> None:
    """The theorem's bound against the convolution itself, at scales where it is not zero."""
    with mpmath.workdps(50):
        squared, most = mpmath.mpf(variance), 30
        one = [mpmath.exp(-mpmath.mpf(k * k) / (2 * squared)) for k in range(-most, most + 1)]
        one = [w / mpmath.fsum(one) for w in one]
        total = one
        for _ in range(shares - 1):
            total = [
                mpmath.fsum(total[j] * one[k - j + most] for j in range(2 * most + 1) if 0 <= k - j + most <= 2 * most)
                for k in range(2 * most + 1)
            ]
        law = [mpmath.exp(-mpmath.mpf(k * k) / (2 * shares * squared)) for k in range(-most, most + 1)]
        law = [w / mpmath.fsum(law) for w in law]
        middle = range(most - 6, most + 7)
        found = max(abs(mpmath.log(total[k] / law[k])) for k in middle)
    sums = 10 * sum(math.exp(-2 * math.pi**2 * float(variance) * k / (k + 1)) for k in range(1, shares))
    assert found <= sums
    assert share_distance(1, 2) == pytest.approx(10 * math.exp(-(math.pi**2)))
    assert share_distance(SMALLEST_SCALE, 1000) == 0.0


@pytest.mark.parametrize("scale", [64.0, 256.0])
def test_the_grid_adds_no_more_epsilon_than_stated(scale: float) -> None:
    """Discrete Gaussian against a continuous one rounded to the grid: log ratio within 40 scales."""
    most = int(40 * scale)
    k = np.arange(0, most + 1, dtype=float)
    normaliser = 1 + 2 * np.exp(-(np.arange(1, 60 * int(scale)) ** 2) / (2 * scale**2)).sum()
    exact = -(k**2) / (2 * scale**2) - math.log(normaliser)
    nodes, node_weights = np.polynomial.legendre.leggauss(40)
    inner = np.exp(-(np.outer(k, nodes) + nodes**2 / 4) / (2 * scale**2)) @ node_weights / 2
    rounded = -(k**2) / (2 * scale**2) + np.log(inner) - math.log(scale * math.sqrt(2 * math.pi))
    assert 2 * np.abs(exact - rounded).max() <= discreteness(int(scale), 1)
    assert discreteness(SMALLEST_SCALE, 10**9) < 1e-6


# -- bounded terms ---------------------------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.lists(st.floats(width=64), min_size=3, max_size=3), min_size=1, max_size=6),
    st.sampled_from([1e-3, 0.5, 1.0, 7.3, 2.0**15]),
    st.sampled_from([20, 31, 40]),
)
def test_no_unit_passes_the_bound_on_the_grid(terms: list[list[float]], bound: float, bits: int) -> None:
    """Rounding included: it comes before the noise, and towards zero."""
    clipped = clip_to_grid(np.array(terms), bound, bits)
    limit = Fraction(bound) * 2**bits
    for row, before in zip(clipped, terms, strict=True):
        assert sum(int(value) ** 2 for value in row) <= limit**2
        if not np.isfinite(before).all():
            assert not row.any()
        elif 0 < sum(Fraction(value) ** 2 for value in before) <= (Fraction(bound) * Fraction(9, 10)) ** 2:
            assert [int(v) for v in row] == [math.trunc(Fraction(v) * 2**bits) for v in before]


def test_a_clipped_unit_keeps_its_direction() -> None:
    clipped = clip_to_grid(np.array([[30.0, -40.0], [0.3, 0.4]]), 1.0) / 2**40
    assert np.allclose(clipped, [[0.6, -0.8], [0.3, 0.4]], atol=1e-9)


def test_a_count_of_one_stays_whole() -> None:
    assert clip_to_grid(np.array([[1.0], [-2.0], [0.0]]), 1.0).tolist() == [[2**40], [-(2**40) + 16], [0]]
    assert clip_to_grid(np.array([[0.0, 1.0]]), 1.0).tolist() == [[0, 2**40]]


def test_many_coordinates_stay_within_the_bound() -> None:
    clipped = clip_to_grid(np.random.default_rng(0).normal(size=(3, 20_000)), 1.0)
    for row in clipped:
        assert sum(int(value) ** 2 for value in row) <= 2**80


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-(2**55), 2**55), st.integers(-(2**55), 2**55)), min_size=1, max_size=40))
def test_a_total_says_no_more_than_the_sum(rows: list[tuple[int, int]]) -> None:
    terms, added = np.array(rows, np.int64), np.array([-(2**61), 2**61 + 5], np.int64)
    limbs = total_limbs(terms, added)
    for column, (high, low) in enumerate(limbs.tolist()):
        assert high * 2**32 + low == sum(row[column] for row in rows) + int(added[column])
        assert 0 <= low < 2**32


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=9), st.integers(-(2**62), 2**62))
def test_a_word_is_the_noisy_sum_modulo_its_size(terms: list[int], added: int) -> None:
    """However large: a refusal of what does not fit would tell of the terms."""
    (word,) = total_word(np.array(terms, np.int64)[:, None], np.array([added], np.int64))
    assert (int(word) - sum(terms) - added) % 2**64 == 0
    (bare,) = total_word(np.array(terms, np.int64)[:, None], None)
    assert (int(bare) - sum(terms)) % 2**64 == 0


def test_of_two_words_the_totals_tell_how_often_the_low_ones_carried() -> None:
    """Why noisy sums travel in one: two pairs of sites with one total, and other sums of their halves."""
    halves = [total_limbs(np.array([[each]]), None)[0] for each in (2**31, 2**31, 2**32, 0)]
    one, other = halves[0] + halves[1], halves[2] + halves[3]
    assert one[0] * 2**32 + one[1] == other[0] * 2**32 + other[1]
    assert one.tolist() != other.tolist()


def test_rows_of_one_patient_are_one_unit() -> None:
    rows = np.array([[1.0, 2.0], [10.0, 20.0], [3.0, 4.0]])
    assert add_by_unit(rows, np.array([1, 0, 1]), 2).tolist() == [[10.0, 20.0], [4.0, 6.0]]
    assert add_by_unit(rows, np.array([2, 0, 1]), 3).tolist() == [[10.0, 20.0], [3.0, 4.0], [1.0, 2.0]]


def test_a_poisson_sample_takes_each_unit_at_the_rate() -> None:
    taken = poisson_sample(200_000, 0.03)
    low, high = stats.binom.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], 200_000, 0.03)
    assert low <= taken.sum() <= high
    assert poisson_sample(5, 1.0).all()
