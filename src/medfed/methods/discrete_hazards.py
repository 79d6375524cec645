"""Discrete-time hazards: in each cell of the time grid the chance of the event is logistic, with covariates shared.

logit h(cell | x) = alpha(cell) + x beta, the logistic regression of a table with one row for each patient and cell
(Cox 1972, section 6; Allison 1982). Nothing needs risk sets across sites, so it is a plain sum of logistic terms: also
where noise is to be added. A patient censored in a cell is at risk to its end.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.cox import (
    TAKES,
    counted,
    follow_up_counts,
    in_units,
    no_convergence,
    opened,
    risk_patients,
    slopes_in,
    slopes_of,
    with_intercept,
)
from medfed.methods.grid_likelihood import at_risk
from medfed.methods.likelihood import Ascent, at_zero, climb, starting_at
from medfed.methods.newton import sigmoid, symmetric, upper
from medfed.methods.standardise import moments
from medfed.methods.time_grid import (
    CELL_COUNTS,
    CUTS,
    check_cells,
    counting_steps,
    merged_grid,
    site_cells,
)
from medfed.methods.weights import WeightSums
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

_PIECE = 32_768


@step(
    reads="train",
    takes={**TAKES, "alpha": Input("time_cells", limit=40.0), "cuts": CUTS},
    releases={
        "score": Sum("slopes", limit_per_row=1e4),
        "expected": Sum("time_cells", limit_per_row=1),
        "weight": Sum("time_cells", limit_per_row=1),
        "crossed": Sum("time_cells,slopes", limit_per_row=50),
        "information": Sum("triangle(slopes)", limit_per_row=1e6),
        "log_likelihood": Sum(limit_per_row=1e4),
        **CELL_COUNTS,
    },
)
def hazard_terms(
    site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray, alpha: FloatArray, cuts: FloatArray
) -> Out:
    """Score and information of the logistic hazards in the cells of the time grid, over all patients at risk in each."""
    x, cells = slopes_of(site, centre, scale), site_cells(site, cuts)
    count, q = cells.count, x.shape[1]
    score, information = x.T @ cells.event, np.zeros((q, q))
    expected, weight, crossed = np.zeros(count), np.zeros(count), np.zeros((count, q))
    log_likelihood, at_risk_in = 0.0, 0
    for start in range(0, len(x), _PIECE):
        rows = slice(start, start + _PIECE)
        eta = (x[rows] @ beta[1:])[:, None] + alpha
        here = cells.cell[rows, None] >= np.arange(count)
        at_risk_in += int(here.sum())
        hazard = np.where(here, sigmoid(eta), 0.0)
        spread = hazard * (1.0 - hazard)
        score -= x[rows].T @ hazard.sum(1)
        information += (x[rows] * spread.sum(1)[:, None]).T @ x[rows]
        expected += hazard.sum(0)
        weight += spread.sum(0)
        crossed += spread.T @ x[rows]
        happened = eta[np.arange(len(eta)), cells.cell[rows]] * cells.event[rows]
        log_likelihood += float(happened.sum() - np.where(here, np.logaddexp(0.0, eta), 0.0).sum())
    # A row is a patient in a cell, at risk.
    own = WeightSums(float(weight.sum()), outcomes=float(cells.event.sum()), rows=float(at_risk_in))
    return Out(
        {
            "score": score,
            "expected": expected,
            "weight": weight,
            "crossed": crossed,
            "information": upper(information),
            "log_likelihood": log_likelihood,
            **cells.counts(),
        },
        # What alpha picks out are cells, whose counts are under the rule for counts.
        effective_patients=risk_patients(x, beta[1:]),
        ordinary_patients=own.ordinary(own.mean * (1 - own.mean), site.table.patients),
    )


@dataclass(frozen=True)
class HazardsState:
    """fit: an ``Ascent`` over alpha (cells,) then beta (slopes,), standardised. covariance: of both, in the same order."""

    fit: dict[str, Any]
    cuts: IntArray
    covariance: FloatArray
    centre: FloatArray
    scale: FloatArray
    opening: dict[str, Any]
    events: FloatArray
    censored: FloatArray
    sites: list[str]
    held_back: dict[str, Any]
    curve: list[float]
    settled: bool


@dataclass(frozen=True)
class DiscreteHazards:
    """Settings: minimum_cell (of events and of others who leave, in each cell; never below the study's); cells
    (covariates: nor are the patients of a coded level fewer | events); tolerance; most_rounds.
    """

    minimum_cell: int = 10
    cells: str = "covariates"
    tolerance: float = 1e-10
    most_rounds: int = 30

    @property
    def steps(self) -> tuple[Step, ...]:
        return (moments, follow_up_counts, *counting_steps(self.cells), hazard_terms)

    def __post_init__(self) -> None:
        check_cells(self.cells, self.minimum_cell)
        if self.tolerance <= 0 or self.most_rounds < 1:
            raise ValueError("tolerance is above 0, most_rounds at least 1")

    def start(self, study: Study) -> HazardsState:
        q = slopes_in(study)
        none = np.zeros(0)
        return HazardsState(
            fit=asdict(at_zero(q)), cuts=np.zeros(0, dtype=np.int64), covariance=np.zeros((q, q)), centre=np.zeros(q + 1),
            scale=np.ones(q + 1), opening={}, events=none, censored=none, sites=[], held_back={}, curve=[], settled=False,
        )  # fmt: skip

    def advance(self, federation: Federation, state: HazardsState) -> HazardsState:
        q = len(state.scale) - 1
        if not state.sites:
            begun = opened(federation)
            least = float(max(self.minimum_cell, federation.study.privacy.minimum_cell))
            grid = merged_grid(federation.roster(begun["sites"]), least, cells=self.cells, values=3 + q)
            # The fit without covariates is known from the counts.
            hazard = np.clip(grid.events / np.maximum(at_risk(grid.events + grid.censored), 1.0), 1e-6, 1.0 - 1e-6)
            start = starting_at(np.concatenate([np.log(hazard / (1.0 - hazard)), np.zeros(q)]))
            state = replace(state, **begun, cuts=grid.cuts, fit=asdict(start))
        federation = federation.roster(state.sites)
        count, fit = len(state.cuts), Ascent(**state.fit)
        if fit.rounds >= self.most_rounds:
            raise no_convergence(fit, self.tolerance)
        total = federation.sum(
            hazard_terms, beta=with_intercept(fit.beta[count:]), centre=state.centre, scale=state.scale,
            alpha=fit.beta[:count], cuts=np.asarray(state.cuts, dtype=np.float64),
        )  # fmt: skip
        same = list(total.sites) == list(state.sites)
        events, censored = total["events"], total["censored"]
        information = np.zeros((count + q, count + q))
        information[:count, :count] = np.diag(total["weight"])
        information[:count, count:] = total["crossed"]
        information[count:, :count] = total["crossed"].T
        information[count:, count:] = symmetric(total["information"], q)
        score = np.concatenate([events - total["expected"], total["score"]])
        names = [*(f"cell {index + 1}" for index in range(count)), *federation.study.design.names[1:]]
        log_likelihood = float(total["log_likelihood"])
        ahead = climb(fit, score, information, log_likelihood, names, same=same)
        settled = bool(ahead.halvings == 0 and ahead.change < self.tolerance and same)
        opening = state.opening
        if settled and list(opening["counted_first"]) != list(total.sites):
            opening = {**opening, **counted(federation)}
        return replace(
            state,
            fit=asdict(ahead),
            covariance=np.asarray(np.linalg.inv(information)),
            opening=opening,
            events=events,
            censored=censored,
            sites=list(total.sites),
            curve=[*state.curve, log_likelihood],
            settled=settled and list(opening["counted_first"]) == list(total.sites),
        )

    def done(self, state: HazardsState) -> bool:
        return bool(state.settled)

    def result(self, state: HazardsState) -> Mapping[str, Any]:
        fit, count = Ascent(**state.fit), len(state.cuts)
        beta, covariance = fit.beta[count:], state.covariance
        coefficients, slopes_covariance = in_units(beta, covariance[count:, count:], state.scale)
        there = at_risk(state.events + state.censored)
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = (
                state.events * np.log(state.events / there),
                (there - state.events) * np.log1p(-state.events / there),
            )
        return {
            "model": "discrete_hazards",
            "coefficients": coefficients,
            "covariance": slopes_covariance,
            "alpha": fit.beta[:count],
            "alpha_covariance": covariance[:count, :count],
            "cells": {"cuts": state.cuts, "events": state.events, "censored": state.censored},
            "log_likelihood": fit.log_likelihood,
            "null_log_likelihood": float(np.nansum(parts[0]) + np.nansum(parts[1])),
            **{name: float(state.opening[name]) for name in ("events", "patients", "follow_up")},
            "centre": state.centre,
            "scale": state.scale,
            "rounds": fit.rounds,
            "curve": list(state.curve),
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
        }
