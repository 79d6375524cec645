"""Choosing a recipe on validation rows, and the one-hospital baseline. The test part is not opened here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medfed.evaluation.steps import overall, stack_fits
from medfed.federation.federation import Federation
from medfed.federation.packages import find_method
from medfed.federation.step import Step
from medfed.methods.fedavg import FedAvg, FedAvgState
from medfed.study import Study

CANDIDATE = "candidate-"


@dataclass(frozen=True)
class ChoiceState:
    """log_loss: on the validation rows of all hospitals, in nats a patient, by candidate."""

    log_loss: dict[str, float]


@dataclass(frozen=True)
class ChooseRecipe:
    """Fits every candidate that the study lists on train, and takes its log-loss on valid: one candidate a round."""

    study: Study

    @property
    def candidates(self) -> tuple[str, ...]:
        """The variants that stand for choice, in the study's order."""
        return tuple(name for name in self.study.variants if name.startswith(CANDIDATE))

    @property
    def steps(self) -> tuple[Step, ...]:
        found: dict[Step, None] = {overall: None}
        for name in self.candidates:
            found |= dict.fromkeys(find_method(self.study, name).steps)
        return tuple(found)

    def start(self, study: Study) -> ChoiceState:
        return ChoiceState({})

    def advance(self, federation: Federation, state: ChoiceState) -> ChoiceState:
        name = self.candidates[len(state.log_loss)]
        fitted = federation.child(f"fit-{name}", find_method(self.study, name), name)
        total = federation.on("valid").sum(overall, **stack_fits([fitted]))
        return ChoiceState({**state.log_loss, name: float(total["log_loss"] / total["rows"])})

    def done(self, state: ChoiceState) -> bool:
        return len(state.log_loss) == len(self.candidates)

    def result(self, state: ChoiceState) -> Mapping[str, Any]:
        return {"log_loss": state.log_loss}


@dataclass(frozen=True)
class OneHospital(FedAvg):
    """FedAvg's settings at one hospital alone: same recipe, nobody to average with; judged at every hospital."""

    hospital: str = ""

    def advance(self, federation: Federation, state: FedAvgState) -> FedAvgState:
        return super().advance(federation.roster([self.hospital]), state)
