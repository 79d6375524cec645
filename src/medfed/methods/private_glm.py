"""Generalised linear models under differential privacy: noisy full-batch gradients of patients' clipped scores.

Each round the sites sum the score of every patient, x (y - mean), cut at an L2 norm, and add noise; the coordinator takes a
step of gradient descent with momentum (Abadi et al. 2016, without sampling unless asked for; Song, Chaudhuri and
Sarwate 2013). Features are put on the ranges that the study declares, which costs nothing; how many patients there are
is a noisy count of its own. No losses are released. Standard errors are not given: they would have to be paid for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.gate import declared_ranges
from medfed.federation.site import Site
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.newton import sigmoid
from medfed.privacy.plan import ExpectedError, Planned, descent_deviation
from medfed.study import Study

FloatArray = NDArray[np.float64]
FAMILIES = ("logistic", "gaussian", "poisson")

COEFFICIENTS = Input("p", limit=50.0)
COUNT_ERROR = "the number of patients"
COEFFICIENT_ERROR = "a coefficient on the declared range (from its middle to an end), at most"


def range_scaling(study: Study) -> tuple[FloatArray, FloatArray]:
    """Centre and scale (p,) that put every declared range on -1 to 1; intercept and indicators stay as they are."""
    low, high, numeric = declared_ranges(study)
    return np.where(numeric, (low + high) / 2, 0.0), np.where(numeric, (high - low) / 2, 1.0)


def outcome_scaling(study: Study) -> tuple[float, float]:
    """Centre and scale of a numeric outcome, from its declared range; 0 and 1 for an event."""
    variable = study.variables[study.outcome]
    if variable.type != "number" or variable.range is None:
        return 0.0, 1.0
    low, high = variable.range
    return (low + high) / 2, (high - low) / 2


def on_ranges(site: Site) -> tuple[FloatArray, FloatArray]:
    """Features (n, p) on the declared ranges, values held to them, missing in the middle (0); and the outcome (n,).

    A gaussian outcome is on its range as well, a count stays as it is.
    """

    def compute() -> FloatArray:
        (features,) = site.table.arrays("features")
        centre, scale = range_scaling(site.study)
        x = np.clip((features - centre) / scale, -1.0, 1.0)
        x[np.isnan(features)] = 0.0
        x.setflags(write=False)
        return x

    x = site.memo("on ranges", {}, compute)
    (y,) = site.table.arrays("outcome")
    if site.settings["family"] == "gaussian":
        centre, scale = outcome_scaling(site.study)
        y = np.clip((y - centre) / scale, -1.0, 1.0)
    return x, y


def mean_at(eta: FloatArray, family: str) -> FloatArray:
    """Mean of the outcome at a linear predictor: logit, identity or log link. exp is held at e^10."""
    if family == "logistic":
        return sigmoid(eta)
    return np.asarray(np.exp(np.minimum(eta, 10.0)) if family == "poisson" else eta)


def score_rows(x: FloatArray, y: FloatArray, model: FloatArray, family: str, clipping_norm: float) -> FloatArray:
    """Gradient of the negative log-likelihood, a row each (n, p), in units of the clipping norm."""
    return np.asarray((mean_at(x @ model, family) - y)[:, None] * x / clipping_norm)


@step(takes={}, releases={"patients": Sum(unit_bound=1.0)})
def patient_count(site: Site) -> Out:
    """How many patients there are, with noise."""
    # A patient with many rows counts once: the sum over the rows is cut at 1.
    return Out({"patients": np.ones(site.table.rows)})


@step(takes={"model": COEFFICIENTS}, releases={"gradient": Sum("p", unit_bound=1.0)})
def clipped_gradient(site: Site, *, model: FloatArray) -> Out:
    """Gradient of the loss (p,) summed over patients, each one's share cut at the clipping norm, with noise."""
    x, y = on_ranges(site)
    settings = site.settings
    return Out({"gradient": score_rows(x, y, model, settings["family"], settings["clipping_norm"])})


@dataclass(frozen=True)
class PrivateGLMState:
    """model: (p,) where it stands; velocity: (p,); average: (p,) of the models of the last rounds; patients: noisy.

    centre, scale: (p,) of the features, from their declared ranges; outcome: (2,) the same of a gaussian outcome.
    """

    centre: FloatArray
    scale: FloatArray
    outcome: FloatArray
    model: FloatArray
    velocity: FloatArray
    average: FloatArray
    averaged: int
    patients: float
    rounds: int
    sites: list[str]


@dataclass(frozen=True)
class PrivateGLM:
    """Settings: family (logistic | gaussian | poisson), rounds, rate, momentum, clipping_norm, l2, sampling_rate, averaged.

    sampling_rate: share of patients in each gradient, drawn anew at each site (1: all of them). averaged: the result
    is the mean model of this share of the rounds, the last ones, which evens the noise out. count_weight: how much of
    the budget the count of patients weighs beside one gradient.
    """

    family: str = "logistic"
    rounds: int = 30
    rate: float = 1.0
    momentum: float = 0.5
    clipping_norm: float = 1.0
    l2: float = 0.0
    sampling_rate: float = 1.0
    averaged: float = 0.5
    count_weight: float = 1.0

    steps: ClassVar[tuple[Step, ...]] = (patient_count, clipped_gradient)

    def __post_init__(self) -> None:
        check_private_settings(self)
        if not 0 <= self.momentum < 1 or not 0 < self.averaged <= 1:
            raise ValueError("momentum is from 0 to below 1, averaged a share of the rounds above 0")

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        """One count, and a gradient a round."""
        # A gradient over a sample costs about as its rate, so the count of everybody is weighed with it.
        return {
            patient_count: Planned(1, weight=self.count_weight * self.sampling_rate),
            clipped_gradient: Planned(self.rounds, sampling_rate=self.sampling_rate),
        }

    def expected_errors(self, study: Study, noise: Mapping[Step, float], patients: float) -> list[ExpectedError]:
        """What the noise does to count and coefficients. noise: SD in a step's total, over the bound of a patient."""
        rate = self.rate / (1 - self.momentum) / self.sampling_rate
        most = descent_deviation(
            noise[clipped_gradient], rounds=self.rounds, rate=rate, bound=self.clipping_norm, patients=patients
        )
        return [
            ExpectedError(COUNT_ERROR, noise[patient_count], {}),
            ExpectedError(COEFFICIENT_ERROR, most * outcome_unit(self.family, study), {}),
        ]

    def start(self, study: Study) -> PrivateGLMState:
        zeros = np.zeros(len(study.design.columns))
        outcome = outcome_scaling(study) if self.family == "gaussian" else (0.0, 1.0)
        return PrivateGLMState(*range_scaling(study), np.array(outcome), zeros, zeros, zeros, 0, 0.0, 0, [])

    def advance(self, federation: Federation, state: PrivateGLMState) -> PrivateGLMState:
        patients = state.patients
        if state.rounds == 0:
            patients = max(float(federation.sum(patient_count)["patients"]), 1.0)
        total = federation.sum(clipped_gradient, model=state.model)
        gradient = total["gradient"] * self.clipping_norm / (patients * self.sampling_rate)
        velocity = self.momentum * state.velocity + gradient + self.l2 * penalised(state.model)
        model = np.clip(state.model - self.rate * velocity, -COEFFICIENTS.limit, COEFFICIENTS.limit)
        rounds = state.rounds + 1
        average, averaged = average_of_last(self, state, model)
        return replace(
            state, model=model, velocity=velocity, average=average, averaged=averaged, patients=patients, rounds=rounds,
            sites=list(total.sites),
        )  # fmt: skip

    def done(self, state: PrivateGLMState) -> bool:
        return state.rounds >= self.rounds

    def result(self, state: PrivateGLMState) -> Mapping[str, Any]:
        return private_result(state)


def average_of_last(method: Any, state: Any, model: FloatArray) -> tuple[FloatArray, int]:
    """Average of the models of the last rounds (the share ``averaged`` of them), this one included; how many they are.

    An average of noisy steps carries less noise than the last of them (Polyak and Juditsky 1992).
    """
    if state.rounds + 1 <= method.rounds - max(round(method.averaged * method.rounds), 1):
        return state.average, state.averaged
    averaged = state.averaged + 1
    return state.average + (model - state.average) / averaged, averaged


def private_result(state: Any) -> Mapping[str, Any]:
    """What a private fit gives: the averaged model, its scaling, and of whom it is."""
    return {
        "coefficients": in_outcome_units(state.average, state.outcome),
        "centre": state.centre,
        "scale": state.scale,
        "patients": state.patients,
        "rounds": state.rounds,
        "sites": list(state.sites),
    }


def outcome_unit(family: str, study: Study) -> float:
    """What one unit of the fitted outcome is in the study's unit."""
    return outcome_scaling(study)[1] if family == "gaussian" else 1.0


def in_outcome_units(model: FloatArray, outcome: FloatArray) -> FloatArray:
    """Coefficients (p,) for an outcome on its range -> for the outcome itself. outcome: its centre and scale."""
    coefficients: FloatArray = np.asarray(model, dtype=np.float64) * float(outcome[1])
    coefficients[0] += outcome[0]
    return coefficients


def penalised(model: FloatArray) -> FloatArray:
    """What a penalty shrinks: all coefficients but the intercept, which becomes 0."""
    return np.asarray(model * (np.arange(len(model)) > 0))


def check_private_settings(method: Any) -> None:
    """One sentence for a setting that can't be meant. ValueError."""
    if method.family not in FAMILIES:
        raise ValueError(f"family is {' or '.join(FAMILIES)}, not {method.family!r}")
    if method.rounds < 1:
        raise ValueError("rounds is at least 1")
    for name in ("rate", "clipping_norm", "count_weight"):
        if not getattr(method, name) > 0:
            raise ValueError(f"{name} is above 0")
    if not 0 < method.sampling_rate <= 1:
        raise ValueError("sampling_rate is a share of the patients, above 0 and at most 1")
    if method.l2 < 0:
        raise ValueError("l2 is 0 or more")
