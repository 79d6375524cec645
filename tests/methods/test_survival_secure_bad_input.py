"""What a survival model can't answer under secure sums is said in one sentence, and nothing small is opened for it."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg
from survival_data import code, consortium, number, run
from test_survival_bad_input import METHODS, VARIABLES, patients

from medfed.errors import MedfedError
from medfed.federation.policy import Policy

TEN = {"minimum_cell": 10, "sums": "strongest"}
ALL = (*METHODS, "kaplan_meier.KaplanMeier")


def refusal(folder: Path, frame: pd.DataFrame, use: str, variables: dict[str, Any] = VARIABLES, **settings: Any) -> str:
    with pytest.raises(MedfedError) as problem:
        run(folder, consortium(frame, variables, use, settings, privacy=TEN), policy=Policy())
    message = str(problem.value)
    assert "\n" not in message
    assert not re.search(r"Traceback|Error|None|nan|<class|\[\[", message), message
    return message


@pytest.mark.parametrize("use", ALL)
def test_no_events_at_all(tmp_path: Path, use: str) -> None:
    message = refusal(tmp_path, patients().assign(event=0), use)
    assert "over all sites, a cell of 'event' has fewer patients than may be seen" in message


@pytest.mark.parametrize("use", ALL)
def test_a_site_without_events_takes_part(tmp_path: Path, use: str) -> None:
    frame = patients(480, sites=4)
    frame.loc[frame["site"] == "s2", "event"] = 0
    data = consortium(frame, VARIABLES, use, privacy=TEN)
    result = run(tmp_path, data, policy=Policy())
    assert result["sites"] == ["s0", "s1", "s2", "s3"]
    assert result["patients"] == 480
    if use == "cox.Cox":
        strata = pd.factorize(data.site)[0]
        oracle = PHReg(data.time, data.x, status=data.event, ties="efron", strata=strata).fit(disp=0, tol=1e-14)
        assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9


@pytest.mark.parametrize("use", METHODS)
def test_fewer_patients_than_parameters(tmp_path: Path, use: str) -> None:
    message = refusal(tmp_path, patients(9), use)
    assert "fewer patients" in message


@pytest.mark.parametrize("use", METHODS)
def test_collinear_features_are_named(tmp_path: Path, use: str) -> None:
    frame = patients(480, sites=4).assign(half=lambda f: f["age"] / 2)
    message = refusal(tmp_path, frame, use, VARIABLES | {"half": number(5, 60)})
    assert "'age' and 'half' are collinear; leave one of them out" in message


@pytest.mark.parametrize("use", METHODS)
def test_too_few_rounds_are_no_convergence(tmp_path: Path, use: str) -> None:
    assert "no convergence in 2 rounds" in refusal(tmp_path, patients(480, sites=4), use, most_rounds=2)


def test_a_category_at_one_site_only_is_fitted_as_on_pooled_rows(tmp_path: Path) -> None:
    frame = patients(480, sites=4)
    frame["sex"] = np.where((frame["site"] == "s1") & (np.arange(480) % 8 < 4), "x", frame["sex"])
    variables = VARIABLES | {"sex": code(["f", "m", "x"])}
    data = consortium(frame, variables, "cox.Cox", privacy=TEN)
    result = run(tmp_path, data, policy=Policy())
    strata = pd.factorize(data.site)[0]
    oracle = PHReg(data.time, data.x, status=data.event, ties="efron", strata=strata).fit(disp=0, tol=1e-14)
    assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9


def test_a_rare_category_is_not_opened(tmp_path: Path) -> None:
    frame = patients(480, sites=4)
    frame.loc[frame.index[frame["site"] == "s1"][:6], "sex"] = "x"
    message = refusal(tmp_path, frame, "cox.Cox", VARIABLES | {"sex": code(["f", "m", "x"])})
    assert "over all sites, a cell of 'sex' has fewer patients than may be seen" in message


def test_a_group_too_rare_for_any_cell_is_told(tmp_path: Path) -> None:
    """A cohort variable is no covariate, so that the cells of it are judged when its counts are asked for."""
    frame = patients(480, sites=4).assign(ward="a")
    frame.loc[frame.index[::96], "ward"] = "b"
    variables = VARIABLES | {"ward": code(["a", "b"]) | {"role": "cohort"}}
    message = refusal(tmp_path, frame, "kaplan_meier.KaplanMeier", variables, by="ward")
    assert "there are no cells whose counts over all sites together are large enough to be seen" in message
