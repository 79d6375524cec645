"""medfed run, resume, status, abandon, over three sites that write three dialects."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium_folder import (
    SITES,
    STUDY,
    approve_all,
    contents,
    done,
    export,
    make_sites,
    medfed,
    patients_of,
    refused,
)
from sklearn.linear_model import LogisticRegression

from medfed.cli import run as run_module
from medfed.data.build import open_table
from medfed.data.site_folder import load_site
from medfed.evaluation.study_run import step_names
from medfed.federation.approval import approve, packages_of
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store
from medfed.study import load_study


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites that approved the study; nothing has run."""
    folder = tmp_path_factory.mktemp("approved")
    approve_all(folder, make_sites(folder))
    return folder


@pytest.fixture(scope="module")
def finished(approved: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after one run, "first"."""
    folder = tmp_path_factory.mktemp("finished") / "copy"
    shutil.copytree(approved, folder)
    run(folder, "--run", "first")
    return folder


@pytest.fixture
def folder(approved: Path, tmp_path: Path) -> Path:
    shutil.copytree(approved, tmp_path / "copy")
    return tmp_path / "copy"


def run(folder: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = done(
        "run", folder / "study.yaml", "-c", folder, "--durability", "process", "--json", *more
    ).json
    return found


def reasons(report: dict[str, Any]) -> dict[str, str]:
    return {site["name"]: site["reason"] for site in report["sites"] if not site["counted"]}


def test_three_dialects_give_the_answer_of_the_pooled_rows(folder: Path) -> None:
    """The federated coefficients are those of scikit-learn on all patients in the study's own terms."""
    report = run(folder, "--run", "first")
    assert reasons(report) == {}
    rows = [patient for site in SITES for patient in patients_of(site)]
    x = np.array([[p["age"], p["weight"]] for p in rows], dtype=float)
    y = np.array([p["event"] for p in rows])
    scale = x.std(0)
    pooled = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit((x - x.mean(0)) / scale, y)
    found = {row["name"]: row["value"] for row in report["prediction"]["coefficients"]}
    assert [found["age"], found["weight"]] == pytest.approx(pooled.coef_[0] / scale, rel=1e-6)


def test_a_run_leaves_report_figures_and_model_in_its_folder(folder: Path) -> None:
    shown = done("run", folder / "study.yaml", "-c", folder, "--durability", "process", "--run", "first")
    written = folder / "coordinator" / "runs" / "first"
    assert sorted(path.name for path in written.iterdir()) == [
        "model.medfed", "report.html", "report.zh.html", "result.json",
    ]  # fmt: skip
    for path in written.iterdir():
        assert str(path) in shown.out
    for name in SITES:
        assert f"{name}: counted" in shown.out
    assert json.loads((written / "result.json").read_text("utf-8"))["run"] == "first"
    again = done("run", folder / "study.yaml", "-c", folder, "--durability", "process", "--lang", "zh")
    assert "counted" not in again.out


def test_status_lists_every_run_and_says_how_it_stands(folder: Path) -> None:
    assert "no run was ever started here; start one with `medfed run`" in refused("status", "-c", folder)
    run(folder, "--run", "first")
    (status,) = done("status", "-c", folder, "--json").json
    assert (status["run"], status["state"], status["reason"], status["waiting"]) == ("first", "finished", "", [])
    assert status["study"] == load_study(folder / "study.yaml").hash
    assert "finished" in done("status", "-c", folder).out
    assert "finished" not in done("status", "-c", folder, "--lang", "zh").out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["resume"], "coordinator: no run waits to be resumed. `medfed status` lists all runs"),
        (["resume", "first"], "run 'first' has finished. `medfed status` lists all runs"),
        (["resume", "second"], "there is no run 'second'. `medfed status` lists all runs"),
        (["abandon", "first"], "run 'first' is finished, so it has no round to give up"),
        (["abandon", "second"], "there is no run 'second'"),
        (["run", "{study}", "--run", "a/b"], "--run 'a/b' is no name for a run; it has letters, digits, - and _"),
        (["run", "{study}", "--durability", "maybe"], "--durability is call or process, not 'maybe'"),
        (["run", "nowhere.yaml"], "nowhere.yaml does not exist; `medfed study new FOLDER`"),
        (["run", "{study}", "-c", "nowhere"], "nowhere has no site folders (sites/NAME/site.yaml); make them with"),
    ],
)  # fmt: skip
def test_what_can_not_be_done_is_one_sentence(finished: Path, words: list[str], sentence: str) -> None:
    words = [word.format(study=finished / "study.yaml") for word in words]
    assert sentence in refused(*words, *(["-c", finished] if "-c" not in words else []))


def test_a_run_that_was_killed_before_its_report_is_finished_by_resume(folder: Path) -> None:
    report = run(folder, "--run", "first")
    written = folder / "coordinator" / "runs" / "first"
    shutil.rmtree(written)
    again = done("resume", "-c", folder, "--json").json
    assert again["prediction"] == report["prediction"]
    assert again["ledgers"] == report["ledgers"], "nothing was asked again"
    assert (written / "report.html").exists()


def test_ctrl_c_says_how_to_go_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*words: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run_consortium", interrupted)
    shown = medfed("run", folder / "study.yaml", "-c", folder, "--run", "first")
    assert (shown.code, shown.out) == (130, "")
    assert shown.err.strip() == "Stopped. What was finished is kept; `medfed resume first` goes on."


# -- sites that are kept away --------------------------------------------------------------------------------------


def away(folder: Path) -> None:
    shutil.rmtree(folder / "sites" / "west")


def without_table(folder: Path) -> None:
    shutil.rmtree(folder / "sites" / "west" / "tables")


def withdrawn(folder: Path) -> None:
    done("site", "revoke", folder / "sites" / "west", folder / "study.yaml")


def built_anew_from_another_export(folder: Path) -> None:
    site = folder / "sites" / "west"
    (site / "data" / "export.csv").write_bytes(export("west", patients_of("west")[1:]))
    done("site", "build", site, folder / "study.yaml")


def damaged_table(folder: Path) -> None:
    (table,) = (folder / "sites" / "west" / "tables").glob("*/table.parquet")
    table.write_bytes(table.read_bytes()[:-10])


def broken_policy(folder: Path) -> None:
    (folder / "sites" / "west" / "policy.yaml").write_text("minimum_cel: 10\n")


def damaged_ledger(folder: Path) -> None:
    (folder / "sites" / "west" / "ledger.db").write_bytes(b"no database" * 1000)


def one_outcome_only(folder: Path) -> None:
    site = folder / "sites" / "west"
    (site / "data" / "export.csv").write_bytes(
        export("west", [patient | {"event": False} for patient in patients_of("west")])
    )
    quality = done("site", "build", site, folder / "study.yaml", "--json").json
    assert quality["warnings"] == [
        "every patient has the same outcome (event); with plain sums the site can't take part in most methods"
    ]
    done("site", "approve", site, folder / "study.yaml")


def few_patients(folder: Path) -> None:
    site = folder / "sites" / "west"
    (site / "data" / "export.csv").write_bytes(export("west", patients_of("west")[:9]))
    done("site", "build", site, folder / "study.yaml")
    done("site", "approve", site, folder / "study.yaml")


def edited_ledger(folder: Path) -> None:
    db = sqlite3.connect(folder / "sites" / "west" / "ledger.db")
    db.execute("update ledger set at='2020-01-01'")
    db.commit()
    db.close()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (edited_ledger, "the site's ledger is damaged or was changed"),
        (away, "the site's folder is not here"),
        (without_table, "the site has not built its table for this version of the study"),
        (withdrawn, "the site has withdrawn its approval of this study"),
        (built_anew_from_another_export, "the study table is not the version that was approved; build, check and approve again"),
        (damaged_table, "the site's table is damaged or was changed since it was built"),
        (broken_policy, "the site's policy, keys or ledger can't be read"),
        (damaged_ledger, "the site's policy, keys or ledger can't be read"),
        (one_outcome_only, "a count of patients that the sums would show is under the minimum cell"),
        (few_patients, "the site has fewer patients in this study than may be seen"),
    ],
)  # fmt: skip
def test_a_site_that_does_not_take_part_is_named_with_its_reason_and_the_others_go_on(
    folder: Path, change: Callable[[Path], None], reason: str
) -> None:
    change(folder)
    report = run(folder)
    assert list(reasons(report)) == ["west"]
    assert reasons(report)["west"].startswith(reason)


def test_a_study_that_was_changed_after_approval_is_answered_by_nobody(folder: Path) -> None:
    study = folder / "study.yaml"
    study.write_text(STUDY.replace("Three sites", "Four sites"), encoding="utf-8")
    shown = medfed("run", study, "-c", folder, "--run", "changed")
    assert shown.code == 2
    assert "0 of 3 sites answered" in shown.err
    assert "has not built its table for this version of the study" in shown.err
    for name in SITES:
        done("site", "build", folder / "sites" / name, study)
    shown = medfed("resume", "-c", folder)
    assert shown.code == 2
    assert "the site has not approved this version of the study" in shown.err
    (status,) = done("status", "-c", folder, "--json").json
    assert status["state"] == "stopped"
    assert "0 of 3 sites answered" in status["reason"]


def test_a_column_that_is_the_same_everywhere_stops_the_run_in_a_sentence(folder: Path) -> None:
    study = folder / "study.yaml"
    for name in SITES:
        site = folder / "sites" / name
        (site / "data" / "export.csv").write_bytes(export(name, [p | {"age": 64} for p in patients_of(name)]))
        warnings = done("site", "build", site, study, "--json").json["warnings"]
        assert warnings == ["age has the same value for every patient; check its mapping"]
        done("site", "approve", site, study)
    sentence = refused("run", study, "-c", folder, "--run", "constant")
    assert " ".join(sentence.split()) == (
        "feature 'age' has the same value for every patient who was counted, or values too close together beside its declared "
        "range, 18 to 110; narrow the range in the study to what the values can be, or leave it out"
    )
    assert done("status", "-c", folder, "--json").json[0]["state"] == "stopped"


def test_a_run_that_lacks_sites_goes_on_when_they_are_back(folder: Path) -> None:
    undisturbed = run(folder, "--run", "undisturbed")
    for name in ("west", "south"):
        (folder / "sites" / name).rename(folder / name)
    shown = medfed("run", folder / "study.yaml", "-c", folder, "--run", "first", "--durability", "process")
    assert shown.code == 2
    assert "1 of 3 sites answered" in shown.err
    assert "`medfed resume`" in shown.err
    states = {status["run"]: status for status in done("status", "-c", folder, "--json").json}
    assert states["first"]["state"] == "stopped"
    assert "1 of 3 sites answered" in done("status", "-c", folder).out
    assert done("status", "-c", folder).out.count("`medfed resume`") == 1
    for name in ("west", "south"):
        (folder / name).rename(folder / "sites" / name)
    report = done("resume", "-c", folder, "--durability", "process", "--json").json
    assert report["run"] == "first"
    assert report["prediction"] == undisturbed["prediction"]


def test_an_open_round_can_be_given_up(folder: Path) -> None:
    (folder / "sites" / "west").rename(folder / "west")
    (folder / "sites" / "south").rename(folder / "south")
    assert medfed("run", folder / "study.yaml", "-c", folder, "--run", "first", "--durability", "process").code == 2
    (folder / "west").rename(folder / "sites" / "west")
    before = contents(folder / "sites" / "north" / "tables")
    assert "the open round is given up; `medfed resume first`" in done("abandon", "first", "-c", folder).out
    report = done("resume", "first", "-c", folder, "--durability", "process", "--json").json
    assert list(reasons(report)) == ["south"]
    rounds = {row["run"]: row["round"] for row in done("site", "ledger", folder / "sites" / "north", "--json").json}
    assert any(path and path.startswith("first/2/") for path in rounds), rounds
    assert contents(folder / "sites" / "north" / "tables") == before


def test_an_approval_that_ended_yesterday_answers_nothing(folder: Path) -> None:
    site, study = load_site(folder / "sites" / "west"), load_study(folder / "study.yaml")
    with closing(open_store(site.ledger_path, "process")) as db:
        approve(
            db, site="west", study=study, steps=step_names(study), packages=packages_of(step_names(study)),
            table_version=open_table(site, study).version, until=str(date.today() - timedelta(days=1)),
            key=load_signing_key(site.keys), at="2026-01-01T00:00:00",
        )  # fmt: skip
    assert reasons(run(folder)) == {"west": "the site's approval of this study has ended"}
