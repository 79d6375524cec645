"""Reports: the answer first and honest, every gap explained, two languages, nothing from outside, nothing unescaped."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from report_samples import FEW_PATIENTS, HASH, SMALL_CELL, effect_result, prediction_result, quality

from medfed.errors import MedfedError, StudyError
from medfed.evaluation.page import Head, Section, Text, render_page
from medfed.evaluation.quality_page import render as render_quality
from medfed.evaluation.report import FILES, render_report, write_report
from medfed.evaluation.report_data import plain, read_report_data
from medfed.language import LANGUAGES, number
from medfed.sentences import messages
from medfed.study import parse_study

STUDY = """
medfed: 1
name: indomethacin
title: {en: "Indomethacin <b>trial</b>", zh: 吲哚美辛试验}
question: {en: "Does it help?", zh: "有用吗？"}
variables:
  pancreatitis:
    meaning: {en: Pancreatitis, zh: 胰腺炎}
    type: code
    role: outcome
    codes: {"no": {en: "No", zh: 否}, "yes": {en: "Yes", zh: 是}}
    event: "yes"
  arm:
    meaning: {en: Arm, zh: 分组}
    type: code
    role: arm
    codes: {placebo: {en: Placebo, zh: 安慰剂}, indomethacin: {en: Drug, zh: 药物}}
  age: {meaning: {en: Age, zh: 年龄}, type: number, role: covariate, unit: year, range: [18, 110]}
  risk: {meaning: {en: Score, zh: 评分}, type: number, role: covariate, unit: "1", range: [0, 10]}
task: {kind: treatment_effect}
method: {use: "medfed:medfed.methods.treatment_effect.TreatmentEffect"}
sites: {invited: [indiana, michigan]}
"""


class Reader(HTMLParser):
    """Visible text, and a check that elements close in the order in which they opened."""

    EMPTY = frozenset({"meta", "br", "hr", "link", "img"})

    def __init__(self, page):
        super().__init__()
        self.open, self.texts, self.attributes = [], [], []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.attributes += [(tag, name, value or "") for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "title"):
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.texts))


def answer_of(page):
    return re.sub(r"\s+", " ", page.split('<div class="answer">')[1].split("</p>")[0].removeprefix("<p>"))


RESULTS = {"effect": effect_result, "prediction": prediction_result}


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", RESULTS)
def test_a_report_is_one_well_formed_page_that_loads_nothing(kind, lang):
    page = render_report(RESULTS[kind](), lang, linked=True)
    reader = Reader(page)
    tags = {tag for tag, _, _ in reader.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object"}
    assert [value for _, name, value in reader.attributes if name.startswith("on")] == []
    links = {value for _, name, value in reader.attributes if name in ("href", "src")}
    assert {link for link in links if not link.startswith("#")} <= set(FILES.values())
    assert "url(" not in page
    anchors = {value for _, name, value in reader.attributes if name == "id"}
    assert {link[1:] for link in links if link.startswith("#")} == anchors
    assert "default-src 'none'" in page


@pytest.mark.parametrize("kind", RESULTS)
def test_no_english_sentence_of_ours_is_left_in_the_chinese_report(kind):
    text = Reader(render_report(RESULTS[kind](), "zh")).text
    pieces = [
        piece.strip() for message in messages() for piece in re.split(r"\{[^}]*\}", message) if len(piece.split()) >= 3
    ]
    assert len(pieces) > 100
    assert [piece for piece in pieces if piece in text] == []


def test_the_answer_comes_first_with_its_interval():
    page = render_report(effect_result())
    assert answer_of(page) == (
        "The risk was lower with indomethacin than with placebo: 9.2% against 17.3%, risk ratio 0.53 "
        "(95% interval 0.34 to 0.83)."
    )
    assert page.index("does a single rectal dose") < page.index("The risk was lower") < page.index("<h2>")
    chinese = answer_of(render_report(effect_result(), "zh"))
    assert chinese == "吲哚美辛组的风险低于安慰剂组：9.2% 对 17.3%，风险比 0.53（95% 置信区间 0.34 至 0.83）。"


@pytest.mark.parametrize(
    ("ratio", "said"),
    [
        ((0.8, 0.5, 1.2), "do not clearly differ"),
        ((1.0, 0.5, math.inf), "do not clearly differ"),
        ((1.9, 1.1, 3.2), "The risk was higher with indomethacin"),
        ((0.5, 0.3, 1.0), "do not clearly differ"),
        ((math.nan, 0.0, math.inf), "The risks can&#39;t be compared"),
    ],
)
def test_the_answer_follows_from_the_interval(ratio, said):
    result = effect_result()
    result["effect"]["risk_ratio"] = dict(zip(("value", "low", "high"), ratio, strict=True))
    assert said in answer_of(render_report(result))


@pytest.mark.parametrize(
    ("joining", "verdict", "headline"),
    [
        ((0.005, -0.058, 0.068), "no clear gain", "joining shows no clear gain where that can be judged"),
        ((0.06, 0.0, 0.12), "no clear gain", "joining shows no clear gain where that can be judged"),
        ((0.06, 0.02, 0.10), "gain", "joining clearly helps University of Michigan"),
        ((-0.06, -0.10, -0.02), "loss", "does worse than the own model of University of Michigan"),
    ],
)
def test_whether_joining_helps_follows_from_the_interval_alone(joining, verdict, headline):
    result = prediction_result(joining=joining)
    for method in result["prediction"]["methods"]:
        method["joining"][0]["verdict"] = "gain"
    page = render_report(result)
    assert headline in answer_of(page)
    shown = [number(end, 3) for end in joining]
    row = f"University of Michigan {verdict} {shown[0]} {shown[1]} to {shown[2]}"
    assert row in Reader(page).text


def test_no_clear_gain_at_any_site_is_said_only_where_every_site_was_judged():
    result = prediction_result()
    assert "no clear gain where that can be judged" in answer_of(render_report(result))
    for method in result["prediction"]["methods"]:
        method["joining"][1] |= {"difference": -0.01, "low": -0.05, "high": 0.03}
    assert "no clear gain at any site" in answer_of(render_report(result))


def test_a_model_whose_interval_holds_one_half_is_not_called_better_than_chance():
    result = prediction_result()
    assert "does not rank patients clearly better than chance" in answer_of(render_report(result))
    overall = result["prediction"]["methods"][0]["results"][0]
    overall |= {"auc_low": 0.51, "auc_high": 0.65}
    assert "AUC of 0.58 (95% interval 0.51 to 0.65; 0.5 is chance)" in answer_of(render_report(result))


def test_without_figures_over_all_sites_the_answer_tells_the_range_at_sites_left_out():
    result = prediction_result()
    prediction = result["prediction"]
    prediction["methods"] = []
    assert "At University of Michigan, which it had not seen, the model&#39;s AUC was 0.62" in answer_of(
        render_report(result)
    )
    prediction["left_out"][1] = prediction["left_out"][0] | {
        "site": "case",
        "auc": 0.71,
        "auc_low": 0.6,
        "auc_high": 0.8,
    }
    assert answer_of(render_report(result)) == (
        "At a site that it had not seen, the model&#39;s AUC lay between 0.62 (95% interval 0.47 to 0.77; University of "
        "Michigan) and 0.71 (95% interval 0.60 to 0.80; University Hospitals Case Medical Center)."
    )
    text = Reader(render_report(result)).text
    assert (
        "Judged on 328 patients, 72 of them with the event, each by a model that had not seen the patient's site."
        in text
    )
    assert "University of Michigan: the federated model's risks are too low here, observed / expected 1.90" in text


def test_every_site_that_is_not_counted_is_named_with_the_reason():
    for lang, sentence in (
        ("en", f"Not in this answer: University of Kentucky, because {SMALL_CELL}."),
        ("zh", "未计入本结果：肯塔基大学，原因：求和结果会显示出某个低于最小单元频数的患者计数。"),
    ):
        text = Reader(render_report(effect_result(), lang)).text
        assert sentence in text
    assert (
        f"Not in this answer: University Hospitals Case Medical Center, because {FEW_PATIENTS}."
        in Reader(render_report(effect_result())).text
    )


def test_figures_that_are_not_there_say_why():
    result = effect_result()
    result["effect"] |= {"by_site": [], "difference_from_pooled": None}
    text = Reader(render_report(result)).text
    assert "not shown: the sites' policies do not allow figures of one site alone" in text
    assert "not shown: the rows are not in one place" in text
    text = Reader(render_report(prediction_result())).text
    assert "The calibration curve of Indiana University is not shown: fewer than 3 groups of scores" in text
    assert "Indiana University can't be said not shown: fewer than 3 groups of scores reach the minimum cell" in text
    assert f"Figures of University of Kentucky alone are not shown: {SMALL_CELL}." in text


def test_risks_that_are_wrong_at_a_site_are_told():
    text = Reader(render_report(prediction_result())).text
    assert "University of Michigan: the federated model's risks are too low here, observed / expected 1.85" in text
    assert "Indiana University: the federated model's risks are too high here" in text


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ({"michigan": 1.85, "indiana": 0.71}, "too low at University of Michigan and too high at Indiana University"),
        ({"michigan": 1.0, "indiana": 0.71}, "risks are too high at Indiana University: recalibrate"),
        ({"michigan": 1.85, "indiana": 1.0}, "risks are too low at University of Michigan: recalibrate"),
        ({"michigan": 1.0, "indiana": 1.0}, "do not clearly differ from what was observed at any site"),
    ],
)
def test_the_first_screen_tells_where_the_predicted_risks_are_wrong(ratios, said):
    result = prediction_result()
    for row in result["prediction"]["methods"][0]["results"]:
        if row["where"] == "federated" and row["site"]:
            ratio = ratios[row["site"]]
            row |= {"oe": ratio, "oe_low": ratio - 0.2, "oe_high": ratio + 0.2}
    assert said in render_report(result).split("<main>")[0]


def test_sites_stand_in_the_order_of_the_invitation_whatever_the_order_of_the_figures():
    result = prediction_result()
    for method in result["prediction"]["methods"]:
        for part in ("results", "joining", "calibration", "roc"):
            method[part].reverse()
    # Members of one site keep their own order, so nothing else may change.
    assert render_report(result) == render_report(prediction_result())


def test_many_roc_curves_are_drawn_few_to_a_square():
    result = prediction_result()
    for method in result["prediction"]["methods"]:
        method["roc"] *= 6
    text = Reader(render_report(result)).text
    assert "ROC curves: Exact regression (1 of 2)" in text
    assert "ROC curves: Exact regression (2 of 2)" in text


def test_without_methods_the_difference_from_pooled_is_that_at_sites_left_out():
    result = prediction_result()
    result["prediction"] |= {"methods": [], "difference_from_pooled": None}
    text = Reader(render_report(result)).text
    assert "the largest difference in AUC at a site left out is 1.0 × 10 −12 ." in text
    assert "the rows are not in one place" not in text


def test_what_is_needed_to_repeat_a_run_stands_at_the_foot():
    foot = render_report(prediction_result()).split("<footer>")[1]
    for part in ("20261124-a1b2", "2026-11-24 10:30 UTC", "0.1.0", HASH, "random: 1<", "model.medfed"):
        assert part in foot


def test_a_what_if_says_so_and_a_study_among_institutions_does_not():
    assert "what-if for public data" in Reader(render_report(prediction_result())).text
    assert "what-if for public data" not in Reader(render_report(effect_result())).text


def test_what_left_each_site_is_counted_and_a_ledger_that_does_not_hold_is_a_warning():
    page = render_report(effect_result())
    text = Reader(page).text
    assert "Together: 128 values" in text
    assert text.count("Nothing left this site in this run.") == 2
    assert "This site has not approved the study." in text
    assert "Ledger verified: 1,011 rows, none edited, removed or cut off; head 84f45d72974d3383." in text
    assert "The ledger does not hold" in page.split('class="notice warning">')[1]
    assert "arm by outcome: Patients by arm (reference first) and outcome (no event, event)." in text


def test_a_step_of_a_package_that_is_not_installed_here_is_shown_by_its_name():
    result = effect_result()
    result["releases"][0]["step"] = "elsewhere:elsewhere.methods.secret_step"
    assert "secret step" in Reader(render_report(result)).text


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", RESULTS)
def test_markup_in_texts_of_a_study_or_site_is_escaped(kind, lang):
    attack = '<script>alert(1)</script><img src=x onerror="alert(2)">'
    poisoned = RESULTS[kind]()
    poisoned["study"]["title"] = poisoned["study"]["question"] = attack
    poisoned["study"]["name"] = poisoned["run"] = attack
    for variable in poisoned["study"]["variables"].values():
        variable["meaning"] = attack
    for site in poisoned["sites"]:
        site["title"] = attack
        site["reason"] = site["reason"] and attack
    for release in poisoned["releases"]:
        release["step"] = attack
    for ledger in poisoned["ledgers"]:
        ledger["head"] = attack
    page = render_report(poisoned, lang)
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert [name for _, name, _ in Reader(page).attributes if name.startswith("on")] == []


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_round_trips_through_its_json_with_keys_that_the_report_does_not_know(kind, tmp_path):
    result = RESULTS[kind]() | {"later_figure": {"value": 3.5}}
    paths = write_report(result, tmp_path / "run")
    assert sorted(path.name for path in paths) == ["report.html", "report.zh.html", "result.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in paths)
    stored = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert stored == plain(result)
    assert read_report_data(stored) == read_report_data(result)
    for lang, name in FILES.items():
        assert (tmp_path / "run" / name).read_text(encoding="utf-8") == render_report(stored, lang, linked=True)


def test_arrays_and_numpy_numbers_become_json():
    values = {"a": np.array([1.0, math.nan]), "b": np.int64(3), "c": (np.float64(2.5), math.inf), "d": np.bool_(True)}
    assert plain(values) == {"a": [1.0, None], "b": 3, "c": [2.5, None], "d": True}
    json.dumps(plain(values), allow_nan=False)


def test_a_result_that_does_not_fit_is_refused_by_name_and_nothing_is_written(tmp_path):
    result = effect_result()
    result["effect"]["arms"][0]["events"] = "many"
    with pytest.raises(StudyError, match=r"effect\.arms\.0\.events"):
        write_report(result, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_unknown_language_is_refused():
    with pytest.raises(MedfedError, match="choose en or zh"):
        render_report(effect_result(), "fr")


def test_words_between_backticks_are_code_and_exponents_are_raised():
    section = Section("a", "A", [Text("use `medfed <x>`: 2.6 × 10^−14")])
    page = render_page(Head("k", "t", "q", ""), [section], lang="en")
    assert "use <code>medfed &lt;x&gt;</code>: 2.6 × 10<sup>−14</sup>" in page


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_quality_page_accounts_for_every_row(lang):
    page = render_quality(quality(), parse_study(STUDY), "<b>Indiana</b>", lang)
    text = Reader(page).text
    assert "<b>" not in page
    assert re.search(r"\b431\b.*\b413\b|\b413\b.*\b431\b", answer_of(page))
    reasons = {
        "en": ["no patient identifier", "another row of the same patient", "age is missing", "outside the cohort: age"],
        "zh": ["没有患者标识", "同一患者的重复行", "age 缺失", "不符合入组条件：age"],
    }[lang]
    assert [reason for reason in reasons if reason not in text] == []
    assert {"en": "risk has the same value for every patient", "zh": "所有患者的 risk 取值相同"}[lang] in text
    assert {"en": "45.2 ± 13.4 year", "zh": "45.2 ± 13.4 岁"}[lang] in text
    assert {"en": "Placebo", "zh": "安慰剂"}[lang] in text


def test_with_two_sites_no_alarm_is_not_sold_as_all_clear():
    result = prediction_result() | {"alarms": []}
    assert "With fewer than 3 sites nobody can tell" in Reader(render_report(result)).text
    for site in result["sites"]:
        site["counted"] = True
    assert "No alarm: event rates" in Reader(render_report(result)).text
    assert "Nobody looked" in Reader(render_report(result | {"sites_compared": 0})).text


def test_federated_beside_pooled_figures_gives_their_largest_difference():
    result = prediction_result()
    result["prediction"]["difference_from_pooled"] = None
    pooled = next(row for row in result["prediction"]["methods"][0]["results"] if row["where"] == "pooled")
    pooled["brier"] += 3e-9
    assert (
        "the largest difference in AUC, observed / expected or Brier score is 3.0 × 10 −9"
        in Reader(render_report(result)).text
    )
