"""Average effects of a treatment from observational data: propensity score, inverse weighting, doubly robust (AIPW).

What is estimated is the mean outcome had everybody had the second arm, and the first; their difference and ratio. The
errors are those of the influence function: for inverse weighting with the propensity's own estimation taken in, for AIPW
of the efficient one. Hirano, Imbens and Ridder 2003; Robins, Rotnitzky and Zhao 1994; Lunceford and Davidian 2004.
Nothing here makes up for a confounder that was not measured: the E-value says how strong one would have to be.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, StudyError
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Step, Sum, step
from medfed.methods.causal_result import assemble
from medfed.methods.causal_weights import Weighed, ordinary, ordinary_by_arm, outcome_weight
from medfed.methods.design_matrix import (
    Block,
    formula_ranges,
    over_blocks,
    smallest_cell,
)
from medfed.methods.newton import sigmoid, symmetric, upper
from medfed.methods.scaling import formula_moments, scaling
from medfed.methods.solve import newton_step, refuse_collinear
from medfed.methods.summaries import in_bins, unless_small
from medfed.methods.weights import WeightSums
from medfed.methods.wide_ranges import Ranges, scaled_by_range, too_wide
from medfed.study import Study
from medfed.study.design import Formula
from medfed.study.formula import default_formula, parse_formula

FloatArray = NDArray[np.float64]

OVERLAP_BINS = 32
_COLUMNS = {
    "centre": Input("terms", limit=1e12, meaning="centre"),
    "scale": Input("terms", limit=1e12, meaning="scale"),
}
_PROPENSITY = {"propensity": Input("terms", limit=50.0, meaning="coefficients"), **_COLUMNS}
_OUTCOME = {
    "outcome_models": Input("2,terms", limit=1e6, meaning="outcome coefficients"),
    "outcome": Input("2", limit=1e12),
}
_MODELS = {**_PROPENSITY, **_OUTCOME}


@step(
    reads="train",
    takes=_PROPENSITY,
    releases={
        "score": Sum("terms", limit_per_row=1e4),
        "information": Sum("triangle(terms)", limit_per_row=1e6),
        "fit": Sum("3", limit_per_row=1e3),
    },
    ranges=formula_ranges,
)
def propensity_terms(site: Site, *, propensity: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Score and information of the logistic model of having the second arm, and log-likelihood, rows, rows of that arm."""
    q = len(propensity)
    score, information, fit, weights = np.zeros(q), np.zeros((q, q)), np.zeros(3), WeightSums()

    def terms(block: Block) -> tuple[FloatArray, FloatArray, FloatArray, WeightSums]:
        eta = propensity @ block.x
        chance = sigmoid(eta)
        w = chance * (1 - chance)
        fit = [(block.arm * eta - np.logaddexp(0, eta)).sum(), len(eta), block.arm.sum()]
        root = block.x * np.sqrt(w)
        return block.x @ (block.arm - chance), root @ root.T, np.array(fit), WeightSums.of(w, block.arm)

    for s, i, f, w in over_blocks(site, centre, scale, terms, with_arm=True):
        score, information, fit, weights = score + s, information + i, fit + f, weights + w
    release = {"score": score, "information": upper(information), "fit": fit}
    return Out(
        release,
        effective_patients=(weights.effective, smallest_cell(site)),
        effective_of=(np.inf, 0),
        ordinary_patients=ordinary(weights, site),
    )


@step(
    reads="train",
    takes={**_OUTCOME, **_COLUMNS},
    releases={
        "score": Sum("2,terms", limit_per_row=1e6),
        "information": Sum("2,triangle(terms)", limit_per_row=1e6),
    },
    ranges=formula_ranges,
)
def arm_outcome_terms(
    site: Site, *, outcome_models: FloatArray, outcome: FloatArray, centre: FloatArray, scale: FloatArray
) -> Out:
    """Score and information of a model of the outcome within each arm: logistic for an event, linear for a number."""
    q, event = outcome_models.shape[1], _is_event(site.study)
    score, information, weights = np.zeros((2, q)), np.zeros((2, q, q)), [WeightSums(), WeightSums()]

    def terms(block: Block) -> tuple[FloatArray, FloatArray, list[WeightSums]]:
        found = np.zeros((2, q)), np.zeros((2, q, q)), [WeightSums(), WeightSums()]
        y = (block.y - outcome[0]) / outcome[1]
        for arm in (0, 1):
            here = block.x[:, block.arm == arm]
            mean = outcome_models[arm] @ here
            mean = sigmoid(mean) if event else mean
            weight = outcome_weight(mean, event)
            root = here * np.sqrt(weight)
            found[0][arm] = here @ (y[block.arm == arm] - mean)
            found[1][arm] = root @ root.T
            found[2][arm] = WeightSums.of(weight, block.y[block.arm == arm])
        return found

    for s, i, w in over_blocks(site, centre, scale, terms, with_arm=True):
        score, information = score + s, information + i
        weights = [before + more for before, more in zip(weights, w, strict=True)]
    return Out(
        {"score": score, "information": upper(information)},
        effective_patients=(*(own.effective for own in weights), smallest_cell(site)),
        effective_of=(*(own.rows for own in weights), 0),
        ordinary_patients=ordinary_by_arm(weights, site, event),
    )


@dataclass(frozen=True)
class _Predicted:
    """Of a block: chance of the second arm, weights (2, b) of the arms, 0 for the other arm; predicted means (2, b); y (b,);
    overlap (b,): how much a row weighs in the propensity model."""

    x: FloatArray
    arm: FloatArray
    chance: FloatArray
    weights: FloatArray
    means: FloatArray
    y: FloatArray
    overlap: FloatArray


def _predicted(site: Site, block: Block, inputs: Mapping[str, FloatArray]) -> _Predicted:
    clip = float(site.settings["clip"])
    free = sigmoid(inputs["propensity"] @ block.x)
    chance = np.clip(free, clip, 1 - clip)
    means = inputs["outcome_models"] @ block.x
    weights = np.stack([(1 - block.arm) / (1 - chance), block.arm / chance])
    y = (block.y - inputs["outcome"][0]) / inputs["outcome"][1]
    means = sigmoid(means) if _is_event(site.study) else means
    return _Predicted(block.x, block.arm, chance, weights, means, y, free * (1 - free))


@step(
    reads="train",
    takes=_MODELS,
    releases={
        "weighted": Sum("2,4", limit_per_row=1e6),
        "doubly_robust": Sum("2", limit_per_row=1e6),
        "raw_columns": Sum("2,2,terms", limit_per_row=1e6),
        "weighted_columns": Sum("2,terms", limit_per_row=1e6),
    },
    ranges=formula_ranges,
)
def effect_terms(site: Site, **inputs: FloatArray) -> Out:
    """Sums for the mean outcome under each arm: inversely weighted, doubly robust; balance of columns.

    By arm, the first one first: weighted (patients, weight, its square, weighted outcome); doubly_robust; raw_columns (sums
    of columns and of their squares); weighted_columns.
    """
    q, event = len(inputs["propensity"]), _is_event(site.study)

    def terms(block: Block) -> tuple[tuple[FloatArray, ...], Weighed]:
        at = _predicted(site, block, inputs)
        members = np.stack([1 - at.arm, at.arm])
        weighted = np.stack([members.sum(1), at.weights.sum(1), (at.weights**2).sum(1), at.weights @ at.y], 1)
        robust = (at.means + at.weights * (at.y - at.means)).sum(1)
        raw = np.stack([members @ at.x.T, members @ (at.x * at.x).T])
        return (weighted, robust, raw, at.weights @ at.x.T), Weighed.of(at.overlap, at.arm, at.means, block.y, event)

    names = ("weighted", "doubly_robust", "raw_columns", "weighted_columns")
    shapes = ((2, 4), (2,), (2, 2, q), (2, q))
    sums = {name: np.zeros(shape) for name, shape in zip(names, shapes, strict=True)}
    weighed = Weighed()
    for found, own in over_blocks(site, inputs["centre"], inputs["scale"], terms, with_arm=True):
        weighed = weighed + own
        for name, value in zip(names, found, strict=True):
            sums[name] = sums[name] + value
    patients, weight, square = sums["weighted"][:, :3].T
    first, second = weight**2 / np.where(square > 0, square, 1.0)
    return Out(sums, **weighed.stated(site, event, (first, patients[0]), (second, patients[1])))


@step(
    reads="train",
    takes=_PROPENSITY,
    releases={"overlap": Count("2,32", zero_is_small=False)},
    ranges=formula_ranges,
)
def overlap_counts(site: Site, *, propensity: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Patients of each arm in 32 bins of the propensity score, (2, 32); a bin of a few is counted with its neighbour."""
    clip = float(site.settings["clip"])

    def bins_of(block: Block) -> NDArray[np.int64]:
        chance = np.clip(sigmoid(propensity @ block.x), clip, 1 - clip)
        bins = np.minimum((chance * OVERLAP_BINS).astype(np.int64), OVERLAP_BINS - 1)
        return np.bincount(block.arm.astype(np.int64) * OVERLAP_BINS + bins, minlength=2 * OVERLAP_BINS)

    counts = sum(over_blocks(site, centre, scale, bins_of, with_arm=True), np.zeros(2 * OVERLAP_BINS, np.int64))
    home = int(sigmoid(propensity[:1])[0] * OVERLAP_BINS)  # of a patient at the means of all numbers
    return Out({"overlap": in_bins(counts.reshape(2, OVERLAP_BINS), site.minimum_cell, home)})


@step(
    reads="train",
    takes={**_MODELS, "means": Input("2,2", limit=1e6), "shares": Input("2", limit=1e6)},
    releases={
        "squares": Sum("2,3", limit=1e12),
        "cross": Sum("2,terms", limit=1e12),
        "slope": Sum("2,terms", limit=1e12),
        "meat": Sum("triangle(terms)", limit_per_row=1e4),
    },
    ranges=formula_ranges,
)
def influence_terms(site: Site, *, means: FloatArray, shares: FloatArray, **inputs: FloatArray) -> Out:
    """Sums of squared influences on the mean outcome of each arm, for standard errors.

    means (2, 2): estimated means by inverse weighting and doubly robust; shares (2,): mean weight of each arm. squares
    (2, 3): of both estimators, first arm squared, product, second squared; cross, slope (2, terms): what the inversely
    weighted means owe to the propensity model; meat: squared scores of that model.
    """
    q, event = len(inputs["propensity"]), _is_event(site.study)

    def terms(block: Block) -> tuple[tuple[FloatArray, ...], Weighed]:
        at = _predicted(site, block, inputs)
        weighted = at.weights * (at.y - means[0][:, None]) / shares[:, None]
        robust = at.means + at.weights * (at.y - at.means) - means[1][:, None]
        squares = np.array([[f[0] @ f[0], f[0] @ f[1], f[1] @ f[1]] for f in (weighted, robust)])
        score = at.arm - at.chance
        # A weight 1 / chance falls by (1 - chance) / chance for each unit of the linear predictor; 1 / (1 - chance) rises.
        slope = weighted * np.stack([at.chance, at.chance - 1])
        root = at.x * np.abs(score)
        own = Weighed.of(at.overlap, at.arm, at.means, block.y, event)
        return (squares, (weighted * score) @ at.x.T, slope @ at.x.T, root @ root.T), own

    squares, cross, slope, meat = np.zeros((2, 3)), np.zeros((2, q)), np.zeros((2, q)), np.zeros((q, q))
    weighed = Weighed()
    for (s, c, d, m), w in over_blocks(site, inputs["centre"], inputs["scale"], terms, with_arm=True):
        squares, cross, slope, meat, weighed = squares + s, cross + c, slope + d, meat + m, weighed + w
    return Out({"squares": squares, "cross": cross, "slope": slope, "meat": upper(meat)}, **weighed.stated(site, event))


def _is_event(study: Study) -> bool:
    return study.variables[study.outcome].type == "code"


@dataclass(frozen=True)
class CausalState:
    """phase: propensity | outcome | effect | done. propensity (q,), outcome_models (2, q): of standardised columns; free (q,):
    columns that are not of the arm. outcome (2,): centre and width of the outcome as modelled. sums: what steps released.
    """

    phase: str
    rounds: int
    names: list[str]
    free: NDArray[np.bool_]
    propensity: FloatArray
    outcome_models: FloatArray
    centre: FloatArray
    scale: FloatArray
    outcome: FloatArray
    information: FloatArray
    sums: dict[str, Any]
    sites: list[str]
    is_event: bool
    held_back: dict[str, Any]


@dataclass(frozen=True)
class Causal:
    """Settings: formula (covariates of both models; terms of the arm are left out), clip (propensities are kept between it
    and 1 - clip; 0 clips nothing), tolerance, most_rounds.
    """

    formula: str = ""
    clip: float = 0.0
    tolerance: float = 1e-10
    most_rounds: int = 30

    steps: ClassVar[tuple[Step, ...]] = (
        formula_moments, propensity_terms, arm_outcome_terms, effect_terms, overlap_counts, influence_terms,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 <= self.clip < 0.5 or self.tolerance <= 0 or self.most_rounds < 1:
            raise ValueError("clip is from 0 to below 0.5, tolerance above 0, most_rounds at least 1")

    def design(self, study: Study) -> Formula:
        return parse_formula(self.formula or default_formula(study.variables), study.variables, study.outcome)

    def _wide(self, federation: Federation, state: CausalState) -> Ranges:
        return scaled_by_range(self.design(federation.study), state.centre, state.scale)

    def start(self, study: Study) -> CausalState:
        if study.arm is None or len(study.variables[study.arm].codes or ()) != 2:
            raise StudyError(
                f"study {study.name!r}: an average effect is of two arms; give a variable `role: arm` two codes"
            )
        if study.weight:
            raise StudyError(f"study {study.name!r}: average effects are not weighted; leave {study.weight!r} out")
        columns = self.design(study).columns
        free = np.array([all(factor.variable != study.arm for factor, _ in column.parts) for column in columns])
        q, none = len(columns), np.zeros(0)
        return CausalState(
            "propensity", 0, [column.name for column in columns], free, np.zeros(q), np.zeros((2, q)), none, none,
            np.array([0.0, 1.0]), np.zeros((q, q)), {}, [], _is_event(study), {},
        )  # fmt: skip

    def advance(self, federation: Federation, state: CausalState) -> CausalState:
        if state.rounds >= 2 * self.most_rounds:
            raise FederationError(f"no convergence in {state.rounds} rounds; leave terms out of the formula")
        if not len(state.centre):
            found = scaling(federation, self.design(federation.study), exact=False)
            outcome = state.outcome if _is_event(federation.study) else np.array([found.mean, np.sqrt(found.variance)])
            state = replace(state, centre=found.centre, scale=found.scale, outcome=outcome, held_back=found.held_back)
        if state.phase == "propensity":
            return self._propensity_round(federation, state)
        if state.phase == "outcome":
            return self._outcome_round(federation, state)
        return self._effects(federation, state)

    def _propensity_round(self, federation: Federation, state: CausalState) -> CausalState:
        columns = {"centre": state.centre, "scale": state.scale}
        total = federation.sum(propensity_terms, propensity=state.propensity, **columns)
        information = symmetric(total["information"], len(state.names))
        change = self._step(state, total["score"], information)
        propensity = state.propensity + change
        if np.abs(propensity[1:]).max(initial=0.0) > 25:
            name = state.names[1 + int(np.abs(propensity[1:]).argmax())]
            if name in (wide := self._wide(federation, state)):
                raise too_wide(name, wide, "it separates the arms")
            raise FederationError(
                f"{name!r} separates the arms: some patients could not have had the other one, and nothing can be said of "
                "them; leave such patients out of the cohort, or the column out of the formula"
            )
        settled = bool(np.abs(change).max() < self.tolerance) and list(total.sites) == state.sites
        return replace(
            state, rounds=state.rounds + 1, propensity=propensity, information=information, sites=list(total.sites),
            phase="outcome" if settled else "propensity", sums={"fit": total["fit"]},
        )  # fmt: skip

    def _outcome_round(self, federation: Federation, state: CausalState) -> CausalState:
        columns = {"centre": state.centre, "scale": state.scale}
        total = federation.sum(arm_outcome_terms, outcome_models=state.outcome_models, outcome=state.outcome, **columns)
        self._same(state, total.sites)
        change = np.stack(
            [
                self._step(state, score, symmetric(triangle, len(state.names)))
                for score, triangle in zip(total["score"], total["information"], strict=True)
            ]
        )
        models = state.outcome_models + change
        if _is_event(federation.study) and np.abs(models[:, 1:]).max(initial=0.0) > 25:
            name = state.names[1 + int(np.abs(models[:, 1:]).max(0).argmax())]
            if name in (wide := self._wide(federation, state)):
                raise too_wide(name, wide, "it separates the outcome within an arm")
            raise FederationError("the outcome is separated perfectly within an arm; leave terms out of the formula")
        settled = bool(np.abs(change).max() < self.tolerance)
        return replace(state, rounds=state.rounds + 1, outcome_models=models, phase="effect" if settled else "outcome")

    def _step(self, state: CausalState, score: FloatArray, information: FloatArray) -> FloatArray:
        inside = np.ix_(state.free, state.free)
        refuse_collinear([n for n, f in zip(state.names, state.free, strict=True) if f], information[inside])
        zeros = np.zeros(int(state.free.sum()))
        change = np.zeros(len(state.names))
        change[state.free] = newton_step(zeros, score[state.free], information[inside], zeros)
        return change * min(1.0, 4.0 / max(float(np.abs(change).max()), 1e-300))

    @staticmethod
    def _same(state: CausalState, sites: Any) -> None:
        if list(sites) != state.sites:
            raise FederationError(
                f"the propensity is of {', '.join(state.sites)}, what was asked after it of {', '.join(sites)}; start a new "
                "run when all of them answer"
            )

    def _effects(self, federation: Federation, state: CausalState) -> CausalState:
        inputs = {
            "propensity": state.propensity, "outcome_models": state.outcome_models, "outcome": state.outcome,
            "centre": state.centre, "scale": state.scale,
        }  # fmt: skip
        total = federation.sum(effect_terms, **inputs)
        self._same(state, total.sites)
        rows = float(state.sums["fit"][1])
        weighted = total["weighted"]
        means = np.stack([weighted[:, 3] / weighted[:, 1], total["doubly_robust"] / rows])
        second = federation.sum(influence_terms, means=means, shares=weighted[:, 1] / rows, **inputs)
        self._same(state, second.sites)
        columns = {"propensity": state.propensity, "centre": state.centre, "scale": state.scale}
        overlap = unless_small(lambda: federation.sum(overlap_counts, **columns)["overlap"], (2, OVERLAP_BINS))
        sums = {
            **state.sums,
            "overlap": overlap,
            **{name: total[name] for name in effect_terms.releases},
            "means": means,
        }
        sums |= {name: second[name] for name in influence_terms.releases}
        return replace(state, phase="done", rounds=state.rounds + 1, sums=sums)

    def done(self, state: CausalState) -> bool:
        return state.phase == "done"

    def result(self, state: CausalState) -> Mapping[str, Any]:
        return assemble(state)
