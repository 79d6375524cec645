"""Totals over different patients give a site away only where the patients add up too."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.privacy.differencing import Total, exposed_by_groups, exposed_groups, newly_exposed

WOMEN, MEN = 0, 1


def total(sites: str, *groups: int) -> Total:
    return Total(frozenset(sites), frozenset(groups))


@pytest.mark.parametrize(
    ("new", "earlier", "expected"),
    [
        (total("abc", WOMEN), [total("abcd", WOMEN)], ("d",)),
        (total("abc", MEN), [total("abcd", WOMEN)], ()),
        (total("abc", WOMEN, MEN), [total("abcd", WOMEN)], ()),
        # Everybody less women less men: the men of d, though no two totals are over the same patients.
        (total("abc", MEN), [total("abcd", WOMEN, MEN), total("abcd", WOMEN)], ("d",)),
        (total("abcd", WOMEN, MEN), [total("abc", MEN), total("abcd", WOMEN)], ("d",)),
        (total("abc", MEN), [total("abcdef", WOMEN, MEN), total("abcdef", WOMEN)], ()),
        # Three folds: each patient is in two of the three training parts.
        (total("abc", 0, 1, 2), [total("abcd", 0, 1), total("abcd", 0, 2), total("abcd", 1, 2)], ("d",)),
        (total("abc", 0, 1, 2), [total("abcd", 0, 1), total("abcd", 0, 2)], ()),
    ],
)
def test_the_sites_that_totals_over_cohorts_give_away(
    new: Total, earlier: list[Total], expected: tuple[str, ...]
) -> None:
    assert newly_exposed(new, earlier) == expected
    assert newly_exposed(new, [*earlier, new]) == ()
    assert newly_exposed(new, earlier, visible=expected) == ()


SETS = st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(SETS)
def test_over_the_same_patients_it_is_the_rule_for_sets(sets: list[set[str]]) -> None:
    totals = [Total(frozenset(sites), frozenset({7})) for sites in sets]
    assert set(exposed_by_groups(totals)) == set(exposed_groups(sets))


ANY = st.lists(
    st.tuples(st.sets(st.sampled_from("abcde"), min_size=2), st.sets(st.integers(0, 2), min_size=1)),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_groups_are_those_without_whose_patients_the_rank_is_lower(found: list[tuple[set[str], set[int]]]) -> None:
    """The definition by another road: with the others' columns alone, a dimension is lost."""
    columns = [(site, group) for site in "abcde" for group in range(3)]
    matrix = np.array([[s in sites and g in groups for s, g in columns] for sites, groups in found], float)
    rank = np.linalg.matrix_rank(matrix)
    expected: set[tuple[str, ...]] = set()
    for size in (1, 2):
        for hidden in combinations("abcde", size):
            smaller = any(set(hidden) > set(group) for group in expected)
            rest = [at for at, (site, _) in enumerate(columns) if site not in hidden]
            if not smaller and np.linalg.matrix_rank(matrix[:, rest]) < rank:
                expected.add(hidden)
    totals = [Total(frozenset(sites), frozenset(groups)) for sites, groups in found]
    assert set(exposed_by_groups(totals)) == expected


def test_that_a_sites_women_were_given_away_is_no_leave_for_its_men() -> None:
    earlier = [total("abcd", WOMEN), total("abc", WOMEN), total("abcd", MEN)]
    assert newly_exposed(total("abc", MEN), earlier) == ("d",)
    assert newly_exposed(total("abc", WOMEN), earlier) == ()
    pairs = [total("abcde", WOMEN), total("abc", WOMEN), total("abcde", MEN)]
    assert newly_exposed(total("abc", MEN), pairs) == ("d", "e")


@settings(max_examples=200, deadline=None)
@given(ANY)
def test_what_is_new_is_a_dimension_more_of_sums_over_hidden_sites_alone(
    found: list[tuple[set[str], set[int]]],
) -> None:
    """By floating-point ranks: the sums that lie on one or two sites alone, before and after the last total."""
    columns = [(site, group) for site in "abcde" for group in range(3)]
    matrix = np.array([[s in sites and g in groups for s, g in columns] for sites, groups in found], float)

    def alone(rows: np.ndarray, hidden: tuple[str, ...]) -> int:
        rest = [at for at, (site, _) in enumerate(columns) if site not in hidden]
        return int(np.linalg.matrix_rank(rows) - np.linalg.matrix_rank(rows[:, rest])) if len(rows) else 0

    def gain(*hidden: str) -> int:
        return alone(matrix, hidden) - alone(matrix[:-1], hidden)

    expected = {(site,) for site in "abcde" if gain(site)}
    expected |= {pair for pair in combinations("abcde", 2) if gain(*pair) > gain(pair[0]) + gain(pair[1])}
    totals = [Total(frozenset(sites), frozenset(groups)) for sites, groups in found]
    group = newly_exposed(totals[-1], totals[:-1])
    assert group in expected if expected else group == ()
