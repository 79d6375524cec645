"""Methods on a time grid under secure sums: cells merged before anything is opened, equal to libraries on these cells."""

from pathlib import Path
from typing import Any

import lifelines
import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from lifelines.statistics import multivariate_logrank_test
from lifelines.utils import concordance_index
from statsmodels.duration.hazard_regression import PHReg
from survival_data import DIALYSIS, LUNG, OPEN, Consortium, code, consortium, dialysis_frame, lung_frame, run
from test_survival_grid import person_periods

from medfed.federation.policy import Policy
from medfed.methods.kaplan_meier_fit import KaplanMeierFit
from medfed.methods.survival_curves import pointwise

TEN = {"minimum_cell": 10, "sums": "strongest"}
UNSTRATIFIED = "unstratified_cox.UnstratifiedCox"
VARIABLES = {name: v for name, v in DIALYSIS.items() if name != "fac_disease"} | {"cause": code(["other", "diabetes"])}


@pytest.fixture(scope="module")
def centres() -> pd.DataFrame:
    """The 15 largest dialysis centres; the cause of the disease as one code."""
    frame = dialysis_frame()
    frame = frame[frame["site"].isin(frame["site"].value_counts().index[:15])]
    return frame.assign(cause=np.where(frame["fac_disease"] == "diabetes", "diabetes", "other")).drop(
        columns="fac_disease"
    )


def answered(
    folder: Path, frame: pd.DataFrame, use: str, settings: dict[str, Any] | None = None, variables: Any = VARIABLES
) -> tuple[Consortium, dict[str, Any]]:
    data = consortium(frame, variables, use, settings, privacy=TEN)
    return data, run(folder, data, policy=Policy())


def moved(data: Consortium, ends: np.ndarray) -> np.ndarray:
    return ends[np.searchsorted(ends, data.time - 1e-9)]


def test_curve_and_hazard_are_those_of_lifelines_on_the_merged_cells(tmp_path: Path, centres: pd.DataFrame) -> None:
    data, result = answered(tmp_path, centres, "kaplan_meier.KaplanMeier")
    fit = KaplanMeierFit(data.study, result)
    curve = fit.curve()
    assert len(curve.time) >= 10
    assert (curve.events >= 10).all()
    assert ((curve.censored >= 10) | (curve.censored == 0)).all()
    assert (curve.events.sum(), curve.at_risk[0]) == (data.event.sum(), len(data.event))
    times = moved(data, curve.time)
    oracle = lifelines.KaplanMeierFitter().fit(times, data.event)
    assert np.abs(oracle.survival_function_at_times(curve.time).to_numpy() - curve.survival).max() < 1e-12
    limits = oracle.confidence_interval_survival_function_.loc[curve.time].to_numpy()
    assert np.abs(limits - np.stack(pointwise(curve), 1)).max() < 1e-10
    hazard = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(times, data.event)
    assert np.abs(hazard.cumulative_hazard_at_times(curve.time).to_numpy() - curve.hazard).max() < 1e-12
    area = lifelines.utils.restricted_mean_survival_time(oracle, t=44)
    assert fit.restricted_mean().value == pytest.approx(area, abs=1e-9)


def test_what_merging_changes_is_within_the_bound_that_is_told(tmp_path: Path, centres: pd.DataFrame) -> None:
    data, result = answered(tmp_path, centres, "kaplan_meier.KaplanMeier")
    fit = KaplanMeierFit(data.study, result)
    curve = fit.curve()
    ungrouped = lifelines.KaplanMeierFitter().fit(data.time, data.event)
    ends, anywhere, mean = result["curves"]["0"]["grid_changes"]
    exact = ungrouped.survival_function_at_times(curve.time).to_numpy()
    assert 0 < np.abs(exact - curve.survival).max() <= ends
    whole = np.arange(1, 45)
    drawn = np.concatenate([[1.0], curve.survival])[np.searchsorted(curve.time, whole, side="right")]
    assert np.abs(ungrouped.survival_function_at_times(whole).to_numpy() - drawn).max() <= anywhere
    difference = fit.restricted_mean().value - lifelines.utils.restricted_mean_survival_time(ungrouped, t=44)
    assert 0 <= difference <= mean
    assert "a bound: how many left in each declared interval was never seen" in fit.summary()


def test_log_rank_over_all_sites_is_that_of_lifelines_on_the_shared_cells(
    tmp_path: Path, centres: pd.DataFrame
) -> None:
    data, result = answered(tmp_path, centres, "kaplan_meier.KaplanMeier", {"by": "cause"})
    first, second = (set(result["curves"][index]["cuts"].tolist()) for index in ("0", "1"))
    shared = np.array(sorted(first & second), dtype=float)
    assert result["log_rank"]["cells"] == len(shared) > 2
    oracle = multivariate_logrank_test(moved(data, shared), data.frame["cause"], data.event)
    assert result["log_rank"]["chi2"] == pytest.approx(oracle.test_statistic, rel=1e-9)
    within = run(
        tmp_path / "plain",
        consortium(centres, VARIABLES, "kaplan_meier.KaplanMeier", {"by": "cause"}, privacy={"sums": "plain", "minimum_cell": 1}),
        policy=OPEN,
    )["log_rank_within"]  # fmt: skip
    assert result["log_rank_within"]["chi2"] == pytest.approx(within["chi2"], rel=1e-12)
    summary = KaplanMeierFit(data.study, result).summary()
    assert f"Log-rank test, on {len(shared)} cells that all groups share: chi2" in summary


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_one_hazard_for_all_is_statsmodels_on_the_merged_cells(
    tmp_path: Path, centres: pd.DataFrame, ties: str
) -> None:
    data, result = answered(tmp_path, centres, UNSTRATIFIED, {"ties": ties, "cells": "covariates"})
    ends = result["cells"]["time"]
    assert len(ends) >= 3
    oracle = PHReg(moved(data, ends), data.x, status=data.event, ties=ties).fit(disp=0, tol=1e-14)
    assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse).max() < 1e-9
    assert np.isfinite(result["grid_difference"]).all()
    if ties == "breslow":
        times = moved(data, ends)
        reference = np.concatenate([data.x[:, :2].mean(0), np.zeros(1)])
        risk = np.exp((data.x - reference) @ result["coefficients"])
        steps = [(data.event * (times == t)).sum() / risk[times >= t].sum() for t in ends]
        assert np.abs(result["baseline"]["cumulative_hazard"] - np.cumsum(steps)).max() < 1e-9
    exact = concordance_index(data.time, -(data.x @ result["coefficients"]), data.event)
    across = result["concordance_across"]
    assert min(across["groups"], across["cells"]) >= 2
    assert abs(across["value"] - exact) < 0.02
    assert abs(across["value"] - exact) < across["largest_error"]


def test_discrete_hazards_are_logistic_regression_on_the_merged_cells(tmp_path: Path, centres: pd.DataFrame) -> None:
    data, result = answered(tmp_path, centres, "discrete_hazards.DiscreteHazards")
    cuts = result["cells"]["cuts"]
    happened, x = person_periods(data, cuts)
    oracle = sm.Logit(happened, x).fit(method="newton", tol=1e-14, disp=0)
    assert np.abs(result["coefficients"] - oracle.params[len(cuts) :]).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse[len(cuts) :]).max() < 1e-9


def test_the_lung_cancer_trial_on_the_cells_that_18_institutions_can_show(tmp_path: Path) -> None:
    frame = lung_frame()
    data, result = answered(tmp_path / "km", frame, "kaplan_meier.KaplanMeier", variables=LUNG)
    curve = KaplanMeierFit(data.study, result).curve()
    assert (curve.events.sum(), curve.at_risk[0], len(result["sites"])) == (163, 226, 18)
    oracle = lifelines.KaplanMeierFitter().fit(moved(data, curve.time), data.event)
    assert np.abs(oracle.survival_function_at_times(curve.time).to_numpy() - curve.survival).max() < 1e-12
    data, result = answered(tmp_path / "cox", frame, UNSTRATIFIED, {"cells": "events"}, variables=LUNG)
    fitted = PHReg(moved(data, result["cells"]["time"]), data.x, status=data.event, ties="breslow")
    pooled = fitted.fit(disp=0, tol=1e-14)
    assert np.abs(result["coefficients"] - pooled.params).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - pooled.bse).max() < 1e-9


def test_c_index_within_sites_and_proportionality_are_the_same_as_in_plain(tmp_path: Path) -> None:
    frame = lung_frame()
    _, result = answered(tmp_path / "secure", frame, "cox.Cox", variables=LUNG)
    open_study = consortium(frame, LUNG, "cox.Cox", privacy={"sums": "plain", "minimum_cell": 1})
    plain = run(tmp_path / "plain", open_study, policy=OPEN)
    assert result["concordance"] == pytest.approx(plain["concordance"], rel=1e-12)
    assert result["proportionality"]["all"] == pytest.approx(plain["proportionality"]["all"], rel=1e-9)
