"""FedAvg under differential privacy of patients: sites train on noisy sums of clipped gradients, their models are averaged.

One local step a round is a noisy sum like any other: the noise can be spread over the sites. With several local steps
each site walks alone, so every step carries the site's full noise, and what it releases is made of those alone (DP-SGD:
Abadi et al. 2016; McMahan et al. 2017). With few sites prefer one local step: the noise is smaller.
Linear and logistic models on the declared ranges.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Input, Keep, Out, Step, Sum, step
from medfed.methods.private_glm import (
    COEFFICIENT_ERROR,
    COUNT_ERROR,
    average_of_last,
    check_private_settings,
    clipped_gradient,
    on_ranges,
    outcome_scaling,
    outcome_unit,
    patient_count,
    penalised,
    private_result,
    range_scaling,
    score_rows,
)
from medfed.privacy.plan import ExpectedError, Planned, descent_deviation
from medfed.study import Study

FloatArray = NDArray[np.float64]

LARGEST = 50.0
MODEL = Input("p", limit=LARGEST)
# Weights are noisy counts of patients, never under 1.
_MOST_PATIENTS = 1e7


@step(releases={"patients": Sum(limit=_MOST_PATIENTS, metered=True)}, keeps=Keep("weight", {"patients": ""}))
def noisy_weight(site: Site) -> Out:
    """The site's weight: how many patients it has, with the site's full noise; kept for its training."""
    count = float(site.noisy_sum(np.ones(site.table.rows), 1.0))
    weight = float(np.clip(count, 1.0, _MOST_PATIENTS))
    return Out({"patients": weight}, keep={"patients": weight})


@step(
    takes={"model": MODEL},
    releases={
        "weighted_change": Sum("p", limit=2 * LARGEST * _MOST_PATIENTS, metered=True),
        "patients": Sum(limit=_MOST_PATIENTS, metered=True),
    },
    keeps=Keep("weight", {"patients": ""}, writes=False),
)
def noisy_training(site: Site, *, model: FloatArray) -> Out:
    """Change of the model (p,) by local steps along noisy clipped gradients, times the site's noisy weight."""
    x, y = on_ranges(site)
    settings = site.settings
    weight = max(float(site.kept["patients"]), 1.0)
    trained = model.copy()
    for _ in range(settings["local_steps"]):
        rows = score_rows(x, y, trained, settings["family"], settings["clipping_norm"])
        total = site.noisy_sum(rows, 1.0) * settings["clipping_norm"] / (weight * settings["sampling_rate"])
        trained = trained - settings["rate"] * (total + settings["l2"] * penalised(trained))
        trained = np.clip(trained, -LARGEST, LARGEST)
    return Out({"weighted_change": weight * (trained - model), "patients": weight})


@dataclass(frozen=True)
class PrivateFedAvgState:
    """model: (p,) where it stands; average: (p,) of the last rounds' models; centre, scale (p,); outcome (2,)."""

    centre: FloatArray
    scale: FloatArray
    outcome: FloatArray
    model: FloatArray
    average: FloatArray
    averaged: int
    patients: float
    rounds: int
    sites: list[str]


@dataclass(frozen=True)
class PrivateFedAvg:
    """Settings: family (logistic | gaussian), rounds, local_steps, rate, clipping_norm, l2, sampling_rate, averaged, count_weight.

    local_steps: gradient steps at a site between two averages, each over all its patients or a Poisson sample of them.
    Others as in PrivateGLM.
    """

    family: str = "logistic"
    rounds: int = 15
    local_steps: int = 1
    rate: float = 1.5
    clipping_norm: float = 1.0
    l2: float = 0.0
    sampling_rate: float = 1.0
    averaged: float = 0.5
    count_weight: float = 1.0

    def __post_init__(self) -> None:
        check_private_settings(self)
        if self.family == "poisson":
            raise ValueError("family is logistic or gaussian here; PrivateGLM has poisson")
        if self.local_steps < 1 or not 0 < self.averaged <= 1:
            raise ValueError("local_steps is at least 1, averaged a share of the rounds above 0")

    @property
    def steps(self) -> tuple[Step, ...]:
        return (patient_count, clipped_gradient) if self.local_steps == 1 else (noisy_weight, noisy_training)

    def private_calls(self, study: Study) -> Mapping[Step, Planned]:
        """One count, and so many noisy sums a round as there are local steps."""
        count, training = self.steps
        return {
            count: Planned(1, weight=self.count_weight * self.sampling_rate),
            training: Planned(self.rounds, sampling_rate=self.sampling_rate, draws=self.local_steps),
        }

    def expected_errors(self, study: Study, noise: Mapping[Step, float], patients: float) -> list[ExpectedError]:
        """What the noise does to count and coefficients. noise: SD in a step's total, over the bound of a patient."""
        count, training = self.steps
        most = descent_deviation(
            noise[training], rounds=self.rounds * self.local_steps, rate=self.rate / self.sampling_rate,
            bound=self.clipping_norm, patients=patients,
        )  # fmt: skip
        return [
            ExpectedError(COUNT_ERROR, noise[count], {}),
            ExpectedError(COEFFICIENT_ERROR, most * outcome_unit(self.family, study), {}),
        ]

    def start(self, study: Study) -> PrivateFedAvgState:
        zeros = np.zeros(len(study.design.columns))
        outcome = outcome_scaling(study) if self.family == "gaussian" else (0.0, 1.0)
        return PrivateFedAvgState(*range_scaling(study), np.array(outcome), zeros, zeros, 0, 0.0, 0, [])

    def advance(self, federation: Federation, state: PrivateFedAvgState) -> PrivateFedAvgState:
        count, training = self.steps
        patients = state.patients
        if state.rounds == 0:
            patients = max(float(federation.sum(count)["patients"]), 1.0)
        total = federation.sum(training, model=state.model)
        if self.local_steps == 1:
            gradient = total["gradient"] * self.clipping_norm / (patients * self.sampling_rate)
            change = -self.rate * (gradient + self.l2 * penalised(state.model))
        else:
            change = total["weighted_change"] / max(float(total["patients"]), 1.0)
        model = np.clip(state.model + change, -LARGEST, LARGEST)
        rounds = state.rounds + 1
        average, averaged = average_of_last(self, state, model)
        return replace(
            state, model=model, average=average, averaged=averaged, patients=patients, rounds=rounds,
            sites=list(total.sites),
        )  # fmt: skip

    def done(self, state: PrivateFedAvgState) -> bool:
        return state.rounds >= self.rounds

    def result(self, state: PrivateFedAvgState) -> Mapping[str, Any]:
        return private_result(state)
