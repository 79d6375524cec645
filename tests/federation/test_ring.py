"""Exact sums: independent of order, bit for bit; overflow refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.errors import PolicyViolation
from medfed.federation.ring import decode, encode, limbs_needed, on_grid

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
