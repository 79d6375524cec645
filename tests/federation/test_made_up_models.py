"""A coordinator that makes up the model it sends: three children are one hospital's only patients, the others have adults.

Ordinary models weigh everybody. One whose curve is steep where the children are, and flat elsewhere, leaves weight to them
alone: the total over 903 patients would be the three children's.
"""

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study
from secure_faults import OPEN

from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation import gate
from medfed.federation.packages import find_method
from medfed.federation.runner import Runner
from medfed.federation.step import Step
from medfed.methods.cox_cells import cell_means, cell_risks
from medfed.methods.discrete_hazards import hazard_terms
from medfed.methods.fedavg import local_training
from medfed.methods.glm import glm_terms, robust_terms
from medfed.methods.gradients import full_gradient
from medfed.methods.newton import logistic_terms, symmetric
from medfed.methods.scaffold import corrected_training
from medfed.study import Study, study_from_dict

SITES = ("a", "b", "c", "children")
CHILDREN = np.array([15.0, 14.5, 15.5])
SLOPE = 0.6


@dataclass(frozen=True)
class Ask:
    """A method that puts one question to the sites, with inputs of its choice."""

    step: Step
    inputs: Mapping[str, Any]

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.step,)

    def start(self, study: Study) -> dict[str, Any]:
        return {"total": None}

    def advance(self, federation: Any, state: dict[str, Any]) -> dict[str, Any]:
        total = federation.sum(self.step, **self.inputs)
        return {"total": {name: total[name] for name in self.step.releases}}

    def done(self, state: dict[str, Any]) -> bool:
        return state["total"] is not None

    def result(self, state: dict[str, Any]) -> Mapping[str, Any]:
        return state["total"]


def hospitals(study: Study, adults: int = 300) -> dict[str, StudyTable]:
    rng, tables = np.random.default_rng(5), {}
    for at, site in enumerate(SITES):
        x = CHILDREN if site == "children" else rng.uniform(-20, -10, adults)
        y = (
            np.array(["yes", "no", "yes"])
            if site == "children"
            else np.array(["no", "yes"])[rng.integers(0, 2, adults)]
        )
        who = np.arange(len(x), dtype=np.uint64) + np.uint64(1_000_000 * (at + 1))
        columns = {"event": y, "x0": x} | ({"time": rng.uniform(0, 12, len(x))} if study.time else {})
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=who)
    return tables


def total_of(folder: Path, study: Study, ask: Ask) -> Mapping[str, Any]:
    engine: Embedded
    engine, _ = what_if(
        folder / "s", hospitals(study), study, [find_method(study)], policy=OPEN, keys=fixed_keys(list(SITES))
    )
    with closing(Runner(folder / "c", engine, study, durability="process")) as runner:
        return runner.execute(ask, "main")


def study_for(use: str, **settings: Any) -> Study:
    method = {"use": f"medfed:medfed.methods.{use}", "settings": settings}
    return synthetic_study(list(SITES), features=1, method=method)


def made_up(step: Step, level: float, slope: float) -> dict[str, Any]:
    """Inputs of a step with the curve's middle at ``level`` of x0."""
    beta, scaling = np.array([0.0, slope]), {"centre": np.array([0.0, level]), "scale": np.ones(2)}
    if step in (glm_terms, robust_terms):
        more = {"outcome": np.array([0.0, 1.0]), "log_alpha": np.zeros(())}
        more |= {"unit": np.ones(())} if step is robust_terms else {}
        return {"beta": beta, **scaling, **more}
    if step in (hazard_terms, cell_risks, cell_means):
        cells = {"cuts": np.array([1.0, 2.0])} | ({"alpha": np.zeros(2)} if step is hazard_terms else {})
        return {"beta": beta, **scaling, **cells}
    named = {logistic_terms: "beta"}.get(step, "model")
    more = {"control": np.zeros(2)} if step is corrected_training else {}
    return {named: beta, **scaling, **more}


def survival_for(use: str) -> Study:
    time = {"meaning": "Follow-up", "type": "number", "role": "time", "unit": "month", "range": [0, 12], "interval": 6}
    declared = study_for(use).model_dump(mode="json")
    return study_from_dict(
        declared | {"variables": declared["variables"] | {"time": time}, "task": {"kind": "survival"}}
    )


QUESTIONS = {
    "information": (logistic_terms, study_for("newton.Newton")),
    "gradient": (full_gradient, study_for("gradients.GradientAggregation")),
    "local training": (local_training, study_for("fedavg.FedAvg", rounds=2)),
    "corrected training": (corrected_training, study_for("scaffold.Scaffold", rounds=2)),
    "binomial": (glm_terms, study_for("glm.Glm", formula="event ~ x0", family="binomial")),
    "robust": (robust_terms, study_for("glm.Glm", formula="event ~ x0", family="binomial", covariance="HC0")),
    "hazards": (hazard_terms, survival_for("discrete_hazards.DiscreteHazards")),
    "risks": (cell_risks, survival_for("unstratified_cox.UnstratifiedCox")),
    "risks and sums": (cell_means, survival_for("unstratified_cox.UnstratifiedCox")),
    "poisson": (glm_terms, study_for("glm.Glm", formula="event ~ x0", family="poisson")),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_model_that_leaves_weight_to_a_few_is_not_answered(tmp_path: Path, name: str) -> None:
    step, study = QUESTIONS[name]
    with pytest.raises(FederationError, match=gate.LIGHT):
        total_of(tmp_path / "no", study, Ask(step, made_up(step, 15.0, SLOPE)))
    assert total_of(tmp_path / "yes", study, Ask(step, made_up(step, -15.0, 0.2))), "an ordinary one is"


def test_an_outcome_in_another_unit_changes_nothing(tmp_path: Path) -> None:
    """What is ordinary is taken from the site's outcomes, not from what the call makes of them."""
    step, study = QUESTIONS["binomial"]
    for unit in (1e6, 1e-3):
        inputs = made_up(step, 15.0, SLOPE) | {"outcome": np.array([0.0, unit])}
        with pytest.raises(FederationError, match=f"{gate.LIGHT}|{gate.OVER_LIMIT}"):
            total_of(tmp_path / str(unit), study, Ask(step, inputs))


def test_without_the_rule_the_total_is_the_childrens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ORDINARY_SHARE", 10**9)
    step, study = QUESTIONS["information"]
    total = total_of(tmp_path, study, Ask(step, made_up(step, 15.0, SLOPE)))
    information = symmetric(np.asarray(total["information"]), 2)
    weights = np.exp(-SLOPE * np.abs(CHILDREN - 15.0))
    weights /= (1 + weights) ** 2
    assert information[0, 0] == pytest.approx(weights.sum(), rel=1e-4), "of 903 patients, the three children's"
