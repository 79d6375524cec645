"""Parquet exports: typed columns mean what the same export means as text, and odd types are refused in a sentence."""

import io
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from clinic import SITE_YAML, make_clinic, refusal, study_with

from medfed.data.build import build_table, check
from medfed.data.quality import Quality

PARQUET_YAML = SITE_YAML.replace('format: csv, delimiter: ",", encoding: utf-8', "format: parquet")


def export(**changes: Any) -> bytes:
    columns: dict[str, Any] = {
        "patient_id": [1, 2, 3, 4],
        "SEX": [1, 2, 1, 2],
        "AGE": [30, 40, 50, 60],
        "WEIGHT": [70.5, 71.0, 80.0, 65.0],
        "EVENT": [0, 1, 0, 1],
    } | changes
    file = io.BytesIO()
    pa_parquet.write_table(pa.table(columns), file)
    return file.getvalue()


def quality_of(folder: Path, content: bytes, **changes: str) -> Quality:
    return check(make_clinic(folder, content, site_yaml=PARQUET_YAML, **changes), study_with())


@pytest.mark.parametrize(
    "changes",
    [
        {"SEX": pa.array([1.0, 2.0, 1.0, 2.0])},
        {"SEX": pa.array(["1", "2", "1", "2"]).dictionary_encode()},
        {"SEX": pa.array(["1", "2", "1", "2"], pa.large_string())},
        {"SEX": pa.array([b"1", b"2", b"1", b"2"])},
        {"WEIGHT": pa.array([70.5, 71.0, 80.0, 65.0], pa.float32())},
        {"WEIGHT": pa.array(np.array([70.5, 71.0, 80.0, 65.0], np.float16))},
        {"WEIGHT": ["70.5", "71", "80", "65"]},
        {"EVENT": pa.array([0, 1, 0, 1], pa.uint8())},
        {"patient_id": [1.0, 2.0, 3.0, 4.0]},
        {"patient_id": ["1", "2", "3", "4"]},
        {"patient": [9, 9, 9, 9], "row": [4, 3, 2, 1], "number": [0, 0, 0, 0]},
    ],
)
def test_the_type_of_a_column_does_not_change_the_table(tmp_path: Path, changes: dict[str, Any]) -> None:
    versions = {
        quality_of(tmp_path / str(i), content).version for i, content in enumerate((export(), export(**changes)))
    }
    assert len(versions) == 1


def test_booleans_map_by_true_and_false(tmp_path: Path) -> None:
    codes = '{column: EVENT, codes: {"true": "yes", "false": "no"}}'
    quality = quality_of(tmp_path, export(EVENT=[True, False, True, True]), event=codes)
    assert quality.variables["event"].levels == {"no": 1, "yes": 3}


def test_nan_and_null_are_missing_in_numbers_codes_and_patients(tmp_path: Path) -> None:
    content = export(
        patient_id=[1.0, np.nan, 3.0, 4.0], SEX=[1.0, 2.0, np.nan, 2.0], WEIGHT=pa.array([70.5, 71.0, None, np.nan])
    )
    quality = quality_of(tmp_path, content)
    assert quality.dropped == {"no patient identifier": 1}
    assert (quality.variables["sex"].missing, quality.variables["weight"].missing) == (1, 2)


def test_missing_codes_hold_for_numbers_too(tmp_path: Path) -> None:
    quality = quality_of(
        tmp_path, export(WEIGHT=[70.5, -9.0, 80.0, 65.0]), weight="{column: WEIGHT, missing_codes: [-9]}"
    )
    assert (quality.variables["weight"].missing, quality.variables["weight"].out_of_range) == (1, 0)


def test_a_column_without_any_value_is_missing_for_everybody(tmp_path: Path) -> None:
    quality = quality_of(tmp_path, export(WEIGHT=pa.nulls(4)))
    assert quality.variables["weight"].missing == 4
    assert quality.warnings == ("weight is missing for every patient; check its mapping",)


def test_columns_that_no_variable_needs_may_have_any_type(tmp_path: Path) -> None:
    assert (
        quality_of(tmp_path, export(notes=[[1], [2], [], [3]], seen=pa.array([1, 2, 3, 4], pa.duration("s")))).rows_kept
        == 4
    )


@pytest.mark.parametrize(
    "column", [pa.array([[1], [2], [3], [4]]), pa.array([{"kg": 70}] * 4), pa.array([b"\xff"] * 4)]
)
def test_cells_that_are_no_single_value_are_refused(tmp_path: Path, column: pa.Array) -> None:
    site = make_clinic(tmp_path, export(WEIGHT=column), site_yaml=PARQUET_YAML)
    refusal(site, "the column 'WEIGHT' has the type .*; export it as text, number or date")


def test_infinity_is_no_number(tmp_path: Path) -> None:
    site = make_clinic(tmp_path, export(WEIGHT=[np.inf, 71.0, 80.0, 65.0]), site_yaml=PARQUET_YAML)
    refusal(site, r'1 of 4 values are not numbers \("inf"\)')


def test_what_is_not_parquet_is_refused(tmp_path: Path) -> None:
    whole = export()
    for content in (b"patient_id,SEX\n1,2\n", whole[:-9], b""):
        site = make_clinic(tmp_path / str(len(content)), content, site_yaml=PARQUET_YAML)
        refusal(site, "is not a Parquet file, or is damaged; correct `format` in site.yaml, line 4")


AGE = "{column: BORN, years_until: {column: SEEN}}"


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/Los_Angeles", "UTC"])
def test_a_moment_is_the_day_of_its_own_time_zone(tmp_path: Path, zone: str) -> None:
    """Midnight in Shanghai is the day before in UTC: the 40th birthday would come a day early."""
    midnight = pa.compute.assume_timezone(pa.array([date(1960, 5, 6)] * 4).cast(pa.timestamp("us")), zone)
    seen = pa.array([date(2000, 5, 5), date(2000, 5, 6), date(2000, 5, 7), date(2001, 5, 5)])
    site = make_clinic(tmp_path, export(BORN=midnight, SEEN=seen), site_yaml=PARQUET_YAML, age=AGE)
    (ages,) = build_table(site, study_with())[0].on("all").arrays("age")
    assert sorted(ages) == [39, 40, 40, 40]


@pytest.mark.parametrize("typed", [True, False])
def test_ages_are_completed_years_for_dates_and_for_texts(tmp_path: Path, typed: bool) -> None:
    rng = np.random.default_rng(8)
    born = [date(1920, 1, 1) + timedelta(days=int(day)) for day in rng.integers(0, 61 * 365, 3000)]
    seen = [
        day + timedelta(days=int(later))
        for day, later in zip(born, rng.integers(19 * 366, 40 * 366, 3000), strict=True)
    ]
    # Birthdays themselves and the days beside them, leap days among them.
    for index, (later, day) in enumerate((later, day) for later in range(20, 60) for day in (-1, 0, 1)):
        born[index] = date(1960, 2, 29) if index % 2 else date(1961, 3, 1)
        seen[index] = date(born[index].year + later, 3, 1) + timedelta(days=day)
    expected = sorted(s.year - b.year - ((s.month, s.day) < (b.month, b.day)) for b, s in zip(born, seen, strict=True))
    count = len(born)
    days: dict[str, Any] = {"BORN": pa.array(born), "SEEN": pa.array(seen)}
    age = AGE
    if not typed:
        days = {"BORN": [f"{day:%d-%b-%Y}" for day in born], "SEEN": [f"{day:%Y年%m月%d日}" for day in seen]}
        age = '{column: BORN, date_format: "%d-%b-%Y", years_until: {column: SEEN, date_format: "%Y年%m月%d日"}}'
    content = export(
        patient_id=list(range(count)), SEX=[1] * count, AGE=[0] * count, WEIGHT=[70] * count, EVENT=[0] * count, **days
    )
    site = make_clinic(tmp_path, content, site_yaml=PARQUET_YAML, age=age)
    (ages,) = build_table(site, study_with())[0].on("all").arrays("age")
    assert sorted(ages) == expected
