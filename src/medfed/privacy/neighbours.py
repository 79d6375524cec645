"""Who masks with whom: everybody up to 200 sites, above that at least 100 neighbours on a public random Harary graph.

The graph is drawn from the keys that all sites have signed, after they are signed: nobody chooses its neighbours.
Bell et al. 2020, section 3: a Harary graph over a random order of the sites is as good as a random regular graph.
"""

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import ceil, comb

from medfed.canonical import digest
from medfed.privacy.roster import quorum

COMPLETE_UP_TO = 200
FEWEST_NEIGHBOURS = 100
MOST_FAILURE = 1e-6
DROPPED = 0.3


@dataclass(frozen=True)
class Graph:
    """The neighbours of each site that sent keys, and how many holders it takes to give a secret back.

    order: the sites around the ring. neighbours: an even number, or all others. A site's holders are its neighbours
    and itself; the relation goes both ways.
    """

    order: tuple[str, ...]
    neighbours: int
    threshold: int

    @cached_property
    def _place(self) -> dict[str, int]:
        return {site: place for place, site in enumerate(self.order)}

    @cached_property
    def _everybody(self) -> tuple[str, ...]:
        return tuple(sorted(self.order))

    @property
    def is_complete(self) -> bool:
        return self.neighbours >= len(self.order) - 1

    @cached_property
    def _holders(self) -> dict[str, tuple[str, ...]]:
        return {}

    def holders(self, site: str) -> tuple[str, ...]:
        """Neighbours and the site itself, in order of names: the holder at place p has the share at point p + 1."""
        if self.is_complete:
            return self._everybody
        if site not in self._holders:
            half, place, count = self.neighbours // 2, self._place[site], len(self.order)
            self._holders[site] = tuple(sorted(self.order[(place + step) % count] for step in range(-half, half + 1)))
        return self._holders[site]

    def joins(self, sites: Collection[str]) -> bool:
        """Whether these sites hang together. A part that does not could be opened by itself."""
        left = set(sites)
        if self.is_complete or not left:
            return bool(left)
        edge = [left.pop()]
        while edge:
            reached = left.intersection(self.holders(edge.pop()))
            left -= reached
            edge.extend(reached)
        return not left


def graph_of(roster_size: int, sites: Collection[str], seed: str) -> Graph:
    """The graph over the sites that sent keys. roster_size: sites asked for in all, from which the rule follows.

    seed: digest of all signed keys. Complete graph: the threshold is the quorum of the whole roster. Above 200 sites:
    floor(k/2) + 1 of k neighbours, since inside a neighbourhood the quorum's share would often be missed by chance.
    """
    if roster_size <= COMPLETE_UP_TO:
        return Graph(tuple(sorted(sites)), len(sites) - 1, quorum(roster_size))
    neighbours = neighbours_needed(roster_size)
    order = tuple(sorted(sites, key=lambda site: digest("medfed neighbours", seed, site)))
    return Graph(order, min(neighbours, len(sites) - 1), neighbours // 2 + 1)


@lru_cache(maxsize=64)
def neighbours_needed(sites: int) -> int:
    """The least even number of neighbours, from 100, whose chance of failure at 30 % dropped is below 1e-6."""
    neighbours = FEWEST_NEIGHBOURS
    while neighbours < sites - 1 and failure_chance(sites, neighbours) >= MOST_FAILURE:
        neighbours += 2
    return neighbours


def failure_chance(sites: int, neighbours: int, *, dropped: float = DROPPED, threshold: int | None = None) -> float:
    """An upper bound of the chance that some site's secret can't be given back, when a share of the sites drops.

    sites: n. neighbours: k on a random graph. dropped: the share of sites lost, whoever they are. threshold:
    floor(k/2) + 1 unless said otherwise. The surviving neighbours of one site are hypergeometric; the n sites are
    added up (union bound). A survivor also gives its own share.
    """
    needed = neighbours // 2 + 1 if threshold is None else threshold
    lost = ceil(round(dropped * sites, 9))
    kept = sites - lost
    of_lost = _at_most(needed - 1, good=kept, bad=lost - 1, draws=neighbours) if lost else 0.0
    of_kept = _at_most(needed - 2, good=kept - 1, bad=lost, draws=neighbours)
    return min(1.0, lost * of_lost + kept * of_kept)


def _at_most(most: int, *, good: int, bad: int, draws: int) -> float:
    """Hypergeometric: the chance of at most ``most`` good ones, exact before the last division."""
    ways = sum(comb(good, taken) * comb(bad, draws - taken) for taken in range(min(most, draws) + 1))
    return ways / comb(good + bad, draws)
