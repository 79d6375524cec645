"""From a site's columns to a study's variables: what is read rightly, and the sentence for each thing that does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clinic import SITE_YAML, STUDY, csv_text, make_clinic, refusal, rows, study_with, variables_with

from medfed.data.build import build_table, check
from medfed.data.site_folder import load_site
from medfed.errors import MappingError
from medfed.study import Study


def edited(column: str, *values: str) -> list[dict[str, str]]:
    """The clinic's patients, the first of them with other values in a column."""
    patients = rows()
    for patient, value in zip(patients, values, strict=False):
        patient[column] = value
    return patients


def with_columns(**columns: Any) -> list[dict[str, str]]:
    """The clinic's patients with more columns; a list goes round."""
    patients = rows()
    for name, values in columns.items():
        for index, patient in enumerate(patients):
            patient[name] = values[index % len(values)] if isinstance(values, list) else values
    return patients


# ── values that do not fit ──────────────────────────────────────────────────────────────────────────────────────────


def test_text_among_numbers_is_counted_and_shown_with_the_line_to_edit(tmp_path: Path) -> None:
    message = refusal(make_clinic(tmp_path, edited("WEIGHT", "n/a", "?", "unk", "?")), "not numbers")
    assert message == (
        'site \'clinic\', variable \'weight\': 4 of 40 values are not numbers ("?", "n/a", "unk").\n'
        "  Add them to missing_codes in site.yaml, line 12, or fix the export."
    )


@pytest.mark.parametrize(
    "text",
    ["nan", "NaN", "inf", "-Infinity", "1_000", "0x10", "1,5", "1.234,5", "1 234", "7O", "70kg", "-", "1e", "١٢", "½"],
)
def test_what_only_looks_like_a_number_is_told(tmp_path: Path, text: str) -> None:
    refusal(make_clinic(tmp_path, edited("WEIGHT", text)), "1 of 40 values are not numbers")


@pytest.mark.parametrize(
    ("text", "value"), [("70", 70), ("+70.50", 70.5), (" 70 ", 70), ("7e1", 70), (".7e2", 70), ("70.", 70)]
)
def test_numbers_are_read_as_they_are_written(tmp_path: Path, text: str, value: float) -> None:
    table = build_table(make_clinic(tmp_path, edited("WEIGHT", *[text] * 40)), study_with())[0]
    assert set(table.on("all").arrays("weight")[0]) == {value}


def test_a_decimal_comma_reads_commas_and_tells_points(tmp_path: Path) -> None:
    yaml = SITE_YAML.replace('delimiter: ","', 'delimiter: ";", decimal: ","')
    with_commas = [patient | {"WEIGHT": patient["WEIGHT"].replace(".", ",")} for patient in rows()]
    expected = sorted(float(patient["WEIGHT"]) for patient in rows())
    table = build_table(make_clinic(tmp_path, csv_text(with_commas, ";"), site_yaml=yaml), study_with())[0]
    assert sorted(table.on("all").arrays("weight")[0]) == expected
    with_commas[0]["WEIGHT"] = "1.234"
    refusal(make_clinic(tmp_path, csv_text(with_commas, ";"), site_yaml=yaml), r'1 of 40 .* not numbers \("1.234"\)')


def test_codes_without_a_map_are_counted(tmp_path: Path) -> None:
    message = refusal(make_clinic(tmp_path, edited("SEX", "9", "9", "U")), "codes without a map")
    assert 'codes without a map: "9" (2), "U" (1).' in message
    assert "Map them to one of male, female, or add them to missing_codes, in site.yaml, line 10." in message


def test_codes_may_be_left_out_where_the_column_holds_the_studys(tmp_path: Path) -> None:
    site = make_clinic(tmp_path, with_columns(SEX=["male", "female"]), sex="{column: SEX}")
    assert check(site, study_with()).variables["sex"].levels == {"male": 20, "female": 20}
    refusal(make_clinic(tmp_path, with_columns(SEX=["male", "Female"]), sex="{column: SEX}"), r'"Female" \(20\)')


def test_a_mapped_code_is_never_missing(tmp_path: Path) -> None:
    codes = '{column: SEX, codes: {"NA": male, " 2 ": female}}'
    quality = check(make_clinic(tmp_path, with_columns(SEX=["NA", "2"]), sex=codes), study_with())
    assert (quality.variables["sex"].levels, quality.variables["sex"].missing) == ({"male": 20, "female": 20}, 0)


def test_every_unfit_column_is_told_at_once(tmp_path: Path) -> None:
    patients = edited("WEIGHT", "n/a")
    patients[1]["SEX"], patients[2]["EVENT"] = "9", "maybe"
    with pytest.raises(MappingError) as problem:
        check(make_clinic(tmp_path, patients), study_with())
    for variable in ("event", "sex", "weight"):
        assert f"variable {variable!r}" in str(problem.value)


# ── dates ───────────────────────────────────────────────────────────────────────────────────────────────────────────

AGE = '{column: BORN, date_format: "%Y-%m-%d", years_until: {column: SEEN, date_format: "%Y-%m-%d"}}'


def test_three_date_formats_are_counted_and_none_is_guessed(tmp_path: Path) -> None:
    patients = with_columns(BORN=["1960-05-06", "16.05.1960", "05/06/1960"], SEEN="2001-02-03")
    message = refusal(make_clinic(tmp_path, patients, age=AGE), "26 of 40 dates in 'BORN' are not %Y-%m-%d")
    assert "14 like %Y-%m-%d, 13 like %m/%d/%Y or %d/%m/%Y, 13 like %d.%m.%Y" in message
    assert "site.yaml, line 11" in message


@pytest.mark.parametrize("born", ["1960-02-30", "61-02-03", "1961-13-01", "1961-02-03 10:11", "0061-02-03", "today"])
def test_what_is_no_day_of_the_declared_format_is_told(tmp_path: Path, born: str) -> None:
    refusal(make_clinic(tmp_path, with_columns(BORN=born, SEEN="2001-02-03"), age=AGE), "40 of 40 dates in 'BORN'")


def test_the_later_date_is_told_as_well(tmp_path: Path) -> None:
    patients = with_columns(BORN="1960-02-03", SEEN=["2001-02-03", "03.02.2001"])
    refusal(make_clinic(tmp_path, patients, age=AGE), "20 of 40 dates in 'SEEN' are not %Y-%m-%d")


def test_two_formats_may_be_declared_where_no_text_is_both(tmp_path: Path) -> None:
    patients = with_columns(BORN=["1960-05-06", "06.05.1960"], SEEN="2001-05-05")
    age = AGE.replace('"%Y-%m-%d", years', '["%Y-%m-%d", "%d.%m.%Y"], years')
    assert set(build_table(make_clinic(tmp_path, patients, age=age), study_with())[0].on("all").arrays("age")[0]) == {
        40
    }
    with pytest.raises(MappingError, match="read the same text as different days"):
        make_clinic(tmp_path, patients, age=AGE.replace('"%Y-%m-%d", years', '["%m/%d/%Y", "%d/%m/%Y"], years'))


def test_dates_as_text_need_a_format(tmp_path: Path) -> None:
    patients = with_columns(BORN="1960-05-06", SEEN="2001-05-05")
    refusal(
        make_clinic(tmp_path, patients, age="{column: BORN, years_until: {column: SEEN}}"), "say how they are written"
    )


def test_an_unknown_date_is_a_missing_age(tmp_path: Path) -> None:
    patients = with_columns(BORN=["1960-05-06", "NA"], SEEN=["2001-05-05", "2001-05-05", "", "2001-05-05"])
    quality = check(make_clinic(tmp_path, patients, age=AGE), study_with())
    assert quality.dropped == {"age is missing": 30}


# ── units and derived columns ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("unit", "sentence"),
    [
        ("yaer", "there is no unit 'yaer'; did you mean 'year'"),
        ("kg", "'kg' can't be converted to the study's 'year'"),
        ('"1"', "'1' can't be converted to the study's 'year'"),
        ('"year year("', "is not a unit"),
    ],
)
def test_a_unit_that_can_not_be_is_refused_with_its_line(tmp_path: Path, unit: str, sentence: str) -> None:
    message = refusal(make_clinic(tmp_path, age=f"{{column: AGE, unit: {unit}}}"), sentence)
    assert message.endswith("Correct site.yaml, line 11")


@pytest.mark.parametrize("months", range(18 * 12, 90 * 12, 37))
def test_months_come_out_as_completed_years_exactly(tmp_path: Path, months: int) -> None:
    site = make_clinic(tmp_path, edited("AGE", *[str(months)] * 40), age="{column: AGE, unit: month, round: down}")
    assert set(build_table(site, study_with())[0].on("all").arrays("age")[0]) == {months // 12}


def test_pounds_become_kilograms(tmp_path: Path) -> None:
    site = make_clinic(tmp_path, edited("WEIGHT", *["165"] * 40), weight="{column: WEIGHT, unit: lb}")
    np.testing.assert_allclose(
        build_table(site, study_with())[0].on("all").arrays("weight")[0], 165 * 0.45359237, rtol=1e-14
    )


@pytest.mark.parametrize(
    ("derive", "value"),
    [
        ("ratio: [A, 10]", 40.5),
        ("ratio: [A, B]", 101.25),
        ("product: [B, 10, 2]", 80),
        ("sum: [B, B, 60]", 68),
        ("difference: [A, 300]", 105),
        ("difference: [75.5, B]", 71.5),
    ],
)
def test_derived_values_are_exact(tmp_path: Path, derive: str, value: float) -> None:
    site = make_clinic(tmp_path, with_columns(A="405", B="4"), weight=f"{{derive: {{{derive}}}, unit: kg}}")
    assert set(build_table(site, study_with())[0].on("all").arrays("weight")[0]) == {value}


def test_a_derived_value_is_missing_where_a_column_is_and_where_it_divides_by_zero(tmp_path: Path) -> None:
    patients = with_columns(A=["400", "", "400", "400"], B=["5", "5", "NA", "0"])
    site = make_clinic(tmp_path, patients, weight="{derive: {ratio: [A, B]}, unit: kg}")
    assert check(site, study_with()).variables["weight"].missing == 30


def test_the_operand_that_does_not_fit_is_the_one_that_is_named(tmp_path: Path) -> None:
    site = make_clinic(tmp_path, with_columns(A="400", B=["5", "n/a"]), weight="{derive: {ratio: [A, B]}, unit: kg}")
    refusal(site, r"""20 of 40 values in 'B' are not numbers \("n/a"\)""")


def test_any_of_several_columns_decides_a_code(tmp_path: Path) -> None:
    patients = with_columns(D1=["1", "0", "0", ""], D2=["", "0", "1", "0"])
    sex = '{derive: {any_of: [D1, D2], gives: male}, codes: {"1": male, "0": female}}'
    quality = check(make_clinic(tmp_path, patients, sex=sex), study_with())
    assert (quality.variables["sex"].levels, quality.variables["sex"].missing) == ({"male": 20, "female": 10}, 10)


# ── the mapping itself ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"age": "{column: AEG, unit: year}"},
            "the source has no column 'AEG'; did you mean 'AGE'. Correct site.yaml, line 11",
        ),
        ({"age": "{column: age, unit: year}"}, "the source has no column 'age'; did you mean 'AGE'"),
        ({"age": "{column: zzz, unit: year}"}, "it has: patient_id, SEX, AGE, WEIGHT, EVENT"),
        (
            {"patient": "{source: export, column: mrn}"},
            "the patient's identifier: the source has no column 'mrn'.*line 6",
        ),
        (
            {"sex": '{column: SEX, codes: {"1": male, "2": femal}}'},
            "'2' is mapped to 'femal', which is no code of the study",
        ),
        ({"age": '{column: AGE, codes: {"1": x}}'}, "`codes` does not go with a variable of type number"),
        ({"sex": "{column: SEX, unit: kg}"}, "`unit` does not go with a variable of type code"),
        ({"sex": "{derive: {ratio: [AGE, WEIGHT]}}"}, "`derive` does not go with a variable of type code"),
        ({"age": '{column: AGE, date_format: "%Y-%m-%d"}'}, "`date_format` does not go with a variable of type number"),
    ],
)
def test_a_mapping_that_can_not_be_is_refused(tmp_path: Path, change: dict[str, str], sentence: str) -> None:
    refusal(make_clinic(tmp_path, **change), sentence)


def test_a_variable_without_a_mapping_is_named_with_its_neighbour(tmp_path: Path) -> None:
    study = study_with(variables=variables_with(wieght={**STUDY["variables"]["weight"]}))
    refusal(
        make_clinic(tmp_path), r"'wieght' has no mapping \(there is one for 'weight'\); add it under `mapping`", study
    )


def test_a_mapping_that_a_study_does_not_ask_for_is_left_alone(tmp_path: Path) -> None:
    site = make_clinic(tmp_path, arm='{column: NOT_EXPORTED, codes: {"A": placebo}}')
    assert check(site, study_with()).rows_kept == 40


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "duplicates: refuse",
            "duplicate: refuse",
            "line 7, duplicate: there is no key 'duplicate' here; did you mean 'duplicates'",
        ),
        (
            "duplicates: refuse",
            "duplicates: frist",
            "line 7, duplicates: 'frist' is not possible here; choose 'refuse', 'first' or 'last'",
        ),
        ("unit: year", "unti: year", "line 11, mapping.age.unti: there is no key 'unti' here; did you mean 'unit'"),
        ("column: AGE, ", "", "line 11, mapping.age: a variable comes from `column: NAME` or from `derive: ...`"),
        ("source: export", "source: exprot", "line 6, .*there is no source 'exprot'; it is one of export"),
        ("format: csv", "format: xlsx", "line 4, .*'xlsx' is not possible here; choose"),
        ("site: clinic", "site: The Clinic", "line 1, site: 'The Clinic' does not have the form"),
        ("column: AGE, unit: year", "derive: {ratio: [1, 2]}", "line 11, .*derive needs at least one column"),
        ("column: AGE, unit: year", "derive: {ratio: [A, 2], sum: [A, 2]}", "line 11, .*derive has exactly one of"),
        ("  age:", "  sex:", "line 11: the key 'sex' stands twice"),
        ("mapping:", "mapping", "not valid YAML|expected"),
    ],
)
def test_a_mistake_in_site_yaml_is_named_with_its_line(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in SITE_YAML
    (tmp_path / "site.yaml").write_text(SITE_YAML.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(MappingError, match=sentence) as problem:
        load_site(tmp_path)
    assert str(problem.value).startswith(str(tmp_path / "site.yaml"))


def test_a_folder_without_site_yaml_is_told_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="site.yaml does not exist; `medfed site init FOLDER --name NAME` makes"):
        load_site(tmp_path)


# ── which rows stay ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_row_is_counted_under_the_first_reason_that_applies(tmp_path: Path) -> None:
    patients = rows()
    patients[0] |= {"patient_id": "", "AGE": "", "EVENT": ""}
    patients[1] |= {"patient_id": patients[2]["patient_id"], "AGE": "17"}
    patients[3] |= {"EVENT": "NA", "AGE": "NA"}
    patients[4]["AGE"] = "200"
    patients[5]["AGE"] = "18"
    patients[6] |= {"SEX": "", "WEIGHT": "NA"}
    patients[7]["WEIGHT"] = "700"
    study = study_with(cohort={"include": [{"variable": "age", "at_least": 20, "at_most": 89}]})
    quality = check(make_clinic(tmp_path, patients, duplicates="last"), study)
    assert quality.dropped == {
        "no patient identifier": 1,
        "another row of the same patient": 1,
        "event is missing": 1,
        "age is missing": 1,
        "outside the cohort: age": 1,
    }
    assert (quality.rows_read, quality.rows_kept, quality.duplicates) == (40, 35, 1)
    age, weight, sex = (quality.variables[name] for name in ("age", "weight", "sex"))
    # Of the 38 rows with one patient each: one age not known and one out of range; two weights likewise, and kept.
    assert (age.known, age.missing, age.out_of_range) == (36, 2, 1)
    assert (weight.known, weight.missing, weight.out_of_range) == (36, 2, 1)
    assert (sex.known, sex.missing) == (37, 1)


def test_the_range_ends_belong_to_the_range(tmp_path: Path) -> None:
    quality = check(make_clinic(tmp_path, edited("AGE", "18", "110", "17.999", "110.001")), study_with())
    assert (quality.dropped, quality.variables["age"].out_of_range) == ({"age is missing": 2}, 2)


def test_a_cohort_of_codes_keeps_these_codes_and_no_unknown_one(tmp_path: Path) -> None:
    study = study_with(cohort={"include": [{"variable": "sex", "is_one_of": ["female"]}]})
    patients = edited("SEX", "", "1", "2")
    kept = sum(patient["SEX"] == "2" for patient in patients)
    quality = check(make_clinic(tmp_path, patients), study)
    assert (quality.rows_kept, quality.dropped) == (kept, {"outside the cohort: sex": 40 - kept})


def duplicated() -> list[dict[str, str]]:
    patients = rows()
    return [*patients, *(patient | {"AGE": "55"} for patient in patients[:3]), patients[0] | {"AGE": "66"}]


def test_patients_with_several_rows_are_refused_with_their_number(tmp_path: Path) -> None:
    message = refusal(make_clinic(tmp_path, duplicated()), "3 patients have more than one row")
    assert "(4 rows too many); write `duplicates: first` or `last` in site.yaml, line 7" in message


@pytest.mark.parametrize(("rule", "ages"), [("first", None), ("last", ["66", "55", "55"])])
def test_first_and_last_go_by_the_files_order(tmp_path: Path, rule: str, ages: list[str] | None) -> None:
    expected = rows()
    for patient, age in zip(expected, ages or [], strict=False):
        patient["AGE"] = age
    quality = check(make_clinic(tmp_path / "several", duplicated(), duplicates=rule), study_with())
    assert quality.dropped == {"another row of the same patient": 4}
    assert quality.version == check(make_clinic(tmp_path / "one", expected), study_with()).version


def empty_studies() -> list[tuple[str, Study, dict[str, str]]]:
    cohort = study_with(cohort={"include": [{"variable": "age", "at_least": 100}]})
    return [
        (r"outside the cohort: age \(40\)", cohort, {}),
        (r"age is missing \(40\)", study_with(), {"age": "{column: AGE, unit: day}"}),
    ]


@pytest.mark.parametrize(("reason", "study", "change"), empty_studies())
def test_a_site_of_whom_nobody_is_left_is_told_why(
    tmp_path: Path, reason: str, study: Study, change: dict[str, str]
) -> None:
    refusal(make_clinic(tmp_path, **change), rf"none of 40 rows is left for study 'example' \({reason}", study)


@pytest.mark.parametrize(
    ("column", "value", "warning"),
    [
        (
            "EVENT",
            "0",
            "every patient has the same outcome (event); with plain sums the site can't take part in most methods",
        ),
        ("AGE", "50", "age has the same value for every patient; check its mapping"),
        ("SEX", "1", "sex has the same value for every patient; check its mapping"),
        ("WEIGHT", "", "weight is missing for every patient; check its mapping"),
    ],
)
def test_a_column_that_says_nothing_is_a_warning(tmp_path: Path, column: str, value: str, warning: str) -> None:
    assert check(make_clinic(tmp_path, with_columns(**{column: value})), study_with()).warnings == (warning,)


def test_pseudonyms_are_64_bits_of_hmac_sha256_under_the_sites_key(tmp_path: Path) -> None:
    """Recomputed here with openssl's definition: HMAC-SHA256(key, "site|identifier"), first eight bytes, big end first."""
    import hashlib
    import hmac

    key = bytes(range(32))
    expected = sorted(
        int.from_bytes(hmac.digest(key, f"clinic|{patient['patient_id']}".encode(), hashlib.sha256)[:8], "big")
        for patient in rows()
    )
    view = build_table(make_clinic(tmp_path), study_with())[0].on("all")
    assert view.pseudonyms.tolist() == expected
    assert view.pseudonyms.dtype == np.uint64
