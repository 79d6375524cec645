"""Totals that give a site away are found: leave one out, two out, swaps, and combinations of three and more."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.privacy.differencing import exposed_groups, given_away

SETS = st.lists(st.sets(st.sampled_from("abcdefgh"), min_size=3), min_size=1, max_size=5)


@pytest.mark.parametrize(
    "new, earlier, expected",
    [
        ("abcd", [], ()),
        ("ab", [], ("a", "b")),
        ("abcd", ["abcd"], ()),
        ("abc", ["abcd"], ("d",)),
        ("abcde", ["abc"], ("d", "e")),
        ("abce", ["abcd"], ("d", "e")),
        ("abcdef", ["abc"], ()),
        ("abc", ["abcdef"], ()),
        # Three totals: the first less the second is d, e, f; the third holds g beside them.
        ("defg", ["abcdef", "abc"], ("g",)),
        # No two differ by fewer than four, yet a + b + c less the halves of the others is one site.
        ("abcdefg", ["abc", "def"], ("g",)),
    ],
)  # fmt: skip
def test_the_sites_that_a_total_gives_away(new: str, earlier: list[str], expected: tuple[str, ...]) -> None:
    assert given_away(new, earlier) == expected


def test_a_site_whose_terms_may_be_seen_may_be_left_out() -> None:
    assert given_away("abc", ["abcd"], visible="d") == ()
    assert given_away("abc", ["abcde"], visible="de") == ()
    # One of the two is hidden, and the other's terms may be known.
    assert given_away("abc", ["abcde"], visible="d") == ("d", "e")


def test_what_was_given_away_before_is_no_reason_to_refuse_now() -> None:
    assert given_away("abcd", ["abcd", "abc"]) == ()


@settings(max_examples=300, deadline=None)
@given(SETS)
def test_groups_are_those_whose_removal_lowers_the_rank(totals: list[set[str]]) -> None:
    """The definition, by another road: a weighted sum lies on a group alone if without it a dimension is lost."""
    matrix = np.array([[site in total for site in "abcdefgh"] for total in totals], float)
    rank = np.linalg.matrix_rank(matrix)
    expected = set()
    for size in (1, 2):
        for group in combinations(range(8), size):
            alone = {"abcdefgh"[at] for at in group}
            smaller = any(alone > set(found) for found in expected)
            if not smaller and np.linalg.matrix_rank(np.delete(matrix, group, axis=1)) < rank:
                expected.add(tuple(sorted(alone)))
    assert set(exposed_groups(totals)) == expected


def test_forty_rosters_of_two_hundred_sites_are_judged_quickly() -> None:
    rng = np.random.default_rng(0)
    sites = [f"site{n:03d}" for n in range(200)]
    rosters = [[site for site, taken in zip(sites, rng.random(200) < 0.7, strict=True) if taken] for _ in range(40)]
    assert exposed_groups(rosters) == ()
    assert given_away(rosters[0][1:], rosters) == (rosters[0][0],)
