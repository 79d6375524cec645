"""Generalised linear models by formula: the pooled fit, to rounding. Binomial, Gaussian, Poisson, gamma, negative binomial.

Sites return score and information, sums over their patients; the coordinator solves (Newton's method on the expected
information, on the observed one where alpha is estimated with the coefficients). Terms may be penalised (ridge, lasso).
A site's own intercept is solved for at the site and eliminated from its sums by Schur complement: it is never released.
Covariances: of the model, HC0, clustered by site. McCullagh and Nelder 1989, section 2.5; White 1980; Liang and
Zeger 1986; profile likelihood over sites: Murphy and van der Vaart 2000.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, StudyError
from medfed.federation.federation import Federation, TooSteep
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.design_matrix import (
    LARGE,
    SHARES,
    first_rows,
    formula_ranges,
    smallest_cell,
)
from medfed.methods.families import FAMILIES, gamma_log_likelihood, has_free_dispersion, link
from medfed.methods.glm_result import assemble, null_fit, patients_weight
from medfed.methods.glm_sums import At, accumulated, evaluated, sandwich, score_and_information
from medfed.methods.scaling import formula_moments, scaling
from medfed.methods.solve import held_back, kkt_residual, lasso_step, newton_step, refuse_singular, separated
from medfed.methods.summaries import refuse_other_sites
from medfed.methods.wide_ranges import scaled_by_range, too_wide
from medfed.study import Study
from medfed.study.design import Formula
from medfed.study.formula import default_formula, parse_formula

FloatArray = NDArray[np.float64]

LARGEST_COEFFICIENT = 50.0
_TAKES = {
    "beta": Input("terms", limit=LARGEST_COEFFICIENT, meaning="coefficients"),
    "centre": Input("terms", limit=1e12, meaning="centre"),
    "scale": Input("terms", limit=1e12, meaning="scale"),
    "outcome": Input("2", limit=1e12),
    "log_alpha": Input("", limit=15.0),
}
_TERMS = {
    "score": Sum("terms", limit_per_row=1e6),
    "information": Sum("triangle(terms)", limit_per_row=1e7),
    "fit": Sum("8", limit=1e12),
}
ALL_ROWS = len(SHARES)
_MEAT = {
    "information": Sum("triangle(terms)", limit_per_row=1e7),
    "meat": Sum("triangle(terms)", limit=1e12),
    "shape": Sum("2,terms+1", limit=1e12),
}


@step(reads="train", takes=_TAKES, releases=_TERMS, ranges=formula_ranges)
def glm_terms(site: Site, **inputs: FloatArray) -> Out:
    """Score and expected information of a generalised linear model at given coefficients, and how well it fits.

    score (terms,), information (terms (terms + 1) / 2,); fit: log-likelihood (nats), deviance, Pearson's statistic, rows,
    their weights, log weights, weighted outcomes and squares of these. With site effects the site's intercept is
    maximised over and eliminated.
    """
    return accumulated(site, inputs, shape=False)


@step(reads="train", takes={**_TAKES, "stage": Input("", limit=1)}, releases=_TERMS, ranges=formula_ranges)
def glm_start_terms(site: Site, *, stage: FloatArray, **inputs: FloatArray) -> Out:
    """As ``glm_terms``, over a random share of a large table's rows: where a fit of millions of patients begins.

    A sixteenth in stage 0, half in stage 1; all rows where the table is not large, or where a share would show a small
    count.
    """
    return accumulated(site, inputs, shape=False, view=first_rows(site, int(stage)))


@step(
    reads="train",
    takes=_TAKES,
    releases={**_TERMS, "shape": Sum("2,terms+1", limit=1e12)},
    ranges=formula_ranges,
)
def negative_binomial_terms(site: Site, **inputs: FloatArray) -> Out:
    """Score and observed information of the negative binomial model, its overdispersion alpha included.

    As ``glm_terms``; shape (2, terms + 1): information of log alpha with every coefficient and itself; its score, last.
    """
    return accumulated(site, inputs, shape=True)


@step(reads="train", takes={**_TAKES, "unit": Input("", limit=1e15)}, releases=_MEAT, ranges=formula_ranges)
def robust_terms(site: Site, **inputs: FloatArray) -> Out:
    """Sums of squared scores of patients, for standard errors that hold when the variance is misspecified (HC0).

    information: observed, triangle; meat: sum of s s' over rows, divided by ``unit``; shape (2, terms + 1): both in log
    alpha where it is estimated.
    """
    return sandwich(site, inputs, clustered=False)


@step(reads="train", takes={**_TAKES, "unit": Input("", limit=1e15)}, releases=_MEAT, ranges=formula_ranges)
def clustered_terms(site: Site, **inputs: FloatArray) -> Out:
    """The square of the site's summed score, formed at the site, for standard errors clustered by site.

    As ``robust_terms``, with (sum of s) (sum of s)' in place of the sum of squares. Under secure sums the coordinator
    sees the total over the sites, which with many sites says nothing of one; with three or four it narrows them down.
    """
    return sandwich(site, inputs, clustered=True)


@step(
    reads="train",
    takes={**_TAKES, "dispersion": Input("", limit=1e12)},
    releases={"log_likelihood": Sum(limit=1e12)},
    ranges=formula_ranges,
)
def gamma_likelihood(site: Site, **inputs: FloatArray) -> Out:
    """Log-likelihood of a gamma model at its dispersion, nats."""
    frequency = site.settings.get("weights") == "frequency"
    dispersion = float(inputs["dispersion"])

    def log_likelihood(at: At) -> float:
        return gamma_log_likelihood(at.y, at.eta, at.weight, dispersion, frequency=frequency)

    total = sum(evaluated(site, inputs, log_likelihood))
    return Out({"log_likelihood": total}, effective_patients=smallest_cell(site), effective_of=0)


@dataclass(frozen=True)
class GlmState:
    """theta (m,): coefficients of standardised columns, then log alpha where it is estimated; step (m,): the last change.

    objective: penalised log-likelihood before that change. task: which fit (all terms, none, all but one, errors).
    fits: what each finished task found. curve: objective of each round. patients: rows at the start; stage: which share
    of a large consortium's rows the next round is over; held_back: who was not counted at the start, and why.
    """

    formula: str
    outcome_name: str
    names: list[str]
    terms: list[str]
    task: int
    rounds: int
    theta: FloatArray
    step: FloatArray
    objective: float
    centre: FloatArray
    scale: FloatArray
    outcome: FloatArray
    change: float
    sites: list[str]
    fits: dict[str, Any]
    curve: list[float]
    patients: float
    stage: int
    held_back: dict[str, Any]


@dataclass(frozen=True)
class Glm:
    """A generalised linear model.

    formula: ``outcome ~ terms`` (main effects of arm and covariates where empty). family: binomial | gaussian | poisson |
    gamma | negative_binomial. alpha: overdispersion of the negative binomial, variance mu + alpha mu^2; 0: estimated.
    site_effects: an intercept for each site, known to that site only. weights: how the study's weight counts, as
    "precision" (variance is divided by it) or "frequency" (the row stands for so many patients). covariance: model |
    HC0 | site | all. likelihood_ratio: a test of every term. l1, l2: penalty l1 x sum of absolute coefficients +
    (l2 / 2) x sum of squares, of standardised numbers and of 0/1 columns as they are, intercept free.
    """

    formula: str = ""
    family: str = "binomial"
    alpha: float = 0.0
    site_effects: bool = False
    weights: str = "precision"
    covariance: str = "model"
    likelihood_ratio: bool = False
    l1: float = 0.0
    l2: float = 0.0
    tolerance: float = 1e-9
    most_rounds: int = 50

    def __post_init__(self) -> None:
        for name, value, choices in (
            ("family", self.family, FAMILIES),
            ("weights", self.weights, ("precision", "frequency")),
            ("covariance", self.covariance, ("model", "HC0", "site", "all")),
        ):
            if value not in choices:
                raise ValueError(f"{name} is {', '.join(choices[:-1])} or {choices[-1]}, not {value!r}")
        if min(self.l1, self.l2, self.alpha) < 0 or self.tolerance <= 0 or self.most_rounds < 1:
            raise ValueError("l1, l2 and alpha are 0 or more, tolerance above 0, most_rounds at least 1")
        if self.penalised and (self.covariance != "model" or self.likelihood_ratio):
            raise ValueError("a penalised fit has no robust errors and no likelihood ratio tests; set l1 and l2 to 0")
        if self.alpha and self.family != "negative_binomial":
            raise ValueError("alpha belongs to the negative binomial; remove it, or choose that family")

    @property
    def penalised(self) -> bool:
        return self.l1 > 0 or self.l2 > 0

    @property
    def estimates_alpha(self) -> bool:
        return self.family == "negative_binomial" and self.alpha == 0

    @property
    def steps(self) -> tuple[Step, ...]:
        found = [formula_moments, glm_terms, glm_start_terms]
        if self.estimates_alpha:
            found[1:] = [negative_binomial_terms]
        if self.covariance in ("HC0", "all"):
            found.append(robust_terms)
        if self.covariance in ("site", "all"):
            found.append(clustered_terms)
        return (*found, gamma_likelihood) if self.family == "gamma" else tuple(found)

    def design(self, study: Study) -> Formula:
        """The parsed formula, as every site has it."""
        return parse_formula(self.formula or default_formula(study.variables), study.variables, study.outcome)

    def tasks(self, terms: Sequence[str]) -> list[tuple[str, NDArray[np.bool_]]]:
        """(name, which of theta are free): the fit, the one without terms, one without each term; "errors" ends."""
        named = np.array(terms)
        free = np.ones(len(terms) + self.estimates_alpha, dtype=bool)
        free[0] = not self.site_effects
        found = [("all", free)]
        if not self.penalised:
            dropped = [("null", named != "intercept")]
            if self.likelihood_ratio:
                dropped += [(f"without {term}", named == term) for term in dict.fromkeys(terms) if term != "intercept"]
            for name, gone in dropped:
                mask = free.copy()
                mask[: len(terms)] &= ~gone
                found.append((name, mask))
        return [*found, ("errors", free)]

    def start(self, study: Study) -> GlmState:
        formula = self.design(study)
        coded = study.variables[study.outcome].type == "code"
        if coded != (self.family == "binomial"):
            raise StudyError(
                f"study {study.name!r}: family {self.family!r} needs an outcome of type "
                f"{'code' if self.family == 'binomial' else 'number'}, and {study.outcome!r} is a "
                f"{study.variables[study.outcome].type}; choose another family"
            )
        m = len(formula.columns) + self.estimates_alpha
        zeros, none = np.zeros(m), np.zeros(0)
        return GlmState(
            formula.text, study.outcome, list(formula.names), [column.term for column in formula.columns], 0, 0, zeros, zeros,
            -1e300, none, none, np.zeros(2), 1e300, [], {}, [], 0.0, ALL_ROWS, {},
        )  # fmt: skip

    def advance(self, federation: Federation, state: GlmState) -> GlmState:
        if not len(state.centre):
            state = self._begin(federation, state)
        name, free = self.tasks(state.terms)[state.task]
        if name == "errors":
            return replace(state, task=state.task + 1, fits={**state.fits, "errors": self._errors(federation, state)})
        return self._round(federation, state, name, free)

    def _begin(self, federation: Federation, state: GlmState) -> GlmState:
        found = scaling(federation, self.design(federation.study), exact=self.penalised)
        theta, outcome = np.zeros(len(state.theta)), np.array([0.0, 1.0])
        if self.family == "gaussian":
            if not found.variance > 0:
                low, high = federation.study.variables[state.outcome_name].range or (0.0, 1.0)
                raise FederationError(
                    f"the outcome has the same value for every patient, or values too close together beside its declared range, "
                    f"{low:g} to {high:g}; narrow the range in the study to what the values can be, else nothing can explain it"
                )
            outcome = np.array([found.mean, np.sqrt(found.variance)])
        else:
            if not found.mean > 0 or (self.family == "binomial" and not found.mean < 1):
                raise FederationError("every patient has the same outcome (no event, or nothing but events)")
            if not self.site_effects:
                theta[0] = link(self.family, found.mean) - found.offset
        if self.estimates_alpha:
            theta[-1] = np.log(np.clip((found.variance - found.mean) / found.mean**2, 0.05, 20.0))
        large = found.rows >= LARGE * found.sites and not self.estimates_alpha
        return replace(
            state, theta=theta, centre=found.centre, scale=found.scale, outcome=outcome, patients=found.rows, stage=0 if large else ALL_ROWS,
            held_back=found.held_back,
        )  # fmt: skip

    def _inputs(self, state: GlmState, theta: FloatArray) -> dict[str, Any]:
        log_alpha = theta[-1] if self.estimates_alpha else np.log(self.alpha or 1.0)
        beta = theta[: len(state.centre)]
        return {
            "beta": beta,
            "centre": state.centre,
            "scale": state.scale,
            "outcome": state.outcome,
            "log_alpha": log_alpha,
        }

    def _round(self, federation: Federation, state: GlmState, name: str, free: NDArray[np.bool_]) -> GlmState:
        q, theta, curved = len(state.names), state.theta, self.family != "gaussian"
        wide = scaled_by_range(self.design(federation.study), state.centre, state.scale)
        try:
            if sampled := state.stage < ALL_ROWS:
                total = federation.sum(glm_start_terms, stage=state.stage, **self._inputs(state, theta))
            else:
                total = federation.sum(self.steps[1], **self._inputs(state, theta))
        except FederationError as problem:
            # Where an outcome is separated the sums come to rest on a few patients, and sites hold them back.
            far = np.abs(theta[1:q]).max(initial=0.0) > 3 and state.change > 0.3
            if curved and far and held_back(problem):
                raise separated(state.names, theta, wide) from None
            steepest = int(np.abs(theta[:q]).argmax())
            if abs(theta[steepest]) > LARGEST_COEFFICIENT and state.names[steepest] in wide:
                raise too_wide(state.names[steepest], wide, "it follows the outcome exactly") from None
            if curved and isinstance(problem, TooSteep) and np.abs(theta[1:q]).max(initial=0.0) > 8:
                raise separated(state.names, theta, wide) from None
            raise
        share = state.patients / float(total["fit"][3]) if sampled else 1.0
        score, information = (share * found for found in score_and_information(total.values, len(theta)))
        penalty = np.where((np.arange(len(theta)) > 0) & (np.arange(len(theta)) < q), 1.0, 0.0)
        l1, l2 = self.l1 * penalty, self.l2 * penalty
        objective = float(share * total["fit"][0] - l1 @ np.abs(theta) - 0.5 * l2 @ (theta * theta))
        sites, steady = list(total.sites), list(total.sites) == list(state.sites)
        state = replace(state, rounds=state.rounds + 1, sites=sites, curve=[*state.curve, objective])
        if steady and objective < state.objective - 1e-9 * (abs(state.objective) + 1.0):
            half = 0.5 * state.step
            return self._limited(replace(state, theta=theta - half, step=half, change=float(np.abs(half).max())))
        inside, kkt = np.ix_(free, free), 0.0
        change = np.zeros(len(theta))
        if self.l1:
            kkt = kkt_residual(theta[free], score[free], l1[free], l2[free])
            settled = kkt < 1e-9 * max(self.l1, 1.0)
            if not settled:
                change[free] = lasso_step(theta[free], score[free], information[inside], l1[free], l2[free])
        else:
            refuse_singular(state.names, theta, information + np.diag(l2), free, wide, curved=curved)
            change[free] = newton_step(
                theta[free], score[free], information[inside], l2[free], shape=self.estimates_alpha
            )
            if curved:  # far from the maximum a full step may leave everything that a site accepts
                change *= min(1.0, 4.0 / max(float(np.abs(change).max()), 1e-300))
            settled = self._is_settled(float(np.abs(change).max()), state.change)
        new = theta + change
        if sampled and np.abs(change).max() < (0.1 if state.stage else 1e-2):
            return self._limited(replace(state, theta=new, objective=-1e300, stage=state.stage + 1))
        if curved and np.abs(new[1:q]).max(initial=0.0) > 25:
            raise separated(state.names, new, wide)
        if self.estimates_alpha and new[q] < -14:
            raise FederationError("the counts are not overdispersed, alpha goes to 0; choose the family poisson")
        if not settled or not (steady or not curved or not change.any()):
            size = float(np.abs(change).max())
            return self._limited(replace(state, theta=new, step=change, objective=objective, change=size))
        found = {"theta": new, "information": information, "fit": total["fit"], "kkt": kkt}
        fits = {**state.fits, name: {**found, "rounds": state.rounds, "sites": sites}}
        refuse_other_sites(fits["all"]["sites"], sites)
        if name == "all" and (null := null_fit(self, state.formula, total["fit"])) is not None:
            fits["null"] = null
        tasks, task = self.tasks(state.terms), state.task + 1
        while tasks[task][0] in fits:
            task += 1
        return replace(
            state, task=task, rounds=0, theta=np.where(tasks[task][1], fits["all"]["theta"], 0.0), step=np.zeros(len(new)),
            objective=-1e300, change=1e300, fits=fits,
        )  # fmt: skip

    def _is_settled(self, change: float, before: float) -> bool:
        """Whether the information, of the coefficients before this change, and the coefficients after it are final.

        What is left after it shrinks as the changes do: squared in canonical models, by a constant share in others.
        """
        share = min(change / before, 0.9)
        return change < self.tolerance and change * share / (1 - share) < 1e-3 * self.tolerance

    def _limited(self, state: GlmState) -> GlmState:
        if state.rounds >= self.most_rounds:
            raise FederationError(
                f"no convergence in {state.rounds} rounds (last change {state.change:.2g}, tolerance {self.tolerance:.2g}); "
                "sites that come and go, or near-separation, keep it moving: raise most_rounds or set an l2 penalty"
            )
        return state

    def _errors(self, federation: Federation, state: GlmState) -> dict[str, Any]:
        """What needs the final coefficients: sandwiches, and the gamma model's likelihood."""
        fit = state.fits["all"]
        # Pearson's statistic of a standardised outcome; the ring's rounding alone leaves 1e-12 or so a patient.
        if has_free_dispersion(self.family) and fit["fit"][2] < 1e-10 * fit["fit"][3]:
            raise FederationError(
                "the columns give the outcome of every patient without error, so that nothing is left for standard errors; "
                "leave out the column from which the outcome was worked out"
            )
        inputs = self._inputs(state, fit["theta"])
        found: dict[str, Any] = {}
        spread = float(fit["fit"][2] / fit["fit"][3]) if has_free_dispersion(self.family) else 1.0
        for kind, asked in (("HC0", robust_terms), ("site", clustered_terms)):
            if asked not in self.steps:
                continue
            unit = spread * max(1.0, 1e-6 * float(fit["fit"][3]))
            total = federation.sum(asked, unit=unit, **inputs)
            found[kind] = {name: total[name] for name in ("information", "meat", "shape")}
            refuse_other_sites(fit["sites"], total.sites)
            if kind == "site" and len(total.sites) < 2:
                raise FederationError("errors clustered by site need at least two sites; use HC0")
            found[kind]["unit"] = unit
        if self.family == "gamma" and not self.penalised:
            freedom = patients_weight(self, fit["fit"]) - len(state.names) + self.site_effects * (1 - len(fit["sites"]))
            total = federation.sum(gamma_likelihood, dispersion=float(fit["fit"][2]) / freedom, **inputs)
            refuse_other_sites(fit["sites"], total.sites)
            found["log_likelihood"] = float(total["log_likelihood"])
        return found

    def done(self, state: GlmState) -> bool:
        return "errors" in state.fits

    def result(self, state: GlmState) -> Mapping[str, Any]:
        return assemble(self, state)
