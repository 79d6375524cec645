"""Who is in which fold or part: fixed when the table is built, by a keyed hash, spread evenly over the outcome's levels.

Patients stay whole. The same patients, seed and outcome give the same parts on every machine.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.study import Study

PARTS = ("train", "valid", "test")


def keyed_order(pseudonyms: NDArray[np.uint64], *words: str | int) -> NDArray[np.uint64]:
    """One 64-bit number a row, from its pseudonym and words: an order that nobody can guess without the pseudonyms."""
    prefix = "|".join(str(word) for word in words).encode() + b"|"
    unique, inverse = np.unique(pseudonyms, return_inverse=True)
    numbers = np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(prefix + int(pseudonym).to_bytes(8, "big"), digest_size=8).digest(), "big")
            for pseudonym in unique
        ),
        dtype=np.uint64,
        count=len(unique),
    )
    return numbers[inverse]


def assign_folds(pseudonyms: NDArray[np.uint64], strata: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """A fold (0..folds-1) a row: each fold has the floor or the ceiling of its share of every stratum. Shapes (n,).

    A patient of several rows counts in the stratum of the first.
    """
    unique, first, inverse = np.unique(pseudonyms, return_index=True, return_inverse=True)
    order = keyed_order(unique, "fold", seed)
    fold = np.zeros(len(unique), np.int64)
    offset = 0
    for stratum in np.unique(strata[first]):
        members = np.flatnonzero(strata[first] == stratum)
        ranked = members[np.argsort(order[members], kind="stable")]
        # The next stratum goes on where this one ended, so that folds are even in size as well.
        fold[ranked] = (np.arange(len(ranked)) + offset) % folds
        offset += len(ranked)
    return fold[inverse]


def assign_fractions(
    pseudonyms: NDArray[np.uint64], strata: NDArray[np.int64], fractions: Sequence[float], seed: int
) -> NDArray[np.int64]:
    """A part (0 train, 1 valid, 2 test) a row, within one patient of each share of every stratum. Shapes (n,)."""
    unique, first, inverse = np.unique(pseudonyms, return_index=True, return_inverse=True)
    order = keyed_order(unique, "part", seed)
    part = np.zeros(len(unique), np.int64)
    edges = np.cumsum(fractions)
    for stratum in np.unique(strata[first]):
        members = np.flatnonzero(strata[first] == stratum)
        ranked = members[np.argsort(order[members], kind="stable")]
        position = (np.arange(len(ranked)) + 0.5) / len(ranked)
        part[ranked] = np.minimum(np.searchsorted(edges, position, side="right"), len(fractions) - 1)
    return part[inverse]


def assign_parts(
    study: Study, columns: Mapping[str, NDArray[Any]], pseudonyms: NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The study's parts (n,): a fold, or 0 train, 1 valid, 2 test; zeros where it has none."""
    rows = len(pseudonyms)
    outcome = columns[study.outcome]
    strata = outcome if study.variables[study.outcome].type == "code" else np.zeros(rows, np.int64)
    parts = study.parts
    if parts.kind == "folds":
        return assign_folds(pseudonyms, strata, parts.folds or 2, study.seed)
    if parts.kind == "fractions":
        return assign_fractions(pseudonyms, strata, [parts.train or 0, parts.valid or 0, parts.test or 0], study.seed)
    if parts.kind == "variable":
        levels = list(study.variables[parts.variable or ""].codes or ())
        where = np.array([PARTS.index(level) for level in levels])
        part: NDArray[np.int64] = where[columns[parts.variable or ""]].astype(np.int64)
        train = np.flatnonzero(part == 0)
        if parts.valid_fraction and len(train):
            shares = [1 - parts.valid_fraction, parts.valid_fraction]
            part[train] = assign_fractions(pseudonyms[train], strata[train], shares, study.seed)
        return part
    return np.zeros(rows, np.int64)
