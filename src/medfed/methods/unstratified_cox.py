"""Cox regression with one baseline hazard for all sites, on a time grid whose cells show no small count.

Equal to the pooled fit with every time moved to the end of its cell. What the grid changes is measured in the
site-stratified model, which needs no grid (``cox``), and reported beside the coefficients.

Each round asks twice: for the cells' risk weights, which give the hazard, and for score and second moments under that
hazard. The second moments about the events' mean differ from the information by how much risk-set means drift over
time, which is little and is learned from how the score falls; the drift itself is asked for once, at the end.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation, Total
from medfed.federation.step import Step
from medfed.methods.concordance import c_index
from medfed.methods.concordance_across import across_sites, grouped_pairs_within, score_spread, score_table
from medfed.methods.cox import (
    check_settings,
    counted,
    follow_up_counts,
    in_units,
    no_convergence,
    opened,
    slopes_in,
    unit_of_pairs,
    with_intercept,
)
from medfed.methods.cox_cells import cell_information, cell_means, cell_risks, grouping_terms, pairs_within
from medfed.methods.grid_likelihood import GridHazard, at_risk, grid_hazard, mean_products
from medfed.methods.likelihood import Ascent, at_zero, climb, secant, solve
from medfed.methods.newton import symmetric
from medfed.methods.proportional_hazards import TRANSFORMS, marks_of, proportionality_test
from medfed.methods.standardise import moments
from medfed.methods.time_grid import cell_ends, check_cells, counting_steps, merged_grid
from medfed.study import Study

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class UnstratifiedState:
    """fit: an ``Ascent``, coefficients standardised; cuts: (cells,) declared intervals up to each cell's end.

    score (q,) at the point before the last step; correction (q, q): what is learned of the drift of risk-set means.
    phase: open | fit | close | finished. opening: likelihood at 0 and counts; found: what the last round adds.
    """

    phase: str
    fit: dict[str, Any]
    score: FloatArray
    correction: FloatArray
    cuts: IntArray
    centre: FloatArray
    scale: FloatArray
    opening: dict[str, Any]
    found: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    curve: list[float]


@dataclass(frozen=True)
class UnstratifiedCox:
    """Settings: ties (breslow | efron); minimum_cell (of events and of others who leave, in each cell; never below the
    study's); cells (covariates: nor are the patients of a coded level fewer | events); transform (identity | log | km);
    tolerance; most_rounds.
    """

    ties: str = "breslow"
    minimum_cell: int = 10
    cells: str = "covariates"
    transform: str = "identity"
    tolerance: float = 1e-10
    most_rounds: int = 60

    @property
    def steps(self) -> tuple[Step, ...]:
        return (
            moments, follow_up_counts, *counting_steps(self.cells, by_event=self.ties == "efron"), cell_risks, cell_information, cell_means,
            grouping_terms, pairs_within, score_spread, score_table, grouped_pairs_within,
        )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self.ties, self.transform, self.tolerance, self.most_rounds, (*TRANSFORMS, "km"))
        check_cells(self.cells, self.minimum_cell)

    def _least(self, study: Study) -> float:
        return float(max(self.minimum_cell, study.privacy.minimum_cell))

    def start(self, study: Study) -> UnstratifiedState:
        q = slopes_in(study)
        return UnstratifiedState(
            phase="open", fit=asdict(at_zero(q)), score=np.zeros(q), correction=np.zeros((q, q)),
            cuts=np.zeros(0, dtype=np.int64), centre=np.zeros(q + 1), scale=np.ones(q + 1), opening={}, found={}, sites=[],
            held_back={}, curve=[],
        )  # fmt: skip

    def advance(self, federation: Federation, state: UnstratifiedState) -> UnstratifiedState:
        if state.phase == "open":
            begun, efron = opened(federation), self.ties == "efron"
            # A cell releases its risk weight and a sum for each covariate; with Efron's ties those of its events too.
            grid = merged_grid(
                federation.roster(begun["sites"]), self._least(federation.study), cells=self.cells,
                values=len(state.scale) * (1 + efron), by_event=efron,
            )  # fmt: skip
            state = replace(state, **begun, cuts=grid.cuts, phase="fit")
        federation = federation.roster(state.sites)
        return self._closed(federation, state) if state.phase == "close" else self._round(federation, state)

    def _round(self, federation: Federation, state: UnstratifiedState) -> UnstratifiedState:
        fit = Ascent(**state.fit)
        if fit.rounds >= self.most_rounds:
            raise no_convergence(fit, self.tolerance)
        inputs = _inputs(state, fit.beta)
        total = federation.sum(cell_risks, **inputs)
        hazard = grid_hazard(total["events"], total["risk"], total["event_risk"], self.ties)
        terms = _terms(federation, inputs, hazard, np.ones(len(state.cuts)))
        sites = list(terms.sites)
        if sites != list(total.sites):
            return replace(state, sites=sites)
        events = float(total["events"].sum())
        mean = terms["expected"] / events
        second = symmetric(terms["second"], len(mean)) - events * np.outer(mean, mean)
        score, log_likelihood = (
            terms["observed"] - terms["expected"],
            float(terms["observed"] @ fit.beta) - hazard.log_risk,
        )
        same = sites == list(state.sites)
        correction = state.correction
        if same and fit.rounds:
            correction = secant(correction, second, fit.beta - fit.base, state.score - score)
        ahead = climb(fit, score, second - correction, log_likelihood, federation.study.design.names[1:], same=same)
        return replace(
            state,
            fit=asdict(ahead),
            score=score if ahead.halvings == 0 else state.score,
            correction=correction if same else np.zeros_like(correction),
            phase="close" if ahead.halvings == 0 and ahead.change < self.tolerance and same else "fit",
            opening=state.opening if fit.rounds else {**state.opening, "null": log_likelihood, "null_sites": sites},
            sites=sites,
            curve=[*state.curve, log_likelihood],
        )

    def _closed(self, federation: Federation, state: UnstratifiedState) -> UnstratifiedState:
        """Covariance, tests, C-index, and what the grid changes, at the coefficients found."""
        study, fit = federation.study, Ascent(**state.fit)
        inputs, q = _inputs(state, fit.beta), len(fit.beta)
        total = federation.sum(cell_means, **inputs)
        events, censored, ends = total["events"], total["censored"], cell_ends(study, state.cuts)
        hazard = grid_hazard(events, total["risk"], total["event_risk"], self.ties)
        surviving = np.cumprod(1.0 - events / np.maximum(at_risk(events + censored), 1.0))
        marks = marks_of(study, ends, self.transform, 1.0 - np.concatenate([[1.0], surviving[:-1]]))
        weights = (np.ones(len(ends)), marks, marks * marks)
        asked = [_terms(federation, inputs, hazard, weight) for weight in weights]
        drift = (total["risk"], total["event_risk"], total["sums"], total["event_sums"], self.ties)
        information, crossed, own = (
            symmetric(terms["second"], q) - mean_products(events, *drift, weight)
            for terms, weight in zip(asked, weights, strict=True)
        )
        scores = [terms["observed"] - terms["expected"] for terms in asked]
        grouped = federation.sum(grouping_terms, **inputs)
        pairs = federation.sum(pairs_within, **{name: inputs[name] for name in ("beta", "centre", "scale")})
        patients = float((events + censored).sum())
        across, across_of = across_sites(federation, inputs, pairs["pairs"], patients, self._least(study), events)
        answered = [answer.sites for answer in (total, *asked, grouped, pairs)] + across_of
        opening = dict(state.opening)
        if list(opening["null_sites"]) != list(state.sites):
            nothing = federation.sum(cell_risks, **_inputs(state, np.zeros(q)))
            answered.append(nothing.sites)
            at_null = grid_hazard(nothing["events"], nothing["risk"], nothing["event_risk"], self.ties)
            opening |= {"null": -at_null.log_risk, "null_sites": list(nothing.sites)}
        if list(opening["counted_first"]) != list(state.sites):
            opening |= counted(federation)
        left = [site for site in opening["counted_first"] if all(site in sites for sites in answered)]
        if left != list(state.sites):
            return replace(state, phase="fit", sites=left)
        found = {
            "covariance": np.asarray(np.linalg.inv(information)),
            "grid_difference": _grid_difference(grouped, study.design.names[1:]),
            "baseline": {"time": ends, "cumulative_hazard": np.cumsum(hazard.steps)},
            "cells": {"time": ends, "events": events, "censored": censored},
            "proportionality": proportionality_test(
                study, self.transform, information, scores[1], crossed, own, scores[0],
                np.array([events @ weight for weight in weights]),
            ),
            "concordance": asdict(c_index(pairs["pairs"], pairs["pair_squares"], unit_of_pairs(study))),
            "concordance_across": asdict(across) if across is not None else {},
        }  # fmt: skip
        return replace(state, phase="finished", opening=opening, found=found)

    def done(self, state: UnstratifiedState) -> bool:
        return state.phase == "finished"

    def result(self, state: UnstratifiedState) -> Mapping[str, Any]:
        fit, found = Ascent(**state.fit), dict(state.found)
        coefficients, covariance = in_units(fit.beta, found.pop("covariance"), state.scale)
        return {
            "model": "cox",
            "strata": "none",
            "ties": self.ties,
            "coefficients": coefficients,
            "covariance": covariance,
            "log_likelihood": fit.log_likelihood,
            "null_log_likelihood": float(state.opening["null"]),
            **{name: float(state.opening[name]) for name in ("events", "patients", "follow_up")},
            **found,
            "grid_difference": found["grid_difference"] / np.asarray(state.scale)[1:],
            "centre": state.centre,
            "scale": state.scale,
            "rounds": fit.rounds,
            "curve": list(state.curve),
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
        }


def _inputs(state: UnstratifiedState, beta: FloatArray) -> dict[str, Any]:
    cuts = np.asarray(state.cuts, dtype=np.float64)
    return {"beta": with_intercept(beta), "centre": state.centre, "scale": state.scale, "cuts": cuts}


def _terms(federation: Federation, inputs: dict[str, Any], hazard: GridHazard, weight: FloatArray) -> Total:
    """Observed and expected covariate sums and second moments, each cell's events weighted: (cells,)."""
    steps, less = weight * hazard.steps, weight * hazard.less
    return federation.sum(cell_information, **inputs, hazard=np.cumsum(steps), less=less, marks=weight)


def _grid_difference(grouped: Total, names: tuple[str, ...]) -> FloatArray:
    """Coefficients on grouped times minus those on exact times in the site-stratified model, one Newton step each.

    (q,); NaN for a feature that does not vary within sites, of which that model can't speak.
    """
    information = {which: symmetric(grouped[f"{which}information"], len(names)) for which in ("", "grouped_")}
    varies = np.flatnonzero(np.min([np.diag(matrix) for matrix in information.values()], axis=0) > 1e-9)
    told = [names[index] for index in varies.tolist()]
    steps = [
        solve(matrix[np.ix_(varies, varies)], grouped[f"{which}score"][varies], told)
        for which, matrix in information.items()
    ]
    difference = np.full(len(names), np.nan)
    difference[varies] = steps[1] - steps[0]
    return difference
