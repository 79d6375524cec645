"""A coordinator that makes up what else a call brings beside the model that is looked at: outcome models, control variates.

What they do to the sums is bounded as the model is: no threshold, of which two show who lies between, and no curve that
leaves a few patients.
"""

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study
from test_made_up_models import CHILDREN, Ask

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation import gate
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.federation.step import Step
from medfed.methods.causal import arm_outcome_terms, effect_terms, influence_terms
from medfed.methods.fedavg import local_training
from medfed.methods.scaffold import corrected_training
from medfed.methods.weights import WeightSums
from medfed.study import Study, study_from_dict

SITES = ("a", "b", "c", "children")
TOO_STEEP = "makes the model so steep"


def effect_study(sums: str = "strongest", outcome: str = "code") -> Study:
    method = {"use": "medfed:medfed.methods.causal.Causal", "settings": {"formula": "event ~ x0"}}
    privacy = {"sums": sums, "minimum_cell": 10}
    declared = synthetic_study(list(SITES), features=1, method=method, privacy=privacy).model_dump(mode="json")
    declared["variables"]["arm"] = {
        "meaning": "Arm", "type": "code", "role": "arm", "codes": {"control": "c", "treated": "t"}, "reference": "control",
    }  # fmt: skip
    if outcome == "number":
        declared["variables"]["event"] = {
            "meaning": "Pressure", "type": "number", "role": "outcome", "unit": "mmHg", "range": [0, 200],
        }  # fmt: skip
    declared["task"] = {"kind": "association"}
    return study_from_dict(declared)


def tables_of(study: Study, adults: int = 300) -> dict[str, StudyTable]:
    rng, tables = np.random.default_rng(5), {}
    for at, site in enumerate(SITES):
        children = site == "children"
        x = CHILDREN if children else rng.uniform(-20, -10, adults)
        coded = rng.integers(0, 2, (2, len(x))) if not children else np.array([[1, 0, 1], [1, 1, 0]])
        y = (
            np.array(["no", "yes"])[coded[0]]
            if study.variables["event"].type == "code"
            else rng.normal(120, 15, len(x))
        )
        columns = {"event": y, "x0": x} | ({"arm": np.array(["control", "treated"])[coded[1]]} if study.arm else {})
        who = np.arange(len(x), dtype=np.uint64) + np.uint64(1_000_000 * (at + 1))
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=who)
    return tables


def total_of(folder: Path, study: Study, step: Step, inputs: dict[str, Any]) -> dict[str, Any]:
    engine, _ = what_if(
        folder / "s", tables_of(study), study, [find_method(study)], policy=Policy(), keys=fixed_keys(list(SITES))
    )
    with closing(Runner(folder / "c", engine, study, durability="process")) as runner:
        return dict(runner.execute(Ask(step, inputs), "main"))


def asked(step: Step, level: float, slope: float) -> dict[str, Any]:
    """A harmless model of the arm, and outcome models whose middle is at ``level`` of x0."""
    given = {
        "propensity": np.zeros(2), "outcome_models": np.tile([0.0, slope], (2, 1)), "outcome": np.array([0.0, 1.0]),
        "centre": np.array([0.0, level]), "scale": np.ones(2), "means": np.zeros((2, 2)), "shares": np.ones(2),
    }  # fmt: skip
    return {name: value for name, value in given.items() if name in step.takes}


@pytest.mark.parametrize("sums", ["strongest", "plain"])
@pytest.mark.parametrize("step", [arm_outcome_terms, effect_terms, influence_terms], ids=lambda step: step.name)
def test_an_outcome_model_is_no_threshold(tmp_path: Path, step: Step, sums: str) -> None:
    with pytest.raises(FederationError, match=TOO_STEEP):
        total_of(tmp_path / "no", effect_study(sums), step, asked(step, -15.0, 1e5))


@pytest.mark.parametrize("step", [arm_outcome_terms, effect_terms, influence_terms], ids=lambda step: step.name)
def test_an_outcome_model_that_leaves_a_few_is_not_answered(tmp_path: Path, step: Step) -> None:
    with pytest.raises(FederationError, match=gate.LIGHT):
        total_of(tmp_path / "no", effect_study(), step, asked(step, 15.0, 0.6))
    assert total_of(tmp_path / "yes", effect_study(), step, asked(step, -15.0, 0.2)), "an ordinary one is"


def test_without_the_rule_the_total_tells_the_childrens_arms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "ORDINARY_SHARE", 10**9)
    total = total_of(tmp_path, effect_study(), effect_terms, asked(effect_terms, 15.0, 0.6))
    predicted = 1 / (1 + np.exp(-0.6 * (CHILDREN - 15.0)))
    treated = np.array([1, 1, 0])
    told = total["doubly_robust"][1] - total["weighted"][1, 3]
    assert told == pytest.approx((predicted * (1 - 2 * treated)).sum(), abs=1e-3), "of 903 patients, three"


def test_a_linear_outcome_model_may_be_as_steep_as_its_unit_asks(tmp_path: Path) -> None:
    assert total_of(tmp_path, effect_study(outcome="number"), effect_terms, asked(effect_terms, -15.0, 30.0))


def test_the_model_of_the_arm_is_looked_at_beside_outcome_models(tmp_path: Path) -> None:
    inputs = asked(effect_terms, -15.0, 0.2) | {"propensity": np.array([0.0, 40.0])}
    with pytest.raises(FederationError, match=TOO_STEEP):
        total_of(tmp_path, effect_study(), effect_terms, inputs)


@pytest.mark.parametrize("twins", [True, False])
@pytest.mark.parametrize("step", [corrected_training, local_training], ids=lambda step: step.name)
def test_local_training_is_not_driven_to_a_threshold(tmp_path: Path, step: Step, twins: bool) -> None:
    """The model that the call brings is flat; its control variates, or its scale, drive local training to a steep one, and the
    gradients there are released."""
    use = "scaffold.Scaffold" if step is corrected_training else "fedavg.FedAvg"
    method = {"use": f"medfed:medfed.methods.{use}", "settings": {"rounds": 2}}
    study = synthetic_study(list(SITES), features=1, method=method)
    names, adults = list(SITES), tables_of(study)
    adults["children"] = adults["a"]
    for name, control, width in (("no", -100.0, 0.5 if step is corrected_training else 0.04), ("yes", -0.1, 3.0)):
        engine, _ = what_if(
            tmp_path / name, adults, study, [find_method(study)], policy=Policy(), keys=fixed_keys(names), twins=twins
        )
        with closing(Runner(tmp_path / f"{name}c", engine, study, durability="process")) as runner:
            inputs = {"model": np.zeros(2), "centre": np.array([0.0, -15.0]), "scale": np.array([1.0, width])}
            more = {"control": np.array([0.0, control])} if step is corrected_training else {}
            ask = Ask(step, inputs | more)
            if name == "yes":
                assert runner.execute(ask, "main")
                continue
            with pytest.raises(FederationError, match=f"{gate.CONCENTRATED}|{gate.LIGHT}"):
                runner.execute(ask, "main")


def test_where_nothing_weighs_anything_nobody_counts() -> None:
    none = np.zeros(300)
    assert WeightSums.of(none, none).effective == 0
    assert WeightSums().effective == np.inf, "there are no rows"
