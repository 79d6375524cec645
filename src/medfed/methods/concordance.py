"""Harrell's C-index: how many pairs of patients a score puts in the order of their events, counted exactly.

Pure functions of arrays. A pair is comparable where the shorter time is an event; at equal times an event precedes a
censoring, and two events are not compared. A tie of scores counts one half. Harrell et al. 1982.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Comparable pairs that each patient belongs to (n,), whether as the shorter or the longer time.

    right: those in the order of the score, a tie of scores as one half. tied: those of equal scores.
    """

    right: FloatArray
    tied: FloatArray
    comparable: FloatArray

    @property
    def totals(self) -> FloatArray:
        """Pairs in right order, with tied scores, and all: (3,). Each pair belongs to two patients."""
        return 0.5 * np.array([self.right.sum(), self.tied.sum(), self.comparable.sum()])

    def squares(self, unit: float) -> FloatArray:
        """Sums over patients of right^2, right x comparable and comparable^2, in squares of ``unit``: (3,)."""
        right, comparable = self.right / unit, self.comparable / unit
        return np.array([right @ right, right @ comparable, comparable @ comparable])


def count_pairs(times: FloatArray, event: FloatArray, score: FloatArray) -> Pairs:
    """Comparable pairs of every patient, in n log^2 n. times, event, score: (n,); a higher score is a higher risk."""
    happened = np.asarray(event) > 0
    # One number for time and kind: an event before the censorings of the same time.
    key = np.unique(np.stack([np.asarray(times, np.float64), ~happened], axis=1), axis=0, return_inverse=True)[1]
    key = key.reshape(-1).astype(np.int64)
    rank = np.unique(score, return_inverse=True)[1].reshape(-1).astype(np.int64)
    everyone = np.ones(len(key), dtype=bool)
    # As the shorter time, for those with an event; as the longer one, against those with an event.
    lower = _beyond(key, rank, everyone) * happened
    equal = _equal_beyond(key, rank, everyone) * happened
    higher = _beyond(-key, -rank, happened)
    equal_before = _equal_beyond(-key, -rank, happened)
    ordered = np.sort(key)
    later = (len(key) - np.searchsorted(ordered, key, side="right")) * happened
    earlier = np.searchsorted(np.sort(key[happened]), key, side="left")
    tied = (equal + equal_before).astype(np.float64)
    return Pairs((lower + higher) + 0.5 * tied, tied, (later + earlier).astype(np.float64))


def _beyond(key: IntArray, rank: IntArray, counted: NDArray[np.bool_]) -> IntArray:
    """For each i, how many counted j have key_j > key_i and rank_j < rank_i: (n,).

    Bottom-up, as in merge sort: at each width every right half is counted against its left half, all at once.
    """
    n = len(key)
    # From the last key to the first; equal keys by falling rank, so that they never count against each other.
    order = np.lexsort((-rank, -key))
    values, who = rank[order] - rank.min(initial=0), counted[order]
    span = int(values.max(initial=0)) + 1
    found = np.zeros(n, dtype=np.int64)
    place = np.arange(n)
    width = 1
    while width < n:
        block, right = place // (2 * width), (place // width) % 2 == 1
        whole = block * span + values
        left = np.sort(whole[~right & who])
        asked = whole[right]
        found[right] += np.searchsorted(left, asked) - np.searchsorted(left, block[right] * span)
        width *= 2
    out = np.empty(n, dtype=np.int64)
    out[order] = found
    return out


def _equal_beyond(key: IntArray, rank: IntArray, counted: NDArray[np.bool_]) -> IntArray:
    """For each i, how many counted j have rank_j = rank_i and key_j > key_i: (n,)."""
    low = key.min(initial=0)
    span = int(key.max(initial=0) - low) + 1
    whole = (rank - rank.min(initial=0)) * span + (key - low)
    among = np.sort(whole[counted])
    end = (rank - rank.min(initial=0) + 1) * span
    return np.asarray(np.searchsorted(among, end) - np.searchsorted(among, whole, side="right"), dtype=np.int64)


@dataclass(frozen=True)
class CIndex:
    """value, its standard error (infinitesimal jackknife over patients), comparable pairs, and those of tied scores."""

    value: float
    standard_error: float
    pairs: float
    tied: float


def c_index(totals: FloatArray, squares: FloatArray, unit: float) -> CIndex:
    """C from sums over sites of ``Pairs.totals`` (3,) and ``Pairs.squares`` (3,). NaN without comparable pairs.

    The derivative of C by the weight of a patient is (right - C comparable) / pairs; its squares add up to the
    variance (Therneau and Atkinson 2020, concordance vignette of R's survival, section 4).
    """
    right, tied, pairs = (float(total) for total in totals)
    if not pairs > 0:
        return CIndex(float("nan"), float("nan"), 0.0, 0.0)
    value = right / pairs
    spread = squares[0] - 2 * value * squares[1] + value * value * squares[2]
    return CIndex(value, float(np.sqrt(max(spread, 0.0))) * unit / pairs, pairs, tied)
