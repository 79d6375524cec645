"""The study table: harmonised, pseudonymised, fixed parts. What a site computes on; it never leaves.

Rows are shuffled once when the table is built, and parts are assigned then, both by a keyed hash of the patient, so
that the same patients always come out the same. Columns: numbers as float64 with NaN, codes as level index with -1.
Columns lie in memory, or in the Parquet file that a site has built (``stored``).
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from medfed.data.follow_up import codes_in_time, cut_times, refuse_times_off_grid
from medfed.data.parts import PARTS, assign_parts, keyed_order
from medfed.errors import MappingError
from medfed.study import Column, Study

ARRAYS_AT_MOST = 2 * 2**30
PIECE = 65_536
HASHED_AT_ONCE = 4

Stored = Callable[[str], NDArray[Any]]


class Columns(Protocol):
    """A table's variables as stored: numbers float64, codes int64 level index, dates and texts as text."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One whole column (n,), read-only."""

    def __contains__(self, name: object) -> bool: ...

    def pieces(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The columns ``names`` in consecutive pieces of ``size`` rows, the last one shorter."""


class MemoryColumns(dict[str, NDArray[Any]]):
    """Columns in memory."""

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        super().__init__(columns)
        for column in self.values():
            column.setflags(write=False)

    def pieces(self, names: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        rows = len(next(iter(self.values())))
        for start in range(0, rows, size):
            yield {name: self[name][start : start + size] for name in names}


class View:
    """The rows of one part. Arrays are read-only, contiguous and cached."""

    __slots__ = ("__weakref__", "_cache", "_pseudonyms", "_rows", "_table", "part", "row_pseudonyms", "rows")

    def __init__(self, table: "StudyTable", part: str, rows: NDArray[np.intp] | None) -> None:
        self._table = table
        self._rows = rows
        self._cache: dict[str, NDArray[Any]] = {}
        self.part = part
        self.rows = table.rows if rows is None else len(rows)
        self.row_pseudonyms = table.row_pseudonyms if rows is None else table.row_pseudonyms[_places(rows)]
        self.row_pseudonyms.setflags(write=False)
        self._pseudonyms: NDArray[np.uint64] | None = None

    @property
    def pseudonyms(self) -> NDArray[np.uint64]:
        """Pseudonyms of the patients, sorted, each once."""
        if self._pseudonyms is None:
            ordered = np.sort(self.row_pseudonyms)  # NumPy's unique hashes, which takes ten times as long
            self._pseudonyms = ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered
            self._pseudonyms.setflags(write=False)
        return self._pseudonyms

    @property
    def patients(self) -> int:
        """How many patients the rows are of."""
        return len(self.pseudonyms)

    def share(self, same: "View") -> None:
        """Take over what another view of the same rows has worked out: of a large table it is kept once."""
        self._cache, self._pseudonyms = same._cache, same.pseudonyms

    def arrays(self, *names: str) -> tuple[NDArray[Any], ...]:
        """ "features" (n, p) in the study's units, intercept 1, indicators 0/1, missing numbers NaN; "outcome" (n,)
        float, an event is 1; "arm" (n,) level index, the reference 0; "fold" (n,); or any variable by name. In a
        survival study "time" (n,) in its unit, cut at the horizon, and "event" (n,) 1 where the event came by then; an
        event that came later is none in the outcome either.

        MappingError where one would take more than ``ARRAYS_AT_MOST`` bytes: use ``batches``.
        """
        return tuple(self._array(name) for name in names)

    def _array(self, name: str) -> NDArray[Any]:
        if name not in self._cache:
            table = self._table
            size = 8 * self.rows * (len(table.study.design.columns) if name == "features" else 1)
            if size > ARRAYS_AT_MOST:
                raise MappingError(
                    f"{name!r} of part {self.part!r} would take {size / 2**30:.1f} GB as one array (at most "
                    f"{ARRAYS_AT_MOST / 2**30:.1f}); read it in pieces with batches()"
                )
            rows = self._rows
            array = np.ascontiguousarray(
                derived_column(
                    table.study, name, table.stored if rows is None else lambda column: table.stored(column)[rows]
                )
            )
            array.setflags(write=False)
            self._cache[name] = array
        return self._cache[name]

    def between(self, first: int, last: int) -> "View":
        """Rows ``first`` to ``last`` - 1 of this part. Rows are shuffled once, so they are a random share of it."""
        rows = np.arange(first, min(last, self.rows)) if self._rows is None else self._rows[first:last]
        return View(self._table, self.part, rows)

    def batches(self, names: Sequence[str], size: int = PIECE) -> Iterator[tuple[NDArray[Any], ...]]:
        """The same columns in pieces of ``size`` rows (the last one shorter), in the table's order, at any table size.

        A table on disk is read piece by piece.
        """
        study = self._table.study
        needed = sorted({source for name in names for source in sources_of(study, name)})
        waiting: list[dict[str, NDArray[Any]]] = []
        held = 0
        for piece in self._pieces(needed, max(size, PIECE)):
            waiting.append(piece)
            held += len(piece["fold"])
            if held < size:
                continue
            joined = _joined(waiting)
            stop = held - held % size
            for start in range(0, stop, size):
                yield _batch(study, names, joined, slice(start, start + size))
            held -= stop
            waiting = [{name: column[stop:] for name, column in joined.items()}] if held else []
        if held:
            yield _batch(study, names, _joined(waiting), slice(0, held))

    def _pieces(self, needed: Sequence[str], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """This part's rows of the stored columns, with "fold", in whatever pieces they are read."""
        table, start = self._table, 0
        variables = [name for name in needed if name != "fold"]
        read = table.columns.pieces(variables, size) if variables else ({} for _ in range(0, table.rows, size))
        for piece in read:
            if self._rows is not None and (not len(self._rows) or start > self._rows[-1]):
                return
            stop = start + len(piece[variables[0]]) if variables else min(start + size, table.rows)
            piece["fold"] = table.part_index[start:stop]
            if self._rows is not None:
                first, last = np.searchsorted(self._rows, [start, stop])
                here = _places(self._rows[first:last] - start)
                piece = {name: column[here] for name, column in piece.items()}
            start = stop
            yield piece


def _places(rows: NDArray[np.intp]) -> NDArray[np.intp] | slice:
    """Ascending row numbers as an index; those without a gap as a slice, which copies nothing."""
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1:
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _joined(pieces: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def _batch(
    study: Study, names: Sequence[str], stored: Mapping[str, NDArray[Any]], rows: slice
) -> tuple[NDArray[Any], ...]:
    batch = tuple(
        np.ascontiguousarray(derived_column(study, name, lambda column: stored[column][rows])) for name in names
    )
    for array in batch:
        array.setflags(write=False)
    return batch


class StudyTable:
    """All rows of one site in one study. ``version`` names content and parts; ``lineage`` says where it came from."""

    def __init__(
        self,
        study: Study,
        columns: Columns,
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
        self._columns = columns
        self.version = content_version(study, columns, row_pseudonyms, part)
        # Where there is one part, a single number stands for all rows.
        self._part = part if part.any() else np.broadcast_to(np.int64(0), part.shape)
        self._part.setflags(write=False)
        self._views: dict[str, View] = {}

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
        the study's own assignment. MappingError where a column is absent, has another length or a code that the study
        doesn't have, a value is missing though the variable's rule is `missing: drop`, or a time lies outside its range.
        """
        coded = {name: _coded(study, name, columns) for name in study.variables}
        rows = len(next(iter(coded.values())))
        who = np.arange(1, rows + 1, dtype=np.uint64) if pseudonyms is None else np.asarray(pseudonyms, np.uint64)
        lengths = {name: len(column) for name, column in coded.items()} | {"pseudonyms": len(who)}
        if parts is not None:
            lengths["parts"] = len(parts)
        for name, length in lengths.items():
            if length != rows:
                raise MappingError(
                    f"study {study.name!r}: {name!r} has {length} rows where others have {rows}; give as many"
                )
        order = np.argsort(keyed_order(who, "row", study.seed), kind="stable")
        part = assign_parts(study, coded, who) if parts is None else np.asarray(parts, dtype=np.int64)
        most = (study.parts.folds or 0) if study.parts.kind == "folds" else len(PARTS)
        if rows and not (part.min() >= 0 and part.max() < most):
            raise MappingError(f"study {study.name!r}: parts are numbers from 0 to {most - 1}")
        return cls(
            study,
            MemoryColumns({name: np.ascontiguousarray(column[order]) for name, column in coded.items()}),
            np.ascontiguousarray(who[order]),
            np.ascontiguousarray(part[order]),
            lineage=lineage,
        )

    @property
    def columns(self) -> Columns:
        """Variables as stored."""
        return self._columns

    @property
    def part_index(self) -> NDArray[np.int64]:
        """The fold or part (train 0, valid 1, test 2) of each row."""
        return self._part

    def stored(self, name: str) -> NDArray[Any]:
        """A variable as stored (n,), or "fold"."""
        return self._part if name == "fold" else self._columns[name]

    def column(self, name: str) -> NDArray[Any]:
        """A whole column; see ``View.arrays`` for the names."""
        return self.on("all").arrays(name)[0]

    def on(self, part: str) -> View:
        """The rows of a part: all, train, valid, test; in a study with folds "train:2" (all but fold 2), "test:2".

        A study without parts trains and is judged on all rows (its other sites are the test), but has no valid part.
        """
        if part not in self._views:
            rows = self._rows_of(part)
            self._views[part] = view = View(self, part, rows)
            if rows is None and part != "all":
                view.share(self.on("all"))
        return self._views[part]

    def _rows_of(self, part: str) -> NDArray[np.intp] | None:
        base, colon, fold = part.partition(":")
        kind, folds = self.study.parts.kind, self.study.parts.folds or 0
        if colon:
            possible = base in ("train", "test") and fold.isdecimal() and int(fold) < folds
        else:
            possible = base == "all" or (base in PARTS and (base != "valid" or kind in ("fractions", "variable")))
        if not possible:
            raise MappingError(f"study {self.study.name!r} has no part {part!r}; its parts are of the kind {kind!r}")
        if colon:
            inside = self._part == int(fold)
            return np.flatnonzero(inside if base == "test" else ~inside)
        if base == "all" or kind in ("all", "folds"):
            return None
        return np.flatnonzero(self._part == PARTS.index(base))


def content_version(study: Study, columns: Columns, row_pseudonyms: NDArray[np.uint64], part: NDArray[np.int64]) -> str:
    """SHA-256 of what the study says of its table, of every value in the table's order, and of the parts."""
    names = sorted(study.variables)
    states = {name: hashlib.sha256() for name in names}
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        hashed: list[Future[None]] = []
        for piece in columns.pieces(names, PIECE):
            wait(hashed)  # a column's pieces in order; meanwhile the next piece was read
            hashed = [pool.submit(states[name].update, _canonical_bytes(piece[name])) for name in names]
    whole = hashlib.sha256(f"{study.table_hash}|{len(row_pseudonyms)}|".encode())
    whole.update(row_pseudonyms.astype("<u8").tobytes())
    whole.update(part.astype("<i8").tobytes())
    for name in names:
        whole.update(states[name].digest())
    return whole.hexdigest()


def _canonical_bytes(column: NDArray[Any]) -> bytes | memoryview:
    if column.dtype.kind == "U":
        # Each with its length: the width of a text array depends on its longest value, and must not count.
        return b"".join(len(text).to_bytes(8, "big") + text for text in (value.encode() for value in column.tolist()))
    return np.ascontiguousarray(column).astype(column.dtype.newbyteorder("<"), copy=False).data


def sources_of(study: Study, name: str) -> tuple[str, ...]:
    """The stored columns that a column is made from. MappingError where there is no such column."""
    if name == "features":
        return tuple(dict.fromkeys(column.variable for column in study.design.columns if column.variable)) or ("fold",)
    if study.time and name in ("event", "outcome", study.outcome):
        return (study.outcome, study.time)
    if name == "outcome":
        return (study.outcome,)
    if name == "arm" and study.arm:
        return (study.arm,)
    if study.time and name == "time":
        return (study.time,)
    if name == "fold" or name in study.variables:
        return (name,)
    raise MappingError(f"a study table of {study.name!r} has no column {name!r}")


def derived_column(study: Study, name: str, stored: Stored) -> NDArray[Any]:
    """A column (see ``View.arrays``) of whichever rows ``stored`` gives. A variable's own name gives it as stored."""
    first = stored(sources_of(study, name)[0])
    if study.time and name == "time":
        return cut_times(study, first)
    if study.time and name == "event":
        return derived_column(study, "outcome", stored)
    if study.time and name in ("outcome", study.outcome):
        first = codes_in_time(study, stored(study.time), first)
    if name in study.variables and name not in ("outcome", "arm", "features"):
        return first
    if name == "outcome":
        variable = study.variables[study.outcome]
        if variable.type == "number":
            return first
        return np.asarray(first == list(variable.codes or ()).index(variable.event or ""), dtype=np.float64)
    if name == "arm" and study.arm:
        levels = list(study.variables[study.arm].codes or ())
        reference = levels.index(study.variables[study.arm].reference or levels[0])
        order = [reference] + [index for index in range(len(levels)) if index != reference]
        return np.asarray(np.argsort(np.array(order))[first])
    if name == "features":
        columns = study.design.columns
        features = np.ones((len(first), len(columns)))
        for index, column in enumerate(columns):
            if column.kind != "intercept":
                features[:, index] = feature_column(study, column, stored(column.variable))
        return features
    return first


def feature_column(study: Study, column: Column, values: NDArray[Any]) -> NDArray[np.float64]:
    """One feature (n,) from its variable's stored values (n,): the number itself, or 1 where the code is the level."""
    if column.kind == "number":
        return np.asarray(values, dtype=np.float64)
    levels = list(study.variables[column.variable].codes or ())
    wanted = -1 if column.level == "unknown" and "unknown" not in levels else levels.index(column.level or "")
    return np.asarray(values == wanted, dtype=np.float64)


def is_missing(column: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values (n,) of a stored column are missing."""
    if column.dtype.kind == "f":
        return np.asarray(np.isnan(column))
    if column.dtype.kind == "i":
        return np.asarray(column < 0)
    return np.asarray(column == "")


def _coded(study: Study, name: str, columns: Mapping[str, Any]) -> NDArray[Any]:
    """A column as it is stored. See ``StudyTable.from_columns``."""
    variable = study.variables[name]
    if name not in columns:
        raise MappingError(f"study {study.name!r}: the variable {name!r} is not among the columns; add it")
    given = columns[name]
    # A list of texts and NaN would become the text "nan" in an array of NumPy's own choice.
    values = np.asarray(given, dtype=object if isinstance(given, list | tuple) else None)
    if variable.type == "number":
        column: NDArray[Any] = values.astype(np.float64)
    elif variable.type == "code":
        column = _level_indices(study, name, values)
    else:
        column = np.array(["" if _is_blank(value) else str(value) for value in values.tolist()], dtype=np.str_)
    if variable.role == "time":
        refuse_times_off_grid(study, name, column)
    if variable.missing == "drop" and variable.type in ("number", "code") and (missing := is_missing(column)).any():
        raise MappingError(
            f"study {study.name!r}, variable {name!r}: {int(missing.sum())} of {len(column)} values are missing, and the "
            "study's rule for it is `missing: drop`; leave those rows out first"
        )
    return column


def _is_blank(value: Any) -> bool:
    return value is None or value == "" or value != value


def _level_indices(study: Study, name: str, values: NDArray[Any]) -> NDArray[np.int64]:
    levels = {level: index for index, level in enumerate(study.variables[name].codes or ())}
    listed = values.dtype.kind == "O" and len(values) > 0
    if values.dtype.kind in "iu" or (listed and all(type(value) in (int, np.int64) for value in values.tolist())):
        column = values.astype(np.int64)
        if len(column) and not (column.min() >= -1 and column.max() < len(levels)):
            raise MappingError(f"variable {name!r}: a level index is from 0 to {len(levels) - 1}, or -1 for missing")
        return column
    try:
        return np.array([-1 if _is_blank(value) else levels[str(value)] for value in values.tolist()], np.int64)
    except KeyError as problem:
        raise MappingError(
            f"variable {name!r}: {problem.args[0]!r} is not a code of study {study.name!r} ({', '.join(levels)})"
        ) from None
