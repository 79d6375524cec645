"""The columns of a model's formula at one site, in blocks of rows: the same from memory and from disk, at any size.

Columns are standardised about a centre and scale that the coordinator brings. A missing number (of a variable whose
rule is ``missing: mean``) leaves its column at the centre, 0. A block is (terms, rows): one column lies in one piece.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from medfed.data.table import View
from medfed.federation.gate import splits_safely
from medfed.federation.site import Site
from medfed.study import Study
from medfed.study.design import Factor, Formula, FormulaColumn

FloatArray = NDArray[np.float64]
S = TypeVar("S")
T = TypeVar("T")

BLOCK = 16_384  # rows: few enough for a processor's cache, enough for few calls
PIECE = 65_536
LARGE = 160_000  # rows of a site from which a fit begins on a share of them
SHARES = (16, 2)  # one in so many, stage by stage
AT_ONCE = 2  # pieces in work, beside the one that is read
REMEMBERED = 2_000_000  # values: a design of fewer is built once a site and scaling


@dataclass(frozen=True)
class Rows:
    """Some rows: part (columns as stored, by name); y (b,); offset (b,) or 0; weight (b,) or 1."""

    part: dict[str, NDArray[Any]]
    y: FloatArray
    offset: FloatArray | float
    weight: FloatArray | float


@dataclass(frozen=True)
class Block:
    """x (terms, b) standardised; y (b,); offset (b,) or 0; weight (b,) or 1; arm (b,) level index, where it was asked for."""

    x: FloatArray
    y: FloatArray
    offset: FloatArray | float
    weight: FloatArray | float
    arm: FloatArray


def formula_ranges(study: Study, variant: str | None) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    """Low and high of every column of the formula (terms,), and which of them are numbers (not 0 or 1)."""
    return ranges_of(study.formula(variant))


def ranges_of(formula: Formula) -> tuple[FloatArray, FloatArray, NDArray[np.bool_]]:
    columns = formula.columns
    numeric = np.array([bool(column.parts) and not column.is_indicator for column in columns])
    return np.array([column.low for column in columns]), np.array([column.high for column in columns]), numeric


def over_blocks(
    site: Site,
    centre: FloatArray,
    scale: FloatArray,
    function: Callable[[Block], T],
    *,
    with_arm: bool = False,
    view: View | None = None,
) -> Iterator[T]:
    """``function`` of every block of the site's rows, in the table's order. A large table is read in pieces, and
    several pieces are worked on at once.

    view: other rows than all that the step reads.
    """
    study, formula = site.study, site.study.formula(site.variant)
    view = view or site.table
    needed = [*formula.variables, *([study.arm] if with_arm and study.arm else [])]

    def block(rows: Rows) -> Block:
        arm = np.asarray(rows.part["arm"] if with_arm else 0.0, dtype=np.float64)
        return Block(_design(study, formula, rows.part, centre, scale), rows.y, rows.offset, rows.weight, arm)

    if view is site.table and view.rows * len(formula.columns) <= REMEMBERED:
        inputs = {"centre": centre, "scale": scale}
        # A step may ask for several passes, and the next round asks for the same design.
        remembered = site.memo(
            f"design {with_arm} {site.variant}",
            inputs,
            lambda: [block(rows) for piece in pieces_of(site, view, needed) for rows in rows_of(site, piece)],
        )
        yield from map(function, remembered)
        return

    def work(piece: dict[str, NDArray[Any]]) -> list[T]:
        return [function(block(rows)) for rows in rows_of(site, piece)]

    for found in in_order(pieces_of(site, view, needed), work, rows=view.rows):
        yield from found


def in_order(items: Iterable[S], function: Callable[[S], T], *, rows: int) -> Iterator[T]:
    """``function`` of every item, in order; of many rows a few at once in threads, whose matrix products keep to them."""
    if rows <= BLOCK:
        yield from map(function, items)
        return
    with ThreadPoolExecutor(AT_ONCE) as pool, _blas().limit(limits=1, user_api="blas"):
        waiting: deque[Future[T]] = deque()
        for item in items:
            waiting.append(pool.submit(copy_context().run, function, item))
            if len(waiting) > AT_ONCE:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


@lru_cache(maxsize=1)
def _blas() -> ThreadpoolController:
    """The process's libraries for matrix products, looked up once."""
    return ThreadpoolController()


def first_rows(site: Site, stage: int) -> View | None:
    """A random share of a large table's rows (SHARES), where sums over them and the others show no small count.

    None where the table is not large, or a count would be seen: then all rows are to be used.
    """
    rows = site.table.rows
    if rows < LARGE or not 0 <= stage < len(SHARES):
        return None
    cuts, minimum = [rows // share for share in SHARES], max(site.minimum_cell, 1)
    safe = site.memo(f"splits safely {minimum}", {}, lambda: splits_safely(site.table, site.study, cuts, minimum))
    return site.table.between(0, cuts[stage]) if safe else None


def pieces_of(site: Site, view: View, variables: Sequence[str]) -> Iterator[dict[str, NDArray[Any]]]:
    """Some variables, the outcome, weight and offset, as stored, in pieces."""
    study = site.study
    offset = study.formula(site.variant).offset
    names = [*variables, *([offset.variable] if offset else []), *([study.weight] if study.weight else [])]
    wanted = list(dict.fromkeys([*(_stored_as(study, name) for name in names), "outcome"]))
    for piece in view.batches(wanted, PIECE):
        yield dict(zip(wanted, piece, strict=True))


def rows_of(site: Site, piece: dict[str, NDArray[Any]]) -> Iterator[Rows]:
    study, weight = site.study, site.study.weight
    offset = study.formula(site.variant).offset
    for start in range(0, len(piece["outcome"]), BLOCK):
        part = {name: array[start : start + BLOCK] for name, array in piece.items()}
        yield Rows(
            part,
            y=np.asarray(part["outcome"], dtype=np.float64),
            offset=_values(study, offset, part) if offset else 0.0,
            weight=part[weight] if weight else 1.0,
        )


def _design(
    study: Study, formula: Formula, part: dict[str, NDArray[Any]], centre: FloatArray, scale: FloatArray
) -> FloatArray:
    x = np.empty((len(formula.columns), len(next(iter(part.values())))))
    for index, column in enumerate(formula.columns):
        row = x[index]
        if len(column.parts) == 1 and column.parts[0][1] is None:
            np.subtract(_values(study, column.parts[0][0], part), centre[index], out=row)
            row *= 1.0 / scale[index]
        else:
            row[:] = column_values(study, column, part)
            if not column.is_indicator and not column.is_intercept:
                row -= centre[index]
                row *= 1.0 / scale[index]
        if any(study.variables[factor.variable].missing == "mean" for factor, _ in column.parts):
            row[np.isnan(row)] = 0.0
    return x


def column_values(study: Study, column: FormulaColumn, part: dict[str, NDArray[Any]]) -> FloatArray | float:
    """One column (b,) in the study's units; 1 for the intercept. 0 where an indicator in it is 0, known or not."""
    inside: Any = 1.0
    product: Any = 1.0
    for factor, level in column.parts:
        if level is None:
            product = product * _values(study, factor, part)
        else:
            inside = inside * (part[_stored_as(study, factor.variable)] == _level(study, factor, level))
    if np.ndim(product) == 0 or np.ndim(inside) == 0:
        return np.asarray(product * inside) if column.parts else 1.0
    return np.where(inside > 0, product, 0.0)


def _values(study: Study, factor: Factor, part: dict[str, NDArray[Any]]) -> FloatArray:
    values = np.asarray(part[_stored_as(study, factor.variable)], dtype=np.float64)
    if factor.change == "log":
        return np.log(values)
    if factor.change == "sqrt":
        return np.sqrt(values)
    return values**factor.exponent if factor.change == "power" else values


def _stored_as(study: Study, name: str) -> str:
    """The column that holds a variable: the arm is read by its role, since a variable may be called "arm" itself."""
    return "arm" if name == study.arm else name


def _level(study: Study, factor: Factor, level: int) -> int:
    """The index that marks a level: of the arm, the reference is 0 and the others follow."""
    if factor.variable != study.arm:
        return level
    codes = list(study.variables[factor.variable].codes or ())
    reference = codes.index(study.variables[factor.variable].reference or codes[0])
    return 0 if level == reference else level + (level < reference)


def smallest_cell(site: Site) -> float:
    """Patients in the smallest cell of two or more coded factors that the design's sums show; infinity where none is.

    Cells of a single factor are judged by the gate; under secure sums these too, in total (``units``). With an outcome of codes a cell counts by outcome: the sums show
    both, and one that is empty tells the result of everybody in the other.
    """
    study, formula = site.study, site.study.formula(site.variant)
    coded = [c for c in formula.columns if sum(level is not None for _, level in c.parts) >= 2]
    if not coded or site.minimum_cell <= 1:
        return float("inf")

    def compute() -> float:
        names = list(
            dict.fromkeys(_stored_as(study, factor.variable) for column in coded for factor, _ in column.parts)
        )
        by_outcome = study.variables[study.outcome].type == "code"
        counts = np.zeros((2, len(coded)))
        for piece in site.table.batches([*names, "outcome"], PIECE):
            part = dict(zip([*names, "outcome"], piece, strict=True))
            for index, column in enumerate(coded):
                inside = np.ones(len(piece[0]), dtype=bool)
                for factor, level in column.parts:
                    if level is not None:
                        inside &= part[_stored_as(study, factor.variable)] == _level(study, factor, level)
                counts[0, index] += inside.sum()
                counts[1, index] += part["outcome"][inside].sum() if by_outcome else 0.0
        here = counts[0] > 0
        smallest = np.minimum(counts[1], counts[0] - counts[1]) if by_outcome else counts[0]
        return float(smallest[here].min()) if here.any() else float("inf")

    return site.memo(f"smallest cell {site.variant}", {}, compute)
