"""The neighbour graph: complete to 200 sites, random and regular above; its chance of failure beside a simulation."""

import numpy as np
import pytest
from scipy.stats import hypergeom

from medfed.privacy.neighbours import failure_chance, graph_of, neighbours_needed
from medfed.privacy.roster import quorum


def names(count: int) -> list[str]:
    return [f"site{n:04d}" for n in range(count)]


@pytest.mark.parametrize("count", [3, 4, 200])
def test_up_to_200_sites_everybody_masks_with_everybody(count: int) -> None:
    graph = graph_of(count, names(count), "seed")
    assert graph.threshold == quorum(count) == 2 * count // 3 + 1
    assert all(graph.holders(site) == tuple(names(count)) for site in names(count))


@pytest.mark.parametrize("count", [201, 500, 1000])
def test_above_200_sites_the_graph_is_regular_and_goes_both_ways(count: int) -> None:
    graph = graph_of(count, names(count), "seed")
    assert graph.neighbours == neighbours_needed(count) >= 100
    assert graph.threshold == graph.neighbours // 2 + 1
    holders = {site: set(graph.holders(site)) for site in names(count)}
    assert all(len(held) == graph.neighbours + 1 and site in held for site, held in holders.items())
    assert all(site in holders[other] for site in holders for other in holders[site])
    assert graph_of(count, names(count)[::-1], "seed").order == graph.order
    assert graph_of(count, names(count), "other keys").order != graph.order


@pytest.mark.parametrize("count", [201, 300, 500, 1000, 5000])
def test_the_chance_of_failure_at_30_percent_dropped_is_under_one_in_a_million(count: int) -> None:
    assert failure_chance(count, neighbours_needed(count)) < 1e-6


def test_the_chance_of_failure_is_the_hypergeometric_one() -> None:
    n, k, lost = 300, 40, 90
    of_lost = hypergeom.cdf(k // 2, n - 1, n - lost, k)
    of_kept = hypergeom.cdf(k // 2 - 1, n - 1, n - lost - 1, k)
    assert failure_chance(n, k) == pytest.approx(lost * of_lost + (n - lost) * of_kept, rel=1e-9)


def test_the_chance_of_failure_bounds_what_a_simulation_sees() -> None:
    """On the ring neighbourhoods overlap, so failures come together: the union bound stands above their frequency."""
    n, k, rng, draws = 220, 44, np.random.default_rng(0), 2000
    around = (np.arange(n)[:, None] + np.arange(-k // 2, k // 2 + 1)) % n
    failed = 0
    for _ in range(draws):
        alive = np.ones(n, bool)
        alive[rng.choice(n, 66, replace=False)] = False
        failed += bool((alive[around].sum(axis=1) < k // 2 + 1).any())
    assert 0 < failed / draws <= failure_chance(n, k)


def test_survivors_must_hang_together() -> None:
    sites = names(600)
    graph = graph_of(600, sites, "seed")
    assert graph.joins(sites)
    half = graph.neighbours // 2
    # Two runs of half the neighbourhood removed from the ring leave two parts that share no mask.
    ring = graph.order
    parts = ring[half:300] + ring[300 + half :]
    assert not graph.joins(parts)
    assert graph.joins(ring[half:])
    assert not graph.joins([])
