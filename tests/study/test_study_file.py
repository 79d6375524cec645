"""study.yaml: what can't be meant is refused, with file, line, key and what to write instead."""

from pathlib import Path

import pytest
from study_text import TEXT

from medfed.errors import StudyError
from medfed.study import Study, load_study, parse_study, placed, study_from_dict
from medfed.study.units import unit_registry


def changed(*changes: tuple[str, str]) -> str:
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    return text


def refusal(text: str) -> list[str]:
    """The sentences with which a study is refused, one a problem."""
    with pytest.raises(StudyError) as problem:
        parse_study(text)
    return str(problem.value).splitlines()


def test_the_example_is_well_formed() -> None:
    study = parse_study(TEXT)
    assert study.outcome == "event"
    assert study.design.names == ("intercept", "age")
    assert study.method.settings == {"tolerance": 1e-8}


UNKNOWN_WORDS = [
    ("title:", "titel: x\ntitle:", 3, "titel: there is no key 'titel' here; did you mean 'title'?"),
    ("unit: year", "units: year", 16, "variables.age.units: there is no key 'units' here; did you mean 'unit'?"),
    ("{en: An", "{enn: An", 3, "title.enn: there is no key 'enn' here; did you mean 'en'?"),
    ("question: Who has the event?\n", "", 1, "study: the key 'question' is missing; add it"),
    ("role: covariate", "role: covariat", 15, "'covariat' is not possible here; choose 'outcome', 'arm'"),
    ("kind: risk_prediction", "kind: risk-prediction", 21, "(did you mean 'risk_prediction'?)"),
    ("name: example", "name: My Study", 2, "'My Study' is no name here; it has a-z, 0-9 and hyphens"),
    ("  age:\n", "  age at visit:\n", 12, "'age at visit' is no variable's name; it has letters, digits"),
    ("  age:\n", "  features:\n", 12, "'features' is the name of something that is worked out; choose another"),
    ("medfed:medfed.methods.newton.Newton", "Newton", 23, "write it as in medfed:medfed.methods.newton.Newton"),
    ("medfed: 1", "medfed: 2", 1, "medfed: 2 is not possible here; choose 1"),
]
WRONG_VALUES = [
    ("{en: An example, zh: 例}", "5", 3, "title: text is expected here; put it in quotes (found: '5')"),
    ("question: Who has the event?", "question:", 4, "question: text is expected here"),
    ("event: yes\n", "event: true\n", 11, "text is expected here; put it in quotes (found: 'True')"),
    ("[18, 110]", "18-110", 17, "a list is expected here; put it in square brackets (found: '18-110')"),
    ("[18, 110]", "[18, old]", 17, "variables.age.range.1: a number is expected here (found: 'old')"),
    ("[18, 110]", "[18, inf]", 17, "a number is expected here, and neither infinity nor nan is one"),
    ("[a, b, c]", "a", 27, "sites.invited: a list is expected here; put it in square brackets"),
    ("minimum: 2", "minimum: 1.5", 27, "sites.minimum: a whole number is expected here (found: '1.5')"),
    ("minimum: 2", "minimum: 0", 27, "sites.minimum: input should be greater than or equal to 1"),
    ("{tolerance: 1e-8}", "{tolerance: [1]}", 24, "true, false, a number or text is expected here"),
    ("[18, 110]", "[18, 60, 110]", 17, "a range has two numbers; write [lowest, highest]"),
    ("[a, b, c]", "[]", 27, "sites.invited: nobody is invited; name the sites, as in [north, south]"),
    ("folds: 5", "folds: 1", 25, "parts.folds: 1 is not possible; choose 2 to 20"),
    ("folds: 5", "folds: 21", 25, "parts.folds: 21 is not possible; choose 2 to 20"),
    ("no: No, yes", "'': No, yes", 10, 'a code is not empty; name it, and list "" among the site\'s missing codes'),
    ("medfed: 1", "seed: 9223372036854775808\nmedfed: 1", 1, "seed: input should be less than 9223372036854775808"),
]
CONTRADICTIONS = [
    ("[18, 110]", "[110, 18]", 17, "the lowest value 110 is not below the highest 18"),
    ("    event: yes\n", "", 6, "variables.event: an outcome of type code says which code is the event"),
    ("event: yes\n", "event: ye\n", 11, "'ye' is not among the codes; did you mean 'yes'?"),
    ("yes: Yes}", "yes: Yes, perhaps: Perhaps}", 10, "an outcome of type code has two codes"),
    (
        "event: yes\n",
        "event: yes\n    missing: unknown\n",
        12,
        "an outcome can't be made up; its missing rule is `drop`",
    ),
    (
        "event: yes\n",
        "event: yes\n    reference: no\n",
        12,
        "only an arm or a covariate has a reference, not an outcome",
    ),
    ("event: yes\n", "event: maybe\n", 11, "'maybe' is not among the codes; choose no or yes"),
    ("[18, 110]", "[18, 18]", 17, "the lowest value 18 is not below the highest 18; widen the range"),
    ("unit: year\n", "unit: year\n    missing: zero\n", 17, "choose 'drop', 'mean' or 'unknown'"),
    ("event: yes\n", "event: yes\n    unit: kg\n", 6, "`unit` and `range` belong to numbers"),
    ("unit: year\n", "unit: year\n    codes: {a: A, b: B}\n", 17, "a number has no codes; use `type: code`"),
    ("unit: year\n", "unit: year\n    missing: unknown\n", 17, "`unknown` is for codes; use `mean` or `drop`"),
    ("    unit: year\n", "", 12, "a number has a `unit` and a `range: [lowest, highest]`"),
    ("role: covariate", "role: outcome", 15, "event and age both have the role 'outcome'; a study has one"),
    ("role: outcome", "role: cohort", 11, "only an outcome has an event"),
    ("role: covariate", "role: cohort", 5, "needs at least one variable with `role: covariate`"),
    ("role: covariate", "role: arm", 14, "variables.age.type: an arm is of type code"),
    (
        "variable: age, at_least: 18",
        "variable: aeg, at_least: 18",
        20,
        "there is no variable 'aeg'; did you mean 'age'?",
    ),
    (
        "variable: age, at_least: 18",
        "variable: event, is_one_of: [yess]",
        20,
        "'yess' is not a code of 'event'; did you mean 'yes'?",
    ),
    ("at_least: 18", "is_one_of: []", 20, "an empty list leaves nobody; name the codes that stay"),
    (
        "at_least: 18}",
        "at_least: 80}\n    - {variable: age, at_most: 20}",
        21,
        "20 leaves nobody, the rules above keep 80 to 110",
    ),
    (
        "variable: age, at_least: 18}",
        "variable: event, is_one_of: [no]}\n    - {variable: event, is_one_of: [yes]}",
        21,
        "the rules above keep none of these codes",
    ),
    ("at_least: 18", "is_one_of: [old]", 20, "'old' is not a code of 'age'"),
    ("variable: age, at_least: 18", "variable: event, at_least: 1", 20, "at_least and at_most need a number"),
    ("at_least: 18", "at_least: 18, is_one_of: [a]", 20, "has `at_least` and/or `at_most`, or `is_one_of`"),
    ("at_least: 18", "at_least: 80, at_most: 20", 20, "nothing is at least 80 and at most 20; swap them"),
    ("at_least: 18", "at_least: 180", 20, "180 leaves nobody, the range of age is 18 to 110"),
    ("at_least: 18", "at_most: 1", 20, "1 leaves nobody, the range of age is 18 to 110"),
    ("kind: risk_prediction", "kind: treatment_effect", 21, "needs a variable with `role: arm`"),
    ("{kind: folds, folds: 5}", "{kind: all}", 26, "cross_validation needs `parts: {kind: folds, folds: N}`"),
    ("folds: 5", "train: 0.5", 25, "`folds: N` belongs to `kind: folds`, and is needed there"),
    ("cross_validation", "leave_one_site_out, variants: [x]", 26, "there is no variant 'x'"),
    (
        "cross_validation",
        "cross_validation, compare: [local, pooled, local]",
        26,
        "evaluation.compare: one of these stands twice",
    ),
    ("[a, b, c]", "[a, b, a]", 27, "sites.invited: a site is named twice"),
    ("minimum: 2", "minimum: 4", 27, "4 sites are needed but only 3 are invited"),
]
UNITS = [
    ("yaer", "there is no unit 'yaer'; did you mean 'year'?"),
    ("mmoll/l", "there is no unit 'mmoll'; did you mean 'mmol/l'?"),
    ("kg/", "'kg/' is not a unit; write for example 'mmol/l'"),
    ("1 kg 2", "is not a unit"),
    ("kg/m^^2", "'kg/m^^2' is not a unit; did you mean 'kg/m**2'?"),
    ("mmol//l", "'mmol//l' is not a unit; did you mean 'mmol/l'?"),
    ("''", "'' is not a unit; write for example 'mmol/l', 'kg/m**2', 'year', or '1' for a pure number"),
    ("bpm", "there is no unit 'bpm'; write '1/minute'"),
    ("cells/ul", "there is no unit 'cells'; a count is a pure number; write for example '1/ul'"),
    ("IU/l", "there is no unit 'IU'; its size depends on the substance"),
    ("10^9/l", "a unit has no factor; write '1/nl', which is the same as '10^9/l'"),
    ("10**12/L", "a unit has no factor; write '1/pl'"),
    ("qqqqq", "there is no unit 'qqqqq'; write for example 'mmol/l', 'year'"),
]


@pytest.mark.parametrize(("old", "new", "line", "words"), UNKNOWN_WORDS + WRONG_VALUES + CONTRADICTIONS)
def test_a_study_that_can_not_be_is_told_where_and_what_to_write(old: str, new: str, line: int, words: str) -> None:
    sentences = refusal(changed((old, new)))
    assert any(s.startswith(f"study.yaml, line {line}, ") and words in s for s in sentences), sentences
    assert len(sentences) <= 2, sentences


@pytest.mark.parametrize(("unit", "words"), UNITS)
def test_an_impossible_unit_is_told_with_the_nearest_one(unit: str, words: str) -> None:
    (sentence,) = refusal(changed(("unit: year", f"unit: {unit}")))
    assert sentence.startswith("study.yaml, line 16, variables.age.unit: ")
    assert words in sentence


@pytest.mark.parametrize(
    "unit", ["1", "mmHg", "degC", "kg/m^2", "kg/m**2", "kg/m²", "mg/dL", "1/minute", "1/nl", "percent", "U/l"]
)
def test_units_of_medicine_are_understood(unit: str) -> None:
    assert parse_study(changed(("unit: year", f'unit: "{unit}"'))).variables["age"].unit == unit


@pytest.mark.parametrize(("factor", "unit", "power"), [("1/nl", "1/l", 1e9), ("1/pl", "1/l", 1e12)])
def test_the_unit_that_is_written_instead_of_a_factor_is_the_same(factor: str, unit: str, power: float) -> None:
    assert unit_registry().Quantity(1.0, factor).to(unit).magnitude == pytest.approx(power, rel=1e-12)


def test_a_temperature_below_absolute_zero_is_refused_and_a_difference_in_kelvin_is_not() -> None:
    (sentence,) = refusal(changed(("unit: year", "unit: degC"), ("[18, 110]", "[-300, 45]")))
    assert "line 17, variables.age.range: -300 degC is below absolute zero, -273.15" in sentence
    parse_study(changed(("unit: year", "unit: kelvin"), ("[18, 110]", "[-5, 25]")))


@pytest.mark.parametrize("role", ["arm", "part"])
def test_who_was_treated_and_who_is_in_which_part_is_never_made_up(role: str) -> None:
    """A missing code is stored as -1; as an index it would be the last arm or part."""
    variable = f"  who: {{meaning: W, type: code, role: {role}, codes: {{train: A, test: B}}, missing: unknown}}\n"
    (sentence,) = refusal(changed(("variables:\n", "variables:\n" + variable)))
    assert "line 6, variables.who.missing" in sentence
    assert "can't be made up" in sentence


@pytest.mark.parametrize("name", ["outcome", "arm"])
def test_the_names_outcome_and_arm_belong_to_the_outcome_and_the_arm(name: str) -> None:
    """A step asks its site for "outcome" and "arm"; another variable of this name would be read instead."""
    sentences = refusal(changed(("  age:\n", f"  {name}:\n"), ("variable: age", f"variable: {name}")))
    assert any(f"only the study's {name} can have this name" in sentence for sentence in sentences)


def test_names_that_differ_in_case_only_are_refused() -> None:
    sentences = refusal(changed(("  age:\n", "  Event:\n"), ("variable: age", "variable: Event")))
    assert "differs from" in sentences[0]


def test_all_contradictions_are_told_at_once_and_ten_problems_at_most() -> None:
    sentences = refusal(changed(("[a, b, c]", "[a, b, a]"), ("minimum: 2", "minimum: 9"), ("folds, folds: 5", "all")))
    assert len(sentences) == 3
    many = "".join(f"wrong{index}: x\n" for index in range(30))
    assert len(refusal(TEXT + many)) == 10


def test_all_that_is_wrong_with_one_variable_is_told_at_once() -> None:
    sentences = refusal(changed(("unit: year", "unit: yaer\n    missing: unknown"), ("[18, 110]", "[110, 18]")))
    assert [sentence.split(": ")[0] for sentence in sentences] == [
        "study.yaml, line 18, variables.age.range",
        "study.yaml, line 16, variables.age.unit",
        "study.yaml, line 17, variables.age.missing",
    ]


PART = "  split: {meaning: S, type: code, role: part, codes: {train: A, test: B}}\n  age:\n"
BY_SPLIT = ("{kind: folds, folds: 5}", "{kind: variable, variable: split}")
HOLDOUT = ("cross_validation", "holdout")
VARIANT = ("parts:", 'variants: {other: {use: "medfed:medfed.methods.fedavg.FedAvg"}}\nparts:')
NUMBER = (
    "    type: code\n    role: outcome\n    codes: {no: No, yes: Yes}\n    event: yes",
    "    type: number\n    role: outcome\n    unit: kg\n    range: [0, 5]",
)
ARM = ("  age:\n", "  arm: {meaning: Arm, type: code, role: arm, codes: {old: Old, new: New}}\n  age:\n")
TREATMENT = ("risk_prediction", "treatment_effect")


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ([("  age:\n", PART)], 12, "variables.split.role: nothing divides rows by split; write `parts: {kind: variable, variable: split}`"),
        ([("  age:\n", PART), ("{kind: folds, folds: 5}", "{kind: variable, variable: splt}"), HOLDOUT], 26, "'splt' is no variable with `role: part`; did you mean 'split'?"),
        ([("{kind: folds, folds: 5}", "{kind: variable, variable: age}"), HOLDOUT], 25, "'age' is no variable with `role: part`; write `role: part` at age"),
        ([("  age:\n", PART.replace("test: B", "check: B")), BY_SPLIT, HOLDOUT], 12, "a part variable has the codes train, test (and valid)"),
        ([("  age:\n", PART.replace("test: B", "test: B, valid: C")), ("{kind: folds, folds: 5}", "{kind: variable, variable: split, valid_fraction: 0.2}"), HOLDOUT], 26, "split has a code `valid` of its own"),
        ([("{kind: folds, folds: 5}", "{kind: fractions, train: .7, test: .2}"), HOLDOUT], 25, "are fractions that add up to 1"),
        ([("{kind: folds, folds: 5}", "{kind: fractions, train: .8, valid: .2}"), HOLDOUT], 25, "holdout needs a test part above 0"),
        ([HOLDOUT], 26, "holdout needs parts with a test part"),
        ([("cross_validation", "leave_one_site_out"), ("[a, b, c]", "[a, b]")], 26, "leave_one_site_out needs at least 3 invited sites"),
        ([VARIANT, ("cross_validation", "cross_validation, variants: [othr]")], 27, "there is no variant 'othr'; did you mean 'other'?"),
        ([VARIANT, ("cross_validation", "cross_validation, variants: [other, other]")], 27, "evaluation.variants: one of these stands twice"),
        ([VARIANT, ("cross_validation", "none, variants: [other]")], 27, "`design: none` judges nothing"),
        ([NUMBER], 26, "risks of an event are judged, and this outcome is a number; write `design: none`"),
        ([ARM, TREATMENT], 27, "a treatment_effect is estimated, and predicts nobody's risk; write `design: none`"),
        ([ARM, TREATMENT, NUMBER, ("cross_validation", "none")], 8, "a treatment_effect needs an outcome of type code"),
        ([("event: yes\n", "event: yes\n  c: {meaning: C, type: code, role: covariate, codes: {a: A, b: B}, missing: mean}\n")], 12, "`mean` is for numbers; use `unknown` or `drop`"),
        ([("event: yes\n", "event: yes\n  c: {meaning: C, type: code, role: covariate, codes: {a: A, b: B}, reference: x}\n")], 12, "'x' is not among the codes; choose a or b"),
        ([("event: yes\n", "event: yes\n  c: {meaning: C, type: code, role: covariate, codes: {a: A, b: B}, reference: a}\n"), ("coding: reference", "coding: all_levels")], 12, "with `coding: all_levels` no level is left out"),
        ([("event: yes\n", "event: yes\n  c: {meaning: C, type: code, role: covariate, codes: {a: A, unknown: B}, missing: unknown}\n")], 12, "'unknown' is added by `missing: unknown`"),
        ([("event: yes\n", "event: yes\n  c: {meaning: C, type: date, role: covariate}\n")], 12, "a covariate is a number or a code, not a date"),
    ],
)  # fmt: skip
def test_a_contradiction_between_parts_is_told_at_the_key_to_change(
    changes: list[tuple[str, str]], line: int, words: str
) -> None:
    sentences = refusal(changed(*changes))
    assert any(s.startswith(f"study.yaml, line {line}, ") and words in s for s in sentences), sentences


def test_a_study_without_an_outcome_is_told_its_other_contradictions_too() -> None:
    sentences = refusal(
        changed(("role: outcome", "role: cohort"), ("    event: yes\n", ""), ("minimum: 2", "minimum: 4"))
    )
    assert ["no variable has `role: outcome`" in sentences[0], "4 sites are needed" in sentences[1]] == [True, True]


def test_a_number_outcome_and_a_treatment_without_evaluation_are_studies() -> None:
    assert parse_study(changed(NUMBER, ("cross_validation", "none"))).variables["event"].type == "number"
    study = parse_study(changed(ARM, TREATMENT, ("cross_validation", "none")))
    assert study.design.names == ("intercept", "arm=new", "age")
    assert study.sizes["arms"] == 2


def test_cohort_rules_that_overlap_are_a_cohort() -> None:
    more = "at_least: 18}\n    - {variable: age, at_most: 80}\n    - {variable: event, is_one_of: [yes, no]}\n    - {variable: event, is_one_of: [yes]}"
    assert len(parse_study(changed(("at_least: 18}", more))).cohort.include) == 4


def test_a_missing_study_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"study.yaml does not exist; `medfed study new FOLDER`"):
        load_study(tmp_path)


def test_a_study_file_may_have_a_byte_order_mark_and_must_be_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(TEXT.encode("utf-8-sig"))
    assert load_study(path).hash == parse_study(TEXT).hash
    path.write_bytes(TEXT.encode("gbk"))
    with pytest.raises(StudyError, match="is not UTF-8 text; save it as UTF-8"):
        load_study(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(StudyError, match="study.yaml can't be read"):
        load_study(tmp_path)


def test_a_program_is_told_the_same_without_lines() -> None:
    with pytest.raises(StudyError, match="^study, name: 'A' is no name here"):
        study_from_dict({**parse_study(TEXT).model_dump(), "name": "A"})


def test_a_sentence_about_a_key_is_placed_at_the_key_that_it_quotes(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(
        changed(("settings: {tolerance: 1e-8}", "settings:\n    l2: 1\n    tolerence: 1")), encoding="utf-8"
    )
    assert (
        placed(tmp_path, "method.settings: no 'tolerence'; 'l3'?")
        == f"{path}, line 26, method.settings: no 'tolerence'; 'l3'?"
    )
    assert placed(path, "method.use: 'x' is gone").startswith(f"{path}, line 23, ")
    assert placed(path, "parts.valid: needed").startswith(f"{path}, line 27, ")
    assert placed(path, "nothing of this: x").startswith(f"{path}, line 1, ")


def test_a_study_is_a_frozen_value() -> None:
    study: Study = parse_study(TEXT)
    with pytest.raises(Exception, match="frozen"):
        study.seed = 2  # type: ignore[misc]
