"""The NCCTG lung cancer trial as a whole, from the institutions' own files: 18 of them, 9 with fewer than 10 patients."""

import csv
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg
from survival_data import LUNG, Consortium, run, survival_study

from medfed.data.build import build_table, check
from medfed.data.site_folder import SiteFolder, load_site, write_pseudonym_key
from medfed.errors import MappingError
from medfed.study import Study

SITE = """\
site: {site}
title: "{site}"
sources:
  export: {{path: data/export.csv, format: csv, delimiter: ",", encoding: utf-8}}
missing_codes: ["", "NA"]
patient: {{source: export, column: record}}
duplicates: refuse
mapping:
  time: {{column: days, unit: day}}
  event: {{column: status, codes: {{"1": "no", "2": "yes"}}}}
  age: {{column: age, unit: year}}
  sex: {{column: sex, codes: {{"1": male, "2": female}}}}
  ph_ecog: {{column: ecog, unit: "1"}}
"""


def exported() -> pd.DataFrame:
    """The trial's 228 rows as an institution writes them; one of them names no institution."""
    datasets = pytest.importorskip("lifelines.datasets", reason="lifelines is not installed")
    return datasets.load_lung()


def institution(folder: Path, site: str, rows: pd.DataFrame) -> SiteFolder:
    (folder / "data").mkdir(parents=True)
    (folder / "site.yaml").write_text(SITE.format(site=site), encoding="utf-8")
    write_pseudonym_key(folder, bytes(range(32)))
    with (folder / "data" / "export.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["record", "days", "status", "age", "sex", "ecog"])
        for record, row in rows.iterrows():
            ecog = "NA" if pd.isna(row["ph.ecog"]) else int(row["ph.ecog"])
            writer.writerow([f"R{record}", int(row["time"]), int(row["status"]) + 1, row["age"], row["sex"], ecog])
    return load_site(folder)


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, dict[str, SiteFolder], pd.DataFrame]:
    frame = exported()
    assert (len(frame), int(frame["inst"].isna().sum()), int(frame["ph.ecog"].isna().sum())) == (228, 1, 1)
    frame = frame.dropna(subset=["inst"]).copy()
    frame["site"] = "inst-" + frame["inst"].astype(int).astype(str)
    study = survival_study(LUNG, sorted(frame["site"].unique()), "cox.Cox")
    folder = tmp_path_factory.mktemp("lung")
    sites = {site: institution(folder / site, site, rows) for site, rows in frame.groupby("site")}
    return study, sites, frame


def test_the_trial_from_its_institutions_files_is_the_pooled_fit(
    tmp_path: Path, trial: tuple[Study, dict[str, SiteFolder], pd.DataFrame]
) -> None:
    study, sites, frame = trial
    built = {site: build_table(folder, study) for site, folder in sites.items()}
    assert sum(quality.rows_read for _, quality in built.values()) == 227
    dropped = [reason for _, quality in built.values() for reason in quality.dropped.items()]
    assert dropped == [("ph_ecog is missing", 1)]
    assert sum(quality.rows_kept for _, quality in built.values()) == 226
    kept = frame.dropna(subset=["ph.ecog"])
    data = Consortium(study, {site: table for site, (table, _) in built.items()}, kept, np.zeros((0, 0)))
    result = run(tmp_path, data)
    x = np.stack([kept["age"], kept["sex"].astype(float) == 2, kept["ph.ecog"]], axis=1).astype(float)
    strata = pd.factorize(kept["site"])[0]
    oracle = PHReg(kept["time"].to_numpy(float), x, status=kept["status"].to_numpy(), ties="efron", strata=strata)
    fitted = oracle.fit(disp=0, tol=1e-14)
    assert (len(result["sites"]), result["patients"], result["events"]) == (18, 226, 163)
    assert np.abs(result["coefficients"] - fitted.params).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - fitted.bse).max() < 1e-9


@pytest.mark.parametrize(("days", "count"), [("-5", 1), ("2000", 1)])
def test_a_file_with_a_time_off_the_grid_is_refused_and_nobody_is_dropped_for_it(
    tmp_path: Path, trial: tuple[Study, dict[str, SiteFolder], pd.DataFrame], days: str, count: int
) -> None:
    study, _, frame = trial
    site = institution(tmp_path / "inst-1", "inst-1", frame[frame["site"] == "inst-1"])
    export = tmp_path / "inst-1" / "data" / "export.csv"
    lines = export.read_text().splitlines()
    lines[3] = ",".join([lines[3].split(",")[0], days, *lines[3].split(",")[2:]])
    export.write_text("\n".join(lines) + "\n")
    sentence = rf"{count} of 36 times are negative or off the grid, which the study declares from 0 to 1050 day"
    with pytest.raises(MappingError, match=sentence) as refused:
        build_table(site, study)
    mapped = (tmp_path / "inst-1" / "site.yaml").read_text().splitlines()
    line = int(re.search(r"site\.yaml, line (\d+)", str(refused.value))[1])  # type: ignore[index]
    assert study.time is not None
    assert study.time in mapped[line - 1]
    assert not (tmp_path / "inst-1" / "tables").exists()


def test_a_site_without_events_is_told_what_it_can_give(
    tmp_path: Path, trial: tuple[Study, dict[str, SiteFolder], pd.DataFrame]
) -> None:
    study, _, frame = trial
    rows = frame[frame["site"] == "inst-1"].assign(status=0)
    warnings = check(institution(tmp_path / "inst-1", "inst-1", rows), study).warnings
    assert "every patient has the same outcome (event); a stratified Cox model learns nothing here" in warnings
