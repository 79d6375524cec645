"""Does a treatment prevent an outcome? Risks by arm from exact counts, and the adjusted odds ratio by exact logistic fit.

Round 1 asks for arm x outcome counts; the rounds after it are the child ``adjusted`` (Newton). Only sites counted in
both are in the answer, so that crude and adjusted figures speak of the same patients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from medfed.errors import FederationError
from medfed.federation.call import Failure
from medfed.federation.federation import Federation
from medfed.federation.site import Site
from medfed.federation.step import Count, Out, Reply, Step, step
from medfed.methods.newton import Newton, in_study_units
from medfed.study import Study

FloatArray = NDArray[np.float64]


@step(reads="train", releases={"patients": Count("arms,outcomes")})
def arm_by_outcome(site: Site) -> Out:
    """Patients by arm (reference first) and outcome (no event, event): (arms, 2)."""
    arm, outcome = site.table.arrays("arm", "outcome")
    cells = np.zeros((site.sizes["arms"], 2))
    np.add.at(cells, (arm.astype(np.int64), outcome.astype(np.int64)), 1.0)
    return Out({"patients": cells})


@step(reads="train", releases={"site_patients": Reply("arms,outcomes", limit=1e9)})
def arm_by_outcome_here(site: Site) -> Out:
    """The same counts as this site's own figure, seen beside the total where the site's policy lists it."""
    return Out({"site_patients": arm_by_outcome(site).release["patients"]})


@dataclass(frozen=True)
class EffectState:
    """patients (arms, 2); by_site: the same where policies list it; adjusted: the result of the Newton child."""

    patients: FloatArray
    by_site: dict[str, Any]
    adjusted: dict[str, Any]
    sites: list[str]
    held_back: dict[str, Any]
    rounds: int


@dataclass(frozen=True)
class TreatmentEffect:
    """Settings: tolerance of the adjusted fit."""

    tolerance: float = 1e-10

    steps: ClassVar[tuple[Step, ...]] = (arm_by_outcome, arm_by_outcome_here, *Newton().steps)

    def start(self, study: Study) -> EffectState:
        arms = len(study.variables[study.arm or ""].codes or ())
        return EffectState(np.zeros((arms, 2)), {}, {}, [], {}, 0)

    def advance(self, federation: Federation, state: EffectState) -> EffectState:
        if state.rounds == 0:
            total = federation.sum(arm_by_outcome)
            held = {site: {"kind": f.kind, "reason": f.reason} for site, f in total.failures.items()}
            replies = federation.roster(total.sites).gather(arm_by_outcome_here)
            by_site = {s: r["site_patients"] for s, r in replies.items() if not isinstance(r, Failure)}
            return EffectState(total["patients"], by_site, {}, list(total.sites), held, 1)
        adjusted = dict(federation.roster(state.sites).child("adjusted", Newton(tolerance=self.tolerance)))
        if list(adjusted["sites"]) != state.sites:
            raise FederationError(
                f"the counts came from {', '.join(state.sites)}, the adjusted fit from {', '.join(adjusted['sites'])}; "
                "start a new run when all of them answer"
            )
        return EffectState(state.patients, state.by_site, adjusted, state.sites, state.held_back, 2)

    def done(self, state: EffectState) -> bool:
        return state.rounds >= 2

    def result(self, state: EffectState) -> Mapping[str, Any]:
        coefficients, covariance = in_study_units(state.adjusted)
        return {
            "patients": state.patients,
            "by_site": dict(state.by_site),
            "coefficients": coefficients,
            "covariance": covariance,
            "adjusted": state.adjusted,
            "sites": list(state.sites),
            "held_back": dict(state.held_back),
            "rounds": int(state.adjusted["rounds"]) + 1,
        }
