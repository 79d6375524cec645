"""Survival curves against lifelines on pooled rows with times moved to the grid; bands and means against simulation."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from survival_data import DIALYSIS, LUNG, Consortium, consortium, dialysis_frame, lung_frame, run

from medfed.errors import FederationError, StudyError
from medfed.methods.kaplan_meier_fit import KaplanMeierFit
from medfed.methods.survival_curves import (
    band,
    curve_of,
    equal_precision_critical,
    hall_wellner_critical,
    pointwise,
    quantile_time,
    restricted_mean,
)

lifelines = pytest.importorskip("lifelines", reason="lifelines is not installed")
multivariate_logrank_test = pytest.importorskip("lifelines.statistics").multivariate_logrank_test
median_survival_times = pytest.importorskip("lifelines.utils").median_survival_times
restricted_mean_survival_time = pytest.importorskip("lifelines.utils").restricted_mean_survival_time

K = "kaplan_meier.KaplanMeier"


@pytest.fixture(scope="module")
def dialysis() -> pd.DataFrame:
    return dialysis_frame()


def moved(times: np.ndarray, ends: np.ndarray) -> np.ndarray:
    return np.asarray(ends)[np.searchsorted(ends, times - 1e-9)]


def assert_curve_equals(fit: KaplanMeierFit, group: str, times: np.ndarray, event: np.ndarray) -> Any:
    """One group's curve, limits and cumulative hazard against lifelines on moved times."""
    curve = fit.curve(group)
    at = moved(times, curve.time)
    oracle = lifelines.KaplanMeierFitter().fit(at, event)
    assert np.abs(oracle.survival_function_at_times(curve.time).to_numpy() - curve.survival).max() < 1e-12
    limits = oracle.confidence_interval_survival_function_.loc[curve.time].to_numpy()
    assert np.abs(limits - np.stack(pointwise(curve), 1)).max() < 1e-10
    hazard = lifelines.NelsonAalenFitter(nelson_aalen_smoothing=False).fit(at, event)
    assert np.abs(hazard.cumulative_hazard_at_times(curve.time).to_numpy() - curve.hazard).max() < 1e-12
    return oracle


def test_kaplan_meier_on_67_dialysis_centres_equals_lifelines(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, K)
    result = run(tmp_path, data)
    fit = KaplanMeierFit(data.study, result)
    curve = fit.curve()
    assert len(curve.time) == 33
    assert min(curve.events.min(), curve.censored.min()) >= 10
    oracle = assert_curve_equals(fit, "", data.time, data.event)
    assert fit.restricted_mean(until=36.0).value == pytest.approx(restricted_mean_survival_time(oracle, 36.0), abs=1e-6)
    ungrouped = lifelines.KaplanMeierFitter().fit(data.time, data.event)
    ends, anywhere, mean = result["curves"]["0"]["grid_changes"]
    fine = ungrouped.survival_function_at_times(curve.time).to_numpy()
    assert ends == pytest.approx(np.abs(fine - curve.survival).max(), abs=1e-12)
    assert round(ends, 4) == 0.0139
    every = np.arange(1, 45)
    step = np.concatenate([[1.0], curve.survival])[np.searchsorted(curve.time, every, side="right")]
    assert anywhere == pytest.approx(np.abs(ungrouped.survival_function_at_times(every).to_numpy() - step).max())
    assert mean == pytest.approx(
        restricted_mean_survival_time(oracle, 44.0) - restricted_mean_survival_time(ungrouped, 44.0), abs=1e-5
    )


@pytest.mark.parametrize("by", ["fac_disease"])
def test_curves_by_group_and_their_tests_equal_lifelines(tmp_path: Path, dialysis: pd.DataFrame, by: str) -> None:
    data = consortium(dialysis, DIALYSIS, K, {"by": by})
    result = run(tmp_path, data)
    fit = KaplanMeierFit(data.study, result)
    groups = data.frame[by].to_numpy()
    for group in fit.groups:
        own = groups == group
        curve = fit.curve(group)
        assert min(curve.events.min(), curve.censored.min()) >= 10
        if len(curve.time) > 1:
            assert_curve_equals(fit, group, data.time[own], data.event[own])
    oracle = multivariate_logrank_test(data.time, groups, data.event)
    assert result["log_rank"]["chi2"] == pytest.approx(oracle.test_statistic, rel=1e-9)
    assert result["log_rank"]["p"] == pytest.approx(oracle.p_value, rel=1e-9)
    assert result["log_rank_within"]["chi2"] == pytest.approx(stratified_log_rank(data, groups, fit.groups), rel=1e-9)
    assert "Log-rank test within sites, exact: chi2 97.90, df 4, P < 0.001" in fit.summary()


def stratified_log_rank(data: Consortium, groups: np.ndarray, levels: tuple[str, ...]) -> float:
    """Mantel's test over sites, event by event (R's survdiff with strata)."""
    difference, variance = np.zeros(len(levels)), np.zeros((len(levels), len(levels)))
    member = np.stack([groups == level for level in levels], 1).astype(float)
    for site in np.unique(data.site):
        own = data.site == site
        for time in np.unique(data.time[own & (data.event > 0)]):
            risk, dead = own & (data.time >= time), own & (data.time == time) & (data.event > 0)
            n, d, share = risk.sum(), dead.sum(), member[risk].mean(0)
            difference += member[dead].sum(0) - d * share
            if n > 1:
                variance += d * (n - d) / (n - 1) * (np.diag(share) - np.outer(share, share))
    kept = slice(0, len(levels) - 1)
    return float(difference[kept] @ np.linalg.solve(variance[kept, kept], difference[kept]))


def test_no_group_is_shown_finer_than_a_subtraction_allows(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    """A cut that one group alone lacks would be found out from everybody less the others; so another lacks it too."""
    data = consortium(dialysis, DIALYSIS, K, {"by": "fac_disease"})
    curves = run(tmp_path, data)["curves"]
    having = [set(np.asarray(curve["cuts"]).tolist()) for curve in curves.values()]
    assert all(sum(cut not in own for own in having) != 1 for cut in set.union(*having))


def test_two_arms_of_the_lung_trial_equal_lifelines(tmp_path: Path) -> None:
    lung = lung_frame()
    data = consortium(lung, LUNG, K, {"by": "sex"})
    result = run(tmp_path, data)
    fit = KaplanMeierFit(data.study, result)
    assert fit.groups == ("male", "female")
    assert np.array_equal(fit.curve("male").time, fit.curve("female").time)
    for group in fit.groups:
        own = (lung["sex"] == group).to_numpy()
        oracle = assert_curve_equals(fit, group, data.time[own], data.event[own])
        median = fit.median(group)
        assert median.value == oracle.median_survival_time_
        limits = median_survival_times(oracle.confidence_interval_survival_function_).to_numpy().ravel()
        assert [median.low, median.high] == limits.tolist()
    declared = np.clip(np.ceil(data.time / 30), 1, None)
    test = multivariate_logrank_test(declared, lung["sex"], data.event)
    assert result["log_rank"]["chi2"] == pytest.approx(test.test_statistic, rel=1e-9)
    difference = fit.restricted_mean_difference("female", "male", 720.0)
    assert difference.value > 0
    assert difference.p < 0.05


def test_single_intervals_are_the_ungrouped_curve(tmp_path: Path) -> None:
    data = consortium(lung_frame(), LUNG | {"time": LUNG["time"] | {"interval": 1}}, K, {"minimum_cell": 1})
    fit = KaplanMeierFit(data.study, run(tmp_path, data))
    oracle = lifelines.KaplanMeierFitter().fit(data.time, data.event)
    curve = fit.curve()
    assert np.abs(oracle.survival_function_at_times(curve.time).to_numpy() - curve.survival).max() < 1e-12
    assert fit.median().value == oracle.median_survival_time_


def test_intervals_on_other_scales_are_those_of_the_formulas() -> None:
    """Greenwood 1926, plain and log; numbers by hand for three cells."""
    curve = curve_of(np.array([1.0, 2.0, 3.0]), np.array([2.0, 1.0, 1.0]), np.array([1.0, 3.0, 2.0]))
    survival = np.array([8 / 10, 8 / 10 * 6 / 7, 8 / 10 * 6 / 7 * 2 / 3])
    error = np.sqrt(np.cumsum([2 / (10 * 8), 1 / (7 * 6), 1 / (3 * 2)]))
    assert np.allclose(curve.survival, survival)
    low, high = pointwise(curve, transform="plain")
    assert np.allclose(low, np.clip(survival - 1.959963985 * survival * error, 0, 1))
    assert np.allclose(high, np.clip(survival + 1.959963985 * survival * error, 0, 1))
    low, high = pointwise(curve, transform="log")
    assert np.allclose(low, survival * np.exp(-1.959963985 * error))
    assert np.allclose(curve.hazard, np.cumsum([0.2, 1 / 7, 1 / 3]))
    assert np.allclose(curve.hazard_variance, np.cumsum([2 / 100, 1 / 49, 1 / 9]))
    assert quantile_time(curve, 0.5) == 3.0
    assert quantile_time(curve, 0.1) == np.inf


def test_mean_and_its_error_are_those_of_a_bootstrap() -> None:
    rng = np.random.default_rng(5)
    times, event = np.ceil(rng.exponential(8, 400)), (rng.random(400) < 0.7).astype(float)
    times = np.minimum(times, 20)

    def mean_of(rows: np.ndarray) -> tuple[float, float]:
        at = times[rows].astype(int) - 1
        events = np.bincount(at, weights=event[rows], minlength=20)
        leaving = np.bincount(at, minlength=20)
        return restricted_mean(curve_of(np.arange(1.0, 21.0), events, leaving - events), 15.0)

    value, error = mean_of(np.arange(400))
    draws = [mean_of(rng.integers(0, 400, 400))[0] for _ in range(2000)]
    assert abs(np.mean(draws) - value) < 0.05
    assert error == pytest.approx(np.std(draws), rel=0.06)


def test_critical_values_of_bands_are_those_of_brownian_bridges() -> None:
    """Simulated on a fine grid, on which a supremum is a little lower than on all of the line."""
    rng = np.random.default_rng(1)
    steps, draws = 2000, 4000
    u = np.arange(1, steps) / steps
    paths = np.cumsum(rng.normal(size=(draws, steps)) / np.sqrt(steps), axis=1)
    bridges = np.abs(paths[:, :-1] - u * paths[:, -1:])
    for start, until in ((0.1, 0.6), (0.05, 0.9)):
        below = (bridges[:, u <= until].max(1) <= hall_wellner_critical(until, 0.95)).mean()
        assert 0.945 <= below <= 0.965
        inside = (u >= start) & (u <= until)
        scaled = bridges[:, inside] / np.sqrt(u * (1 - u))[inside]
        assert 0.945 <= (scaled.max(1) <= equal_precision_critical(start, until, 0.95)).mean() <= 0.968
    # Kolmogorov's distribution, where the whole bridge is used.
    assert hall_wellner_critical(1.0, 0.95) == pytest.approx(1.3581, abs=1e-4)
    assert hall_wellner_critical(1.0, 0.99) == pytest.approx(1.6276, abs=1e-4)


def test_a_band_holds_the_whole_curve_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    grid = np.arange(1.0, 31.0)
    truth = np.exp(-grid / 12)
    held = {"hall-wellner": 0, "equal-precision": 0}
    for _ in range(600):
        dying, leaving = np.ceil(rng.exponential(12, 300)), np.ceil(rng.exponential(40, 300))
        times = np.minimum(np.minimum(dying, leaving), 30)
        event = (dying <= leaving) & (dying <= 30)
        at = times.astype(int) - 1
        events = np.bincount(at, weights=event, minlength=30)
        curve = curve_of(grid, events, np.bincount(at, minlength=30) - events)
        for kind in held:
            low, high = band(curve, kind)
            known = np.isfinite(low)
            held[kind] += bool(((low <= truth + 1e-9) & (truth <= high + 1e-9))[known].all())
    assert 0.93 <= held["hall-wellner"] / 600 <= 0.99
    assert 0.92 <= held["equal-precision"] / 600 <= 0.99


def test_what_curves_can_not_be_drawn_is_told(tmp_path: Path) -> None:
    lung = lung_frame()
    variables = LUNG | {"ph_ecog": {"meaning": "m", "type": "code", "role": "covariate",
                                    "codes": {"0": "0", "1": "1", "2": "2", "3": "3"}}}  # fmt: skip
    frame = lung.assign(ph_ecog=lung["ph_ecog"].astype(int).astype(str))
    with pytest.raises(
        FederationError, match="in the group '2' and '3' over the whole of follow-up are fewer than may be seen"
    ):
        run(tmp_path / "group", consortium(frame, variables, K, {"by": "ph_ecog"}))
    with pytest.raises(FederationError, match="no patient who was counted has the event"):
        run(tmp_path / "events", consortium(lung.assign(event=0), LUNG, K))
    with pytest.raises(StudyError, match="'age' is no arm, covariate or cohort variable of type code"):
        run(tmp_path / "by", consortium(lung, LUNG, K, {"by": "age"}))
    fit = KaplanMeierFit(*(lambda data: (data.study, run(tmp_path / "ok", data)))(consortium(lung, LUNG, K)))
    with pytest.raises(StudyError, match="up to 1050 day, not 2000"):
        fit.restricted_mean(until=2000.0)
    with pytest.raises(StudyError, match="there is no group 'x'"):
        fit.curve("x")
