"""Survival under secure sums, with policies as they come: 67 dialysis centres, and 18 institutions of which 9 are tiny."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg
from survival_data import DIALYSIS, LUNG, Consortium, consortium, dialysis_frame, lung_frame, run

from medfed.federation.policy import Policy

TEN = {"minimum_cell": 10, "sums": "strongest"}


@pytest.fixture(scope="module")
def dialysis() -> pd.DataFrame:
    return dialysis_frame()


@pytest.fixture(scope="module")
def lung() -> pd.DataFrame:
    return lung_frame()


def secure(
    frame: pd.DataFrame, variables: dict[str, Any], use: str, settings: dict[str, Any] | None = None
) -> Consortium:
    return consortium(frame, variables, use, settings, privacy=TEN)


def answered(folder: Path, data: Consortium, lost: Sequence[str] = ()) -> dict[str, Any]:
    return run(folder, data, lost, policy=Policy())


def assert_is_pooled(result: dict[str, Any], data: Consortium, ties: str, rows: np.ndarray | None = None) -> None:
    """Within 1e-9 of statsmodels on the pooled rows, a stratum a site."""
    chosen = np.arange(len(data.time)) if rows is None else rows
    strata = pd.factorize(data.site[chosen])[0]
    model = PHReg(data.time[chosen], data.x[chosen], status=data.event[chosen], ties=ties, strata=strata)
    oracle = model.fit(disp=0, tol=1e-14)
    assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse).max() < 1e-9
    assert abs(result["log_likelihood"] - oracle.llf) < 1e-7


def test_stratified_cox_of_67_dialysis_centres_under_masks_is_the_pooled_fit(
    tmp_path: Path, dialysis: pd.DataFrame
) -> None:
    data = secure(dialysis, DIALYSIS, "cox.Cox")
    assert dialysis["site"].value_counts().min() == 4
    assert (dialysis.groupby("site")["event"].sum() == 0).sum() == 2
    result = answered(tmp_path, data)
    assert_is_pooled(result, data, "efron")
    assert result["rounds"] <= 7
    assert (len(result["sites"]), result["patients"], result["events"]) == (67, 6805, 1603)
    assert result["held_back"] == {}


def test_20_centres_lost_in_the_first_call_leave_the_pooled_fit_of_the_47_under_masks(
    tmp_path: Path, dialysis: pd.DataFrame
) -> None:
    data = secure(dialysis, DIALYSIS, "cox.Cox")
    lost = sorted(data.tables)[:20]
    result = answered(tmp_path, data, lost)
    rows = np.flatnonzero(~np.isin(data.site, lost))
    assert_is_pooled(result, data, "efron", rows)
    assert result["rounds"] <= 7
    assert (len(result["sites"]), result["events"]) == (47, data.event[rows].sum())
    assert sorted(result["held_back"]) == lost


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_the_lung_cancer_trial_as_a_whole_under_masks_is_the_pooled_fit(
    tmp_path: Path, lung: pd.DataFrame, ties: str
) -> None:
    data = secure(lung, LUNG, "cox.Cox", {"ties": ties})
    assert (lung["site"].value_counts() < 10).sum() == 9
    result = answered(tmp_path, data)
    assert_is_pooled(result, data, ties)
    assert (len(result["sites"]), result["patients"], result["events"]) == (18, 226, 163)
