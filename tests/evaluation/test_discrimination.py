"""AUC, its intervals and the merging of bins, against scikit-learn, DeLong's kernel written out, and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from medfed.evaluation.discrimination import (
    auc_difference,
    auc_of_bins,
    auc_of_scores,
    merge_bins,
)


@pytest.fixture(scope="module")
def tumours():
    """Scores of two models on the same half of the breast cancer data, the second on few features; outcome."""
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)

    def scores(columns):
        model = LogisticRegression(C=0.01).fit(x[::2][:, columns], y[::2])
        return model.decision_function(x[1::2][:, columns])

    return scores([1, 4, 8]), scores([9, 11, 14]), y[1::2].astype(float)


def kernel(scores, outcome):
    """Every event against every non-event: 1, half, 0."""
    events, nonevents = scores[outcome == 1], scores[outcome == 0]
    return (events[:, None] > nonevents) + 0.5 * (events[:, None] == nonevents)


def delong(*kernels):
    """Covariance of AUCs from their kernels, as DeLong et al. define it."""
    rows = np.cov([k.mean(1) for k in kernels]) / kernels[0].shape[0]
    columns = np.cov([k.mean(0) for k in kernels]) / kernels[0].shape[1]
    return np.atleast_2d(rows + columns)


def test_exact_auc_equals_scikit_learn_and_its_error_delong(tumours):
    scores, _, outcome = tumours
    for values in (scores, scores.round(0)):
        found = auc_of_scores(values, outcome)
        assert found.value == pytest.approx(roc_auc_score(outcome, values), abs=1e-12)
        assert found.standard_error**2 == pytest.approx(delong(kernel(values, outcome))[0, 0], rel=1e-10)
        assert found.low < found.value < found.high
        assert (found.events, found.nonevents) == (outcome.sum(), (1 - outcome).sum())


def test_rating_data_of_hanley_and_mcneil_1982():
    found = auc_of_bins([3, 2, 2, 11, 33], [33, 6, 6, 11, 2])
    assert found.value == pytest.approx(0.893, abs=5e-4)
    assert found.standard_error == pytest.approx(0.032, abs=1.5e-3)


def test_difference_of_two_models_equals_delong_on_the_same_patients(tumours):
    first, second, outcome = tumours
    kernels = kernel(first, outcome), kernel(second, outcome)
    covariance = delong(*kernels)
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    found = auc_difference(first, second, outcome)
    assert found.value == pytest.approx(kernels[0].mean() - kernels[1].mean(), abs=1e-12)
    assert found.standard_error**2 == pytest.approx(variance, rel=1e-10)
    same = auc_difference(first, first, outcome)
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert auc_difference([1, 2, 3], [3, 2, 1], [1, 0, 0]) is None


def test_interval_covers_the_true_auc_in_95_percent_of_small_studies():
    rng = np.random.default_rng(5)
    true, covered, drawn = 0.7602499389065233, 0, 1500  # Phi(1 / sqrt 2): normal scores one SD apart
    for _ in range(drawn):
        scores, outcome = rng.normal(size=70), np.repeat([1.0, 0.0], [25, 45])
        found = auc_of_scores(scores + outcome, outcome)
        covered += found.low <= true <= found.high
    assert 0.93 < covered / drawn < 0.97


@pytest.mark.parametrize("outcome", [[0, 0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]])
def test_a_perfect_ranking_of_few_patients_keeps_an_honest_interval(outcome):
    scores = np.arange(7.0)
    up, down = auc_of_scores(scores, outcome), auc_of_scores(-scores, outcome)
    assert (up.value, up.high, down.value, down.low) == (1, 1, 0, 0)
    assert 0.3 < up.low < 0.8
    assert down.high == pytest.approx(1 - up.low)


counts = st.integers(1, 40).flatmap(
    lambda bins: st.tuples(
        st.lists(st.tuples(*[st.lists(st.integers(0, 12), min_size=bins, max_size=bins)] * 2), min_size=1, max_size=5),
        st.integers(1, 15),
    )
)


@given(counts)
def test_no_released_count_is_small_and_groups_hold_their_totals(case):
    sites, minimum = case
    for events, nonevents in sites:
        released_events, released_nonevents, boundary = merge_bins(events, nonevents, minimum)
        if minimum == 1:
            assert released_events.tolist() == events
            continue
        for released in (released_events, released_nonevents):
            assert np.all(released[boundary == 1] >= minimum)
            assert not released[boundary == 0].any()
        enough = min(sum(events), sum(nonevents)) >= minimum
        assert boundary.any() == enough
        assert released_events.sum() == (sum(events) if enough else 0)
        assert boundary[-1] == enough


def test_merging_is_exhausted_no_group_could_be_halved_at_an_edge():
    rng = np.random.default_rng(4)
    events, nonevents = rng.poisson(2, 64), rng.poisson(4, 64)
    _, _, boundary = merge_bins(events, nonevents, 10)
    start = 0
    for last in np.flatnonzero(boundary):
        for edge in range(start + 1, last + 1):
            parts = [part for kind in (events, nonevents) for part in (kind[start:edge], kind[edge : last + 1])]
            assert min(part.sum() for part in parts) < 10
        start = last + 1
