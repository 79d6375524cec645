"""Alarms find a site whose labels are inverted, and keep quiet where sites differ by chance."""

import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from statsmodels.stats.meta_analysis import combine_effects

from medfed.evaluation.alarms import SENTENCES, SiteFigures, alarms, random_effects
from medfed.evaluation.discrimination import auc_of_scores

SIZES = (300, 290, 120, 200)
EFFECTS = np.array([0.9, 0.6, 0.3, 0.0])
NAMES = [f"x{index}" for index in range(len(EFFECTS))]


def hospitals(rng, *, sizes=SIZES, effects=EFFECTS, spread=0.0, inverted=None):
    """Patients of each hospital; one may have its labels inverted."""
    tables = []
    for index, size in enumerate(sizes):
        x = rng.normal(size=(size, len(effects)))
        outcome = (rng.random(size) < expit(-0.6 + rng.normal(0, spread) + x @ effects)).astype(float)
        tables.append((x, 1 - outcome if index == inverted else outcome))
    return tables


def figures(tables):
    """Coefficients of each hospital alone, and the AUC of the others' model at it."""
    seen = []
    for index, (x, outcome) in enumerate(tables):
        alone = sm.Logit(outcome, sm.add_constant(x)).fit(disp=0)
        others = [table for other, table in enumerate(tables) if other != index]
        rest = sm.Logit(
            np.concatenate([y for _, y in others]), sm.add_constant(np.vstack([features for features, _ in others]))
        ).fit(disp=0)
        coefficients = {
            name: (alone.params[place], alone.bse[place]) for place, name in enumerate(["intercept", *NAMES])
        }
        auc = auc_of_scores(x @ rest.params[1:], outcome)
        seen.append(SiteFigures(f"hospital {index}", len(outcome), int(outcome.sum()), coefficients, auc))
    return seen


@pytest.mark.parametrize("inverted", [0, 1, 3])
def test_a_hospital_with_inverted_labels_is_found_and_its_signs_accuse_nobody_else(inverted):
    rng = np.random.default_rng(10 + inverted)
    for _ in range(5):
        found = alarms(figures(hospitals(rng, inverted=inverted, spread=0.3)))
        culprit = f"hospital {inverted}"
        kinds = {alarm.kind for alarm in found if alarm.site == culprit}
        assert {"sign", "auc"} <= kinds
        assert {alarm.site for alarm in found if alarm.kind == "sign"} == {culprit}
        for alarm in found:
            if alarm.kind == "auc" and alarm.site != culprit:
                assert alarm.parameters["suspects"] == culprit


def test_hospitals_that_differ_by_chance_raise_an_alarm_in_at_most_5_percent_of_studies():
    rng = np.random.default_rng(20)
    for effects in (EFFECTS, np.zeros(4)):
        studies = [alarms(figures(hospitals(rng, effects=effects, spread=0.3))) for _ in range(60)]
        assert sum(bool(found) for found in studies) <= 6  # 3 expected at most; 7 or more has P = .03 at 5 %


def test_chance_alone_sets_no_rate_apart_in_many_studies():
    rng = np.random.default_rng(21)
    for spread in (0.0, 0.5):
        cried = 0
        for _ in range(400):
            rates = expit(-1 + rng.normal(0, spread, 8))
            sites = [SiteFigures(str(k), 150, int(rng.binomial(150, rate))) for k, rate in enumerate(rates)]
            cried += bool(alarms(sites))
        assert cried / 400 < 0.05


def test_a_rate_far_from_the_others_is_found_and_only_that_one():
    rates = [0.18, 0.25, 0.14, 0.8]
    found = alarms([SiteFigures(name, 200, round(200 * rate)) for name, rate in zip("abcd", rates, strict=True)])
    assert [(alarm.kind, alarm.site) for alarm in found] == [("prevalence", "d")]
    assert found[0].text().startswith("d: 160 of 200 patients have the event (80 %), the other sites together 19 %.")


def test_rates_as_different_as_hospitals_are_raise_no_alarm():
    events, patients = (139, 106, 115, 149), (303, 294, 123, 200)
    sites = [SiteFigures(str(k), n, e) for k, (n, e) in enumerate(zip(patients, events, strict=True))]
    assert alarms(sites) == []


def test_two_sites_are_not_enough_to_say_which_is_apart():
    pair = [SiteFigures("a", 200, 20, {"x": (1.0, 0.1)}), SiteFigures("b", 200, 180, {"x": (-1.0, 0.1)})]
    assert alarms(pair) == []
    assert alarms([]) == []


def test_ranking_worse_than_chance_needs_more_than_a_handful_of_patients():
    few = auc_of_scores([3.0, 2.0, 1.0], [0, 0, 1])
    many = auc_of_scores(np.arange(60.0), np.repeat([1, 0], 30))
    assert few.value == many.value == 0
    assert alarms([SiteFigures("a", 3, 1, auc=few)]) == []
    found = alarms([SiteFigures("a", 60, 30, auc=many)])
    assert [alarm.kind for alarm in found] == ["auc"]
    assert found[0].text() == (
        "a: the model ranks patients worse than chance (AUC 0.00, interval 0.00 to "
        f"{many.high:.2f}). Check whether the outcome is inverted."
    )


def test_a_sign_is_opposite_only_where_both_sides_are_sure():
    def sites(last, error=0.1):
        others = [SiteFigures(name, 100, 40, {"age": (0.5, 0.1), "intercept": (2.0, 0.1)}) for name in "abc"]
        return [*others, SiteFigures("d", 100, 40, {"age": (last, error), "intercept": (-2.0, 0.1)})]

    assert alarms(sites(0.1)) == []
    assert alarms(sites(-0.1)) == []
    assert alarms(sites(-0.5, error=0.4)) == []
    assert alarms(sites(-0.5, error=0.0)) == []
    found = alarms(sites(-0.5))
    assert [(alarm.kind, alarm.site, alarm.parameters["covariates"]) for alarm in found] == [("sign", "d", "age")]


def test_sentences_can_be_translated():
    found = alarms([SiteFigures(name, 200, e) for name, e in zip("abcd", (36, 50, 28, 160), strict=True)])
    assert found[0].sentence in SENTENCES
    assert found[0].text({found[0].sentence: "{site}：{events}"}.get) == "d：160"


def test_random_effects_equal_statsmodels():
    estimates, variances = np.array([0.1, 0.9, -0.4, 0.5]), np.array([0.02, 0.05, 0.01, 0.2])
    expected = combine_effects(estimates, variances, method_re="dl")
    mean, error, spread = random_effects(estimates, variances)
    assert mean == pytest.approx(expected.mean_effect_re)
    assert error == pytest.approx(expected.sd_eff_w_re)
    assert spread**2 == pytest.approx(expected.tau2)
    assert random_effects(np.zeros(3), np.ones(3), least_spread=0.5)[2] == 0.5
