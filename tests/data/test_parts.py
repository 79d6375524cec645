"""Folds and fractions: evenly spread over the outcome, patients whole, the same whatever the order of rows."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medfed.data.parts import assign_folds, assign_fractions, keyed_order

outcomes = st.lists(st.integers(0, 2), min_size=1, max_size=120)


def people(count: int) -> np.ndarray:
    return (np.arange(count, dtype=np.uint64) + np.uint64(1)) * np.uint64(2654435761)


@given(outcomes, st.integers(2, 7), st.integers(0, 5))
def test_every_fold_has_the_floor_or_ceiling_of_each_outcome_and_of_all_rows(levels, folds, seed):
    strata = np.array(levels)
    fold = assign_folds(people(len(strata)), strata, folds, seed)
    for chosen in [strata == level for level in np.unique(strata)] + [np.ones(len(strata), bool)]:
        sizes = np.bincount(fold[chosen], minlength=folds)
        assert len(sizes) == folds
        assert sizes.max() - sizes.min() <= 1


@given(outcomes, st.randoms(use_true_random=False))
def test_a_patient_keeps_the_fold_whatever_the_order_of_rows(levels, random):
    strata, who = np.array(levels), people(len(levels))
    order = np.array(random.sample(range(len(levels)), len(levels)))
    assert np.array_equal(assign_folds(who, strata, 3, 1)[order], assign_folds(who[order], strata[order], 3, 1))


@given(st.lists(st.tuples(st.integers(1, 15), st.integers(0, 1)), min_size=1, max_size=80))
def test_rows_of_one_patient_are_never_divided(rows):
    who, strata = np.array([w for w, _ in rows], np.uint64), np.array([s for _, s in rows])
    for part in (assign_folds(who, strata, 4, 1), assign_fractions(who, strata, [0.6, 0.2, 0.2], 1)):
        assert all(len(np.unique(part[who == patient])) == 1 for patient in np.unique(who))


@given(outcomes)
def test_each_part_is_within_one_patient_of_its_share_of_each_outcome(levels):
    strata, shares = np.array(levels), [0.7, 0.1, 0.2]
    part = assign_fractions(people(len(strata)), strata, shares, 1)
    for level in np.unique(strata):
        sizes = np.bincount(part[strata == level], minlength=3)
        assert np.all(np.abs(sizes - np.array(shares) * sizes.sum()) <= 1)


def test_a_share_of_zero_gets_nobody():
    part = assign_fractions(people(50), np.zeros(50, np.int64), [0.8, 0.0, 0.2], 1)
    assert np.bincount(part, minlength=3).tolist() == [40, 0, 10]


def test_seed_and_word_change_the_order():
    who = people(200)
    orders = [keyed_order(who, "fold", 1), keyed_order(who, "fold", 2), keyed_order(who, "row", 1)]
    assert len({order.tobytes() for order in orders}) == 3
