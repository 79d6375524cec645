"""The lots in which sites count before a secure sum: never finer than what hides a small total, no coarser than needed."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from medfed.federation.units import lot_at, lots_of
from medfed.privacy.roster import quorum


@given(st.integers(2, 60), st.integers(3, 300))
def test_what_a_quorum_of_sites_rounds_off_hides_the_minimum_or_all_sites_round_alike(minimum: int, sites: int) -> None:
    lots = lots_of(minimum, sites)
    assert len(lots) == sites
    assert (np.diff(lots) <= 0).all()
    hidden = np.sort(lots - 1)[: quorum(sites)].sum()
    assert hidden >= minimum or len(set(lots)) == 1
    assert (lots - 1).sum() >= minimum
    assert lots.max() == 1 + -(-minimum // sites)


def test_no_lot_anywhere_may_stand_for_the_minimum_whoever_tells_the_coordinator_what_it_knows() -> None:
    lots = lots_of(10, 20)
    for liars in combinations(range(20), 20 - quorum(20)):
        honest = np.delete(lots, liars)
        assert (honest - 1).sum() >= 10


def test_a_minimum_of_one_hides_nothing() -> None:
    assert lots_of(1, 5).tolist() == [1] * 5


def test_lots_follow_from_the_names_alone() -> None:
    names = [f"centre-{index}" for index in range(67)]
    lots = [lot_at(10, names, name) for name in names]
    assert sorted(lots, reverse=True) == lots_of(10, 67).tolist()
    assert lots == [lot_at(10, names[::-1], name) for name in names]
    assert sorted(lots) != lots
