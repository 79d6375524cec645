"""A survival study: what it declares beside others, and what can't be meant."""

import json

import pytest
from study_text import TEXT
from test_study_file import refusal

from medfed.study import parse_study, study_from_dict

SURVIVAL = """\
medfed: 1
name: survival
title: Survival
question: Who lives longer?
variables:
  months:
    meaning: Months from diagnosis to death or the last visit
    type: number
    role: time
    unit: month
    range: [0, 120]
    interval: 6
    horizon: 60
  died:
    meaning: Died
    type: code
    role: outcome
    codes: {no: No, yes: Yes}
    event: yes
  arm:
    meaning: Arm
    type: code
    role: arm
    codes: {old: Old, new: New}
  age:
    meaning: Age
    type: number
    role: covariate
    unit: year
    range: [18, 110]
task: {kind: survival}
method: {use: "medfed:medfed.methods.cox.Cox"}
sites: {invited: [a, b, c], minimum: 2}
"""

WRONG = [
    ("type: number\n    role: time", "type: code\n    role: time\n    codes: {a: a, b: b}", "type: a time is a number"),
    ("unit: month", "unit: kg", "line 10, variables.months.unit: 'kg' is no unit of time; write day, week, month or year"),
    ("range: [0, 120]", "range: [-1, 120]", "a time is not negative, and -1 is; begin the range at 0"),
    ("    interval: 6\n", "", "variables.months: a time has the width of its grid's intervals, in its unit"),
    ("interval: 6", "interval: 0", "variables.months.interval: input should be greater than 0"),
    ("interval: 6", "interval: 7", "60 is no whole number of intervals of 7; write `horizon: 63` with a range that reaches it"),
    ("interval: 6", "interval: 0.01", "a grid of 6000 intervals is too fine; 5000 are possible"),
    ("horizon: 60", "horizon: 180", "line 13, variables.months.horizon: 180 is beyond the range, which ends at 120"),
    ("unit: year\n", "unit: year\n    interval: 1\n", "only a time has an `interval` and a `horizon`"),
    ("horizon: 60\n", "horizon: 60\n    missing: mean\n", "missing: a time can't be made up; its missing rule is `drop`"),
    ("task: {kind: survival}", "task: {kind: risk_prediction}", "variables.months.role: a time belongs to a survival study"),
    ("  age:\n", "  event:\n", "variables.event: in a survival study only the outcome can have this name"),
    ("  age:\n", "  time:\n", "variables.time: in a survival study only the time can have this name"),
    ("sites: {", "evaluation: {design: leave_one_site_out}\nsites: {", "a survival study has its own checks in the method"),
]  # fmt: skip


def test_a_survival_study_declares_a_time_a_grid_and_an_event() -> None:
    study = parse_study(SURVIVAL)
    assert study.time == "months"
    months = study.variables["months"]
    assert (months.last_time, months.intervals) == (60, 10)
    assert study.design.names == ("intercept", "arm=new", "age")
    assert study.sizes["times"] == 10
    assert study.sizes["time_cells"] == (10,)
    assert (study.sizes["slopes"], study.sizes["indicators"], study.sizes["compared"]) == (2, 1, (2,))


@pytest.mark.parametrize(("old", "new", "words"), WRONG)
def test_a_survival_study_that_can_not_be_is_told_what_to_write(old: str, new: str, words: str) -> None:
    assert old in SURVIVAL
    assert any(words in sentence for sentence in refusal(SURVIVAL.replace(old, new, 1)))


def test_a_time_that_ends_with_its_range_needs_no_horizon() -> None:
    study = parse_study(SURVIVAL.replace("    horizon: 60\n", ""))
    assert study.variables["months"].intervals == 20


def test_a_survival_study_without_a_time_is_told_so() -> None:
    sentences = refusal(TEXT.replace("kind: risk_prediction", "kind: survival"))
    assert any("task.kind: a survival study needs a variable with `role: time`" in sentence for sentence in sentences)


def test_curves_need_no_covariate() -> None:
    text = SURVIVAL.replace("role: covariate", "role: cohort")
    assert parse_study(text).design.names == ("intercept", "arm=new")
    text = text.replace("  arm:", "  treatment:").replace("role: arm", "role: cohort")
    assert parse_study(text).sizes["slopes"] == 0


def test_studies_without_a_time_have_the_hash_they_had() -> None:
    """Their file, and what sites approved, say nothing of grids."""
    study = parse_study(TEXT)
    dumped = json.loads(study.model_dump_json())
    assert all({"interval", "horizon"}.isdisjoint(variable) for variable in dumped["variables"].values())
    assert "times" not in study.sizes
    assert study_from_dict(dumped).hash == study.hash


@pytest.mark.parametrize(("old", "new"), [("interval: 6", "interval: 12"), ("horizon: 60", "horizon: 48")])
def test_another_grid_is_another_study(old: str, new: str) -> None:
    assert parse_study(SURVIVAL.replace(old, new)).hash != parse_study(SURVIVAL).hash
