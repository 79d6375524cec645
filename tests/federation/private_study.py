"""Studies with an epsilon for tests: a consortium behind one door, and what its noisy gradients should be without noise."""

from pathlib import Path
from typing import Any

import numpy as np
from consortium import fixed_keys, synthetic_columns, synthetic_study

from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.federation.budget import Charge
from medfed.federation.call import Answer, Call, Failure, Own, Protection
from medfed.federation.door import Doors
from medfed.federation.opening import ring_of
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.ring import decode
from medfed.federation.step import Step, Sum
from medfed.study import Study

GLM = "medfed:medfed.methods.private_glm.PrivateGLM"
FEATURES = 40
ROWS_A_PATIENT = 3


def private_study(names: list[str], epsilon: float | None = 3.0, features: int = 4, **changes: Any) -> Study:
    settings = changes.pop("settings", {"rounds": 5})
    privacy = {"epsilon": epsilon} if epsilon is not None else {"minimum_cell": 1}
    return synthetic_study(names, features, method={"use": GLM, "settings": settings}, privacy=privacy, **changes)


def private_engine(
    folder: Path, study: Study, rows: list[int], features: int = 4, budget: float = 100.0, rows_a_patient: int = 1,
    spread: float = 1.0, **options: Any,
) -> Embedded:  # fmt: skip
    """The first sites that the study invites, as many as there are ``rows``; each approves the others' keys."""
    tables = {}
    for index, (site, count) in enumerate(zip(study.sites.invited, rows, strict=False)):
        who = np.arange(count, dtype=np.uint64) // rows_a_patient + 1000 * (index + 1)
        columns = synthetic_columns(count, features, index)
        columns = {name: values * spread if name.startswith("x") else values for name, values in columns.items()}
        tables[site] = StudyTable.from_columns(study, columns, pseudonyms=who)
    engine, _ = what_if(
        folder, tables, study, [find_method(study)], policy=Policy(budget=budget), keys=fixed_keys(list(tables)),
        **options,
    )  # fmt: skip
    return engine


def doors_of(folder: Path, study: Study, rows: list[int], *arguments: Any, **options: Any) -> Doors:
    return private_engine(folder, study, rows, *arguments, **options).doors[0]


def ask(
    doors: Doors, asked: Step, charge: Charge | None, ordinal: int = 0, protection: Protection = "plain", **inputs: Any
) -> Answer | Failure:
    site = next(iter(doors.sites))
    call = Call(
        study=doors.study.hash, run="main", round=1, step=step_name(asked), ordinal=ordinal, part="train",
        roster=doors.study.sites.invited, inputs={k: np.asarray(v) for k, v in inputs.items()}, charge=charge,
        protection=protection,
    )  # fmt: skip
    return doors.answer(call, {site: Own()})[site]


def value_of(answer: Answer | Failure, asked: Step, name: str, study: Study) -> np.ndarray:
    assert isinstance(answer, Answer), answer
    declared = asked.releases[name]
    assert isinstance(declared, Sum)
    return decode(np.asarray(answer.values[name]), *ring_of(declared, study))


def expected_gradient(table: StudyTable, norm: float = 1.0) -> np.ndarray:
    """The sum of patients' clipped gradients at a model of zeros, worked out here from the study's definition."""
    view = table.on("train")
    features, outcome = view.arrays("features", "outcome")
    x = features.copy()
    x[:, 1:] = np.clip(x[:, 1:] / 20.0, -1.0, 1.0)
    total = np.zeros(x.shape[1])
    for patient in np.unique(view.row_pseudonyms):
        own = np.zeros(x.shape[1])
        for row in np.flatnonzero(view.row_pseudonyms == patient):
            own += (0.5 - outcome[row]) * x[row]
        total += own / max(1.0, float(np.linalg.norm(own)) / norm)
    return total
