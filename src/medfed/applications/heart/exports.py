"""Four site folders from the collection's files: each hospital's rows as they are, with a row number and FLamby's split.

Nothing is cleaned here; that is the business of each hospital's mapping (studies/heart-disease/sites).
"""

import csv
import hashlib
import io
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from medfed.applications.indomethacin.examples import example
from medfed.canonical import write_atomically
from medfed.data.build import build_table
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.data.table import StudyTable
from medfed.errors import MedfedError
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key, write_signing_key
from medfed.federation.ledger import open_store
from medfed.study import Study, load_study

COLUMNS = (
    "age",
    "sex",
    "cp",
    "trestbps",
    "chol",
    "fbs",
    "restecg",
    "thalach",
    "exang",
    "oldpeak",
    "slope",
    "ca",
    "thal",
    "num",
)
HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "long-beach-va": "va"}
ROWS = {"cleveland": 303, "hungary": 294, "switzerland": 123, "long-beach-va": 200}
SPLIT = "flamby_740_with_split.csv"
FAR_DAY = "9999-12-31"
_WHERE = "docs/heart-disease.md says where to get it"


def read_study(name: str = "study") -> Study:
    """``study``: leave one hospital out; ``flamby``: FedAvg on FLamby's split."""
    return load_study(example("heart-disease") / f"{name}.yaml")


def prepare(data: Path, folder: Path) -> dict[str, SiteFolder]:
    """Write folder/sites/HOSPITAL for the four hospitals: export, mapping, policy, keys.

    data: a folder that holds, at any depth, processed.{cleveland,hungarian,switzerland,va}.data and, for FLamby's
    split, flamby_740_with_split.csv (without it the split column stays empty). Raises MedfedError, before anything is
    written, where a file is missing or is not the collection's.
    """
    exports = {name: _export(data, name) for name in HOSPITALS}
    if (folder / "sites").exists():
        raise MedfedError(f"{folder / 'sites'} exists already; choose an empty folder. Nothing was changed")
    sites = {}
    for name, text in exports.items():
        home = folder / "sites" / name
        (home / "data").mkdir(parents=True)
        write_atomically(home / "data" / "export.csv", text.encode())
        for file in ("site.yaml", "policy.yaml"):
            write_atomically(home / file, (example("heart-disease") / "sites" / name / file).read_bytes())
        # The data are public. A fixed key gives the same order of rows, and so the same figures, every time.
        write_pseudonym_key(home, hashlib.sha256(f"medfed heart {name}".encode()).digest())
        write_signing_key(home / "keys")
        sites[name] = load_site(home)
    return sites


def build_and_approve(site: SiteFolder, study: Study) -> StudyTable:
    """What a hospital does with a study: build its table, and approve the study's hash."""
    table, _ = build_table(site, study)
    names = step_names(study)
    with closing(open_store(site.ledger_path, "process")) as db:
        approve(
            db, site=site.name, study=study, steps=names, packages=packages_of(names), table_version=table.version,
            until=FAR_DAY, key=load_signing_key(site.keys), at=datetime.now(UTC).isoformat(timespec="seconds"),
            officer="what-if",
        )  # fmt: skip
    return table


def _find(data: Path, name: str) -> Path | None:
    return next(iter(sorted(data.rglob(name))), None)


def _export(data: Path, name: str) -> str:
    """The hospital's file as CSV with a header, a row number in front and the part of FLamby's split behind."""
    wanted = f"processed.{HOSPITALS[name]}.data"
    path = _find(data, wanted)
    if path is None:
        raise MedfedError(f"{data} does not hold {wanted}; {_WHERE}")
    rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))) if row]
    if any(len(row) != len(COLUMNS) for row in rows) or len(rows) != ROWS[name]:
        raise MedfedError(
            f"{path} is not the collection's file: it should have {ROWS[name]} rows of {len(COLUMNS)} values and no header; {_WHERE}"
        )
    parts = _parts(data, name, rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("row", *COLUMNS, "flamby"))
    writer.writerows((index + 1, *row, parts.get(index, "")) for index, row in enumerate(rows))
    return out.getvalue()


def _parts(data: Path, name: str, rows: list[list[str]]) -> dict[int, str]:
    """FLamby's part ("train", "test") by row; each is checked against the hospital's own row."""
    path = _find(data, SPLIT)
    if path is None:
        return {}
    parts = {}
    with path.open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["hospital"] != HOSPITALS[name]:
                continue
            index = int(line["row_in_file"])
            same = index < len(rows) and all(
                float(line[column]) == float(rows[index][COLUMNS.index(column)]) for column in ("age", "thalach", "num")
            )
            if not same:
                raise MedfedError(
                    f"{path}: row {index} of {name} is another patient than in the hospital's file; {_WHERE}"
                )
            parts[index] = line["flamby_fold"]
    return parts
