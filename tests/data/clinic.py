"""A small invented clinic for tests: its export, its site.yaml, and the study that asks for it."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medfed.data.build import build_table
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.errors import MappingError
from medfed.study import Study, study_from_dict

Row = Mapping[str, Any]

# Line numbers in messages are checked against this text: keep one key a line.
SITE_YAML = """\
site: clinic
title: "The clinic"
sources:
  export: {path: data/export.csv, format: csv, delimiter: ",", encoding: utf-8}
missing_codes: ["", "NA"]
patient: {source: export, column: patient_id}
duplicates: refuse
mapping:
  event: {column: EVENT, codes: {"0": "no", "1": "yes"}}
  sex: {column: SEX, codes: {"1": male, "2": female}}
  age: {column: AGE, unit: year}
  weight: {column: WEIGHT, unit: kg}
"""

STUDY: dict[str, Any] = {
    "medfed": 1,
    "name": "example",
    "title": "An example",
    "question": "Who has the event?",
    "variables": {
        "event": {
            "meaning": "Event",
            "type": "code",
            "role": "outcome",
            "codes": {"no": "No", "yes": "Yes"},
            "event": "yes",
        },
        "sex": {
            "meaning": "Sex",
            "type": "code",
            "role": "covariate",
            "codes": {"male": "Male", "female": "Female"},
            "missing": "unknown",
        },
        "age": {"meaning": "Age", "type": "number", "role": "covariate", "unit": "year", "range": [18, 110]},
        "weight": {
            "meaning": "Weight",
            "type": "number",
            "role": "covariate",
            "unit": "kg",
            "range": [30, 250],
            "missing": "mean",
        },
    },
    "task": {"kind": "risk_prediction"},
    "method": {"use": "medfed:medfed.methods.newton.Newton"},
    "sites": {"invited": ["clinic", "other"], "minimum": 1},
}


def study_with(**changes: Any) -> Study:
    """The study with top-level keys replaced."""
    return study_from_dict(STUDY | changes)


def variables_with(**changes: Mapping[str, Any] | None) -> dict[str, Any]:
    """The study's variables, each with some keys replaced or added; None leaves one out."""
    variables = {name: dict(variable) for name, variable in STUDY["variables"].items()}
    for name, change in changes.items():
        if change is None:
            del variables[name]
        else:
            variables[name] = variables.get(name, {}) | dict(change)
    return variables


def rows(count: int = 40, seed: int = 3) -> list[dict[str, str]]:
    """Patients as the clinic exports them."""
    rng = np.random.default_rng(seed)
    return [
        {
            "patient_id": f"P{1000 + index}",
            "SEX": str(rng.integers(1, 3)),
            "AGE": str(rng.integers(20, 90)),
            "WEIGHT": f"{rng.normal(75, 12):.1f}",
            "EVENT": str(int(rng.random() < 0.4)),
        }
        for index in range(count)
    ]


def csv_text(patients: Iterable[Row], delimiter: str = ",") -> str:
    patients = list(patients)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(patients[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(patients)
    return file.getvalue()


def make_clinic(
    folder: Path, export: Iterable[Row] | str | bytes | None = None, *, site_yaml: str = SITE_YAML, **changes: str
) -> SiteFolder:
    """Write the clinic's folder. export: patients, or the file's content. changes: a key of site.yaml and its new
    value, ``age="{column: AGE, unit: month}"``; a new key joins the mapping."""
    lines = site_yaml.splitlines()
    for key, value in changes.items():
        places = [i for i, line in enumerate(lines) if line.strip().startswith(f"{key}:")]
        if places:
            indent = lines[places[0]][: len(lines[places[0]]) - len(lines[places[0]].lstrip())]
            lines[places[0]] = f"{indent}{key}: {value}"
        else:
            lines.append(f"  {key}: {value}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "site.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not (folder / "keys").exists():
        write_pseudonym_key(folder, bytes(range(32)))
    content = rows() if export is None else export
    if not isinstance(content, str | bytes):
        content = csv_text(content)
    if isinstance(content, str):
        content = content.encode()
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "export.csv").write_bytes(content)
    return load_site(folder)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file (and folder: None) below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def refusal(site: SiteFolder, sentence: str, study: Study | None = None) -> str:
    """The message with which building the table is refused: it matches ``sentence`` (a regular expression), is a
    sentence or two, shows nothing of Python, and leaves the site's folder as it was."""
    before = contents(site.folder)
    with pytest.raises(MappingError) as problem:
        build_table(site, study or study_with())
    assert contents(site.folder) == before, "a refusal changed the site's folder"
    message = str(problem.value)
    assert re.search(sentence, message, re.DOTALL), message
    assert message.startswith("site 'clinic'"), message
    assert message.count("\n") <= 1, message
    assert not re.search(r"Traceback|Error|None|<class", message), message
    return message
