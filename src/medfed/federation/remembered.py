"""What a site remembers of the tables it was asked about: who was in which cell. It is judged by; it never leaves.

Two cohorts differ by a group of patients, and the sums over both by that group's counts. Where the earlier cohort was
the larger one, the group is not in the table of today: its cells are known only from here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import pack, unpack

Factors = Mapping[str, tuple[NDArray[np.int64], int]]
ROWS_REMEMBERED = 1_000_000


def patient_of_row(pseudonyms: NDArray[np.uint64]) -> NDArray[np.int64] | None:
    """Which patient each row is of, (n,) numbered from 0; None where each is of another."""
    patients, number = np.unique(pseudonyms, return_inverse=True)
    return number.astype(np.int64) if len(patients) < len(pseudonyms) else None


def patients_by_level(codes: NDArray[np.int64], levels: int, who: NDArray[np.int64] | None) -> NDArray[np.int64]:
    """How many patients have each level, (levels,); one who has it in several rows once. codes, who: (n,); None: a row a patient."""
    if who is not None:
        codes = np.unique(who * levels + codes) % levels
    return np.bincount(codes, minlength=levels)


@dataclass(frozen=True, eq=False)
class Cells:
    """pseudonyms (n,): of each row. factors: name -> codes (n,), levels. told: those of which an empty cell tells everybody's
    result (outcome, arm).
    """

    pseudonyms: NDArray[np.uint64]
    factors: Factors
    told: tuple[str, ...]
    a_row_a_patient: bool = False

    def has_small(self, rows: NDArray[Any] | slice, minimum: int) -> bool:
        """Whether sums over these rows show a count of patients under ``minimum``.

        Looked at: every level of every factor and every pair of levels of two factors (sums of products of 0/1
        covariates are these counts). An empty cell is small for the outcome and for arm x outcome, where it tells
        everybody's result; elsewhere it is a level that does not occur here.
        """
        if minimum <= 1:
            return False
        factors = self.factors
        who = None if self.a_row_a_patient else patient_of_row(self.pseudonyms[rows])
        for name in factors:
            codes, levels = factors[name]
            cells = patients_by_level(codes[rows], levels, who)
            if name in self.told:
                cells = cells[: levels - 1]
                if (cells < minimum).any():
                    return True
            if ((cells > 0) & (cells < minimum)).any():
                return True
        for first, second in combinations(factors, 2):
            (a, a_levels), (b, b_levels) = factors[first], factors[second]
            table = patients_by_level(a[rows] * b_levels + b[rows], a_levels * b_levels, who).reshape(
                a_levels, b_levels
            )
            if first in self.told and second in self.told and (table[:-1, :-1] < minimum).any():
                return True
            if ((table > 0) & (table < minimum)).any():
                return True
        return False

    def to_bytes(self) -> bytes:
        return pack(
            {
                "pseudonyms": np.ascontiguousarray(self.pseudonyms, np.uint64),
                "codes": {str(at): codes.astype(np.int32) for at, (codes, _) in enumerate(self.factors.values())},
                "names": list(self.factors),
                "levels": [levels for _, levels in self.factors.values()],
                "told": list(self.told),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Cells":
        tree = unpack(data)
        codes = tree.get("codes") or {}
        factors = {
            name: (np.asarray(codes[str(at)], np.int64), int(levels))
            for at, (name, levels) in enumerate(zip(tree["names"], tree["levels"], strict=True))
        }
        return cls(np.asarray(tree["pseudonyms"], np.uint64), factors, tuple(tree["told"]))


def shows_small_cell(group: NDArray[np.uint64], tables: Sequence[Cells], minimum: int) -> bool:
    """Whether sums over a group of patients, by themselves, would show a count under ``minimum``, in any table that has them all.

    group: pseudonyms, each once.
    """
    for table in tables:
        rows = np.flatnonzero(np.isin(table.pseudonyms, group))
        if len(np.unique(table.pseudonyms[rows])) == len(group) and table.has_small(rows, minimum):
            return True
    return False
