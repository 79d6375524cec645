"""Numbers that behave like codes: at most two values, or one value that most rows have. Exact, in one pass over pieces.

Products of such a column with others are counts of patients, so that the gate judges it like a code. A column that takes
many values is recognised without sorting it or holding it in memory.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from medfed.data.table import View

FloatArray = NDArray[np.float64]

# So many patients who make a number vary are enough, wherever the others are.
_LOOKED_AT, ENOUGH = 4096, 1024


@dataclass(frozen=True)
class NumberLevels:
    """values: all values, where there are at most two; else the commonest one, where more than half the known have it;
    else none. missing: whether any value is missing.
    """

    values: tuple[float, ...]
    all_values: bool
    missing: bool


_KNOWN: WeakKeyDictionary[View, dict[str, NumberLevels]] = WeakKeyDictionary()


def number_levels(view: View, names: Sequence[str]) -> Mapping[str, NumberLevels]:
    """What is true of each column of numbers; remembered as long as the view is."""
    known = _KNOWN.setdefault(view, {})
    known.update(_looked_at(view, [name for name in names if name not in known]))
    return {name: known[name] for name in names}


def _looked_at(view: View, names: Sequence[str]) -> dict[str, NumberLevels]:
    found = {name: _Column() for name in names}
    if not names:
        return {}

    def look(piece: tuple[FloatArray, ...]) -> None:
        for name, values in zip(names, piece, strict=True):
            found[name].add(values)

    with ThreadPoolExecutor(1) as pool:
        last: Future[None] | None = None
        for piece in view.batches(names):
            if last is not None:
                last.result()  # one piece is looked at while the next is read
            last = pool.submit(look, piece)
        if last is not None:
            last.result()
    doubtful = [name for name in names if len(found[name].distinct) > 2 and found[name].candidates]
    counts = {name: dict.fromkeys(found[name].candidates, 0) for name in doubtful}
    for piece in view.batches(doubtful) if doubtful else ():
        for name, values in zip(doubtful, piece, strict=True):
            for value in counts[name]:
                counts[name][value] += int((values == value).sum())
    return {name: column.levels(counts.get(name, {})) for name, column in found.items()}


class _Column:
    """What is remembered of a column while its pieces go by."""

    def __init__(self) -> None:
        self.distinct: list[float] = []  # the first three
        self.candidates: set[float] = set()
        self.known = 0
        self.missing = False

    def add(self, values: FloatArray) -> None:
        if np.isnan(values.sum()) and np.isnan(values).any():
            self.missing = True
            values = values[~np.isnan(values)]
        self.known += len(values)
        rest = values if len(self.distinct) < 3 else values[:0]
        while len(self.distinct) < 3 and len(rest):
            for value in self.distinct:
                rest = rest[rest != value]
            if len(rest):
                self.distinct.append(float(rest[0]))
        # What more than half of all rows have, more than half of some piece have.
        if (common := majority(values)) is not None:
            self.candidates.add(common)

    def levels(self, counts: Mapping[float, int]) -> NumberLevels:
        if len(self.distinct) <= 2:
            return NumberLevels(tuple(sorted(self.distinct)), True, self.missing)
        common = tuple(value for value, count in counts.items() if 2 * count > self.known)
        return NumberLevels(common, False, self.missing)


def majority(values: FloatArray) -> float | None:
    """The value that more than half of ``values`` (n,) have; None where there is none. Boyer and Moore 1991, in pairs."""
    left = values
    while len(left) > 1:
        odd = left[-1] if len(left) % 2 else None
        if odd is not None and 2 * int((values == odd).sum()) > len(values):
            return float(odd)
        # Of each pair that differs at most one is the majority: both can go. A pair that agrees leaves one.
        first, second = left[: len(left) // 2 * 2 : 2], left[1::2]
        equal = first == second
        left = first[equal] if equal.any() else first[:0]
    if len(left) == 1 and 2 * int((values == left[0]).sum()) > len(values):
        return float(left[0])
    return None


def patients_who_vary(values: NDArray[np.float64], patients: NDArray[np.uint64]) -> int:
    """At least so many patients have a value that is neither of the two commonest. values, patients: (n,), of each row."""
    found = 0
    for count in sorted({min(_LOOKED_AT, len(values)), len(values)}):
        if found < ENOUGH and count:
            _, level, rows = np.unique(values[:count], return_inverse=True, return_counts=True)
            found = len(np.unique(patients[:count][~np.isin(level, np.argsort(rows)[-2:])]))
    return found
