"""What a survival model can't answer is said in one sentence: what is wrong, and what to do."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg
from survival_data import EVENT, Consortium, code, consortium, number, run

from medfed.data.table import StudyTable
from medfed.errors import MappingError, MedfedError, StudyError
from medfed.federation.packages import find_method
from medfed.study import study_from_dict

VARIABLES = {
    "time": {**number(0, 20, "month"), "role": "time", "interval": 1},
    "event": EVENT,
    "age": number(18, 100),
    "sex": code(["f", "m"]),
}
METHODS = ("cox.Cox", "unstratified_cox.UnstratifiedCox", "discrete_hazards.DiscreteHazards")


def patients(n: int = 240, seed: int = 1, sites: int = 3) -> pd.DataFrame:
    """Invented patients of three sites, older ones at a higher hazard."""
    rng = np.random.default_rng(seed)
    age = rng.normal(60, 10, n).clip(20, 95)
    dying = rng.exponential(12 * np.exp(-0.03 * (age - 60)))
    leaving = rng.uniform(2, 20, n)
    times = np.ceil(np.minimum(dying, leaving)).clip(1, 20)
    return pd.DataFrame({
        "time": times, "event": (dying <= leaving).astype(int), "age": age, "sex": rng.choice(["f", "m"], n),
        "site": [f"s{index % sites}" for index in range(n)],
    })  # fmt: skip


def refusal(folder: Path, frame: pd.DataFrame, use: str, variables: dict[str, Any] = VARIABLES, **settings: Any) -> str:
    """The sentence with which a run stops: one, for people, without anything of Python."""
    with pytest.raises(MedfedError) as problem:
        run(
            folder,
            consortium(frame, variables, use, {"minimum_cell": 5, **settings} if use != METHODS[0] else settings),
        )
    message = str(problem.value)
    assert "\n" not in message
    assert not re.search(r"Traceback|Error|None|nan|<class|\[\[", message), message
    return message


@pytest.mark.parametrize("use", METHODS)
def test_no_events_at_all(tmp_path: Path, use: str) -> None:
    message = refusal(tmp_path, patients().assign(event=0), use)
    assert "no patient who was counted has the event; a hazard can't be compared without one" in message


def test_a_site_without_events_adds_nothing_to_the_stratified_model_and_is_told_at_home(tmp_path: Path) -> None:
    frame = patients()
    frame.loc[frame["site"] == "s2", "event"] = 0
    data = consortium(frame, VARIABLES, "cox.Cox")
    result = run(tmp_path, data)
    rows = data.site != "s2"
    oracle = PHReg(
        data.time[rows], data.x[rows], status=data.event[rows], ties="efron", strata=pd.factorize(data.site[rows])[0]
    ).fit(disp=0, tol=1e-14)
    assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse).max() < 1e-9
    assert result["sites"] == ["s0", "s1", "s2"]


@pytest.mark.parametrize("use", METHODS)
def test_a_site_without_events_counts_among_those_at_risk_where_sites_share_a_hazard(tmp_path: Path, use: str) -> None:
    frame = patients()
    frame.loc[frame["site"] == "s2", "event"] = 0
    result = run(tmp_path, consortium(frame, VARIABLES, use))
    assert result["sites"] == ["s0", "s1", "s2"]
    assert result["patients"] == 240


@pytest.mark.parametrize("use", METHODS)
def test_fewer_events_than_coefficients(tmp_path: Path, use: str) -> None:
    frame = patients(12)
    frame["event"] = (np.arange(12) == 3).astype(int)
    message = refusal(tmp_path, frame, use)
    assert "there are fewer patients with the event than the 2 coefficients of the model; leave features out" in message


@pytest.mark.parametrize("use", METHODS)
def test_a_level_without_events_is_a_monotone_likelihood(tmp_path: Path, use: str) -> None:
    frame = patients()
    frame.loc[frame["sex"] == "m", "event"] = 0
    message = refusal(tmp_path, frame, use)
    assert "the likelihood is monotone in 'sex=m', which orders the events perfectly" in message


def test_a_number_that_orders_the_events_is_a_monotone_likelihood(tmp_path: Path) -> None:
    frame = patients(60, sites=2).assign(event=1, time=np.repeat(np.arange(1, 21), 3).astype(float))
    frame["age"] = 95.0 - 2 * frame["time"]
    message = refusal(tmp_path, frame, "cox.Cox")
    assert "'age' makes the model so steep" in message, "which sites refuse before the fit has run away"
    assert "orders the events perfectly" in message


@pytest.mark.parametrize("use", METHODS)
def test_collinear_features_are_named(tmp_path: Path, use: str) -> None:
    frame = patients().assign(half=lambda f: f["age"] / 2)
    message = refusal(tmp_path, frame, use, VARIABLES | {"half": number(5, 60)})
    assert "'age' and 'half' are collinear; leave one of them out" in message


def test_what_differs_between_sites_only_has_no_place_in_a_stratified_model(tmp_path: Path) -> None:
    frame = patients().assign(beds=lambda f: f["site"].map({"s0": 100.0, "s1": 200.0, "s2": 400.0}))
    message = refusal(tmp_path, frame, "cox.Cox", VARIABLES | {"beds": number(0, 1000, "1")})
    assert "'beds' does not vary among the patients who are compared (in a stratified model: within a site)" in message
    result = run(tmp_path / "one", consortium(frame, VARIABLES | {"beds": number(0, 1000, "1")}, METHODS[1]))
    assert np.isfinite(result["coefficients"]).all()
    assert np.isnan(result["grid_difference"]).tolist() == [False, False, True]


@pytest.mark.parametrize("use", METHODS)
def test_too_few_rounds_are_no_convergence(tmp_path: Path, use: str) -> None:
    message = refusal(tmp_path, patients(), use, most_rounds=2)
    assert "no convergence in 2 rounds (last change" in message
    assert "raise most_rounds" in message


def test_a_constant_feature_is_told_before_the_fit(tmp_path: Path) -> None:
    assert "feature 'age' has the same value for every patient" in refusal(
        tmp_path, patients().assign(age=50.0), "cox.Cox"
    )


def test_a_grid_that_would_show_small_counts_everywhere_is_no_grid(tmp_path: Path) -> None:
    message = refusal(tmp_path, patients(40), METHODS[1], minimum_cell=15)
    assert "so that all of follow-up becomes one cell; use cox.Cox, which needs no grid" in message


@pytest.mark.parametrize(
    ("use", "settings", "words"),
    [
        ("cox.Cox", {"ties": "exact"}, "ties is 'efron' or 'breslow', not 'exact'"),
        ("cox.Cox", {"transform": "km"}, "transform is 'identity' or 'log', not 'km'"),
        ("cox.Cox", {"tolerance": 0}, "tolerance is above 0"),
        ("unstratified_cox.UnstratifiedCox", {"cells": "all"}, "cells is 'covariates' or 'events', not 'all'"),
        ("unstratified_cox.UnstratifiedCox", {"minimum_cell": 0}, "minimum_cell is at least 1"),
        ("discrete_hazards.DiscreteHazards", {"most_rounds": 0}, "most_rounds at least 1"),
        ("kaplan_meier.KaplanMeier", {"minimum_cell": 0}, "minimum_cell is at least 1"),
    ],
)
def test_settings_that_are_impossible(use: str, settings: dict[str, Any], words: str) -> None:
    data = consortium(patients(), VARIABLES, use, settings)
    with pytest.raises(StudyError, match=words):
        find_method(data.study)


@pytest.mark.parametrize("use", [*METHODS, "kaplan_meier.KaplanMeier"])
def test_a_study_without_a_time_is_told_what_to_write(use: str) -> None:
    data = consortium(patients(), VARIABLES, use)
    declared = data.study.model_dump(mode="json")
    declared["variables"].pop("time")
    declared["task"]["kind"] = "risk_prediction"
    study = study_from_dict(declared)
    with pytest.raises(StudyError, match="times to an event are asked for; write `task: {kind: survival}`"):
        find_method(study).start(study)


def test_a_model_without_covariates_is_told_what_to_add() -> None:
    frame = patients()[["time", "event", "site"]]
    study = consortium(frame, {name: VARIABLES[name] for name in ("time", "event")}, "cox.Cox").study
    with pytest.raises(StudyError, match="a model needs a variable with `role: covariate` or `role: arm`; add one"):
        find_method(study).start(study)


# -- times, in a table


def table_of(data: Consortium, **changes: Any) -> StudyTable:
    columns = {name: data.frame[name].to_numpy() for name in ("time", "age", "sex")}
    columns["event"] = np.where(data.event > 0, "yes", "no")
    return StudyTable.from_columns(data.study, columns | changes)


def test_negative_times_and_times_off_the_grid_are_refused() -> None:
    data = consortium(patients(), VARIABLES, "cox.Cox")
    times = data.time.copy()
    times[:3] = -1.0
    with pytest.raises(
        MappingError, match="variable 'time': 3 of 240 times are negative: follow-up ends before it starts"
    ):
        table_of(data, time=times)
    times = data.time.copy()
    times[:2] = 21.0
    with pytest.raises(
        MappingError, match="2 of 240 times are off the grid, which the study declares from 0 to 20 month"
    ):
        table_of(data, time=times)
    times = data.time.copy()
    times[0] = np.nan
    with pytest.raises(MappingError, match="variable 'time': 1 of 240 values are missing"):
        table_of(data, time=times)


def test_a_time_beyond_the_horizon_is_censored_there() -> None:
    data = consortium(patients(), VARIABLES | {"time": VARIABLES["time"] | {"horizon": 10}}, "cox.Cox")
    view = table_of(data).on("all")
    back = np.argsort(view.row_pseudonyms)
    time, event = (column[back] for column in view.arrays("time", "event"))
    assert np.array_equal(time, np.minimum(data.time, 10))
    assert np.array_equal(event, data.event * (data.time <= 10))
    pieces = [piece for piece in view.batches(("time", "event"), 50)]
    assert np.array_equal(np.concatenate([piece[1] for piece in pieces])[back], event)
