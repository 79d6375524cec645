"""AUC, its intervals and the merging of bins, against scikit-learn, DeLong's kernel written out, and simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.preprocessing import StandardScaler

from medfed.evaluation.discrimination import (
    auc_difference,
    auc_of_bins,
    auc_of_scores,
    cautious_difference,
    common_bins,
    counts_by_bin,
    merge_bins,
    normal_edges,
    roc_points,
    totals_of_groups,
    within_site_auc,
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


def test_binned_auc_equals_scikit_learn_on_the_bins_and_its_error_delong(tumours):
    scores, _, outcome = tumours
    edges = normal_edges(scores.mean(), scores.std(), 12)
    found = auc_of_bins(*counts_by_bin(scores, outcome, edges))
    ranks = np.searchsorted(edges, scores, side="right").astype(float)
    assert found.value == pytest.approx(roc_auc_score(outcome, ranks), abs=1e-12)
    assert found.standard_error**2 == pytest.approx(delong(kernel(ranks, outcome))[0, 0], rel=1e-10)


def test_ties_bound_what_the_bins_hide(tumours):
    scores, _, outcome = tumours
    exact = auc_of_scores(scores, outcome)
    for bins in (4, 16, 64):
        found = auc_of_bins(*counts_by_bin(scores, outcome, normal_edges(scores.mean(), scores.std(), bins)))
        assert found.least <= exact.value <= found.most
    assert exact.most - exact.least < 1e-12


def test_rating_data_of_hanley_and_mcneil_1982():
    found = auc_of_bins([3, 2, 2, 11, 33], [33, 6, 6, 11, 2])
    assert found.value == pytest.approx(0.893, abs=5e-4)
    assert found.standard_error == pytest.approx(0.032, abs=1.5e-3)


def test_auc_is_not_shown_under_three_bins_or_with_one_class():
    assert auc_of_bins([0, 5, 9], [0, 9, 5]) is None
    assert auc_of_bins([0, 0, 0], [1, 2, 3]) is None
    assert auc_of_scores([0.1, 0.2], [1, 1]) is None
    assert roc_points([0, 0], [1, 2]) is None


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


def test_cautious_difference_contains_delongs_interval(tumours):
    scores, other, outcome = tumours
    for second in (other, -scores, scores + other, scores.round(0)):
        exact = auc_difference(scores, second, outcome)
        found = cautious_difference(auc_of_scores(scores, outcome), auc_of_scores(second, outcome))
        assert found.value == pytest.approx(exact.value)
        assert found.low <= exact.low + 1e-12
        assert found.high >= exact.high - 1e-12
    like = auc_of_scores(scores, outcome), auc_of_scores(scores + other, outcome)
    exact = auc_difference(scores, scores + other, outcome)
    found, wider = cautious_difference(*like, correlation_at_least=0), cautious_difference(*like)
    assert exact.standard_error < found.standard_error < wider.standard_error


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


def test_within_site_auc_leaves_differences_between_sites_out():
    rng = np.random.default_rng(2)
    aucs, scores, outcomes = [], [], []
    for shift, rate in ((-5, 0.1), (0, 0.5), (5, 0.9)):
        outcome = (rng.random(400) < rate).astype(float)
        score = shift + outcome + rng.normal(size=400)
        aucs.append(auc_of_scores(score, outcome))
        scores.append(score)
        outcomes.append(outcome)
    found = within_site_auc(aucs)
    assert found.low < 0.760 < found.high
    assert roc_auc_score(np.concatenate(outcomes), np.concatenate(scores)) > 0.9
    alone = within_site_auc(aucs[:1])
    assert (alone.value, alone.low, alone.high) == pytest.approx((aucs[0].value, aucs[0].low, aucs[0].high))
    assert within_site_auc([]) is None


def test_roc_points_are_those_of_scikit_learn(tumours):
    scores, _, outcome = tumours
    ranks = np.searchsorted(normal_edges(0, 1, 8), scores, side="right")
    curve = roc_points(np.bincount(ranks[outcome == 1], minlength=8), np.bincount(ranks[outcome == 0], minlength=8))
    false, true, _ = roc_curve(outcome, ranks, drop_intermediate=False)
    np.testing.assert_allclose(curve.false_positive_rate, false)
    np.testing.assert_allclose(curve.true_positive_rate, true)


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


@given(counts)
def test_coarse_counts_equal_the_true_totals_over_their_ranges(case):
    sites, minimum = case
    merged = [merge_bins(events, nonevents, minimum) for events, nonevents in sites]
    found = common_bins(*(sum(parts) for parts in zip(*merged, strict=True)), len(sites))
    shown = [site for site, (_, _, boundary) in zip(sites, merged, strict=True) if boundary.any()]
    assert found.sites == len(shown)
    true_events, true_nonevents = (np.sum([site[kind] for site in shown], axis=0) for kind in (0, 1))
    start = 0
    for group, last in enumerate(found.last_bin):
        assert found.events[group] == true_events[start : last + 1].sum()
        assert found.nonevents[group] == true_nonevents[start : last + 1].sum()
        start = last + 1
    for _, _, boundary in merged:
        assert not boundary.any() or boundary[found.last_bin].all()


def test_other_sums_follow_the_same_groups():
    rng = np.random.default_rng(1)
    sites = [(rng.integers(0, 9, 32), rng.integers(0, 9, 32), rng.random(32)) for _ in range(3)]
    merged = [merge_bins(events, nonevents, 10) for events, nonevents, _ in sites]
    risks = sum(totals_of_groups(risk, boundary) for (_, _, risk), (_, _, boundary) in zip(sites, merged, strict=True))
    found = common_bins(*(sum(parts) for parts in zip(*merged, strict=True)), 3)
    true, start = sum(risk for _, _, risk in sites), 0
    assert len(found.last_bin) >= 3
    for total, last in zip(found.totals(risks), found.last_bin, strict=True):
        assert total == pytest.approx(true[start : last + 1].sum())
        start = last + 1
    assert not totals_of_groups(np.ones(4), np.zeros(4)).any()
    assert len(common_bins(np.zeros(4), np.zeros(4), np.zeros(4), 3).totals(np.zeros(4))) == 0


def test_sites_with_like_patients_keep_edges_in_common():
    rng = np.random.default_rng(3)
    edges, merged = normal_edges(-2, 1, 64), []
    for _ in range(6):
        scores = rng.normal(-2 + rng.normal(0, 0.3), 1, 1000)
        outcome = (rng.random(1000) < 1 / (1 + np.exp(-scores))).astype(float)
        merged.append(merge_bins(*counts_by_bin(scores, outcome, edges), 10))
    found = common_bins(*(sum(parts) for parts in zip(*merged, strict=True)), 6)
    assert auc_of_bins(found.events, found.nonevents).bins >= 3


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


def test_counts_and_scores_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="one count for each bin"):
        merge_bins([1, 2], [1], 10)
    with pytest.raises(ValueError, match="never negative or missing"):
        auc_of_bins([1, np.nan, 2], [1, 1, 1])
    with pytest.raises(ValueError, match="finite number"):
        auc_of_scores([0.1, np.nan], [0, 1])
    with pytest.raises(ValueError, match="0 or 1"):
        auc_of_scores([0.1, 0.2], [0, 2])
    with pytest.raises(ValueError, match="do not fit"):
        common_bins([1, 1], [1, 1], [3, 2], 3)
    with pytest.raises(ValueError, match="positive standard deviation"):
        normal_edges(0, 0, 10)
