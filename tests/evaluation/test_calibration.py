"""Calibration figures against statsmodels, scikit-learn and scipy's optimiser."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import optimize, stats
from scipy.special import expit
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss
from sklearn.preprocessing import StandardScaler
from statsmodels.stats.proportion import proportion_confint

from medfed.evaluation.calibration import (
    brier,
    calibration_line,
    observed_to_expected,
    patients_needed,
    ratios_after_update,
    recalibrate,
    recalibration_terms,
    risk_sums,
    updated_intercept,
)


@pytest.fixture(scope="module")
def tumours():
    """Linear predictor and outcome of patients that a model of three features has not seen."""
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)[:, [1, 4, 8]]
    model = LogisticRegression(C=0.1).fit(x[::3], y[::3])
    rest = np.arange(len(y)) % 3 > 0
    return model.decision_function(x[rest]), y[rest].astype(float)


def test_calibration_line_equals_statsmodels(tumours):
    predictor, outcome = tumours
    found = recalibrate(predictor, outcome)
    expected = sm.Logit(outcome, sm.add_constant(predictor)).fit(disp=0, tol=1e-12)
    ends = expected.conf_int()
    assert (found.intercept.value, found.slope.value) == pytest.approx(tuple(expected.params), abs=1e-9)
    assert (found.intercept.low, found.intercept.high) == pytest.approx(tuple(ends[0]), abs=1e-8)
    assert (found.slope.low, found.slope.high) == pytest.approx(tuple(ends[1]), abs=1e-8)
    np.testing.assert_allclose(found.covariance, expected.cov_params(), rtol=1e-8)


def test_calibration_in_the_large_equals_statsmodels_with_an_offset(tumours):
    predictor, outcome = tumours
    found = recalibrate(predictor, outcome, slope=False)
    model = sm.GLM(outcome, np.ones(len(outcome)), family=sm.families.Binomial(), offset=predictor)
    expected = model.fit(tol=1e-14)
    assert found.intercept.value == pytest.approx(expected.params[0], abs=1e-9)
    assert (found.intercept.low, found.intercept.high) == pytest.approx(tuple(expected.conf_int()[0]), abs=1e-7)
    assert (found.slope.value, found.slope.low, found.slope.high) == (1, 1, 1)


def test_terms_summed_over_sites_give_the_line_of_all_patients(tumours):
    predictor, outcome = tumours
    cuts = [40, 47, 200]
    sites = list(zip(np.split(predictor, cuts), np.split(outcome, cuts), strict=True))

    def over_sites(a, b):
        first, *others = (recalibration_terms(*site, a, b) for site in sites)
        return sum(others, first)

    for slope in (True, False):
        found, pooled = calibration_line(over_sites, slope=slope), recalibrate(predictor, outcome, slope=slope)
        assert found.slope.value == pytest.approx(pooled.slope.value, abs=1e-12)
        assert found.intercept.value == pytest.approx(pooled.intercept.value, abs=1e-12)


def test_terms_are_the_derivatives_of_the_likelihood(tumours):
    predictor, outcome = tumours
    at = np.array([0.3, 0.8])
    found = recalibration_terms(predictor, outcome, *at)
    gradient = optimize.approx_fprime(
        at, lambda line: recalibration_terms(predictor, outcome, *line).log_likelihood, 1e-6
    )
    np.testing.assert_allclose(found.score, gradient, rtol=1e-4, atol=1e-3)
    for column in range(2):
        step = np.eye(2)[column] * 1e-6
        change = recalibration_terms(predictor, outcome, *(at + step)).score - found.score
        np.testing.assert_allclose(-change / 1e-6, found.information[column], rtol=1e-4)


@pytest.mark.parametrize(
    "predictor, outcome",
    [
        ([-2, -1, 1, 2], [0, 0, 1, 1]),
        ([-2, -1, -1, 2], [0, 0, 1, 1]),
        ([1, 1, 1, 1], [0, 0, 1, 1]),
        ([-2, -1, 1, 2], [1, 1, 1, 1]),
        ([-2, -1, 1, 2], [0, 0, 0, 0]),
    ],
)
def test_a_line_without_a_finite_estimate_is_none(predictor, outcome):
    assert recalibrate(predictor, outcome) is None


def test_one_class_has_no_calibration_in_the_large():
    assert recalibrate([-2.0, 1.0], [1, 1], slope=False) is None
    assert recalibrate([-2.0, 1.0], [0, 0], slope=False) is None


def test_predictions_far_too_extreme_still_find_their_slope():
    rng = np.random.default_rng(1)
    true = rng.normal(-1, 1, 800)
    outcome = (rng.random(800) < expit(true)).astype(float)
    found = recalibrate(20 * true + 30, outcome)
    expected = sm.Logit(outcome, sm.add_constant(20 * true + 30)).fit(disp=0, tol=1e-12, maxiter=100)
    assert found.slope.value == pytest.approx(expected.params[1], rel=1e-8)


def test_brier_and_log_loss_equal_scikit_learn(tumours):
    predictor, outcome = tumours
    risk = expit(predictor)
    sums = risk_sums(risk, outcome)
    halves = risk_sums(risk[:99], outcome[:99]) + risk_sums(risk[99:], outcome[99:])
    found = brier(halves)
    by_rate = brier_score_loss(outcome, np.full(len(outcome), outcome.mean()))
    assert found.score.value == pytest.approx(brier_score_loss(outcome, risk), abs=1e-12)
    assert found.scaled == pytest.approx(1 - found.score.value / by_rate)
    assert sums.log_loss / sums.rows == pytest.approx(log_loss(outcome, risk))
    mean = sm.stats.DescrStatsW((outcome - risk) ** 2)
    assert (found.score.low, found.score.high) == pytest.approx(mean.zconfint_mean(), rel=1e-9)
    assert brier(risk_sums([0.2, 0.3], [0, 0])).scaled is None


@pytest.mark.parametrize("observed, rows", [(0, 20), (1, 20), (26, 283), (20, 20)])
def test_observed_over_expected_has_the_exact_binomial_interval(observed, rows):
    found = observed_to_expected(observed, 12.5, rows)
    low, high = proportion_confint(observed, rows, method="beta")
    assert (found.value, found.low, found.high) == pytest.approx(
        (observed / 12.5, low * rows / 12.5, high * rows / 12.5)
    )


def test_observed_over_expected_without_rows_has_the_exact_poisson_interval():
    found = observed_to_expected(7, 4.0, level=0.9)
    assert stats.poisson.sf(6, found.low * 4) == pytest.approx(0.05)
    assert stats.poisson.cdf(7, found.high * 4) == pytest.approx(0.05)
    assert observed_to_expected(0, 4.0).low == 0
    with pytest.raises(ValueError, match="positive number of expected"):
        observed_to_expected(0, 0.0)


@pytest.mark.parametrize("size, shift, prior_sd", [(50, 0.0, 1.5), (50, 6.0, 1.5), (3, -9.0, 0.5), (1, 40.0, 1.5)])
def test_updated_intercept_equals_scipys_optimum(tumours, size, shift, prior_sd):
    predictor, outcome = tumours[0][:size] + shift, tumours[1][:size]

    def loss(change):
        eta = predictor + change
        return np.logaddexp(0, eta).sum() - outcome @ eta + change**2 / (2 * prior_sd**2)

    best = optimize.minimize_scalar(loss, bounds=(-60, 60), method="bounded", options={"xatol": 1e-11}).x
    assert updated_intercept(predictor, outcome, prior_sd) == pytest.approx(best, abs=2e-6)


def test_updated_intercept_is_zero_without_patients_and_approaches_the_likelihoods_with_a_wide_prior(tumours):
    assert updated_intercept([], []) == 0
    wide = updated_intercept(*tumours, prior_sd=1e6)
    assert wide == pytest.approx(recalibrate(*tumours, slope=False).intercept.value, abs=1e-8)


def test_ratios_after_update_equal_one_update_at_a_time(tumours):
    predictor, outcome = tumours[0] - 1, tumours[1]
    found = ratios_after_update(predictor, outcome, rng=np.random.default_rng(1), patients=30, draws=20)
    rng = np.random.default_rng(1)
    for ratio, drawn in zip(found, rng.integers(len(predictor), size=(20, 30)), strict=True):
        change = updated_intercept(predictor[drawn], outcome[drawn])
        assert ratio == pytest.approx(outcome.sum() / expit(predictor + change).sum(), abs=1e-9)


def test_intercept_update_repairs_a_model_that_is_off(tumours):
    predictor, outcome = tumours[0] - 1.5, tumours[1]
    before = outcome.sum() / expit(predictor).sum()
    after = np.median(ratios_after_update(predictor, outcome, rng=np.random.default_rng(2)))
    assert before > 1.3
    assert 0.95 < after < 1.05


def test_patients_needed_agrees_with_fresh_draws(tumours):
    predictor, outcome = tumours[0] - 1.5, tumours[1]
    found = patients_needed(predictor, outcome, rng=np.random.default_rng(3))

    def share(patients):
        rng = np.random.default_rng(4)
        ratios = ratios_after_update(predictor, outcome, rng=rng, patients=patients, draws=4000)
        return np.mean((ratios >= 0.9) & (ratios <= 1.1))

    assert found.patients % 5 == 0
    assert found.shares[found.patients] >= 0.9
    assert share(found.patients) == pytest.approx(0.9, abs=0.03)
    assert share(round(found.patients / 2)) < 0.87


def test_patients_needed_says_none_where_no_number_is_enough(tumours):
    predictor, outcome = tumours
    assert patients_needed(predictor, outcome, rng=np.random.default_rng(1), most=15, draws=200).patients is None
    assert patients_needed(predictor, 0 * outcome, rng=np.random.default_rng(1), most=50, draws=50).patients is None


def test_every_number_tried_from_the_one_found_on_is_enough(tumours):
    found = patients_needed(tumours[0] - 1.5, tumours[1], rng=np.random.default_rng(7))
    assert min(found.shares) < found.patients < max(found.shares) == found.most
    assert all((share >= 0.9) == (patients >= found.patients) for patients, share in found.shares.items())


def test_risks_and_outcomes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        risk_sums([1.2], [1])
    with pytest.raises(ValueError, match="0 or 1"):
        risk_sums([0.2], [2])
    with pytest.raises(ValueError, match="finite number"):
        updated_intercept([np.nan], [1])
    with pytest.raises(ValueError, match="at least 2"):
        brier(risk_sums([0.2], [1]))
