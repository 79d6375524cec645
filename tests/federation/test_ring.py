"""Exact sums: independent of order, bit for bit; overflow refused."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import PolicyViolation
from medfed.federation.ring import bits_of_one_limb, decode, encode, limbs_needed, on_grid
from medfed.federation.step import NOISE_AT_MOST, Count, Sum

values = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=2, max_size=12)


@settings(max_examples=200, deadline=None)
@given(values, st.randoms(use_true_random=False), st.sampled_from([1, 2]))
def test_a_total_does_not_depend_on_order(numbers: list[float], shuffle, limbs: int) -> None:
    coded = [encode(np.array([x]), limbs) for x in numbers]
    total = decode(sum(coded), limbs)
    shuffle.shuffle(coded)
    assert decode(sum(coded), limbs) == total
    assert abs(total[0] - sum(numbers)) <= len(numbers) * 2.0**-40 + 1e-9 * abs(sum(numbers))


@settings(max_examples=200, deadline=None)
@given(st.integers(-(2**50), 2**50))
def test_whole_numbers_come_back_exactly_from_two_limbs(number: int) -> None:
    assert decode(encode(np.array([float(number)]), 2), 2)[0] == number


@settings(max_examples=200, deadline=None)
@given(st.floats(-4000, 4000, allow_nan=False))
def test_a_value_on_the_grid_is_the_value_that_is_summed(number: float) -> None:
    gridded = on_grid(np.array([number]))
    for limbs in (1, 2):
        assert decode(encode(gridded, limbs), limbs)[0] == gridded[0]


def test_both_widths_give_the_same_total() -> None:
    x = np.random.default_rng(0).normal(size=(5, 7)) * 100
    one = decode(sum(encode(row, 1) for row in x), 1)
    two = decode(sum(encode(row, 2) for row in x), 2)
    assert (one == two).all()


def test_overflow_is_refused_by_public_numbers() -> None:
    assert limbs_needed(1000.0) == 1
    assert limbs_needed(1e9) == 2
    with pytest.raises(PolicyViolation, match="overflow the ring"):
        limbs_needed(1e18)
    with pytest.raises(PolicyViolation, match="overflow the ring"):
        limbs_needed(float("nan"))


@settings(max_examples=300, deadline=None)
@given(st.floats(1e-9, 2.0**42, exclude_max=True))
def test_a_noisy_total_has_the_finest_grid_that_one_word_holds(largest: float) -> None:
    bits = bits_of_one_limb(largest)
    assert 20 <= bits <= 40
    assert Fraction(largest) * 2**bits < 2**62
    assert bits == 40 or Fraction(largest) * 2 ** (bits + 1) >= 2**62


@pytest.mark.parametrize("largest", [2.0**42, 1e15])
def test_a_noisy_total_that_leaves_too_coarse_a_grid_is_refused(largest: float) -> None:
    with pytest.raises(PolicyViolation, match="at least 20 are needed; lower the bound"):
        bits_of_one_limb(largest)


@pytest.mark.parametrize(
    ("rows", "sites", "bits"), [(10_000, 3, 40), (100_000, 25, 40), (100_000, 26, 39), (10**9, 200, 24)]
)
def test_bounded_terms_travel_in_one_word_whatever_their_number(rows: int, sites: int, bits: int) -> None:
    public = {"rows_at_most": rows, "sites_at_most": sites}
    bounded = Sum("p", unit_bound=1.0)
    assert (bounded.limbs(**public), bounded.bits(**public)) == (1, bits)
    assert (rows + NOISE_AT_MOST) * sites * 2**bits < 2**62
    assert Sum("p", limit_per_row=1.0).bits(**public) == Count().bits(**public) == 40
    if rows == 10**9:
        assert Sum("p", limit_per_row=1.0).limbs(**public) == 2, "exact sums may have two"
