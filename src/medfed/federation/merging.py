"""Neighbouring cells of released counts, merged by rule on signed totals, so that no small count is ever opened.

Each site and the coordinator work out the same cells from what a quorum has signed. All that there is is counted in lots, as
any released count (``units``): at least so many. That says into how many cells it may be cut at all; these are counted in lots.
Each that may be small is joined to a neighbour, and the cells so found are counted again, until all of them have the
minimum. Only then is the sum opened, with the total of a merged cell at its last place, and nothing before it.

An opened total less the lots of all parts but one bounds that part: a cell is merged further until, for each part that may
be small, the bound is half of the minimum or more.

What the borders themselves tell stays told: that a cell was merged because a part of it may be small. Bounds that follow
from several counts of the same patients (with a code, and without it; on two grids of two studies) are not solved for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.step import Count, Step

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Shapes = Mapping[str, tuple[int, ...]]
# By name of a release: (cells, columns), true where a merged cell ends.
Ends = Mapping[str, BoolArray]


class NoCells(FederationError):
    """There are no cells whose counts may all be seen."""


def merges(step: Step) -> bool:
    """Whether a step releases counts whose neighbours may be merged."""
    return any(isinstance(kind, Count) and kind.merges for kind in step.releases.values())


@dataclass(frozen=True)
class Lots:
    """What a signed count says of released counts: at_least and present, by name of a release, (cells, columns)."""

    at_least: Mapping[str, IntArray]
    present: Mapping[str, BoolArray]

    @classmethod
    def read(cls, totals: IntArray, shapes: Shapes) -> "Lots":
        """From the totals of a count of entries; shapes: of the releases that are counts, by name."""
        names = sorted(shapes)
        cuts = np.cumsum([int(np.prod(shapes[name], dtype=np.int64)) for name in names])[:-1]
        words, random = (dict(zip(names, np.split(half, cuts), strict=True)) for half in np.split(totals, 2))
        return cls(
            {name: words[name].reshape(_two(shapes[name])) for name in names},
            {name: random[name].reshape(_two(shapes[name])) != 0 for name in names},
        )


def _two(shape: tuple[int, ...]) -> tuple[int, int]:
    """(cells, columns) of an array whose first axis is merged."""
    return (shape[0] if shape else 1, int(np.prod(shape[1:], dtype=np.int64)))


@dataclass(frozen=True)
class _Group:
    """Columns that share their borders: (name, column) each; zero_is_small (columns,). is_apart: there are others like it."""

    places: tuple[tuple[str, int], ...]
    zero_is_small: BoolArray
    is_apart: bool

    def of(self, by_name: Mapping[str, NDArray[np.int64]] | Mapping[str, BoolArray]) -> NDArray[np.int64]:
        return np.stack([by_name[name][:, column] for name, column in self.places], axis=1).astype(np.int64)


def _groups(step: Step, shapes: Shapes) -> list[_Group]:
    kinds = {name: kind for name, kind in sorted(step.releases.items()) if isinstance(kind, Count) and kind.merges}
    together: list[tuple[str, int]] = []
    apart: dict[int, list[tuple[str, int]]] = {}
    for name, kind in kinds.items():
        for column in range(_two(shapes[name])[1]):
            (together if kind.merges == "together" else apart.setdefault(column, [])).append((name, column))
    groups = [(together, False)] if together else []
    groups += [(apart[column], True) for column in sorted(apart)]
    return [
        _Group(tuple(places), np.array([kinds[name].zero_is_small for name, _ in places], dtype=bool), is_apart)
        for places, is_apart in groups
    ]


@dataclass(frozen=True)
class Merged:
    """Where cells end, by name of a release, (cells, columns); done: whether these may be opened, or are counted next."""

    ends: Ends
    done: bool


def merged(step: Step, shapes: Shapes, counts: Sequence[Lots], minimum: int) -> Merged | None:
    """The cells that follow from the counts so far: the first of everything, each other of the cells that followed before.

    None where all of a column together are not enough.
    """
    groups = _groups(step, shapes)
    found = [_grown(group, _extent(shapes, group), counts, minimum) for group in groups]
    if any(each is None for each in found):
        return None
    cuts, done = zip(*(each for each in found if each is not None), strict=True)
    if not all(done):
        return Merged(_as_ends(groups, cuts, shapes), False)
    apart = [index for index, group in enumerate(groups) if group.is_apart]
    sizes = [int(groups[index].of(counts[0].at_least).sum()) for index in apart]
    chosen = list(cuts)
    for index, own in zip(apart, without_lone_gaps([cuts[index] for index in apart], sizes), strict=True):
        chosen[index] = own
    return Merged(_as_ends(groups, chosen, shapes), True)


def _grown(group: _Group, count: int, counts: Sequence[Lots], minimum: int) -> tuple[BoolArray, bool] | None:
    """Where a group's cells end (count,) after these counts, and whether all of them may be opened."""
    last = np.array([count - 1])
    # By cell: its lots at the count before, and the lowest bound that its opened total would put on a part of it.
    least_before = np.zeros((0, len(group.places)), dtype=np.int64)
    bound_before = np.zeros((0, len(group.places)))
    parts, bounded = last, -(-minimum // 2)
    for number, lots in enumerate(counts):
        least, there = group.of(lots.at_least)[last], group.of(lots.present)[last] > 0
        bound = np.full(least.shape, np.inf)
        if number > 1:
            first_part = np.searchsorted(parts, np.concatenate([[0], last[:-1] + 1]))
            hidden = least - np.add.reduceat(least_before, first_part, axis=0)
            bound = hidden + np.minimum.reduceat(bound_before, first_part, axis=0)
        enough = (least >= minimum) & (bound >= bounded)
        good: BoolArray = np.all(enough | (~there & ~group.zero_is_small), axis=1)
        if number == 0:
            if not good.all():
                return None
            rarest = int(least[there].min(initial=count * minimum))
            # Of fewer a cell is seldom large enough, and its parts would be told for nothing.
            last = _first_cells(count, rarest // minimum if rarest >= 4 * minimum else 1)
            if len(last) == 1:
                return _marked(last, count), True
            continue
        if good.all():
            return _marked(last, count), True
        if len(last) == 1:
            return None
        # From now on what may be small here is a part, and must not be bounded too closely.
        bound_before = np.minimum(bound, np.where(there & (least < minimum), least, np.inf))
        least_before, parts = least, last
        last = _joined(last, good)
    return _marked(last, count), False


def _first_cells(count: int, most: int) -> IntArray:
    """Last places of cells of one length, a power of two, about so many; a rest of less than half of one joins the last."""
    length = 1
    while -(-count // length) > most:
        length *= 2
    last = np.arange(length - 1, count, length)
    if len(last) and count - 1 - last[-1] < length / 2:
        last = last[:-1]
    return np.append(last, count - 1)


def _joined(last: IntArray, good: BoolArray) -> IntArray:
    """Ends of cells once each that is not good is joined to a neighbour: one that is not good either, or else the shorter."""
    found: list[int] = []
    index, taken = 0, len(last)
    length = np.diff(last, prepend=-1)
    while index < taken:
        if good[index]:
            found.append(int(last[index]))
            index += 1
        elif index + 1 < taken and (not good[index + 1] or not found or length[index + 1] < length[index - 1]):
            found.append(int(last[index + 1]))
            index += 2
        else:
            found[-1] = int(last[index])
            index += 1
    return np.array(found, dtype=np.int64)


def _marked(last: IntArray, count: int) -> BoolArray:
    ends = np.zeros(count, dtype=bool)
    ends[last] = True
    return ends


def without_lone_gaps(ends: Sequence[BoolArray], sizes: Sequence[int]) -> list[BoolArray]:
    """Ends of which none is missing in one group alone: a total of everybody less the others would show its counts.

    Where one is, the smallest group that has it loses it too. ends: (cells,) each; sizes: (groups,).
    """
    found = [own.copy() for own in ends]
    for cell in range(len(found[0]) if found else 0):
        having = [index for index, own in enumerate(found) if own[cell]]
        if len(found) > 1 and len(having) == len(found) - 1:
            found[min(having, key=lambda index: (sizes[index], index))][cell] = False
    return found


def _extent(shapes: Shapes, group: _Group) -> int:
    return _two(shapes[group.places[0][0]])[0]


def _as_ends(groups: Sequence[_Group], chosen: Sequence[BoolArray], shapes: Shapes) -> Ends:
    ends = {
        name: np.zeros(_two(shapes[name]), dtype=bool)
        for name in dict.fromkeys(name for group in groups for name, _ in group.places)
    }
    for group, own in zip(groups, chosen, strict=True):
        for name, column in group.places:
            ends[name][:, column] = own
    return ends


def merged_counts(counts: Mapping[str, IntArray], ends: Ends) -> dict[str, IntArray]:
    """Counts with the total of each merged cell at its last interval and 0 before it; others as they are."""
    found = {name: np.array(values) for name, values in counts.items()}
    for name, last in ends.items():
        flat = found[name].reshape(_two(found[name].shape))
        for column in range(flat.shape[1]):
            stops = np.flatnonzero(last[:, column])
            sums = np.add.reduceat(flat[:, column], np.concatenate([[0], stops[:-1] + 1]))
            flat[:, column] = 0
            flat[stops, column] = sums
        found[name] = flat.reshape(found[name].shape)
    return found


def judged_entries(shapes: Shapes, ends: Ends) -> BoolArray:
    """Which entries of a count are opened at all: those at the ends of merged cells, and all that are not merged."""
    return np.concatenate(
        [
            ends[name].ravel() if name in ends else np.ones(int(np.prod(shapes[name], dtype=np.int64)), dtype=bool)
            for name in sorted(shapes)
        ]
    )
