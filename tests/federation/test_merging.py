"""Neighbouring cells merged by rule on signed counts: what is opened has no small count, and says little of its parts."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from medfed.federation.merging import Lots, judged_entries, merged, merged_counts, without_lone_gaps
from medfed.federation.step import Count, Out, Step, step
from medfed.federation.units import lot_at


@step(
    releases={
        "events": Count("times", merges="together"),
        "others": Count("times", zero_is_small=False, merges="together"),
    }
)
def together(site: Any) -> Out:
    raise NotImplementedError


@step(releases={"events": Count("times,groups", merges="apart"), "total": Count()})
def apart(site: Any) -> Out:
    raise NotImplementedError


def counted(
    declared: Step, own: list[dict[str, np.ndarray]], minimum: int
) -> tuple[dict[str, np.ndarray] | None, list[dict[str, np.ndarray]], list[Lots]]:
    """Ends of the cells that are opened, or None; the cells of each count, and its lots."""
    names = [f"site {index}" for index in range(len(own))]
    shapes = {name: counts.shape for name, counts in own[0].items()}
    lots: list[Lots] = []
    cells = []
    while True:
        found = merged(declared, shapes, lots, minimum)
        if found is None:
            return None, cells, lots
        if found.done:
            return dict(found.ends), cells, lots
        cells.append(dict(found.ends))
        words = []
        for name, counts in zip(names, own, strict=True):
            here, lot = merged_counts(counts, found.ends), lot_at(minimum, names, name)
            flat = np.concatenate([here[key].ravel() for key in sorted(here)])
            words.append(np.concatenate([flat // lot * lot, flat > 0]))
        lots.append(Lots.read(np.sum(words, axis=0), shapes))
        assert len(lots) < 40


tables = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(3, 30), st.integers(1, 40), st.sampled_from([0.05, 0.5, 3.0]), st.integers(2, 12))
def test_no_small_count_is_opened_and_nobody_is_lost(
    rng: np.random.Generator, sites: int, cells: int, mean: float, minimum: int
) -> None:
    falling = mean * np.exp(-np.arange(cells) / 8)
    own = [{"events": rng.poisson(falling), "others": rng.poisson(mean / 2, cells)} for _ in range(sites)]
    ends, _, _ = counted(together, own, minimum)
    if ends is None:
        return
    opened: dict[str, np.ndarray] = {}
    for counts in own:
        for name, values in merged_counts(counts, ends).items():
            opened[name] = opened.get(name, 0) + values
    last = ends["events"][:, 0]
    assert last[-1]
    assert (ends["others"][:, 0] == last).all()
    for name, counts in opened.items():
        assert counts.sum() == sum(each[name].sum() for each in own)
        assert (counts[~last] == 0).all()
    assert (opened["events"][last] >= minimum).all()
    assert ((opened["others"][last] >= minimum) | (opened["others"][last] == 0)).all()
    shapes = {name: (cells,) for name in opened}
    assert (judged_entries(shapes, ends) == np.concatenate([last, last])).all()


@settings(max_examples=150, deadline=None)
@given(tables, st.integers(3, 30), st.integers(2, 40), st.sampled_from([0.05, 0.5, 3.0]), st.integers(4, 12))
def test_an_opened_total_bounds_no_part_below_half_of_the_minimum(
    rng: np.random.Generator, sites: int, cells: int, mean: float, minimum: int
) -> None:
    """An attacker holds each opened total and all lots: the parts of a cell less the most that is known of the others.

    The counts are such that lots round off next to nothing, but for a few patients late in follow-up.
    """
    names = [f"site {index}" for index in range(sites)]
    early = np.exp(-np.arange(cells) / 4)
    own = [
        {
            name: lot_at(minimum, names, site) * rng.poisson(mean * early) + rng.binomial(1, 0.05, cells)
            for name in ("events", "others")
        }
        for site in names
    ]
    ends, levels, lots = counted(together, own, minimum)
    if ends is None:
        return
    for name in ("events", "others"):
        total = np.sum([counts[name] for counts in own], axis=0)
        finals = np.flatnonzero(ends[name][:, 0])
        for start, last in zip([0, *(finals[:-1] + 1)], finals, strict=True):
            whole = total[start : last + 1].sum()
            blocks = []  # (first, last, at least, there) of every count's cells inside this one
            for level, known in zip(levels[1:], lots[1:], strict=True):
                places = np.flatnonzero(level[name][:, 0])
                firsts = [0, *(places[:-1] + 1)]
                blocks += [
                    (first, place, int(known.at_least[name][place, 0]), bool(known.present[name][place, 0]))
                    for first, place in zip(firsts, places, strict=True)
                    if first >= start and place <= last
                ]
            for first, place, least, there in blocks:
                if not there or least >= minimum or (first, place) == (start, last):
                    continue
                outside = most_known(blocks, start, first - 1) + most_known(blocks, place + 1, last)
                assert whole - outside >= -(-minimum // 2)


def most_known(blocks: list[tuple[int, int, int, bool]], first: int, last: int) -> int:
    """The most that lots of cells which do not overlap add up to between two places."""
    best = {first - 1: 0}
    for place in range(first, last + 1):
        ending = [best[a - 1] + least for a, b, least, _ in blocks if b == place and a - 1 in best]
        best[place] = max([best[place - 1], *ending])
    return best[max(last, first - 1)]


def test_groups_have_cells_of_their_own_and_a_rare_one_is_one_cell() -> None:
    """A border that the rare one alone lacks is taken from the smaller of the others too."""
    rng = np.random.default_rng(5)
    means = np.array([4.0, 3.0, 0.1])
    own = [{"events": rng.poisson(means, (24, 3)), "total": np.array(7)} for _ in range(10)]
    ends, _, _ = counted(apart, own, 10)
    assert ends is not None
    assert set(ends) == {"events"}
    assert ends["events"].sum(0).tolist() == [24, 1, 1]


def test_too_few_in_all_are_no_cells() -> None:
    own = [{"events": np.array([1, 0, 0, 1]), "others": np.array([5, 5, 5, 5])} for _ in range(3)]
    assert counted(together, own, 10)[0] is None


def test_a_border_that_one_group_alone_lacks_is_taken_from_a_second_one() -> None:
    ends = [np.array(own, dtype=bool) for own in ([1, 1, 1], [1, 1, 1], [0, 1, 1])]
    found = without_lone_gaps(ends, [50, 20, 90])
    assert [own.astype(int).tolist() for own in found] == [[1, 1, 1], [0, 1, 1], [0, 1, 1]]
