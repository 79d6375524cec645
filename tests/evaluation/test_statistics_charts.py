"""Charts of statistics draw what the tables say, in both languages."""

import numpy as np
import pytest

from medfed.evaluation.statistics_charts import (
    balance_figure,
    coefficients_figure,
    histogram_figure,
    meta_figure,
    overlap_figures,
)
from medfed.methods.causal_result import CausalEffect
from medfed.methods.describe import Description
from medfed.methods.glm_result import GlmFit
from medfed.methods.meta_analysis import MetaResult, pooled
from medfed.study import study_from_dict

FIT = GlmFit(
    {
        "names": ["intercept", "arm=new", "age"], "coefficients": np.array([-2.0, -0.7, 0.02]), "link": "logit",
        "covariances": {"model": np.diag([0.1, 0.04, 0.0001])}, "covariance_used": "model",
    }
)  # fmt: skip

TWO_ARMS = study_from_dict({
    "medfed": 1, "name": "two-arms", "title": "t", "question": "q",
    "variables": {
        "event": {"meaning": "e", "type": "code", "role": "outcome", "codes": {"no": "n", "yes": "y"}, "event": "yes"},
        "drug": {
            "meaning": "d", "type": "code", "role": "arm", "reference": "placebo",
            "codes": {"new": {"en": "New drug", "zh": "新药"}, "placebo": {"en": "Placebo", "zh": "安慰剂"}},
        },
        "age": {"meaning": "a", "type": "number", "role": "covariate", "unit": "year", "range": [0, 120]},
    },
    "task": {"kind": "association"}, "evaluation": {"design": "none"},
    "method": {"use": "medfed:medfed.methods.causal.Causal"},
    "sites": {"invited": ["a", "b", "c"], "minimum": 3},
})  # fmt: skip


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_forest_holds_every_ratio_but_the_intercepts(lang: str) -> None:
    figure = coefficients_figure(FIT, lang)
    assert [row[0] for row in figure.table.rows] == ["arm=new", "age"]
    assert "0.50" in figure.svg
    assert "0.34" in figure.svg
    plain = coefficients_figure(GlmFit({**FIT.values, "link": "identity"}), lang)
    assert "−0.70" in plain.svg


@pytest.mark.parametrize("measure", ["log_odds_ratio", "mean_difference"])
def test_a_meta_analysis_shows_sites_diamonds_and_who_is_left_out(measure: str) -> None:
    estimates, errors = np.array([-0.5, -0.2, -0.9]), np.array([0.2, 0.3, 0.25])
    result = MetaResult(
        {
            "measure": measure, "sites": ["a", "b", "c"], "estimates": estimates, "standard_errors": errors,
            "left_out": {"d": {"kind": "refused", "reason": "its policy says so"}}, **pooled(estimates, errors**2),
        }
    )  # fmt: skip
    figure = meta_figure(result)
    names = [row[0] for row in figure.table.rows]
    assert names[:4] == ["a", "b", "c", "d"]
    assert "its policy says so" in figure.svg
    assert any("REML" in name for name in names)


def test_balance_overlap_and_histograms_are_drawn() -> None:
    effect = CausalEffect(
        TWO_ARMS,
        {
            "balance": np.array([[0.4, -0.2], [0.01, 0.02]]), "names": ["age", "sex=male"],
            "overlap": np.array([[0.0, 12.0, 30.0, 11.0], [15.0, 20.0, 10.0, 0.0]]),
        },
    )  # fmt: skip
    assert "0.400" in balance_figure(effect).svg
    assert balance_figure(effect).caption.startswith("Means of New drug less those of Placebo")
    assert balance_figure(effect, "zh").caption.startswith("新药的均值减去安慰剂的均值")
    first, second = overlap_figures(effect)
    assert [row[1] for row in first.table.rows] == ["0", "12", "30", "11"]
    assert (first.title, second.title) == ("Placebo", "New drug")
    assert "Propensity score, of having New drug" in first.svg
    assert [figure.title for figure in overlap_figures(effect, "zh")] == ["安慰剂", "新药"]
    found = Description({"numbers": ["age"], "ranges": np.array([[0.0, 64.0]]), "bins": np.full((1, 32), 100.0)})
    assert len(histogram_figure(found, "age", "Age", "zh").table.rows) == 32


def test_a_histogram_of_few_patients_has_fewer_parts_and_draws_a_moved_part_with_its_neighbour() -> None:
    bins = np.zeros((1, 32))
    bins[0, :8] = [20, 30, 25, 25, 0, 60, 40, 0]
    found = Description({"numbers": ["age"], "ranges": np.array([[0.0, 64.0]]), "bins": bins})
    rows = histogram_figure(found, "age", "Age").table.rows
    assert [row[1] for row in rows[:2]] == ["100", "100"]
    assert sum(int(row[1]) for row in rows) == 200
    bins[0, 8:10] = [0, 2000]
    rows = histogram_figure(Description({**found.values, "bins": bins}), "age", "Age").table.rows
    assert ("16 to 20", "2,000") in rows


def test_coefficients_all_look_alike() -> None:
    plain = coefficients_figure(GlmFit({**FIT.values, "link": "identity"}))
    assert [row[0] for row in plain.table.rows] == ["arm=new", "age"]
    assert plain.svg.count("<circle") == 2
