"""What every model by formula begins with: mean and deviation of its columns, facts of the outcome, and who can't be used.

Sums are taken on the declared ranges, so that they are bounded whatever the unit. Levels that nobody has, interactions
that make cells of a few, weights and outcomes that can't be are told here, before anything is fitted.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Sum, step
from medfed.methods.design_matrix import (
    column_values,
    first_rows,
    formula_ranges,
    in_order,
    pieces_of,
    ranges_of,
    rows_of,
    smallest_cell,
)
from medfed.methods.families import is_possible
from medfed.methods.wide_ranges import LEAST_DEVIATION, looks_constant, refuse_blown_up
from medfed.study import Study
from medfed.study.design import Formula

FloatArray = NDArray[np.float64]


@step(
    reads="train",
    takes={"about": Input("terms", limit=1.0)},
    releases={
        "sums": Sum("terms", limit_per_row=1),
        "squares": Sum("terms", limit_per_row=1),
        "known": Sum("terms", limit_per_row=1),
        "events": Sum("terms", limit_per_row=1),
        "whole": Sum("5", limit_per_row=1e6),
        "unusable": Sum("3", limit=1),
    },
)
def formula_moments(site: Site, *, about: FloatArray) -> Out:
    """Sums of each column of the formula and of its squares, on the declared range, and how many rows have it.

    about (terms,): subtracted before. events: rows that have an indicator and the event. whole: rows, weight, weighted
    outcome and its square on the declared range, weighted offset. unusable: 1 where some weight is not above 0, some
    outcome is not one that the family can have, some offset is not finite.
    """
    study, columns = site.study, site.study.formula(site.variant).columns
    low, high, _ = formula_ranges(study, site.variant)
    family = str(site.settings.get("family", ""))
    bottom, width = outcome_range(study)
    by_outcome = study.variables[study.outcome].type == "code"

    # Of numbers that are never missing a share of the rows is enough, unless a penalty means the deviation itself.
    head = None if site.settings.get("l1") or site.settings.get("l2") else first_rows(site, 0)
    plain = [
        index for index, column in enumerate(columns)
        if len(column.parts) == 1 and not column.is_indicator and study.variables[column.parts[0][0].variable].missing == "drop"
    ]  # fmt: skip
    everywhere = [index for index in range(len(columns)) if head is None or index not in plain]

    def moments_of(piece: dict[str, NDArray[Any]], which: list[int]) -> FloatArray:
        each = np.zeros((4, len(low)))
        for rows in rows_of(site, piece):
            for index in which:
                values = np.broadcast_to(np.asarray(column_values(study, columns[index], rows.part)), rows.y.shape)
                unit = (values - low[index]) * (1.0 / (high[index] - low[index])) - about[index]
                if not np.isfinite(unit.sum()):
                    unit = unit[np.isfinite(unit)]
                each[:3, index] += unit.sum(), (unit * unit).sum(), len(unit)
                if by_outcome and columns[index].is_indicator:
                    each[3, index] += (values * rows.y).sum()
        return each

    def all_of(piece: dict[str, NDArray[Any]]) -> tuple[FloatArray, FloatArray, FloatArray]:
        whole, unusable = np.zeros(5), np.zeros(3)
        for rows in rows_of(site, piece):
            weight = np.broadcast_to(np.asarray(rows.weight, dtype=np.float64), rows.y.shape)
            offset = np.broadcast_to(np.asarray(rows.offset, dtype=np.float64), rows.y.shape)
            wrong = (not (weight > 0).all(), not is_possible(family, rows.y), not np.isfinite(offset).all())
            unusable = np.maximum(unusable, wrong)
            if not unusable.any():
                unit = (rows.y - bottom) / width
                sums = (weight * unit).sum(), (weight * unit * unit).sum(), (weight * offset).sum()
                whole += [len(unit), weight.sum(), *sums]
        return moments_of(piece, everywhere), whole, unusable

    each, whole, unusable = np.zeros((4, len(low))), np.zeros(5), np.zeros(3)
    needed = [factor.variable for index in everywhere for factor, _ in columns[index].parts]
    for found in in_order(pieces_of(site, site.table, needed), all_of, rows=site.table.rows):
        each += found[0]
        whole += found[1]
        unusable = np.maximum(unusable, found[2])
    if head is not None:
        each += sum(
            moments_of(piece, plain)
            for piece in pieces_of(site, head, [columns[index].parts[0][0].variable for index in plain])
        )
    return Out(
        {
            "sums": each[0], "squares": each[1], "known": each[2], "events": each[3],
            "whole": np.zeros(5) if unusable.any() else whole, "unusable": unusable,
        },
        effective_patients=smallest_cell(site), effective_of=0,
    )  # fmt: skip


def outcome_range(study: Study) -> tuple[float, float]:
    """Lowest value and width of the outcome's declared range; 0 and 1 of a coded outcome."""
    low, high = study.variables[study.outcome].range or (0.0, 1.0)
    return low, high - low


@dataclass(frozen=True)
class Scaling:
    """centre, scale (terms,) of the columns; mean, variance: of the outcome, weighted; offset: its weighted mean; rows; sites; held_back: who
    was not counted, and why."""

    centre: FloatArray
    scale: FloatArray
    mean: float
    variance: float
    offset: float
    rows: float
    sites: int
    held_back: dict[str, Any]


def scaling(federation: Any, formula: Formula, *, exact: bool) -> Scaling:
    """Mean and deviation of each numeric column over the federation's training rows, and facts of the outcome.

    exact: the scale is the deviation itself (a penalty means it); else one that keeps columns within bounds suffices.
    Raises FederationError, one sentence, for rows that can't be used, levels that nobody has, cells under the minimum,
    and fewer patients than coefficients.
    """
    study: Study = federation.study
    total = federation.sum(formula_moments, about=np.zeros(len(formula.columns)))
    _refuse_unusable(study, total["unusable"])
    rows, weight, mean, square, offset = (float(value) for value in total["whole"])
    if not rows > 0:
        raise FederationError("no site has a patient in this part of the study")
    low, high, numeric = ranges_of(formula)
    sums, known = total["sums"], total["known"]
    if rows <= len(formula.columns):
        raise FederationError(
            f"{rows:.0f} patients can't carry {len(formula.columns)} coefficients; leave terms out of the formula"
        )
    _refuse_small_levels(study, formula, sums, total["events"])
    with np.errstate(invalid="ignore", divide="ignore"):
        middle = sums / known
        deviation = np.sqrt(np.maximum(total["squares"] / known - middle * middle, 0.0))
    for index in np.flatnonzero(numeric):
        name = formula.names[index]
        if not known[index] > 0:
            raise FederationError(f"{name!r} is missing for every patient who was counted; leave it out of the formula")
        if not deviation[index] > 1e-7:  # of the declared range; the ring's rounding alone gives 1e-8
            raise looks_constant(
                repr(name), low[index], high[index], deviation[index] ** 2, known[index], len(total.sites)
            )
    centre = np.where(numeric, low + middle * (high - low), 0.0)
    scale = np.where(numeric, deviation * (high - low), 1.0)
    if not exact:
        # A site refuses columns that are blown up; where nothing hangs on the unit, a larger one says the same.
        scale = np.where(numeric, np.maximum(scale, np.maximum(high - centre, centre - low) * LEAST_DEVIATION), scale)
    ends = np.where(numeric, low, 0.0), np.where(numeric, high, 0.0)
    refuse_blown_up(federation, formula.names, ends[0], ends[1], centre, scale)
    bottom, width = outcome_range(study)
    mean, square = mean / weight, square / weight
    return Scaling(
        centre=centre,
        scale=scale,
        mean=bottom + mean * width,
        variance=max(square - mean * mean, 0.0) * width * width,
        offset=offset / weight,
        rows=rows,
        sites=len(total.sites),
        held_back={site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()},
    )


def _refuse_unusable(study: Study, unusable: FloatArray) -> None:
    sentences = (
        f"a weight ({study.weight}) is 0, negative or missing at a site; every weight is above 0: leave such rows out "
        "of the cohort",
        f"the outcome ({study.outcome}) has a value that this family can't have: counts are 0 or more, gamma outcomes "
        "are above 0; choose another family, or correct the values",
        "an offset is not a finite number at a site: it is missing, or the logarithm of 0; leave such rows out",
    )
    for flag, sentence in zip(unusable, sentences, strict=True):
        if flag > 0:
            raise FederationError(sentence)


def _refuse_small_levels(study: Study, formula: Formula, sums: FloatArray, events: FloatArray) -> None:
    minimum = study.privacy.minimum_cell
    by_outcome = study.variables[study.outcome].type == "code"
    for index, column in enumerate(formula.columns):
        if not column.is_indicator:
            continue
        if not sums[index] > 0:
            raise FederationError(f"no patient who was counted has {column.name!r}; leave it out, or merge levels")
        cells = (events[index], sums[index] - events[index]) if by_outcome else (sums[index],)
        if len(column.parts) > 1 and min(cells) < minimum:
            raise FederationError(
                f"the interaction {column.name!r} makes a cell of fewer than {minimum} patients"
                f"{' with or without the event' if by_outcome else ''}; leave it out, or merge levels"
            )
