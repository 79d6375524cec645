"""Quantiles and distributions of numbers over sites, without a value or a small count of anybody.

A number's declared range is cut into 2**16 leaves, the same at every site. Of these borders a site chooses its cuts: round
ones, as coarse as they can be, with nobody or its minimum of every group on either side. Whatever border it is asked about,
it tells how many patients lie below the cut before it, and how many lie between that cut and the next: sums over whole
cells, so that no answer, and no difference of answers, is of a few. The coordinator finds the borders between which a
quantile surely lies.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medfed.federation.site import Site
from medfed.methods.summaries import leaf_counts

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DEPTH = 16
LEAVES = 2**DEPTH
MOST_BORDERS = 2048
_FINEST = 256  # a site's cells hold this share of its patients at least: finer ones would say little more


@dataclass(frozen=True)
class Cuts:
    """A number's distribution at one site as it may be told. below: (groups, 2**16 + 1) patients below each border; at:
    the site's cuts among the borders, ascending, from 0 to 2**16.
    """

    below: FloatArray
    at: IntArray

    def told(self, borders: IntArray) -> FloatArray:
        """For each border: patients of each group below the last cut before it, and between that cut and the next,
        (borders, groups, 2); the second is 0 where the border is a cut.
        """
        before = self.at[np.searchsorted(self.at, borders, side="right") - 1]
        after = self.at[np.searchsorted(self.at, borders, side="left")]
        low = self.below[:, before]
        return np.stack([low, self.below[:, after] - low], -1).transpose(1, 0, 2)


def cuts_of(counts: IntArray, minimum: int) -> Cuts:
    """The cuts of leaf counts (groups, 2**16)."""
    below = np.zeros((len(counts), LEAVES + 1))
    np.cumsum(counts, axis=1, out=below[:, 1:])
    if minimum <= 1:
        return Cuts(below, np.arange(LEAVES + 1))
    least = max(2 * minimum, float(below[:, -1].sum()) / _FINEST)
    found, waiting = [0, LEAVES], [(0, LEAVES)]
    while waiting:
        low, high = waiting.pop()
        if (below[:, high] - below[:, low]).sum() < least:
            continue
        cut = _cut(below, low, high, minimum)
        if cut is not None:
            found.append(cut)
            waiting += [(low, cut), (cut, high)]
    return Cuts(below, np.array(sorted(found), dtype=np.int64))


def _cut(below: FloatArray, low: int, high: int, minimum: int) -> int | None:
    """The roundest border between two cuts that leaves nobody or ``minimum`` of every group on either side.

    Of several as round, the one that divides most evenly. One side may be empty only at the roundest border of all: a finer
    one would trace where the outermost patient lies.
    """
    step = LEAVES // 2
    first = True
    while step >= 1:
        start = (low // step + 1) * step
        borders = np.arange(start, high, step)
        borders = borders[(borders // step) % 2 == 1]  # those that were not looked at with a larger step
        if len(borders):
            left, right = below[:, borders] - below[:, [low]], below[:, [high]] - below[:, borders]
            fair = (((left == 0) | (left >= minimum)) & ((right == 0) | (right >= minimum))).all(0)
            sides = np.minimum(left.sum(0), right.sum(0))
            fair &= (sides > 0) | first
            if fair.any():
                return int(borders[np.argmax(np.where(fair, sides, -1.0))])
            first = False
        step //= 2
    return None


def told_at(site: Site, groups: int, borders: FloatArray, *, grouped: bool) -> FloatArray:
    """For each (number, border): what ``Cuts.told`` says, (borders, groups, 2)."""
    counts = leaf_counts(site, groups, LEAVES, grouped=grouped)
    number, border = borders.astype(np.int64).T
    border = np.clip(border, 0, LEAVES)
    found = np.zeros((len(borders), groups, 2))
    for each in np.unique(np.clip(number, 0, len(counts) - 1)):
        cuts = site.memo(f"cuts {each} {grouped}", {}, partial(cuts_of, counts[each], site.minimum_cell))
        found[number == each] = cuts.told(border[number == each])
    return found


# -- the coordinator's half --------------------------------------------------------------------------------------------


def borders_at_once(patients: float, sites: int, groups: int) -> int:
    """How many borders may be asked for in one call: the answer has fewer numbers than half an average site has patients."""
    return int(np.clip(patients / (4 * groups * max(sites, 1)), 8, MOST_BORDERS))


@dataclass(frozen=True)
class Search:
    """Quantiles that are looked for; (quantiles,) each.

    number, group: whose. rank: from 0, over the patients of the group whose number is known. low, high: borders between
    which the patient of that rank surely lies; too_high, too_low: borders that are known not to be below, or above, it.
    below_low: patients who may lie below low; below_high: patients who surely lie below high.
    """

    number: IntArray
    group: IntArray
    rank: FloatArray
    low: IntArray
    too_high: IntArray
    high: IntArray
    too_low: IntArray
    below_low: FloatArray
    below_high: FloatArray

    @property
    def open(self) -> NDArray[np.bool_]:
        """Which are not found yet."""
        return np.asarray((self.too_high - self.low > 1) | (self.high - self.too_low > 1))

    def asked(self, which: NDArray[np.intp]) -> FloatArray:
        """Borders to ask about, (2 x which, 2) number and border: one for either end of each quantile."""
        ends = [(self.low + self.too_high) // 2, (self.too_low + self.high + 1) // 2]
        return np.concatenate([np.stack([self.number[which], end[which]], 1) for end in ends]).astype(np.float64)

    def answered(self, which: NDArray[np.intp], told: FloatArray, minimum: int) -> "Search":
        """After an answer (2 x which, groups, 2), summed over sites, to what ``asked`` asked.

        An end moves only as long as twice the minimum surely lie between the ends.
        """
        new = {name: values.copy() for name, values in vars(self).items()}
        asked = self.asked(which)[:, 1].astype(np.int64)
        for place, index in enumerate(which):
            sure, between = told[place, self.group[index]]
            border = asked[place]
            if sure + between <= self.rank[index] and self.below_high[index] - (sure + between) >= 2 * minimum:
                new["low"][index], new["below_low"][index] = border, sure + between
            else:
                new["too_high"][index] = border
            sure, _ = told[len(which) + place, self.group[index]]
            border = asked[len(which) + place]
            if sure > self.rank[index] and sure - new["below_low"][index] >= 2 * minimum:
                new["high"][index], new["below_high"][index] = border, sure
            else:
                new["too_low"][index] = border
        found = Search(**new)
        return replace(
            found,
            too_high=np.maximum(np.minimum(found.too_high, found.high), found.low + 1),
            too_low=np.minimum(np.maximum(found.too_low, found.low), found.high - 1),
        )

    def edges(self, ranges: FloatArray) -> FloatArray:
        """Between which values each quantile lies, (quantiles, 2). ranges: (numbers, 2) declared, in the numbers' units."""
        bottom, top = ranges[self.number].T
        return np.stack([bottom + (top - bottom) * end / LEAVES for end in (self.low, self.high)], 1)


def search(known: FloatArray, shares: Sequence[float]) -> Search:
    """A search for quantiles of every number and group. known: (groups, numbers) patients whose number is known.

    A quantile is the least value with a share of the patients at or below it (the inverse of the distribution).
    """
    groups, numbers = known.shape
    grid = np.meshgrid(np.arange(numbers), np.arange(groups), np.array(shares), indexing="ij")
    number, group, share = (axis.ravel() for axis in grid)
    number, group = number.astype(np.int64), group.astype(np.int64)
    inside = known[group, number]
    zeros = np.zeros(len(number), dtype=np.int64)
    top = np.where(inside > 0, LEAVES, 1)
    rank = np.maximum(np.ceil(share * inside - 1e-9) - 1, 0)
    return Search(number, group, rank, zeros, top, top.copy(), zeros.copy(), zeros.astype(np.float64), inside)
