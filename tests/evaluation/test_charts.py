"""Charts draw the numbers that their tables say, readably, and escape what they are given."""

import math
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise

import numpy as np
import pytest

from medfed.evaluation import svg
from medfed.evaluation.charts import (
    CalibrationGroup,
    Dropped,
    Estimated,
    Line,
    Roc,
    bars,
    calibration,
    curve,
    dots,
    flow,
    forest,
    histogram,
    roc,
)
from medfed.language import percent

NAUGHTY = '<script>alert("x")</script> & Co'
LONG = "University Hospitals Case Medical Center and Affiliated Clinics of Northern Ohio"
CHINESE = "接受内镜逆行胰胆管造影术的高危患者随机分组后分配的治疗方案"
WHY = "a count of patients that the sums would show is under the minimum cell"


def parsed(figure):
    return ElementTree.fromstring(figure.svg)


def find(figure, kind):
    return [node for node in parsed(figure).iter() if kind in (node.get("class") or "").split()]


def value_of(text):
    """The number that a tick or cell shows."""
    text = text.replace("−", "-").replace(",", "")
    return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)


def reading(figure, axis, *, log=False):
    """A function from a place on the drawing to the value that a reader finds there, by the axis' own ticks."""
    ticks = [node for node in find(figure, "tick") if axis in node.get("class").split()]
    places = np.array([float(node.get(axis)) - (4 if axis == "y" else 0) for node in ticks])
    values = np.array([value_of(node.text) for node in ticks])
    slope, start = np.polyfit(places, np.log(values) if log else values, 1)
    return lambda place: math.exp(start + slope * place) if log else start + slope * place


def marks(figure, axis):
    return [float(node.get(f"data-{axis}")) for node in find(figure, "mark")]


def forest_figure(name="Indiana", lang="en"):
    return forest(
        [
            Estimated(name, 0.52, 0.30, 0.91, "14 of 203"),
            Estimated(LONG, 0.56, 0.25, 1.25, "12 of 80"),
            Estimated("Kentucky", why=WHY),
            Estimated("Case", 0.71, 0.0, None, "1 of 3"),
            Estimated("All sites", 0.5296, 0.34, 0.83, "26 of 283", total=True),
        ],
        title=name,
        caption=name,
        heads=("Site", "Events", "Risk ratio (95% interval)"),
        favours=("lower risk with " + name, "higher risk with " + name),
        lang=lang,
    )


def dots_figure(name="Indiana", lang="en"):
    groups = [
        (name, [Estimated("local", 0.60, 0.51, 0.68), Estimated("federated", 0.61, 0.53, 0.69)]),
        (LONG, [Estimated("local", why=WHY), Estimated("federated", 0.55, 0.42, 0.67)]),
    ]
    return dots(groups, title=name, caption=name, heads=("Site", "Model", "AUC"), reference=0.5, lang=lang)


def bars_figure(name="placebo", lang="en"):
    rows = [
        Estimated(name, 0.1735, 0.1345, 0.2209, "51 of 294"),
        Estimated(CHINESE, 0.0919, 0.0634, 0.1312, "26 of 283"),
    ]
    return bars(rows, title=name, caption=name, heads=("Arm", "Events", "Risk"), lang=lang, form=percent)


def curve_figure(name="FedAvg", lang="en"):
    lines = [
        Line(name, range(1, 31), [0.3 + 0.4 * 0.9**k for k in range(30)]),
        Line("SCAFFOLD", range(1, 31), [0.3 + 0.41 * 0.9**k for k in range(30)]),
        Line(LONG, range(1, 7), [0.7, 0.4, 0.33, 0.32, 0.317, 0.317]),
    ]
    return curve(lines, title=name, caption=name, x_label="Round", y_label="Log-loss", lang=lang)


def roc_figure(name="federated", lang="en"):
    curves = [
        Roc(name, [0, 0.09, 0.46, 1], [0, 0.28, 0.64, 1], "AUC 0.63 (0.52 to 0.72)"),
        Roc(LONG, [0, 0.1, 0.5, 1], [0, 0.25, 0.6, 1], "AUC 0.61 (0.52 to 0.70)"),
    ]
    return roc(curves, title=name, caption=name, lang=lang)


def crowded_roc_figure(name="federated", lang="en"):
    curves = [Roc(f"{name} {LONG} {k}", [0, 0.4, 1], [0, 0.4 + k / 20, 1], "AUC 0.63 (0.52 to 0.72)") for k in range(6)]
    return roc(curves, title=name, caption=name, lang=lang)


def crowded_dots_figure(name="Indiana", lang="en"):
    members = [Estimated("local", 0.60, 0.51, 0.68), Estimated("federated", 0.61, 0.53, 0.69)]
    groups = [(f"{name} {LONG} {k}", members) for k in range(4)]
    return dots(groups, title=name, caption=name, heads=("Site", "Model", "AUC"), reference=0.5, lang=lang)


def calibration_figure(name="Michigan", lang="en"):
    groups = [
        CalibrationGroup(1283, 0.085, 0.157, 0.094, 0.250),
        CalibrationGroup(59, 0.134, 0.220, 0.134, 0.341),
        CalibrationGroup(22, 0.205, 0.355, 0.210, 0.553),
    ]
    return calibration(groups, title=name, caption=name, lang=lang)


def histogram_figure(name="Age", lang="en"):
    return histogram(
        [20, 30, 40, 50, 60, 70], [None, 24, 61, 1088, 102],
        title=name, caption=name, x_label=name, y_label="Patients", lang=lang,
    )  # fmt: skip


def flow_figure(name="no patient identifier", lang="en"):
    dropped = [Dropped(name, 2), Dropped(LONG + " " + LONG, 11), Dropped(CHINESE, 1005)]
    return flow(
        ("Rows read", 1431), dropped, ("Rows kept", 413), title=name, caption=name, dropped_head=name, lang=lang
    )


EVERY = [
    forest_figure, dots_figure, bars_figure, curve_figure, roc_figure, calibration_figure, histogram_figure, flow_figure,
    crowded_roc_figure, crowded_dots_figure,
]  # fmt: skip


@pytest.mark.parametrize("make", EVERY)
def test_titles_and_labels_are_escaped(make):
    figure = make(NAUGHTY)
    assert "<script" not in figure.svg
    assert figure.title == NAUGHTY
    assert parsed(figure).get("aria-label") == NAUGHTY


@pytest.mark.parametrize("name", ["Indiana", LONG, CHINESE])
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("make", EVERY)
def test_no_text_overlaps_or_leaves_the_drawing(make, lang, name):
    root = parsed(make(name, lang))
    _, _, width, height = map(float, root.get("viewBox").split())
    boxes = []
    for node in root.iter("{http://www.w3.org/2000/svg}text"):
        size = float(node.get("font-size") or svg.SIZE)
        # Half a percent narrower than the layout's own estimate: neighbours may touch, not overlap.
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


@pytest.mark.parametrize("make", [forest_figure, dots_figure, bars_figure, calibration_figure, flow_figure])
def test_a_table_that_paper_does_not_repeat_stands_in_the_drawing_number_by_number(make):
    figure = make()
    drawn = " ".join(parsed(figure).itertext())
    numbers = [cell for row in figure.table.rows for cell in row[1:] if cell[:1].isdigit()]
    assert figure.numbers_drawn
    assert len(numbers) >= 2
    assert [number for number in numbers if number not in drawn] == []


def test_paper_repeats_the_tables_of_drawings_without_numbers():
    assert not any(make().numbers_drawn for make in (curve_figure, roc_figure, histogram_figure))


def test_a_forest_draws_the_ratios_and_intervals_of_its_table():
    figure = forest_figure()
    read = reading(figure, "x", log=True)
    shown = [row for row in figure.table.rows if not row[2].startswith("not shown")]
    assert [read(x) for x in marks(figure, "x")] == pytest.approx([float(row[2]) for row in shown], rel=0.02)
    drawn = [(read(float(node.get("x1"))), read(float(node.get("x2")))) for node in find(figure, "interval")]
    assert drawn[0] == pytest.approx((0.30, 0.91), rel=0.01)
    assert drawn[1] == pytest.approx((0.25, 1.25), rel=0.01)
    assert shown[0][3] == "0.30 to 0.91"
    assert shown[2][3] == "0.00 to ∞"
    assert len(find(figure, "beyond")) == 2
    diamond = [float(point.split(",")[0]) for point in find(figure, "mark")[-1].get("points").split()]
    assert (read(min(diamond)), read(max(diamond))) == pytest.approx((0.34, 0.83), rel=0.01)


def test_dots_draw_the_values_and_intervals_of_their_table():
    figure = dots_figure()
    read = reading(figure, "x")
    shown = [row for row in figure.table.rows if not row[2].startswith("not shown")]
    assert [read(x) for x in marks(figure, "x")] == pytest.approx([float(row[2]) for row in shown], abs=0.006)
    ends = [f"{read(float(n.get('x1'))):.2f} to {read(float(n.get('x2'))):.2f}" for n in find(figure, "interval")]
    assert ends == [row[3] for row in shown]
    (reference,) = find(figure, "reference")
    assert read(float(reference.get("x1"))) == pytest.approx(0.5, abs=1e-3)


def test_a_long_name_stands_beside_the_rows_of_its_group():
    figure = crowded_dots_figure()
    assert len(wrapped := svg.wrap(f"Indiana {LONG} 0", 190)) == 4
    rows = sorted(set(marks(figure, "y")))
    within_group, to_next = rows[1] - rows[0], rows[2] - rows[1]
    assert within_group < 25
    assert within_group + to_next > 17 * len(wrapped)


def test_bars_start_at_zero_and_end_at_the_values_of_their_table():
    figure = bars_figure()
    read = reading(figure, "x")
    assert [percent(read(x)) for x in marks(figure, "x")] == [row[2] for row in figure.table.rows]
    widths = [(float(node.get("x")), float(node.get("width"))) for node in find(figure, "mark")]
    assert [read(x) for x, _ in widths] == pytest.approx([0, 0], abs=1e-3)
    assert [read(x + width) for x, width in widths] == pytest.approx([0.1735, 0.0919], abs=1e-3)


def test_rows_that_are_not_shown_say_why_where_they_would_be_drawn():
    for figure in (forest_figure(), dots_figure()):
        drawn = " ".join(node.text for node in find(figure, "why"))
        assert drawn == f"not shown: {WHY}"
        assert sum(f"not shown: {WHY}" in row for row in figure.table.rows) == 1


def test_a_curve_draws_every_value_of_its_table():
    figure = curve(
        [Line("a", [1, 2, 3, 4], [0.69, 0.45, 0.41, 0.40])],
        title="", caption="", x_label="Round", y_label="Loss",
    )  # fmt: skip
    read_x, read_y = reading(figure, "x"), reading(figure, "y")
    drawn = zip(marks(figure, "x"), marks(figure, "y"), strict=True)
    assert [(round(read_x(x)), round(read_y(y), 2)) for x, y in drawn] == [
        (int(row[0]), float(row[1])) for row in figure.table.rows
    ]


def test_a_curve_of_lines_of_different_length_leaves_gaps_in_its_table():
    table = curve_figure().table
    assert table.columns == ("Round", "FedAvg", "SCAFFOLD", LONG)
    assert table.rows[0][1:] == ("0.7000", "0.7100", "0.7000")
    assert table.rows[10][3] == "–"


def test_a_roc_curve_passes_the_points_of_its_table():
    figure = roc([Roc("a", [0, 0.09, 0.46, 1], [0, 0.28, 0.64, 1])], title="", caption="")
    read_x, read_y = reading(figure, "x"), reading(figure, "y")
    path = next(
        node for node in parsed(figure).iter("{http://www.w3.org/2000/svg}path") if node.get("stroke-width") == "2"
    )
    points = [tuple(map(float, point.split())) for point in path.get("d")[1:].split("L")]
    drawn = [(read_x(x), read_y(y)) for x, y in points]
    assert np.array(drawn) == pytest.approx(
        np.array([[float(c) for c in row[1:]] for row in figure.table.rows]), abs=2e-3
    )


def test_calibration_draws_predicted_observed_and_intervals_of_its_table():
    figure = calibration_figure()
    read_x, read_y = reading(figure, "x"), reading(figure, "y")
    assert [percent(read_x(x)) for x in marks(figure, "x")] == [row[1] for row in figure.table.rows]
    assert [percent(read_y(y)) for y in marks(figure, "y")] == [row[2] for row in figure.table.rows]
    ends = [
        f"{percent(read_y(float(n.get('y1'))))} to {percent(read_y(float(n.get('y2'))))}"
        for n in find(figure, "interval")
    ]
    assert ends == [row[3] for row in figure.table.rows]
    assert [row[0] for row in figure.table.rows] == ["1,283", "59", "22"]


def test_a_histogram_draws_its_counts_and_hides_what_may_not_be_seen():
    figure = histogram_figure()
    read = reading(figure, "y")
    assert [round(read(y)) for y in marks(figure, "y")] == pytest.approx([24, 61, 1088, 102], abs=2)
    assert [row[1] for row in figure.table.rows] == [
        "under the smallest count that may be seen", "24", "61", "1,088", "102",
    ]  # fmt: skip


def test_a_flow_shows_the_rows_of_its_table():
    figure = flow_figure()
    assert [node.text for node in find(figure, "number")] == ["1,431", "413", "2", "11", "1,005"]
    assert [row[1] for row in figure.table.rows] == ["1,431", "−2", "−11", "−1,005", "413"]


def test_series_are_told_apart_without_colour():
    looks = [(style.marker, style.dash) for style in svg.STYLES]
    assert len(set(looks)) == len(looks)
    assert len({style.marker for style in svg.STYLES}) == len(looks)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.1, 0.9), (-3.2, 7), (0, 1e-4), (12, 13_000), (5, 5)])
def test_ticks_are_round_evenly_spaced_and_hold_the_data(low, high):
    scale = svg.linear_scale(low, high, 0, 100)
    steps = {round(b - a, 10) for a, b in pairwise(scale.ticks)}
    assert len(steps) == 1
    assert scale.ticks[0] <= low <= high <= scale.ticks[-1]
    assert 2 <= len(scale.ticks) <= 9
    assert len({scale.form(tick) for tick in scale.ticks}) == len(scale.ticks)


@pytest.mark.parametrize(("low", "high"), [(0.34, 0.83), (0.9, 1.1), (1e-4, 30), (1, 1)])
def test_ticks_of_ratios_hold_the_data_and_stay_few(low, high):
    scale = svg.log_scale(low, high, 0, 100)
    assert scale.ticks[0] <= low * 1.001
    assert scale.ticks[-1] >= high * 0.999
    assert len(scale.ticks) <= 8


def test_chinese_breaks_between_characters_and_never_before_a_stop():
    lines = svg.wrap("该机构在本研究中的患者数，少于允许显示的最低人数。", 80)
    assert "".join(lines) == "该机构在本研究中的患者数，少于允许显示的最低人数。"
    assert all(svg.text_width(line) <= 80 + svg.SIZE for line in lines)
    assert not any(line.startswith(("，", "。")) for line in lines)
    assert svg.wrap("a b", 500) == ["a b"]
    assert svg.wrap("unbreakable" * 20, 100)[0] != "unbreakable" * 20
