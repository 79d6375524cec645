"""Site-stratified Cox against statsmodels and lifelines on pooled rows; its tests and C-index against independent ones."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg
from survival_data import (
    DIALYSIS,
    EVENT,
    LUNG,
    OPEN,
    Consortium,
    code,
    consortium,
    dialysis_frame,
    lung_frame,
    number,
    run,
)

from medfed.errors import FederationError
from medfed.federation.here import Here, PooledView, fit
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.methods.concordance import count_pairs
from medfed.methods.cox_fit import CoxFit
from medfed.methods.risk_sets import RiskOrder, partial_likelihood


@pytest.fixture(scope="module")
def dialysis() -> pd.DataFrame:
    return dialysis_frame()


@pytest.fixture(scope="module")
def lung() -> pd.DataFrame:
    return lung_frame()


def pooled(data: Consortium, ties: str, rows: np.ndarray | None = None) -> Any:
    """The stratified fit of statsmodels to all rows, or to some of them."""
    chosen = np.arange(len(data.time)) if rows is None else rows
    strata = pd.factorize(data.site[chosen])[0]
    model = PHReg(data.time[chosen], data.x[chosen], status=data.event[chosen], ties=ties, strata=strata)
    return model.fit(disp=0, tol=1e-14)


def assert_equals(result: dict[str, Any], oracle: Any, tolerance: float = 1e-9) -> None:
    errors = np.sqrt(np.diag(result["covariance"]))
    assert np.abs(result["coefficients"] - oracle.params).max() < tolerance
    assert np.abs(errors - oracle.bse).max() < tolerance
    assert abs(result["log_likelihood"] - oracle.llf) < 1e-7


@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_stratified_cox_equals_pooled_statsmodels_on_67_dialysis_centres(
    tmp_path: Path, dialysis: pd.DataFrame, ties: str
) -> None:
    data = consortium(dialysis, DIALYSIS, "cox.Cox", {"ties": ties})
    result = run(tmp_path, data)
    assert_equals(result, pooled(data, ties))
    assert result["rounds"] <= 7
    assert len(result["sites"]) == 67
    assert (result["patients"], result["events"]) == (6805, 1603)
    assert result["follow_up"] == pytest.approx(data.time.sum(), abs=1e-6)


def test_centres_lost_in_the_first_call_leave_the_pooled_fit_of_the_survivors(
    tmp_path: Path, dialysis: pd.DataFrame
) -> None:
    data = consortium(dialysis, DIALYSIS, "cox.Cox")
    lost = sorted(data.tables)[::3][:20]
    result = run(tmp_path, data, lost)
    assert len(result["sites"]) == 47
    assert sorted(result["held_back"]) == sorted(lost)
    rows = np.flatnonzero(~np.isin(data.site, lost))
    assert_equals(result, pooled(data, "efron", rows))
    assert result["events"] == data.event[rows].sum()
    assert result["rounds"] <= 7


def test_a_centre_lost_in_the_middle_leaves_the_fit_of_those_who_stay(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, "cox.Cox")
    lost = sorted(data.tables)[5:8]
    result = run(tmp_path, data, lost, after=4)
    assert len(result["sites"]) == 64
    rows = np.flatnonzero(~np.isin(data.site, lost))
    oracle = pooled(data, "efron", rows)
    assert_equals(result, oracle)
    assert result["events"] == data.event[rows].sum()
    nothing = 0.0
    for site in np.unique(data.site[rows]):
        own = rows[data.site[rows] == site]
        order = RiskOrder.of(data.time[own], data.event[own])
        nothing += partial_likelihood(data.x[own][order.order], np.zeros(6), order, "efron").log_likelihood
    assert result["null_log_likelihood"] == pytest.approx(nothing, abs=1e-7)


def test_lung_cancer_trial_as_a_whole_equals_statsmodels(tmp_path: Path, lung: pd.DataFrame) -> None:
    """18 institutions, 9 of them with fewer than 10 patients."""
    data = consortium(lung, LUNG, "cox.Cox")
    assert (lung["site"].value_counts() < 10).sum() == 9
    result = run(tmp_path, data)
    assert (len(result["sites"]), result["patients"], result["events"]) == (18, 226, 163)
    assert_equals(result, pooled(data, "efron"))


def test_the_method_over_one_pooled_table_is_the_unstratified_fit(dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, "cox.Cox")
    method = find_method(data.study)
    result = fit(method, Here(lambda part: PooledView([t.on(part) for t in data.tables.values()]), data.study))
    oracle = PHReg(data.time, data.x, status=data.event, ties="efron").fit(disp=0, tol=1e-14)
    assert_equals(dict(result), oracle)


def test_the_horizon_censors_as_if_follow_up_had_ended_there(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    variables = DIALYSIS | {"time": DIALYSIS["time"] | {"horizon": 24}}
    data = consortium(dialysis, variables, "cox.Cox")
    result = run(tmp_path, data)
    cut, event = np.minimum(data.time, 24), data.event * (data.time <= 24)
    strata = pd.factorize(data.site)[0]
    assert_equals(result, PHReg(cut, data.x, status=event, ties="efron", strata=strata).fit(disp=0, tol=1e-14))
    assert result["events"] == event.sum()


def test_older_proportionality_test_equals_lifelines(tmp_path: Path, lung: pd.DataFrame) -> None:
    lifelines = pytest.importorskip("lifelines", reason="lifelines is not installed")
    statistics = pytest.importorskip("lifelines.statistics", reason="lifelines is not installed")
    data = consortium(lung.assign(site="one"), LUNG, "cox.Cox")
    result = run(tmp_path, data, policy=OPEN.model_copy(update={"site_terms_visible": True}))
    frame = pd.DataFrame(data.x, columns=data.study.design.names[1:]).assign(t=data.time, e=data.event)
    fitted = lifelines.CoxPHFitter().fit(frame, "t", "e", fit_options={"precision": 1e-12})
    oracle = statistics.proportional_hazard_test(fitted, frame, time_transform="identity").summary
    oracle = oracle.loc[list(data.study.design.names[1:])]
    assert np.allclose(result["proportionality"]["averaged"]["chi2"], oracle["test_statistic"], rtol=1e-5)
    assert np.allclose(result["proportionality"]["averaged"]["p"], oracle["p"], rtol=1e-5)


def test_score_test_of_proportionality_equals_the_derivative_of_the_likelihood(lung: pd.DataFrame) -> None:
    """U and I of theta in beta + theta g(t), by brute force over the risk sets of each event (no ties left)."""
    rng = np.random.default_rng(4)
    times = lung["time"].to_numpy(float) + rng.uniform(0, 0.5, len(lung))
    data = consortium(lung.assign(site="one", time=times), LUNG, "cox.Cox")
    result = fit(find_method(data.study), Here(data.tables["one"].on, data.study))
    beta, q = result["coefficients"], 3
    score, information = np.zeros(2 * q), np.zeros((2 * q, 2 * q))
    for index in np.flatnonzero(data.event):
        at = data.time >= data.time[index]
        g = data.time[index]
        z = np.concatenate([data.x, g * data.x], axis=1)
        weight = np.exp(data.x @ beta) * at
        weight = weight / weight.sum()
        mean = weight @ z
        score += z[index] - mean
        information += (z * weight[:, None]).T @ z - np.outer(mean, mean)
    everything = score @ np.linalg.solve(information, score)
    assert result["proportionality"]["all"]["chi2"] == pytest.approx(everything, rel=1e-6)
    for index, name in enumerate(("age", "sex", "ph_ecog")):
        chosen = [0, 1, 2, q + index]
        own = score[chosen] @ np.linalg.solve(information[np.ix_(chosen, chosen)], score[chosen])
        assert result["proportionality"]["variables"][name]["chi2"] == pytest.approx(own, rel=1e-6)


def test_c_index_within_sites_equals_lifelines_over_their_pairs(tmp_path: Path, lung: pd.DataFrame) -> None:
    utils = pytest.importorskip("lifelines.utils", reason="lifelines is not installed")
    data = consortium(lung, LUNG, "cox.Cox")
    result = run(tmp_path, data)
    score, right, pairs = data.x @ result["coefficients"], 0.0, 0.0
    for site in np.unique(data.site):
        own = data.site == site
        count = count_pairs(data.time[own], data.event[own], score[own]).totals[2]
        if count:
            right += count * utils.concordance_index(data.time[own], -score[own], data.event[own])
            pairs += count
    assert result["concordance"]["value"] == pytest.approx(right / pairs, abs=1e-9)
    assert result["concordance"]["pairs"] == pairs


def test_pairs_are_counted_as_one_by_one_would() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        n = int(rng.integers(1, 30))
        times, event, score = rng.integers(0, 8, n), rng.integers(0, 2, n), rng.integers(0, 6, n)
        found = count_pairs(times.astype(float), event.astype(float), score.astype(float))
        expected = np.zeros((n, 3))
        for i in range(n):
            for j in range(n):
                if event[i] and (times[i] < times[j] or (times[i] == times[j] and not event[j])):
                    right = 1.0 if score[i] > score[j] else 0.5 if score[i] == score[j] else 0.0
                    for k in (i, j):
                        expected[k] += [right, score[i] == score[j], 1]
        assert np.allclose(np.stack([found.right, found.tied, found.comparable], 1), expected)


def test_c_index_error_is_that_of_the_jackknife(lung: pd.DataFrame) -> None:
    data = consortium(lung.assign(site="one"), LUNG, "cox.Cox")
    result = fit(find_method(data.study), Here(data.tables["one"].on, data.study))
    score = data.x @ result["coefficients"]

    def c_without(left_out: int) -> float:
        kept = np.arange(len(score)) != left_out
        right, _, pairs = count_pairs(data.time[kept], data.event[kept], score[kept]).totals
        return right / pairs

    values = np.array([c_without(index) for index in range(len(score))])
    n = len(values)
    jackknife = np.sqrt((n - 1) / n * ((values - values.mean()) ** 2).sum())
    assert result["concordance"]["standard_error"] == pytest.approx(jackknife, rel=0.02)


def test_a_sites_baseline_stays_there_and_is_seen_only_where_policies_allow(
    tmp_path: Path, dialysis: pd.DataFrame
) -> None:
    data = consortium(dialysis, DIALYSIS, "cox.Cox", {"ties": "breslow", "baseline_by_site": True})
    assert run(tmp_path / "closed", data)["baselines"] == {}
    seen = {"site_terms_visible": True, "replies": ("site_baseline",)}
    site = dialysis["site"].value_counts().index[0]
    policies = {name: OPEN.model_copy(update=seen) if name == site else OPEN for name in data.tables}
    result = run(tmp_path / "open", data, policy=policies)
    assert list(result["baselines"]) == [site]
    own = data.site == site
    times, event = data.time[own], data.event[own]
    # At the mean of every numeric feature over all centres, and the reference of the coded one.
    centred = data.x[own] - np.concatenate([data.x[:, :2].mean(0), np.zeros(4)])
    risk = np.exp(centred @ result["coefficients"])
    steps = [(event * (times == t)).sum() / risk[times >= t].sum() for t in range(1, 45)]
    assert np.abs(result["baselines"][site] - np.cumsum(steps)).max() < 1e-9


def test_under_plain_sums_small_sites_are_held_back(tmp_path: Path, lung: pd.DataFrame) -> None:
    variables = LUNG | {"ph_ecog": number(0, 4, "1", missing="mean")}
    data = consortium(lung, variables, "cox.Cox", privacy={"minimum_cell": 10, "sums": "plain"})
    policy = Policy(values_per_patient={"sum": 5.0, "count": 5.0, "reply": 1.0})
    with pytest.raises(FederationError, match="0 of 18 sites answered 'moments'"):
        run(tmp_path, data, policy=policy)


def test_summary_and_frame_speak_as_lifelines_does(tmp_path: Path, lung: pd.DataFrame) -> None:
    data = consortium(lung, LUNG, "cox.Cox")
    found = CoxFit(data.study, run(tmp_path, data))
    frame = found.to_frame()
    assert list(frame.index) == ["age", "sex=female", "ph_ecog"]
    assert {"coef", "exp(coef)", "se(coef)", "z", "p"} <= set(frame.columns)
    oracle = pooled(data, "efron")
    assert np.allclose(frame["p"], oracle.pvalues, atol=1e-9)
    assert np.allclose(frame[["coef lower 95%", "coef upper 95%"]], oracle.conf_int(), atol=1e-9)
    text = found.summary()
    assert "Cox regression stratified by site, exact (Efron ties)" in text
    assert "Sites counted: 18" in text
    assert "按机构分层" in found.summary("zh")


def test_an_arm_is_a_feature_of_a_survival_study() -> None:
    rng = np.random.default_rng(2)
    n = 300
    arm = rng.integers(0, 2, n)
    times = rng.exponential(10 * np.exp(0.7 * arm))
    frame = pd.DataFrame({
        "time": np.minimum(times, 30), "event": (times <= 30).astype(int), "arm": np.where(arm, "drug", "placebo"),
        "site": np.where(np.arange(n) % 2, "a", "b"),
    })  # fmt: skip
    variables = {
        "time": {**number(0, 30, "day"), "role": "time", "interval": 1}, "event": EVENT,
        "arm": code(["placebo", "drug"]) | {"role": "arm"},
    }  # fmt: skip
    data = consortium(frame, variables, "cox.Cox")
    assert data.study.design.names == ("intercept", "arm=drug")
    result = fit(find_method(data.study), Here(data.tables["a"].on, data.study))
    assert result["coefficients"][0] < -0.3
