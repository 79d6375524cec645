"""Survival charts draw what their tables say, readably, in English and Chinese, and escape what they are given."""

from itertools import combinations

import numpy as np
import pytest
from test_charts import CHINESE, LONG, NAUGHTY, find, parsed, reading, value_of

from medfed.evaluation import svg
from medfed.evaluation.survival_charts import SurvivalCurve, hazard_ratio_figure, kaplan_meier, kaplan_meier_figure
from medfed.evaluation.survival_shown import Curves
from medfed.methods.cox_fit import CoxFit
from medfed.methods.kaplan_meier_fit import KaplanMeierFit
from medfed.study import study_from_dict

STUDY = study_from_dict({
    "medfed": 1, "name": "survival", "title": "t", "question": "q",
    "variables": {
        "months": {"meaning": {"en": "Time since diagnosis", "zh": "确诊后时间"}, "type": "number", "role": "time",
                   "unit": "month", "range": [0, 12], "interval": 1},
        "died": {"meaning": "Died", "type": "code", "role": "outcome", "codes": {"no": "No", "yes": "Yes"}, "event": "yes"},
        "arm": {"meaning": {"en": "Arm", "zh": "组"}, "type": "code", "role": "arm",
                "codes": {"old": {"en": "Old drug", "zh": "旧药"}, "new": {"en": "New drug", "zh": "新药"}}},
        "age": {"meaning": {"en": "Age", "zh": "年龄"}, "type": "number", "role": "covariate", "unit": "year",
                "range": [18, 110]},
        "score": {"meaning": "Score", "type": "number", "role": "covariate", "unit": "1", "range": [0, 10]},
    },
    "task": {"kind": "survival"}, "method": {"use": "medfed:medfed.methods.cox.Cox"},
    "sites": {"invited": ["a", "b"], "minimum": 2},
})  # fmt: skip
CURVES = {
    "model": "kaplan_meier", "by": "arm", "levels": ["old", "new"], "sites": ["a", "b"], "held_back": {}, "rounds": 2,
    "curves": {
        "0": {"cuts": np.array([1, 2, 5, 12]), "events": np.array([12.0, 11, 15, 30]),
              "censored": np.array([10.0, 0, 12, 25]), "grid_changes": np.array([0.01, 0.04, 0.2])},
        "1": {"cuts": np.array([2, 5, 12]), "events": np.array([10.0, 12, 16]),
              "censored": np.array([11.0, 10, 60]), "grid_changes": np.array([0.02, 0.03, 0.3])},
    },
    "log_rank": {"chi2": 9.1, "df": 1, "p": 0.0026}, "log_rank_within": {"chi2": 8.8, "df": 1, "p": 0.003},
}  # fmt: skip
COX = {
    "model": "cox", "strata": "site", "ties": "efron", "coefficients": np.array([-0.5, 0.02, 0.1]),
    "covariance": np.diag([0.04, 1e-4, 0.0025]), "log_likelihood": -500.0, "null_log_likelihood": -510.0,
    "events": 106.0, "patients": 244.0, "follow_up": 1500.0, "rounds": 5, "sites": ["a", "b"], "held_back": {},
    "centre": np.zeros(4), "scale": np.ones(4),
}  # fmt: skip


def curves_figure(name="Old drug", lang="en"):
    curve = SurvivalCurve(
        name, [1, 2, 5], [0.9, 0.8, 0.5], [0.85, 0.7, 0.4], [0.95, 0.88, 0.6], [12345, 100, 50], [10, 10, 20],
        [False, False, True],
    )  # fmt: skip
    other = SurvivalCurve(
        LONG, [2, 5], [0.95, 0.9], [0.9, np.nan], [0.99, np.nan], [90, 60], [5, 5], [True, True]
    )  # fmt: skip
    return kaplan_meier([curve, other], title=name, caption=name, x_label=name, until=6.0, lang=lang)


def from_run(name="", lang="en"):
    return kaplan_meier_figure(KaplanMeierFit(STUDY, CURVES), lang)


def ratios(name="", lang="en"):
    return hazard_ratio_figure(CoxFit(STUDY, COX), lang)


def test_names_and_labels_are_escaped():
    figure = curves_figure(NAUGHTY)
    assert "<script" not in figure.svg
    assert parsed(figure).get("aria-label") == NAUGHTY


@pytest.mark.parametrize("name", ["Old drug", LONG, CHINESE])
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("make", [curves_figure, from_run, ratios])
def test_no_text_overlaps_or_leaves_the_drawing(make, lang, name):
    root = parsed(make(name, lang))
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = []
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        size = float(node.get("font-size") or svg.SIZE)
        span = svg.text_width(node.text, int(size)) * 0.995
        left = float(node.get("x")) - {"middle": span / 2, "end": span}.get(node.get("text-anchor"), 0.0)
        base = float(node.get("y"))
        boxes.append((node.text, left, base - 0.72 * size, left + span, base + 0.1 * size))
    for text, left, top, right, bottom in boxes:
        assert left >= -1, text
        assert right <= width + 1, text
        assert top >= 0, text
        assert bottom <= height, text
    for (one, l1, t1, r1, b1), (other, l2, t2, r2, b2) in combinations(boxes, 2):
        assert r1 <= l2 or r2 <= l1 or b1 <= t2 or b2 <= t1, (one, other)


def corners(node):
    return [tuple(map(float, point.split())) for point in node.get("d")[1:].split("L")]


def test_curves_step_at_ends_of_cells_and_go_straight_through_merged_ones():
    figure = from_run()
    read_x, read_y = reading(figure, "x"), reading(figure, "y")
    old, new = ([(read_x(x), read_y(y)) for x, y in corners(node)] for node in find(figure, "curve"))
    fit = KaplanMeierFit(STUDY, CURVES)
    s = fit.curve("old").survival
    assert np.allclose(old, [(0, 1), (1, 1), (1, s[0]), (2, s[0]), (2, s[1]), (5, s[2]), (12, s[3])], atol=0.006)
    s = fit.curve("new").survival
    assert np.allclose(new, [(0, 1), (2, s[0]), (5, s[1]), (12, s[2])], atol=0.006)


def test_the_table_at_risk_says_what_is_known_at_each_tick():
    figure = from_run()
    ticks = [round(value_of(node.text)) for node in find(figure, "tick") if "x" in node.get("class").split()]
    shown = [node.text for node in find(figure, "number")]
    rows = [dict(zip(ticks, shown[: len(ticks)], strict=True)), dict(zip(ticks, shown[len(ticks) :], strict=True))]
    # Old drug: 115 at the start, 93 in the second interval; then only that at most 82, and 55, were left.
    assert ticks[:2] == [0, 2]
    assert rows[0] == {0: "115", 2: "93", 4: "≤ 82", 6: "≤ 55", 8: "≤ 55", 10: "≤ 55", 12: "≤ 55"}
    assert rows[1] == {0: "119", 2: "≤ 119", 4: "≤ 98", 6: "≤ 76", 8: "≤ 76", 10: "≤ 76", 12: "≤ 76"}


def test_the_table_of_a_curve_has_its_cells():
    table = from_run().table
    assert table.columns == (
        "Group",
        "Time since diagnosis, month",
        "At risk",
        "Events",
        "Without the event",
        "95% interval",
    )
    assert table.rows[0][:5] == ("Old drug", "1", "115", "12", "89.6%")
    assert len(table.rows) == 7


def test_bands_are_wider_than_intervals():
    fit = KaplanMeierFit(STUDY, CURVES)
    low, band = fit.to_frame()["lower"], fit.to_frame(bands="hall-wellner")["band_lower"]
    known = np.isfinite(band)
    assert (band[known] < low[known]).all()
    assert "bands for the whole curve" in kaplan_meier_figure(fit, bands="equal-precision").caption


def test_hazard_ratios_stand_beside_what_they_compare():
    figure = ratios()
    assert figure.table.columns == ("Feature", "Compared", "Hazard ratio", "95% interval")
    assert figure.table.rows == (
        ("Arm", "New drug against Old drug", "0.61", "0.41 to 0.90"),
        ("Age", "for 1 year more", "1.02", "1.00 to 1.04"),
        ("Score", "for 1 more", "1.11", "1.00 to 1.22"),
    )


def test_chinese_charts_speak_chinese():
    words = " ".join(parsed(from_run(lang="zh")).itertext())
    assert all(word in words for word in ("旧药", "新药", "确诊后时间，month", "处于风险中", "未发生事件"))
    rows = ratios(lang="zh").table.rows
    assert rows[0][:2] == ("组", "新药 与 旧药 相比")


def test_a_group_of_one_cell_has_no_curve():
    one = {
        "cuts": np.array([12]),
        "events": np.array([30.0]),
        "censored": np.array([60.0]),
        "grid_changes": np.zeros(3),
    }
    both = {**CURVES, "curves": {"0": CURVES["curves"]["0"], "1": one}}
    drawn = {row[0] for row in kaplan_meier_figure(KaplanMeierFit(STUDY, both)).table.rows}
    assert "Old drug" in drawn
    assert "New drug" not in drawn
    none = Curves(STUDY, {**CURVES, "curves": {"0": one, "1": one}, "merged_before": True})
    assert none.figures() == []
    assert "no curve can be told" in none.summary()
    assert "nan" not in none.summary()
