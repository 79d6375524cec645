"""FedAvg: sites train for some local epochs of mini-batches; their models are averaged, weighted by rows.

McMahan et al. 2017, algorithm 1. Linear and logistic models on standardised features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site, Sites
from medfed.federation.step import Input, Out, Step, Sum, step
from medfed.methods.descent import descend, descend_stacked, losses, rests_on
from medfed.methods.standardise import CENTRE, SCALE, moments, standardise, standardised, standardised_stack
from medfed.study import Study

FloatArray = NDArray[np.float64]
MODEL = Input("p", limit=20.0, meaning="coefficients")


@step(
    takes={"model": MODEL, "centre": CENTRE, "scale": SCALE},
    releases={
        "weighted_change": Sum("p", limit_per_row=20),
        "loss": Sum(limit_per_row=1e4),
        "rows": Sum(limit_per_row=1),
    },
)
def local_training(site: Site, *, model: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    """Change of the model (p,) by local training, times rows; the model's loss before it, summed; and rows."""
    trained, _ = descend(site, model, centre, scale)
    x, y = standardised(site, centre, scale)
    rows = float(site.table.rows)
    eta = x @ model
    loss = losses(eta, y, site.settings["family"]).sum()
    return Out(
        {"weighted_change": rows * (trained - model), "loss": loss, "rows": rows},
        **rests_on(x, y, (model, trained), site.settings["family"]),
    )


@local_training.batched
def _(sites: Sites, *, model: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    trained, _ = descend_stacked(sites, model, centre, scale)
    x, y = standardised_stack(sites, centre, scale)
    rows = sites.rows.astype(np.float64)
    eta = x @ model
    loss = (losses(eta, y, sites.settings["family"]) * sites.mask).sum(1)
    return Out(
        {"weighted_change": rows[:, None] * (trained - model), "loss": loss, "rows": rows},
        **rests_on(x, y, (model, trained), sites.settings["family"], sites.mask),
    )


@dataclass(frozen=True)
class FedAvgState:
    """model, centre, scale: (p,). curve: mean loss on the training rows at the start of each round."""

    model: FloatArray
    centre: FloatArray
    scale: FloatArray
    rounds: int
    patients: float
    curve: list[float]
    sites: list[str]


def initial_model(study: Study, size: float) -> FloatArray:
    """Zeros, or small random numbers from the study's seed."""
    p = len(study.design.columns)
    return size * np.random.default_rng(study.seed).normal(size=p) if size else np.zeros(p)


@dataclass(frozen=True)
class FedAvg:
    """Settings: rounds, rate, batch (rows), local_epochs, participation (share of sites a round), l2, family, initial."""

    rounds: int = 50
    rate: float = 0.1
    batch: int = 32
    local_epochs: int = 1
    participation: float = 1.0
    l2: float = 0.0
    family: str = "logistic"
    initial: float = 0.0

    steps: ClassVar[tuple[Step, ...]] = (moments, local_training)

    def __post_init__(self) -> None:
        check_descent_settings(self)

    def start(self, study: Study) -> FedAvgState:
        p = len(study.design.columns)
        return FedAvgState(initial_model(study, self.initial), np.zeros(p), np.ones(p), 0, 0.0, [], [])

    def advance(self, federation: Federation, state: FedAvgState) -> FedAvgState:
        centre, scale = (state.centre, state.scale) if state.rounds else standardise(federation)
        total = federation.sample(self.participation).sum(local_training, model=state.model, centre=centre, scale=scale)
        step_ = total["weighted_change"] / total["rows"]
        return FedAvgState(
            model=state.model + step_,
            centre=centre,
            scale=scale,
            rounds=state.rounds + 1,
            patients=float(total["rows"]),
            curve=[*state.curve, float(total["loss"] / total["rows"])],
            sites=list(total.sites),
        )

    def done(self, state: FedAvgState) -> bool:
        return state.rounds >= self.rounds

    def result(self, state: FedAvgState) -> Mapping[str, Any]:
        return {
            "coefficients": state.model,
            "centre": state.centre,
            "scale": state.scale,
            "patients": state.patients,
            "rounds": state.rounds,
            "curve": list(state.curve),
            "sites": list(state.sites),
        }


def check_descent_settings(method: Any) -> None:
    """One sentence for a setting that can't be meant. ValueError."""
    if getattr(method, "family", "logistic") not in ("logistic", "gaussian"):
        raise ValueError(f"family is 'logistic' or 'gaussian', not {method.family!r}")
    for name in ("rounds", "batch", "local_epochs"):
        if getattr(method, name, 1) < 1:
            raise ValueError(f"{name} is at least 1")
    if not method.rate > 0:
        raise ValueError("rate is above 0")
    if not 0 < getattr(method, "participation", 1.0) <= 1:
        raise ValueError("participation is a share of the sites, above 0 and at most 1")
    if getattr(method, "l2", 0.0) < 0:
        raise ValueError("l2 is 0 or more")
