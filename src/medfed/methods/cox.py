"""Site-stratified Cox regression, exact: every site has a baseline hazard of its own, and hazard ratios are shared.

Risk sets never reach across sites, so score and information are sums over sites and the fit is the pooled stratified
fit, to rounding (Cox 1972; stratified: Kalbfleisch and Prentice 2002, section 4.4). No time leaves a site and no grid is
needed. A site without events adds nothing, and takes nothing away. One hazard for all sites: ``unstratified_cox``.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError, StudyError
from medfed.federation.call import Failure
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Input, Out, Reply, Step, Sum, step
from medfed.methods.concordance import c_index, count_pairs
from medfed.methods.likelihood import Ascent, at_zero, climb
from medfed.methods.newton import symmetric, upper
from medfed.methods.proportional_hazards import TRANSFORMS, marks_of, proportionality_test
from medfed.methods.risk_sets import TIES, PartialLikelihood, RiskOrder, partial_likelihood, proportionality_terms
from medfed.methods.standardise import CENTRE, SCALE, centre_and_scale, moments, standardised
from medfed.methods.time_grid import declared_intervals, merged_cuts, on_cuts
from medfed.methods.weights import effective_patients
from medfed.study import Study

FloatArray = NDArray[np.float64]

COEFFICIENTS = Input("p", limit=20.0, meaning="coefficients")
TAKES = {"beta": COEFFICIENTS, "centre": CENTRE, "scale": SCALE}
_SCORE, _INFORMATION = Sum("slopes", limit_per_row=200), Sum("triangle(slopes)", limit_per_row=4e4)


def slopes_of(site: Site, centre: FloatArray, scale: FloatArray) -> FloatArray:
    """Standardised features without the intercept, which a hazard ratio does not have: (n, slopes)."""
    x, _ = standardised(site, centre, scale)
    return x[:, 1:]


def with_intercept(beta: FloatArray) -> FloatArray:
    """Coefficients (slopes,) with a 0 before them: as features and their scaling are laid out, (p,)."""
    return np.concatenate([[0.0], beta])


def risk_patients(x: FloatArray, beta: FloatArray) -> float:
    """How many patients the weights exp(x beta) rest on; a steep beta lets few of them speak."""
    eta = x @ beta
    return float(effective_patients(np.exp(eta - eta.max(initial=0.0))))


def unit_of_pairs(study: Study) -> float:
    """Squares of pairs are summed in squares of this many pairs, so that they fit into the ring of exact sums."""
    return max(study.rows_at_most / 1000.0, 1.0)


def pair_sums(site: Site, score: FloatArray) -> dict[str, FloatArray]:
    """Releases ``PAIRS``: comparable pairs within the site, exactly."""
    times, event = site.table.arrays("time", "event")
    pairs = count_pairs(times, event, score)
    return {"pairs": pairs.totals, "pair_squares": pairs.squares(unit_of_pairs(site.study))}


PAIRS = {"pairs": Sum("3", limit_per_row=1e6), "pair_squares": Sum("3", limit_per_row=4e6)}


def _in_order(site: Site, centre: FloatArray, scale: FloatArray) -> tuple[FloatArray, RiskOrder]:
    """Standardised slopes (n, slopes) by ascending time, and the risk sets."""

    def compute() -> tuple[FloatArray, RiskOrder]:
        times, event = site.table.arrays("time", "event")
        order = RiskOrder.of(times, event)
        return np.ascontiguousarray(slopes_of(site, centre, scale)[order.order]), order

    return site.memo("in order of time", {"centre": centre, "scale": scale}, compute)


@step(
    reads="train",
    releases={"events": Count(), "censored": Count(zero_is_small=False), "follow_up": Sum(limit_per_row=1)},
)
def follow_up_counts(site: Site) -> Out:
    """Patients with the event, patients without it, and their follow-up in units of the grid's whole length."""
    times, event = site.table.arrays("time", "event")
    last = site.study.variables[site.study.time or ""].last_time
    return Out({"events": event.sum(), "censored": (1.0 - event).sum(), "follow_up": (times / last).sum()})


@step(
    reads="train",
    takes=TAKES,
    releases={"score": _SCORE, "information": _INFORMATION, "log_likelihood": Sum(limit_per_row=1000)},
)
def cox_terms(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Score, information and log partial likelihood of a Cox model whose risk sets are this site's own patients."""
    x, order = _in_order(site, centre, scale)
    terms: PartialLikelihood = partial_likelihood(x, beta[1:], order, site.settings["ties"])
    return Out(
        {"score": terms.score, "information": upper(terms.information), "log_likelihood": terms.log_likelihood},
        effective_patients=risk_patients(x, beta[1:]),
    )


@step(
    reads="train",
    takes=TAKES,
    releases={
        "score": _SCORE,
        "crossed": Sum("triangle(slopes)", limit_per_row=8e4),
        "own": Sum("triangle(slopes)", limit_per_row=1.6e5),
        "residuals": _SCORE,
        "marks": Sum("3", limit_per_row=4),
        **PAIRS,
    },
)
def cox_checks(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Sums for the test of proportional hazards, and pairs of this site's patients that the model orders rightly.

    The site's own baseline hazard is written here for its people: times (K,), and the cumulative hazard (K,) of a patient
    at the mean of every numeric feature and the reference of every coded one.
    """
    x, order = _in_order(site, centre, scale)
    ties = site.settings["ties"]
    marks = marks_of(site.study, order.times, site.settings["transform"])
    test = proportionality_terms(x, beta[1:], order, ties, marks)
    hazard = partial_likelihood(x, beta[1:], order, ties).hazard
    return Out(
        {
            "score": test.score,
            "crossed": upper(test.crossed),
            "own": upper(test.own),
            "residuals": test.residuals,
            "marks": test.marks,
            **pair_sums(site, slopes_of(site, centre, scale) @ beta[1:]),
        },
        local={"time": order.times, "cumulative_hazard": np.cumsum(hazard)},
        effective_patients=risk_patients(x, beta[1:]),
    )


@step(reads="train", takes=TAKES, releases={"site_baseline": Reply("times", limit=1e9, site_terms=True)})
def baseline_here(site: Site, *, beta: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """This site's own baseline: its cumulative hazard on the time grid, stepping only where enough events allow it.

    Declared intervals are merged until each has the site's minimum of events; the last ones join the cell before.
    """
    x, order = _in_order(site, centre, scale)
    count = int(site.sizes["times"])
    (event,) = site.table.arrays("event")
    interval = declared_intervals(site)
    hazard = np.zeros(count)
    own = partial_likelihood(x, beta[1:], order, site.settings["ties"]).hazard
    np.add.at(hazard, interval[order.order[order.events[order.starts]]], own)
    events = np.bincount(interval, weights=event, minlength=count).astype(np.float64)
    cuts = merged_cuts(events[:, None], np.array([float(site.minimum_cell)]))
    stepped = np.zeros(count)
    if cuts is not None:
        stepped[cuts - 1] = on_cuts(hazard, cuts)
    return Out({"site_baseline": np.cumsum(stepped)}, effective_patients=risk_patients(x, beta[1:]))


@dataclass(frozen=True)
class CoxState:
    """fit: an ``Ascent``, coefficients standardised; information (slopes, slopes) at the point before the last step.

    opening: the likelihood at 0 and the counts, of the sites in ``counted_first``; checks: what the last round adds.
    """

    fit: dict[str, Any]
    information: FloatArray
    centre: FloatArray
    scale: FloatArray
    opening: dict[str, Any]
    checks: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    curve: list[float]
    settled: bool
    finished: bool


@dataclass(frozen=True)
class Cox:
    """Settings: ties (efron | breslow), tolerance (largest change, in standard deviations), most_rounds, transform (of
    time in the test of proportional hazards: identity | log), baseline_by_site (asked where policies show it).
    """

    ties: str = "efron"
    tolerance: float = 1e-10
    most_rounds: int = 30
    transform: str = "identity"
    baseline_by_site: bool = False

    @property
    def steps(self) -> tuple[Step, ...]:
        asked = (moments, follow_up_counts, cox_terms, cox_checks)
        return (*asked, baseline_here) if self.baseline_by_site else asked

    def __post_init__(self) -> None:
        check_settings(self.ties, self.transform, self.tolerance, self.most_rounds, TRANSFORMS)

    def start(self, study: Study) -> CoxState:
        q = slopes_in(study)
        p = q + 1
        return CoxState(
            asdict(at_zero(q)), np.zeros((q, q)), np.zeros(p), np.ones(p), {}, {}, [], {}, [], False, False
        )  # fmt: skip

    def advance(self, federation: Federation, state: CoxState) -> CoxState:
        if not state.sites:
            state = replace(state, **opened(federation))
        federation = federation.roster(state.sites)
        if state.settled:
            return self._checked(federation, state)
        fit = Ascent(**state.fit)
        if fit.rounds >= self.most_rounds:
            raise no_convergence(fit, self.tolerance)
        total = federation.sum(cox_terms, beta=with_intercept(fit.beta), centre=state.centre, scale=state.scale)
        information = symmetric(total["information"], len(fit.beta))
        log_likelihood, sites = float(total["log_likelihood"]), list(total.sites)
        same = sites == list(state.sites)
        names = federation.study.design.names[1:]
        ahead = climb(fit, total["score"], information, log_likelihood, names, same=same)
        opening = state.opening if fit.rounds else {**state.opening, "null": log_likelihood, "null_sites": sites}
        return replace(
            state,
            fit=asdict(ahead),
            information=information,
            opening=opening,
            sites=sites,
            curve=[*state.curve, log_likelihood],
            settled=bool(ahead.halvings == 0 and ahead.change < self.tolerance and same),
        )

    def _checked(self, federation: Federation, state: CoxState) -> CoxState:
        """The last round: the checks, and anew what the opening said if fewer sites are counted now than then."""
        fit, q = Ascent(**state.fit), len(state.information)
        inputs: dict[str, Any] = {"beta": with_intercept(fit.beta), "centre": state.centre, "scale": state.scale}
        total = federation.sum(cox_checks, **inputs)
        if list(total.sites) != list(state.sites):
            return replace(state, sites=list(total.sites), settled=False)
        opening = dict(state.opening)
        if list(opening["null_sites"]) != list(state.sites):
            nothing = federation.sum(cox_terms, **{**inputs, "beta": np.zeros(q + 1)})
            opening |= {"null": float(nothing["log_likelihood"]), "null_sites": list(nothing.sites)}
        if list(opening["counted_first"]) != list(state.sites):
            opening |= counted(federation)
        if list(opening["null_sites"]) != list(state.sites) or list(opening["counted_first"]) != list(state.sites):
            return replace(state, sites=[s for s in state.sites if s in opening["null_sites"]], settled=False)
        checks: dict[str, Any] = {
            "proportionality": proportionality_test(
                federation.study, self.transform, state.information, total["score"], symmetric(total["crossed"], q),
                symmetric(total["own"], q), total["residuals"], total["marks"],
            ),
            "concordance": asdict(c_index(total["pairs"], total["pair_squares"], unit_of_pairs(federation.study))),
        }  # fmt: skip
        if self.baseline_by_site:
            replies = federation.gather(baseline_here, **inputs)
            checks["baselines"] = {s: r["site_baseline"] for s, r in replies.items() if not isinstance(r, Failure)}
        return replace(state, opening=opening, checks=checks, finished=True)

    def done(self, state: CoxState) -> bool:
        return bool(state.finished)

    def result(self, state: CoxState) -> Mapping[str, Any]:
        fit = Ascent(**state.fit)
        coefficients, covariance = in_units(fit.beta, np.asarray(np.linalg.inv(state.information)), state.scale)
        return {
            "model": "cox",
            "strata": "site",
            "ties": self.ties,
            "coefficients": coefficients,
            "covariance": covariance,
            "log_likelihood": fit.log_likelihood,
            "null_log_likelihood": float(state.opening["null"]),
            **{name: float(state.opening[name]) for name in ("events", "patients", "follow_up")},
            **{name: value for name, value in state.checks.items()},
            "centre": state.centre,
            "scale": state.scale,
            "rounds": fit.rounds,
            "curve": list(state.curve),
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
        }


def slopes_in(study: Study) -> int:
    """How many coefficients a model of this study has. StudyError where it is no survival study, or has no covariate."""
    if study.time is None:
        raise StudyError(f"study {study.name!r}: times to an event are asked for; write `task: {{kind: survival}}`")
    if len(study.design.columns) < 2:
        raise StudyError(
            f"study {study.name!r}: a model needs a variable with `role: covariate` or `role: arm`; add one"
        )
    return len(study.design.columns) - 1


def check_settings(ties: str, transform: str, tolerance: float, most_rounds: int, transforms: tuple[str, ...]) -> None:
    """ValueError for settings that a Cox model does not have."""
    if ties not in TIES:
        raise ValueError(f"ties is {' or '.join(map(repr, TIES))}, not {ties!r}")
    if transform not in transforms:
        raise ValueError(f"transform is {' or '.join(map(repr, transforms))}, not {transform!r}")
    if tolerance <= 0 or most_rounds < 1:
        raise ValueError("tolerance is above 0, most_rounds at least 1")


def no_convergence(fit: Ascent, tolerance: float) -> FederationError:
    return FederationError(
        f"no convergence in {fit.rounds} rounds (last change {fit.change:.2g}, tolerance {tolerance:.2g}); sites that come "
        "and go keep it moving: raise most_rounds, or wait until they all answer"
    )


def counted(federation: Federation) -> dict[str, Any]:
    """Events, patients and follow-up (in the time's unit) of the federation's sites. FederationError without events,
    or with fewer than there are coefficients.
    """
    study = federation.study
    total = federation.sum(follow_up_counts)
    events, q = float(total["events"]), slopes_in(study)
    if not events > 0:
        raise FederationError("no patient who was counted has the event; a hazard can't be compared without one")
    if events < q:
        raise FederationError(
            f"there are fewer patients with the event than the {q} coefficients of the model; leave features out, or "
            "invite more sites"
        )
    last = study.variables[study.time or ""].last_time
    return {
        "events": events,
        "patients": events + float(total["censored"]),
        "follow_up": float(total["follow_up"]) * last,
        "counted_first": list(total.sites),
    }


def opened(federation: Federation) -> dict[str, Any]:
    """What a fit's state begins with: scaling, counts and sites.

    Whoever is not counted in the first call is not asked again, so that all rounds are of one set of patients.
    """
    first = federation.sum(moments)
    centre, scale = centre_and_scale(federation.study, first["sums"], first["squares"], first["known"])
    opening = counted(federation.roster(first.sites))
    held = {site: {"kind": f.kind, "reason": f.reason} for site, f in first.failures.items()}
    return {
        "centre": centre,
        "scale": scale,
        "opening": opening,
        "sites": list(opening["counted_first"]),
        "held_back": held,
    }


def in_units(beta: FloatArray, covariance: FloatArray, scale: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coefficients (slopes,) and covariance (slopes, slopes) per unit of each feature, not per standard deviation."""
    per = 1.0 / np.asarray(scale)[1:]
    return beta * per, covariance * per[:, None] * per
