"""Drift monitors: about 5 % false alarms, the power they state, and "too few" below it. Seeded simulations."""

from functools import cache

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.special import expit

from medfed.evaluation.calibration import RiskSums, risk_sums
from medfed.evaluation.drift import SENTENCES, input_counts, input_drift, risk_drift

EDGES = stats.norm.ppf(np.arange(1, 10) / 10)


def sums(rng, rows, *, wrong_by=1.0, base=-1.5):
    """A site's sums where the intercept has moved so that observed over expected is ``wrong_by`` in the long run."""
    risk = expit(base + rng.normal(size=rows))
    return risk_sums(risk, (rng.random(rows) < expit(np.log(risk / (1 - risk)) + moved(wrong_by, base))).astype(float))


@cache
def moved(wrong_by, base):
    usual = base + stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    expected = wrong_by * expit(usual).sum()
    return optimize.brentq(lambda change: expit(usual + change).sum() - expected, -9, 9)


def binomial_limits(rate, drawn):
    """What a share may be by chance, in 999 of 1,000 tests."""
    return stats.binom.interval(0.999, drawn, rate) / np.array(drawn)


def test_chi_square_equals_scipys_where_no_bins_are_merged():
    reference, current = [120.0, 300, 240, 140], [40.0, 70, 75, 55]
    found = input_drift({"age": reference}, {"age": current})[0]
    expected = stats.chi2_contingency([reference, current])
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.shift == pytest.approx(expected.statistic * (1 / 800 + 1 / 240))
    assert found.limit == pytest.approx(stats.chi2.isf(0.05, 3) * (1 / 800 + 1 / 240))


def test_shift_is_the_population_stability_index_to_first_order():
    p, q = np.array([0.2, 0.3, 0.3, 0.2]), np.array([0.22, 0.31, 0.28, 0.19])
    found = input_drift({"x": p * 1e4}, {"x": q * 1e4})[0]
    assert found.shift == pytest.approx(np.sum((p - q) * np.log(p / q)), rel=0.01)


@pytest.mark.parametrize("reference_rows, rows", [(500, 150), (3000, 400)])
def test_inputs_without_drift_raise_about_5_percent_false_alarms_over_all_inputs_together(reference_rows, rows):
    rng = np.random.default_rng(1)

    def table(n):
        return {
            "age": input_counts(rng.normal(size=n), EDGES),
            "skewed": input_counts(rng.gamma(1.5, 1, n) - 1.5, EDGES),
            "seldom": np.bincount(rng.random(n) < 0.1, minlength=2),
        }

    drawn = 1000
    cried = sum(
        any(found.verdict == "drift" for found in input_drift(table(reference_rows), table(rows))) for _ in range(drawn)
    )
    low, high = binomial_limits(0.05, drawn)
    assert low < cried / drawn < high


def test_the_number_of_patients_asked_for_has_the_stated_power():
    rng = np.random.default_rng(2)
    p = np.full(10, 0.1)
    tilt = np.linspace(-1, 1, 10)
    q = p * (1 + 0.78 * tilt)
    q /= q.sum()
    reference = rng.multinomial(2000, p)
    rows = input_drift({"x": reference}, {"x": np.zeros(10)})[0].rows_needed
    assert np.sum((p - q) ** 2 / ((2000 * p + rows * q) / (2000 + rows))) == pytest.approx(0.25, abs=0.01)
    drawn = 1000
    seen = sum(
        input_drift({"x": rng.multinomial(2000, p)}, {"x": rng.multinomial(rows, q)})[0].verdict == "drift"
        for _ in range(drawn)
    )
    assert seen / drawn == pytest.approx(0.8, abs=0.05)
    at_limit = input_drift({"x": reference}, {"x": rng.multinomial(rows, p)})[0]
    assert at_limit.power == pytest.approx(0.8, abs=0.01)


def test_inputs_of_few_patients_are_not_judged_however_odd_they_look():
    reference = {"x": np.full(10, 100)}
    found = input_drift(reference, {"x": [40] + [0] * 9})[0]
    assert (found.verdict, found.rows) == ("too few", 40)
    assert found.text() == f"x: too few to judge (40 patients; {found.rows_needed} would show a large drift)."
    assert input_drift(reference, {"x": [found.rows_needed] + [0] * 9})[0].verdict == "drift"
    nobody = input_drift(reference, {"x": np.zeros(10)})[0]
    assert (nobody.verdict, nobody.limit) == ("too few", None)


def test_a_reference_too_small_for_any_number_says_so():
    found = input_drift({"x": np.full(10, 3)}, {"x": np.full(10, 300)})[0]
    assert (found.verdict, found.rows_needed) == ("too few", None)
    assert found.text() == "x: too few to judge (the reference has only 30 patients)."


def test_a_new_code_a_lost_code_and_data_that_stop_arriving_are_drifts():
    before = {"unit": [500, 500, 0], "kind": [300, 300, 400], "lab": input_counts(np.linspace(-2, 2, 1000), EDGES)}
    now = {
        "unit": [100, 0, 100],
        "kind": [100, 100, 0],
        "lab": input_counts(np.where(np.arange(200) % 4, np.linspace(-2, 2, 200), np.nan), EDGES),
    }
    assert [found.verdict for found in input_drift(before, now)] == ["drift"] * 3
    same = input_drift({"constant": [0, 900, 0]}, {"constant": [0, 300, 0]})[0]
    assert (same.verdict, same.shift, same.p_value) == ("no drift", 0, 1)


def test_input_counts_put_values_and_missing_in_their_bins():
    assert input_counts([0.0, 1.0, 1.5, np.nan, 9.0, -5.0], [1.0, 2.0]).tolist() == [2, 2, 1, 1]


def test_different_inputs_or_bins_are_refused():
    with pytest.raises(ValueError, match="same inputs"):
        input_drift({"a": [1]}, {"b": [1]})
    with pytest.raises(ValueError, match="'a': reference and current counts need the same bins"):
        input_drift({"a": [1, 2]}, {"a": [1]})


@pytest.mark.parametrize("base, rows", [(-2.0, 400), (0.0, 100), (2.5, 200)])
def test_true_risks_raise_about_5_percent_false_alarms(base, rows):
    rng = np.random.default_rng(3)
    drawn = 2000
    cried = sum(risk_drift(sums(rng, rows, base=base)).verdict == "drift" for _ in range(drawn))
    low, high = binomial_limits(0.05, drawn)
    assert low < cried / drawn < high


def test_a_model_that_was_always_off_here_does_not_drift_against_its_own_past():
    rng = np.random.default_rng(4)
    drawn = 1500
    cried = sum(
        risk_drift(sums(rng, 400, wrong_by=1.4), sums(rng, 1500, wrong_by=1.4)).verdict == "drift" for _ in range(drawn)
    )
    low, high = binomial_limits(0.05, drawn)
    assert low < cried / drawn < high
    assert risk_drift(sums(rng, 1500, wrong_by=1.4)).verdict == "drift"


def test_the_number_asked_for_shows_risks_wrong_by_half_with_the_stated_power():
    rng = np.random.default_rng(5)
    rows = risk_drift(sums(rng, 50_000)).rows_needed
    drawn = 1000
    too_high, too_low = (
        sum(risk_drift(sums(rng, rows, wrong_by=factor)).p_value < 0.05 for _ in range(drawn)) / drawn
        for factor in (1 / 1.5, 1.5)
    )
    assert too_high == pytest.approx(0.8, abs=0.05)
    assert too_low > too_high
    assert risk_drift(sums(rng, 10 * rows, wrong_by=1.5)).verdict == "drift"
    assert risk_drift(sums(rng, 10 * rows)).power > 0.99


def test_risks_of_few_patients_are_not_judged():
    found = risk_drift(risk_sums(np.full(20, 0.1), np.ones(20)))
    assert (found.verdict, found.ratio) == ("too few", pytest.approx(10))
    assert found.text() == f"Risks: too few to judge (20 patients; {found.rows_needed} would show a large drift)."
    assert found.rows_needed > 400


def test_risks_with_nothing_to_compare_are_said_to_be_so():
    nobody = RiskSums(0, 0, 0, 0, 0, 0, 0)
    some = risk_sums(np.full(400, 0.3), np.repeat([0, 1], 200))
    for found in (risk_drift(nobody), risk_drift(some, nobody), risk_drift(risk_sums([0.0, 1.0], [0, 1]))):
        assert (found.verdict, found.ratio, found.rows_needed) == ("too few", None, None)
        assert "nothing to judge" in found.text()
    small = risk_drift(some, risk_sums(np.full(20, 0.3), np.repeat([0, 1], [14, 6])))
    assert small.text() == "Risks: too few to judge (the reference has only 20 patients)."


def test_findings_name_the_figures_and_can_be_translated():
    some = risk_drift(risk_sums(np.full(400, 0.3), np.repeat([0, 1], 200)))
    assert some.text() == "Risks: drift in 400 patients (observed/expected 1.67, limits 0.85 to 1.15)."
    assert len(set(SENTENCES)) == 9
    assert some.text({SENTENCES[-1]: "{rows} {ratio:.1f}"}.get) == "400 1.7"
