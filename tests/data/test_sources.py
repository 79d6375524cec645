"""A site's files: what is read rightly, and the sentence for each way in which a file is not what was declared."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pa_parquet
import pytest
from clinic import SITE_YAML, csv_text, make_clinic, refusal, rows, study_with

from medfed.data.build import build_table
from medfed.data.site_folder import SiteFolder

FRENCH = {"1": "mâle", "2": "féminin"}
CHINESE = {"1": "男", "2": "女"}


def clinic_of(folder: Path, export: str | bytes | None = None, *, source: str = "", **changes: str) -> SiteFolder:
    """A clinic whose source is declared with ``source`` instead of comma and UTF-8."""
    declared = f"path: data/export.csv, format: csv, {source}" if source else "path: data/export.csv"
    old = 'path: data/export.csv, format: csv, delimiter: ",", encoding: utf-8'
    return make_clinic(folder, export, site_yaml=SITE_YAML.replace(old, declared), **changes)


def spoken(codes: dict[str, str]) -> str:
    return csv_text(row | {"SEX": codes[row["SEX"]]} for row in rows())


def mapping_of(codes: dict[str, str]) -> str:
    return f'{{column: SEX, codes: {{"{codes["1"]}": male, "{codes["2"]}": female}}}}'


def sexes(site: SiteFolder) -> dict[str, int]:
    return dict(build_table(site, study_with())[1].variables["sex"].levels)


AS_EXPORTED = {
    "male": sum(row["SEX"] == "1" for row in rows()),
    "female": sum(row["SEX"] == "2" for row in rows()),
}


@pytest.mark.parametrize(
    ("codes", "declared", "written"),
    [
        (CHINESE, "gbk", "gbk"),
        (CHINESE, "cp936", "gbk"),
        (CHINESE, "utf-8", "utf-8"),
        (CHINESE, "utf-8", "utf-8-sig"),
        (CHINESE, "UTF8", "utf-8-sig"),
        (CHINESE, "utf-16", "utf-16"),
        (FRENCH, "latin-1", "latin-1"),
        (FRENCH, "utf-8", "utf-8-sig"),
    ],
)
def test_a_declared_encoding_is_read_rightly(
    tmp_path: Path, codes: dict[str, str], declared: str, written: str
) -> None:
    export = spoken(codes).encode(written)
    assert sexes(clinic_of(tmp_path, export, source=f"encoding: {declared}", sex=mapping_of(codes))) == AS_EXPORTED


@pytest.mark.parametrize(
    ("codes", "declared", "written", "sentence"),
    [
        (CHINESE, "utf-8", "gbk", r"export.csv is not utf-8 \(byte 95\); it reads as gbk: write that as `encoding`"),
        (FRENCH, "utf-8", "latin-1", r"is not utf-8 \(byte 39\); it reads as latin-1: write that as `encoding`"),
        (CHINESE, "gbk", "utf-8", "it reads as utf-8: write that as `encoding`"),
        (FRENCH, "gbk", "utf-8", "is declared as gbk but is utf-8; write `encoding: utf-8`"),
        (CHINESE, "latin-1", "utf-8-sig", "is declared as latin-1 but is utf-8; write `encoding: utf-8`"),
        (CHINESE, "latin-1", "utf-16", "is declared as latin-1 but is utf-16; write `encoding: utf-16`"),
        (CHINESE, "latin-1", "gbk", r"codes without a map: .* If they look garbled, the source's `encoding`"),
        (FRENCH, "gbk", "latin-1", r"codes without a map: .* If they look garbled, the source's `encoding`"),
        (FRENCH, "klingon", "utf-8", "there is no encoding 'klingon'; write utf-8, gbk or latin-1"),
        (FRENCH, "hex", "utf-8", "there is no encoding 'hex'; write utf-8, gbk or latin-1"),
    ],
)
def test_a_wrong_encoding_is_one_sentence_with_the_right_one(
    tmp_path: Path, codes: dict[str, str], declared: str, written: str, sentence: str
) -> None:
    export = spoken(codes).encode(written)
    site = clinic_of(tmp_path, export, source=f"encoding: {declared}", sex=mapping_of(codes))
    assert "site.yaml, line" in refusal(site, sentence)


def test_garbled_column_names_point_to_the_encoding(tmp_path: Path) -> None:
    export = csv_text(rows()).replace("AGE", "年龄").encode("gbk")
    site = clinic_of(tmp_path, export, source="encoding: latin-1", age="{column: 年龄, unit: year}")
    refusal(site, r"has no column '年龄'; it has: .* If these names look garbled, the source's `encoding`.*line 11")


def test_a_missing_file_is_named_with_the_line_of_its_path(tmp_path: Path) -> None:
    site = make_clinic(tmp_path)
    (tmp_path / "data" / "export.csv").unlink()
    refusal(site, r"data/export.csv does not exist; correct `path` of source 'export' in site.yaml, line 4$")


@pytest.mark.parametrize(
    ("written", "name", "declared"),
    [(";", "a semicolon", ";"), ("\t", "a tab", "\\t"), ("|", "a bar", "|")],
)
def test_a_wrong_delimiter_is_said_with_the_line_to_write(
    tmp_path: Path, written: str, name: str, declared: str
) -> None:
    export = csv_text(rows(), written)
    refusal(
        clinic_of(tmp_path / "wrong", export), f"single column when split at ','; it looks split at {name}.*line 4$"
    )
    said = f'delimiter: "{declared}"'
    assert said in refusal(clinic_of(tmp_path / "again", export), "delimiter")
    assert sexes(clinic_of(tmp_path / "right", export, source=said)) == AS_EXPORTED


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
def test_any_line_end_is_read_and_blank_lines_above_the_header_are_not_data(tmp_path: Path, line_end: str) -> None:
    patients = [row | {"patient_id": f"00{index}"} for index, row in enumerate(rows())]
    export = f"\n{csv_text(patients)}".replace("\n", line_end)
    assert sexes(make_clinic(tmp_path, export)) == AS_EXPORTED


def test_a_record_number_keeps_its_leading_zeros(tmp_path: Path) -> None:
    """As numbers "007" and "7" would be one patient; as text they are two."""
    patients = rows()
    patients[0]["patient_id"], patients[1]["patient_id"] = "007", "7"
    assert build_table(make_clinic(tmp_path, "\n" + csv_text(patients)), study_with())[0].on("all").patients == 40


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("P1003,2,50,70.5,0,extra", "line 5 has 6 columns where the first line has 5"),
        ("P1003,2,50", "line 5 has 3 columns where the first line has 5"),
        ('P1003,"2,50,70.5,0', "columns where the first line has 5"),
    ],
)
def test_a_broken_line_is_named_by_its_number_and_never_shown(tmp_path: Path, line: str, sentence: str) -> None:
    lines = csv_text(rows()).splitlines()
    lines[4] = line
    message = refusal(make_clinic(tmp_path, "\n".join(lines) + "\n"), rf"can't be read as rows \(.*{sentence}")
    assert "P1003" not in message
    assert "check `delimiter` in site.yaml, line 4" in message


@pytest.mark.parametrize(
    ("export", "sentence"),
    [
        ("", r"data/export.csv is empty; export it again$"),
        ("\n\n", r"data/export.csv is empty; export it again$"),
        ("patient_id,SEX,AGE,WEIGHT,EVENT\n", r"source 'export' has no rows; export it again.*site.yaml, line 4$"),
        ("patient_id,SEX,AGE,AGE,WEIGHT,EVENT\nP1,1,50,50,70,0\n", "has the column 'AGE' twice; rename one"),
    ],
)
def test_an_empty_site_and_a_repeated_column_are_said(tmp_path: Path, export: str, sentence: str) -> None:
    refusal(make_clinic(tmp_path, export), sentence)


def test_columns_that_differ_in_case_only_are_told_apart(tmp_path: Path) -> None:
    patients = [row | {"age": "not the age"} for row in rows()]
    ages = build_table(make_clinic(tmp_path, patients), study_with())[0].on("all").arrays("age")[0]
    assert sorted(ages) == sorted(float(row["AGE"]) for row in rows())


def test_a_file_without_a_header_is_read_by_the_declared_names(tmp_path: Path) -> None:
    export = csv_text(rows()).split("\n", 1)[1]
    header = "header: [patient_id, SEX, AGE, WEIGHT, EVENT]"
    assert sexes(clinic_of(tmp_path, export, source=header)) == AS_EXPORTED


def parquet_clinic(folder: Path, table: pa.Table | bytes) -> SiteFolder:
    declared = SITE_YAML.replace("data/export.csv, format: csv", "data/export.parquet, format: parquet")
    site = make_clinic(folder, b"", site_yaml=declared)
    path = folder / "data" / "export.parquet"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        pa_parquet.write_table(table, path)
    return site


def test_parquet_gives_the_same_table_as_csv(tmp_path: Path) -> None:
    patients = rows()
    patients[3]["WEIGHT"] = ""
    typed = pa.table(
        {
            "patient_id": [row["patient_id"] for row in patients],
            "SEX": pa.array([int(row["SEX"]) for row in patients], pa.int8()),
            "AGE": pa.array([float(row["AGE"]) for row in patients]),
            "WEIGHT": pa.array([float(row["WEIGHT"] or "nan") for row in patients]),
            "EVENT": pa.array([row["EVENT"] for row in patients]).dictionary_encode(),
        }
    )
    from_csv = build_table(make_clinic(tmp_path / "csv", patients), study_with())[0]
    from_parquet = build_table(parquet_clinic(tmp_path / "parquet", typed), study_with())[0]
    assert from_csv.version == from_parquet.version


@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_parquet_file_is_said(tmp_path: Path, cut: bool) -> None:
    pa_parquet.write_table(pa.table({"patient_id": ["a"] * 100}), tmp_path / "whole.parquet")
    data = (tmp_path / "whole.parquet").read_bytes()[:-20] if cut else csv_text(rows()).encode()
    refusal(parquet_clinic(tmp_path / "site", data), "is not a Parquet file, or is damaged; correct `format`.*line 4")
