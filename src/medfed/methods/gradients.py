"""FedSGD and gradient aggregation: sites send gradients, the coordinator takes the step.

FedSGD (McMahan et al. 2017, section 2): each round a sample of sites takes the gradient of one mini-batch, and the
coordinator steps along their mean. Gradient aggregation: every site's full gradient, and an optimiser at the
coordinator (plain, momentum, or Adam: Kingma and Ba 2015).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site, Sites
from medfed.federation.step import Out, Step, Sum, step
from medfed.methods.descent import information_weights, mean_response, ordinary_of, penalty_weights
from medfed.methods.fedavg import MODEL, check_descent_settings, initial_model
from medfed.methods.standardise import CENTRE, SCALE, moments, standardise, standardised, standardised_stack
from medfed.methods.weights import effective_patients
from medfed.study import Study

FloatArray = NDArray[np.float64]
_RELEASES = {"gradient": Sum("p", limit_per_row=1000), "rows": Sum(limit_per_row=1)}
_TAKES = {"model": MODEL, "centre": CENTRE, "scale": SCALE}


def _summed(x: FloatArray, y: FloatArray, model: FloatArray, family: str, patients: int) -> Out:
    """Over some of a site's rows; patients: of the site, for which these rows stand."""
    eta, rows = x @ model, float(len(y))
    residual, weights = mean_response(eta, family) - y, information_weights(eta, family)
    ordinary = ordinary_of(eta, y, family)
    return Out(
        {"gradient": residual @ x, "rows": rows},
        effective_patients=float(min(effective_patients(np.abs(residual)), effective_patients(weights))),
        ordinary_patients=None if ordinary is None else ordinary * (patients / rows),
    )


@step(takes=_TAKES, releases=_RELEASES)
def full_gradient(site: Site, *, model: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Gradient of the loss summed over the site's training rows, (p,), and rows."""
    x, y = standardised(site, centre, scale)
    return _summed(x, y, model, site.settings["family"], site.table.patients)


@full_gradient.batched
def _(sites: Sites, *, model: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    x, y = standardised_stack(sites, centre, scale)
    eta, family = x @ model, sites.settings["family"]
    residual = (mean_response(eta, family) - y) * sites.mask
    gradient = (residual[:, None] @ x)[:, 0]
    return Out(
        {"gradient": gradient, "rows": sites.rows.astype(np.float64)},
        effective_patients=np.minimum(
            effective_patients(np.abs(residual)),
            effective_patients(information_weights(eta, family) * sites.mask),
        ),
        ordinary_patients=ordinary_of(eta, y, family, sites.mask),
    )


@step(takes=_TAKES, releases=_RELEASES)
def batch_gradient(site: Site, *, model: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """The same over one mini-batch, drawn for this call. Its size is never below the site's minimum cell."""
    x, y = standardised(site, centre, scale)
    size = max(site.settings["batch"], site.minimum_cell)
    if size < len(y):
        # Which rows is drawn from the site's own secret: known subsets could be subtracted down to single rows.
        rows = np.sort(site.private_rng.choice(len(y), size, replace=False))
        x, y = x[rows], y[rows]
    return _summed(x, y, model, site.settings["family"], site.table.patients)


@dataclass(frozen=True)
class GradientState:
    """model, centre, scale (p,); first and second: the optimiser's moments (p,)."""

    model: FloatArray
    centre: FloatArray
    scale: FloatArray
    first: FloatArray
    second: FloatArray
    rounds: int
    change: list[float]
    sites: list[str]


def _start(study: Study, initial: float) -> GradientState:
    zeros = np.zeros(len(study.design.columns))
    return GradientState(initial_model(study, initial), zeros, np.ones(len(zeros)), zeros, zeros, 0, [], [])


def _result(state: GradientState) -> Mapping[str, Any]:
    return {
        "coefficients": state.model,
        "centre": state.centre,
        "scale": state.scale,
        "rounds": state.rounds,
        "change": list(state.change),
        "sites": list(state.sites),
    }


@dataclass(frozen=True)
class FedSGD:
    """Settings: rounds, rate, batch (rows a site and round), participation, l2, family, initial."""

    rounds: int = 200
    rate: float = 0.5
    batch: int = 64
    participation: float = 1.0
    l2: float = 0.0
    family: str = "logistic"
    initial: float = 0.0

    steps: ClassVar[tuple[Step, ...]] = (moments, batch_gradient)

    def __post_init__(self) -> None:
        check_descent_settings(self)

    def start(self, study: Study) -> GradientState:
        return _start(study, self.initial)

    def advance(self, federation: Federation, state: GradientState) -> GradientState:
        centre, scale = (state.centre, state.scale) if state.rounds else standardise(federation)
        chosen = federation.sample(self.participation)
        total = chosen.sum(batch_gradient, model=state.model, centre=centre, scale=scale)
        ridge = penalty_weights(len(state.model), self.l2)
        step_ = -self.rate * (total["gradient"] / total["rows"] + ridge * state.model)
        return GradientState(
            state.model + step_, centre, scale, state.first, state.second, state.rounds + 1,
            [*state.change, float(np.linalg.norm(step_))], list(total.sites),
        )  # fmt: skip

    def done(self, state: GradientState) -> bool:
        return state.rounds >= self.rounds

    def result(self, state: GradientState) -> Mapping[str, Any]:
        return _result(state)


@dataclass(frozen=True)
class GradientAggregation:
    """Settings: optimiser (plain | momentum | adam), rounds, rate, tolerance (largest gradient entry), l2, family, initial."""

    optimiser: str = "momentum"
    rounds: int = 500
    rate: float = 0.5
    momentum: float = 0.9
    tolerance: float = 1e-6
    l2: float = 0.0
    family: str = "logistic"
    initial: float = 0.0

    steps: ClassVar[tuple[Step, ...]] = (moments, full_gradient)

    def __post_init__(self) -> None:
        check_descent_settings(self)
        if self.optimiser not in ("plain", "momentum", "adam"):
            raise ValueError(f"optimiser is 'plain', 'momentum' or 'adam', not {self.optimiser!r}")

    def start(self, study: Study) -> GradientState:
        return _start(study, self.initial)

    def advance(self, federation: Federation, state: GradientState) -> GradientState:
        centre, scale = (state.centre, state.scale) if state.rounds else standardise(federation)
        total = federation.sum(full_gradient, model=state.model, centre=centre, scale=scale)
        ridge = penalty_weights(len(state.model), self.l2)
        gradient = total["gradient"] / total["rows"] + ridge * state.model
        first, second, rounds = state.first, state.second, state.rounds + 1
        if self.optimiser == "plain":
            step_ = -self.rate * gradient
        elif self.optimiser == "momentum":
            first = self.momentum * first + gradient
            step_ = -self.rate * (1 - self.momentum) * first
        else:
            first = 0.9 * first + 0.1 * gradient
            second = 0.999 * second + 0.001 * gradient * gradient
            step_ = -self.rate * (first / (1 - 0.9**rounds)) / (np.sqrt(second / (1 - 0.999**rounds)) + 1e-8)
        return GradientState(
            state.model + step_, centre, scale, first, second, rounds,
            [*state.change, float(np.abs(gradient).max())], list(total.sites),
        )  # fmt: skip

    def done(self, state: GradientState) -> bool:
        return state.rounds >= self.rounds or (bool(state.change) and state.change[-1] < self.tolerance)

    def result(self, state: GradientState) -> Mapping[str, Any]:
        return _result(state)
