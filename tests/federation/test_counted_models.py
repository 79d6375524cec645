"""Counts that depend on a model are given for as many models as the study names: of two that differ a little, they differ by a patient."""

from pathlib import Path

import numpy as np
import pytest
from consortium import GENEROUS, fixed_keys, synthetic_study
from test_gate import ask, reason

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.federation.admission import TOO_MANY_MODELS
from medfed.federation.call import Answer
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.step import Step
from medfed.methods.concordance_across import grouped_pairs_within, score_table
from medfed.study import study_from_dict

NAMES = ["a", "b"]


@pytest.mark.parametrize("step", [score_table, grouped_pairs_within], ids=lambda step: step.name)
def test_groups_by_score_are_looked_at_for_the_named_models_only(tmp_path: Path, step: Step) -> None:
    """The edges stay as they are, and the model moves one patient after the other over them."""
    method = {"use": "medfed:medfed.methods.unstratified_cox.UnstratifiedCox", "settings": {}}
    privacy = {"sums": "plain", "minimum_cell": 10}
    declared = synthetic_study(NAMES, features=1, method=method, privacy=privacy).model_dump(mode="json")
    declared["variables"]["time"] = {
        "meaning": "Follow-up", "type": "number", "role": "time", "unit": "month", "range": [0, 12], "interval": 6,
    }  # fmt: skip
    study = study_from_dict(declared | {"task": {"kind": "survival"}})
    rng, tables = np.random.default_rng(5), {}
    for at, site in enumerate(NAMES):
        columns = {
            "event": np.array(["no", "yes"])[rng.integers(0, 2, 400)],
            "x0": rng.normal(0, 3, 400),
            "time": rng.uniform(0.1, 12, 400),
        }
        who = np.arange(400, dtype=np.uint64) + np.uint64(1_000_000 * (at + 1))
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=who)
    policy = Policy(values_per_patient=GENEROUS)
    engine, _ = what_if(tmp_path, tables, study, [find_method(study)], policy=policy, keys=fixed_keys(NAMES))
    doors, given = engine.doors[0], []
    for ordinal in range(study.test_models + 2):
        beta = np.array([0.0, 0.1 * (1 + ordinal / 50)])
        given.append(
            ask(
                doors, step, ordinal=ordinal, beta=beta, centre=np.zeros(2), scale=np.ones(2),
                cuts=np.array([float(study.sizes["times"])]), edges=np.array([0.1, 1e3]),
            )
        )  # fmt: skip
    assert [isinstance(answer, Answer) for answer in given] == [True] * study.test_models + [False] * 2
    assert reason(given[-1]) == TOO_MANY_MODELS
