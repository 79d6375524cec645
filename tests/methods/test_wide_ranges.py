"""A declared range that is far too wide beside a number's values is told as that, and where a model can be fitted it is."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from medfed.errors import FederationError
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.methods.summaries import variance_told
from medfed.methods.wide_ranges import looks_constant

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, code, dealt, number, run, study_of

STRICT = Policy(values_per_patient=GENEROUS)


@pytest.fixture(scope="module")
def patients() -> pd.DataFrame:
    rng = np.random.default_rng(12)
    n = 1000
    frame = pd.DataFrame({"age": rng.uniform(20, 90, n), "dose": rng.uniform(0, 5, n)})
    frame["arm"] = rng.choice(["old", "new"], n)
    risk = 1 / (1 + np.exp(2 - 0.02 * frame["age"] - 0.3 * (frame["arm"] == "new") - 0.2 * frame["dose"]))
    frame["event"] = np.where(rng.random(n) < risk, "yes", "no")
    frame["y"] = 100 + 3 * frame["dose"] + rng.normal(size=n)
    return frame


def asked(
    folder: Path, patients: pd.DataFrame, reach: float, method: str, outcome: str = "event", **settings: Any
) -> dict[str, Any]:
    """dose is from 0 to 5, and declared from -reach to reach."""
    outcomes = {"event": code("no", "yes", role="outcome", event="yes"), "y": number(80, 140, "outcome")}
    variables = {
        outcome: outcomes[outcome], "arm": code("old", "new", role="arm", reference="old"), "age": number(0, 120),
        "dose": number(-reach, reach),
    }  # fmt: skip
    parts = dealt(patients, sites=4)
    return run(folder, study_of(variables, method, settings, list(parts), privacy={"minimum_cell": 10}), parts, STRICT)


@pytest.mark.parametrize(
    ("method", "reach", "settings"),
    [
        ("glm.Glm", 1e5, {"formula": "~ age + dose"}),
        ("glm.Glm", 1e7, {"formula": "~ age + dose"}),
        ("glm.Glm", 1e4, {"formula": "~ age + dose"}),
        ("glm.Glm", 1e4, {"formula": "~ age + dose", "l2": 0.01}),
        ("glm.Glm", 1e5, {"formula": "~ age + dose", "family": "gaussian", "outcome": "y"}),
        ("causal.Causal", 1e3, {"formula": "~ age + dose"}),
        ("causal.Causal", 1e5, {"formula": "~ age + dose"}),
        ("causal.Causal", 1e6, {"formula": "~ age + dose"}),
        ("newton.Newton", 1e4, {}),
        ("newton.Newton", 1e6, {}),
    ],
)
def test_a_range_that_is_too_wide_is_told_and_not_separation(
    tmp_path: Path, patients: pd.DataFrame, method: str, reach: float, settings: dict[str, Any]
) -> None:
    with pytest.raises(FederationError) as told:
        asked(tmp_path, patients, reach, method, **settings)
    said = str(told.value)
    assert "'dose'" in said
    assert (
        f"declared range, {-reach:g} to {reach:g}" in said
        or f"declared range of 'dose', {-reach:g} to {reach:g}" in said
    )
    assert "narrow the range in the study to what the values can be" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("reach", "least"), [(1e2, 1e-9)])
def test_a_wide_range_that_can_be_fitted_gives_what_a_narrow_one_does(
    tmp_path: Path, patients: pd.DataFrame, reach: float, least: float
) -> None:
    found = [
        asked(tmp_path / str(each), patients, each, "glm.Glm", formula="~ age + dose")["coefficients"]
        for each in (10, reach)
    ]
    assert np.abs(found[0] / found[1] - 1).max() < least


def test_standardisation_by_itself_is_asked_of_no_site_again_and_stays(tmp_path: Path, patients: pd.DataFrame) -> None:
    found = asked(tmp_path, patients, 1e4, "standardise.Standardise")
    assert found["scale"][-1] == pytest.approx(patients["dose"].std(ddof=0), rel=1e-3)


def test_an_outcome_whose_range_is_too_wide_is_told(tmp_path: Path, patients: pd.DataFrame) -> None:
    variables = {"y": number(-1e10, 1e10, "outcome"), "age": number(0, 120)}
    parts = dealt(patients, sites=4)
    study = study_of(
        variables, "glm.Glm", {"formula": "~ age", "family": "gaussian"}, list(parts), privacy={"minimum_cell": 10}
    )
    with pytest.raises(FederationError, match=r"beside its declared range, -1e\+10 to 1e\+10; narrow"):
        run(tmp_path, study, parts, STRICT)


def test_one_value_is_not_spoken_of_where_the_rounding_can_not_hide_it() -> None:
    """Of so many patients a deviation of a ten millionth is told surely: the values differ."""
    few = str(looks_constant("'z'", 0, 1e9, 1e-14, 1e6, 1))
    assert np.isnan(variance_told(np.array(1e-14), np.array(1e6), 1, scale=1.0))
    assert "'z' has the same value for every patient who was counted, or values too close" in few
    assert str(looks_constant("'z'", 0, 1e9, 1e-14, 4e12, 1)).startswith("'z' has values too close")


def test_a_method_of_one_table_refuses_nothing_for_sites_that_are_not_there(patients: pd.DataFrame) -> None:
    """A site's local baseline, and the pooled what-if, have no door that scaling could be refused at."""
    from medfed.data.table import StudyTable
    from medfed.federation.here import Here, fit

    variables = {
        "event": code("no", "yes", role="outcome", event="yes"), "age": number(0, 120), "dose": number(-1e4, 1e4),
    }  # fmt: skip
    study = study_of(variables, "newton.Newton", {}, ["a", "b"])
    table = StudyTable.from_columns(study, {name: patients[name].to_numpy() for name in variables})
    found = fit(find_method(study), Here(table.on, study))
    assert np.isfinite(found["coefficients"]).all()
