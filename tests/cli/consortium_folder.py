"""A consortium on disk for tests: three invented sites that write three dialects, the study, and the command."""

import contextlib
import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from medfed.cli.main import run_command

SITES = ("north", "south", "west")

STUDY = """\
medfed: 1
name: three-sites
title: {en: Three sites, zh: 三家医院}
question: {en: "Who has the event?", zh: 谁会发生结局事件？}
variables:
  event:
    meaning: {en: Event, zh: 结局事件}
    type: code
    role: outcome
    codes: {no: {en: "No", zh: 否}, yes: {en: "Yes", zh: 是}}
    event: yes
  age:
    meaning: {en: Age, zh: 年龄}
    type: number
    role: covariate
    unit: year
    range: [18, 110]
  weight:
    meaning: {en: Weight, zh: 体重}
    type: number
    role: covariate
    unit: kg
    range: [30, 200]
    missing: mean
task: {kind: risk_prediction}
method: {use: "medfed:medfed.methods.newton.Newton"}
parts: {kind: folds, folds: 3}
evaluation: {design: cross_validation, compare: [local, federated, pooled]}
privacy: {sums: plain}
sites: {invited: [north, south, west], minimum: 2}
"""
MAPPINGS = {
    "north": """\
sources: {export: {path: data/export.csv}}
patient: {source: export, column: patient_id}
mapping:
  event: {column: EVENT, codes: {"0": no, "1": yes}}
  age: {column: AGE, unit: year}
  weight: {column: WEIGHT, unit: kg}
""",
    "south": """\
sources: {export: {path: data/export.csv, delimiter: ";", decimal: ",", encoding: latin-1}}
patient: {source: export, column: patient_id}
mapping:
  event: {column: EVENT, codes: {"0": no, "1": yes}}
  age: {column: AGE, unit: month, round: down}
  weight: {column: WEIGHT, unit: pound}
""",
    "west": """\
sources: {export: {path: data/export.csv, delimiter: "|", encoding: gbk}}
missing_codes: ["不详"]
patient: {source: export, column: 病案号}
mapping:
  event: {column: 结局, codes: {"否": no, "是": yes}}
  age: {column: 年龄, unit: year}
  weight: {column: 体重, unit: kg}
""",
}


@dataclass(frozen=True)
class Shown:
    """What a command left on the terminal, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def medfed(*words: str | Path) -> Shown:
    """The command as it is installed, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["medfed", *map(str, words)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        run_command()
    return Shown(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def done(*words: str | Path) -> Shown:
    """A command that has to succeed."""
    shown = medfed(*words)
    assert (shown.code, shown.err) == (0, ""), shown.err
    return shown


def refused(*words: str | Path) -> str:
    """The sentence of a command that has to refuse: exit code 2, nothing else on either stream."""
    shown = medfed(*words)
    assert (shown.code, shown.out) == (2, ""), shown
    sentence = shown.err.strip()
    assert sentence
    assert "Traceback" not in sentence
    assert sentence.count("\n") <= 1, sentence
    return sentence


def patients_of(site: str, count: int = 150) -> list[dict[str, Any]]:
    """Patients in the study's own terms."""
    rng = np.random.default_rng(SITES.index(site))
    age, weight = rng.integers(20, 90, count), np.round(rng.normal(75, 12, count), 1)
    event = rng.random(count) < 1 / (1 + np.exp(-(0.06 * (age - 55) + 0.03 * (weight - 75) - 0.2)))
    return [
        {"patient": f"{site[0].upper()}{1000 + i}", "age": int(age[i]), "weight": float(weight[i]), "event": bool(event[i])}
        for i in range(count)
    ]  # fmt: skip


def export(site: str, patients: Sequence[dict[str, Any]] | None = None) -> bytes:
    """The site's export of its patients, in its dialect."""
    rows = patients_of(site) if patients is None else patients
    if site == "west":
        lines = ["病案号|结局|年龄|体重"]
        lines += [f"{p['patient']}|{'是' if p['event'] else '否'}|{p['age']}|{p['weight']}" for p in rows]
        return "\r\n".join(lines).encode("gbk")
    if site == "south":
        lines = ["patient_id;EVENT;AGE;WEIGHT"]
        lines += [
            f"{p['patient']};{p['event']:d};{12 * p['age'] + 5};{p['weight'] / 0.45359237:.4f}".replace(".", ",")
            for p in rows
        ]
        return "\n".join(lines).encode("latin-1")
    lines = ["patient_id,EVENT,AGE,WEIGHT"]
    lines += [f"{p['patient']},{p['event']:d},{p['age']},{p['weight']}" for p in rows]
    return "\n".join(lines).encode()


def make_sites(folder: Path, names: Sequence[str] = SITES) -> Path:
    """folder/sites/NAME by `medfed site init`, each with its export and mapping; and folder/study.yaml, which is returned."""
    for name in names:
        site = folder / "sites" / name
        done("site", "init", site, "--name", name, "--title", f"Hospital {name}")
        (site / "site.yaml").write_text(f"site: {name}\ntitle: Hospital {name}\n{MAPPINGS[name]}", encoding="utf-8")
        (site / "data" / "export.csv").write_bytes(export(name))
    study = folder / "study.yaml"
    study.write_text(STUDY, encoding="utf-8")
    return study


def approve_all(folder: Path, study: Path, names: Sequence[str] = SITES) -> None:
    """Build and approve at every site."""
    for name in names:
        done("site", "build", folder / "sites" / name, study)
        done("site", "approve", folder / "sites" / name, study)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file (and folder: None) below a folder, hidden ones too."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }
