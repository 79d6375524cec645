"""The study table: harmonised, pseudonymised, fixed parts. What a site computes on; it never leaves.

Rows are shuffled once when the table is built, and parts are assigned then, both by a keyed hash of the patient, so
that the same patients always come out the same. Columns: numbers as float64 with NaN, codes as level index with -1.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest
from medfed.errors import MappingError
from medfed.study import Column, Study

PARTS = ("train", "valid", "test")
ARRAYS_AT_MOST = 2 * 2**30


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
    """A fold (0..folds-1) a row: patients stay whole, each stratum is spread evenly. Shapes (n,)."""
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
    """A part (0 train, 1 valid, 2 test) a row, stratified; patients stay whole. Shapes (n,)."""
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


class View:
    """The rows of one part. Arrays are read-only, contiguous and cached."""

    __slots__ = ("_cache", "_rows", "_table", "part", "patients", "pseudonyms", "row_pseudonyms", "rows")

    def __init__(self, table: "StudyTable", part: str, rows: NDArray[np.intp] | None) -> None:
        self._table = table
        self._rows = rows
        self._cache: dict[str, NDArray[Any]] = {}
        self.part = part
        self.rows = table.rows if rows is None else len(rows)
        everyone = table.row_pseudonyms
        self.row_pseudonyms = everyone if rows is None else everyone[rows]
        self.pseudonyms = np.unique(self.row_pseudonyms)
        self.pseudonyms.setflags(write=False)
        self.patients = len(self.pseudonyms)

    def arrays(self, *names: str) -> tuple[NDArray[Any], ...]:
        """ "features" (n, p) in the study's units, intercept 1, indicators 0/1, missing numbers NaN; "outcome" (n,)
        float, an event is 1; "arm" (n,) level index, the reference 0; "fold" (n,); or any variable by name.
        """
        return tuple(self._array(name) for name in names)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._cache:
            whole = self._table.column(name)
            size = whole.itemsize * self.rows * (whole.shape[1] if whole.ndim > 1 else 1)
            if size > ARRAYS_AT_MOST:
                raise MappingError(
                    f"column {name!r} of part {self.part!r} takes {size / 2**30:.1f} GB as one array; read it with batches()"
                )
            part = whole if self._rows is None else np.ascontiguousarray(whole[self._rows])
            part.setflags(write=False)
            self._cache[name] = part
        return self._cache[name]

    def batches(self, names: Sequence[str], size: int = 65_536) -> Iterator[tuple[NDArray[Any], ...]]:
        """The same columns in pieces of at most ``size`` rows, in the table's order."""
        for start in range(0, self.rows, size):
            stop = min(start + size, self.rows)
            pick = slice(start, stop) if self._rows is None else self._rows[start:stop]
            yield tuple(self._table.column(name)[pick] for name in names)


class StudyTable:
    """All rows of one site in one study. ``version`` names content and parts; ``lineage`` says where it came from."""

    def __init__(
        self,
        study: Study,
        columns: Mapping[str, NDArray[Any]],
        row_pseudonyms: NDArray[np.uint64],
        part: NDArray[np.int64],
        *,
        lineage: Mapping[str, Any] | None = None,
    ) -> None:
        self.study = study
        self.rows = len(row_pseudonyms)
        self.row_pseudonyms = row_pseudonyms
        self.row_pseudonyms.setflags(write=False)
        self.lineage = dict(lineage or {})
        self._columns = dict(columns)
        self._part = part
        self._derived: dict[str, NDArray[Any]] = {}
        self._views: dict[str, View] = {}
        for column in self._columns.values():
            column.setflags(write=False)
        self.version = digest(
            study.table_hash,
            row_pseudonyms.astype("<u8").tobytes(),
            part.astype("<i8").tobytes(),
            *(word for name in sorted(self._columns) for word in (name, self._columns[name].tobytes())),
        )

    @classmethod
    def from_columns(
        cls,
        study: Study,
        columns: Mapping[str, Any],
        *,
        pseudonyms: NDArray[np.uint64] | None = None,
        parts: NDArray[Any] | None = None,
        lineage: Mapping[str, Any] | None = None,
    ) -> "StudyTable":
        """Build from columns by variable name: numbers (NaN = missing), codes as text or level index (-1 = missing).

        pseudonyms: (n,), one a patient; row numbers where none are given. parts: (n,) fold or part index, instead of
        the study's own assignment.
        """
        coded = {name: _coded(study, name, columns) for name in study.variables}
        rows = len(next(iter(coded.values())))
        if any(len(column) != rows for column in coded.values()):
            raise MappingError("the columns of a study table have different lengths")
        if pseudonyms is None:
            pseudonyms = np.arange(1, rows + 1, dtype=np.uint64)
        pseudonyms = np.asarray(pseudonyms, dtype=np.uint64)
        order = np.argsort(keyed_order(pseudonyms, "row", study.seed), kind="stable")
        part = _assign(study, coded, pseudonyms) if parts is None else np.asarray(parts, dtype=np.int64)
        return cls(
            study,
            {name: np.ascontiguousarray(column[order]) for name, column in coded.items()},
            np.ascontiguousarray(pseudonyms[order]),
            np.ascontiguousarray(part[order]),
            lineage=lineage,
        )

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Variables as stored: numbers float64, codes int64 level index."""
        return self._columns

    @property
    def part_index(self) -> NDArray[np.int64]:
        """The fold or part (train 0, valid 1, test 2) of each row."""
        return self._part

    def on(self, part: str) -> View:
        """The rows of a part: all, train, valid, test; in a study with folds "train:2" (all but fold 2), "test:2"."""
        if part not in self._views:
            self._views[part] = View(self, part, self._rows_of(part))
        return self._views[part]

    def _rows_of(self, part: str) -> NDArray[np.intp] | None:
        base, _, fold = part.partition(":")
        folds = self.study.parts.kind == "folds"
        if base not in ("all", *PARTS) or (bool(fold) and (not folds or base == "all")):
            raise MappingError(f"a study table of {self.study.name!r} has no part {part!r}")
        if base == "all" or self.study.parts.kind == "all" or (folds and not fold):
            return None
        if folds:
            number = int(fold)
            return np.flatnonzero(self._part == number if base == "test" else self._part != number)
        return np.flatnonzero(self._part == PARTS.index(base))

    def column(self, name: str) -> NDArray[Any]:
        """A whole column; see ``View.arrays`` for the names."""
        if name in self._columns:
            return self._columns[name]
        if name not in self._derived:
            self._derived[name] = self._derive(name)
            self._derived[name].setflags(write=False)
        return self._derived[name]

    def _derive(self, name: str) -> NDArray[Any]:
        study = self.study
        if name == "fold":
            return self._part
        if name == "outcome":
            values = self._columns[study.outcome]
            variable = study.variables[study.outcome]
            if variable.type == "number":
                return values
            event = list(variable.codes or ()).index(variable.event or "")
            return np.asarray(values == event, dtype=np.float64)
        if name == "arm" and study.arm:
            levels = list(study.variables[study.arm].codes or ())
            first = levels.index(study.variables[study.arm].reference or levels[0])
            order = [first] + [index for index in range(len(levels)) if index != first]
            return np.asarray(np.argsort(np.array(order))[self._columns[study.arm]])
        if name == "features":
            return self._features()
        raise MappingError(f"a study table of {study.name!r} has no column {name!r}")

    def _features(self) -> NDArray[np.float64]:
        columns = self.study.design.columns
        features = np.ones((self.rows, len(columns)))
        for index, column in enumerate(columns):
            if column.kind != "intercept":
                features[:, index] = feature_column(self.study, column, self._columns[column.variable])
        return features


def feature_column(study: Study, column: Column, values: NDArray[Any]) -> NDArray[np.float64]:
    """One feature (n,) from its variable's stored values (n,): the number itself, or 1 where the code is the level."""
    if column.kind == "number":
        return np.asarray(values, dtype=np.float64)
    levels = list(study.variables[column.variable].codes or ())
    wanted = -1 if column.level == "unknown" and "unknown" not in levels else levels.index(column.level or "")
    return np.asarray(values == wanted, dtype=np.float64)


def _coded(study: Study, name: str, columns: Mapping[str, Any]) -> NDArray[Any]:
    variable = study.variables[name]
    if name not in columns:
        raise MappingError(f"study {study.name!r}: the variable {name!r} is not among the columns")
    values = np.asarray(columns[name])
    if variable.type == "number":
        return values.astype(np.float64)
    if variable.type == "code":
        levels = {level: index for index, level in enumerate(variable.codes or ())}
        if values.dtype.kind in "iu":
            return values.astype(np.int64)
        try:
            return np.array([-1 if value is None or value == "" else levels[str(value)] for value in values], np.int64)
        except KeyError as problem:
            raise MappingError(f"variable {name!r}: {problem.args[0]!r} is not a code of the study") from None
    return values.astype(str)


def _assign(study: Study, columns: Mapping[str, NDArray[Any]], pseudonyms: NDArray[np.uint64]) -> NDArray[np.int64]:
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
            split = assign_fractions(
                pseudonyms[train], strata[train], [1 - parts.valid_fraction, parts.valid_fraction], study.seed
            )
            part[train] = split
        return part
    return np.zeros(rows, np.int64)
