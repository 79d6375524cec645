"""SCAFFOLD: local training corrected by control variates, so that sites that differ don't pull apart.

Karimireddy et al. 2020, algorithm 1, option II. The coordinator holds the sum of the sites' control variates, not their
mean: everything added is on the ring's grid, so the sum stays exact whatever fails and restarts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.federation.federation import Federation
from medfed.federation.site import Site, Sites
from medfed.federation.step import Input, Keep, Out, Step, Sum, on_grid, step
from medfed.methods.descent import descend, descend_stacked, rests_on
from medfed.methods.fedavg import MODEL, check_descent_settings, initial_model
from medfed.methods.standardise import CENTRE, SCALE, moments, standardise, standardised, standardised_stack
from medfed.study import Study

FloatArray = NDArray[np.float64]


@step(
    takes={"model": MODEL, "control": Input("p", limit=100.0), "centre": CENTRE, "scale": SCALE},
    keeps=Keep("control", {"control": "p"}),
    releases={"model_change": Sum("p", limit=100), "control_change": Sum("p", limit=100)},
)
def corrected_training(
    site: Site, *, model: FloatArray, control: FloatArray, centre: FloatArray, scale: FloatArray
) -> Out:
    """Changes of model and own control variate (p,); the new control variate stays at the site."""
    own = site.kept["control"]
    trained, steps = descend(site, model, centre, scale, drift=control - own)
    change = on_grid((model - trained) / (steps * site.settings["rate"]) - control)
    x, y = standardised(site, centre, scale)
    return Out(
        {"model_change": trained - model, "control_change": change},
        keep={"control": own + change},
        **rests_on(x, y, (model, trained), site.settings["family"]),
    )


@corrected_training.batched
def _(sites: Sites, *, model: FloatArray, control: FloatArray, centre: FloatArray, scale: FloatArray) -> Out:
    own = sites.kept["control"]
    trained, steps = descend_stacked(sites, model, centre, scale, drift=control - own)
    change = on_grid((model - trained) / (steps[:, None] * sites.settings["rate"]) - control)
    x, y = standardised_stack(sites, centre, scale)
    return Out(
        {"model_change": trained - model, "control_change": change},
        keep={"control": own + change},
        **rests_on(x, y, (model, trained), sites.settings["family"], sites.mask),
    )


@dataclass(frozen=True)
class ScaffoldState:
    """model (p,); control_sum (p,): the exact sum of all sites' control variates."""

    model: FloatArray
    control_sum: FloatArray
    centre: FloatArray
    scale: FloatArray
    rounds: int
    change: list[float]
    sites: list[str]


@dataclass(frozen=True)
class Scaffold:
    """Settings: rounds, rate (local), server_rate, batch, local_epochs, participation, l2, family, initial."""

    rounds: int = 50
    rate: float = 0.1
    server_rate: float = 1.0
    batch: int = 32
    local_epochs: int = 1
    participation: float = 1.0
    l2: float = 0.0
    family: str = "logistic"
    initial: float = 0.0

    steps: ClassVar[tuple[Step, ...]] = (moments, corrected_training)

    def __post_init__(self) -> None:
        check_descent_settings(self)

    def start(self, study: Study) -> ScaffoldState:
        p = len(study.design.columns)
        zeros = np.zeros(p)
        return ScaffoldState(initial_model(study, self.initial), zeros, zeros, np.ones(p), 0, [], [])

    def advance(self, federation: Federation, state: ScaffoldState) -> ScaffoldState:
        centre, scale = (state.centre, state.scale) if state.rounds else standardise(federation)
        total = federation.sample(self.participation).sum(
            corrected_training,
            model=state.model,
            control=state.control_sum / len(federation.sites),
            centre=centre,
            scale=scale,
        )
        step_ = self.server_rate * total["model_change"] / len(total.sites)
        return ScaffoldState(
            model=state.model + step_,
            control_sum=state.control_sum + total["control_change"],
            centre=centre,
            scale=scale,
            rounds=state.rounds + 1,
            change=[*state.change, float(np.linalg.norm(step_))],
            sites=list(total.sites),
        )

    def done(self, state: ScaffoldState) -> bool:
        return state.rounds >= self.rounds

    def result(self, state: ScaffoldState) -> Mapping[str, Any]:
        return {
            "coefficients": state.model,
            "control_sum": state.control_sum,
            "centre": state.centre,
            "scale": state.scale,
            "rounds": state.rounds,
            "change": list(state.change),
            "sites": list(state.sites),
        }
