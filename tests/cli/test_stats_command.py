"""medfed stats, and the same in Python, over three sites that write three dialects."""

import shutil
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from consortium_folder import SITES, approve_all, done, make_sites, medfed, patients_of, refused

from medfed.applications.statistics import in_memory, open_consortium, question, write_question
from medfed.errors import StudyError
from medfed.federation.policy import Policy
from medfed.federation.store import RunnerStore
from medfed.study import load_study


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites that approved a model of the event, and nothing else."""
    folder = tmp_path_factory.mktemp("stats")
    study = make_sites(folder)
    asked = question(load_study(study), "glm", {"formula": "event ~ age", "family": "binomial"})
    approve_all(folder, write_question(folder, asked, "glm"))
    return folder


@pytest.fixture
def folder(approved: Path, tmp_path: Path) -> Path:
    shutil.copytree(approved, tmp_path / "copy")
    return tmp_path / "copy"


def pooled() -> pd.DataFrame:
    rows = pd.DataFrame([patient for site in SITES for patient in patients_of(site)])
    return rows.assign(y=rows["event"].astype(float))


def test_a_model_is_printed_as_statsmodels_would_fit_it(folder: Path) -> None:
    words = ("stats", "glm", folder / "study.yaml", "-c", folder, "--formula", "event ~ age", "--family", "binomial")
    found = done(*words, "--json").json
    expected = smf.glm("y ~ age", pooled(), family=sm.families.Binomial()).fit(tol=1e-14)
    assert np.abs((np.array(found["coefficients"]) - expected.params) / expected.bse).max() < 1e-8
    text = done(*words, "--csv", folder / "fit.csv").out
    assert "odds ratio" in text
    assert pd.read_csv(folder / "fit.csv", index_col=0).loc["age", "estimate"] == pytest.approx(expected.params["age"])
    assert "比值比" in done(*words, "--lang", "zh").out
    with closing(RunnerStore(folder / "coordinator", read_only=True)) as store:
        assert [row["state"] for row in store.runs()] == ["finished"]  # asked once, read three times


def test_a_run_writes_a_report_with_the_same_tables(folder: Path) -> None:
    question_file = next((folder / "coordinator" / "questions").glob("glm-*.yaml"))
    report = done("run", question_file, "-c", folder, "--run", "model", "--json").json
    table = report["statistics"]["tables"]["en"][0]
    assert [row[0] for row in table["rows"]] == ["intercept", "age"]
    for name, words in (("report.html", "std. error"), ("report.zh.html", "标准误")):
        page = (folder / "coordinator" / "runs" / "model" / name).read_text(encoding="utf-8")
        assert words in page
        assert table["rows"][1][1] in page


def test_the_same_in_three_lines_of_python(folder: Path) -> None:
    hospitals = open_consortium(folder, folder / "study.yaml")
    fit = hospitals.glm("event ~ age")
    assert fit.to_frame().loc["age", "p"] < 0.001


def test_a_question_that_nobody_approved_is_refused_with_the_file_to_approve(folder: Path) -> None:
    told = refused("stats", "describe", folder / "study.yaml", "-c", folder, "--set", "cross_tables=true")
    assert "coordinator/questions/describe-" in told.replace("\n", "")
    assert len(list((folder / "coordinator" / "questions").glob("describe-*.yaml"))) == 1


def test_the_file_of_a_question_is_the_question(folder: Path) -> None:
    study = load_study(folder / "study.yaml")
    for kind, settings in (("glm", {"formula": "event ~ age", "family": "binomial"}), ("compare", {"ranks": False})):
        asked = question(study, kind, settings)
        assert load_study(write_question(folder, asked, kind)).hash == asked.hash


def test_slips_are_told(folder: Path) -> None:
    study = folder / "study.yaml"
    assert "there are no statistics 'table2'" in refused("stats", "table2", study, "-c", folder)
    assert "write NAME=VALUE" in refused("stats", "describe", study, "-c", folder, "--set", "cross_tables")
    assert "did you mean 'quantiles'" in refused("stats", "describe", study, "-c", folder, "--set", "quantile=0.5")
    assert "did you mean 'age'" in refused("stats", "glm", study, "-c", folder, "--formula", "event ~ agee")


def test_what_a_fit_can_not_do_is_one_sentence_and_not_exit_code_0(folder: Path) -> None:
    study = folder / "study.yaml"
    asked = question(load_study(study), "glm", {"formula": "event ~ age", "most_rounds": 1})
    approve_all(folder, write_question(folder, asked, "glm"))
    told = refused("stats", "glm", study, "event ~ age", "-c", folder, "--set", "most_rounds=1")
    assert "no convergence in 1 rounds (last change" in told
    assert "takes no formula; glm, effect, meta, cox do" in refused(
        "stats", "table1", study, "event ~ age", "-c", folder
    )
    for kind in ("cox", "km"):
        assert "times to an event are asked for; write" in refused("stats", kind, study, "-c", folder)
    assert "ends in .svg" in refused("stats", "glm", study, "event ~ age", "-c", folder, "--plot", folder / "fit.png")
    assert "compare has no chart" in refused("stats", "compare", study, "-c", folder, "--plot", folder / "fit.svg")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_formula_is_an_argument_and_the_fit_is_drawn(folder: Path, lang: str) -> None:
    words = ("stats", "glm", folder / "study.yaml", "event ~ age", "-c", folder)
    shown = done(*words, "--plot", folder / "fit.svg", "--lang", lang).out
    assert "event ~ age" in shown
    drawn = (folder / "fit.svg").read_text(encoding="utf-8")
    assert ("more events" if lang == "en" else "事件较多") in drawn
    assert open_consortium(folder, folder / "study.yaml").glm("event ~ age").plot(folder / "same.svg").exists()


def test_the_help_shows_how_to_ask(folder: Path) -> None:
    shown = medfed("stats", "--help").out
    for kind in ("glm", "table1", "describe", "compare", "effect", "meta"):
        assert f"medfed stats {kind} study.yaml" in shown


def test_tables_in_memory_answer_all_kinds(folder: Path) -> None:
    rows = pooled().assign(event=lambda f: np.where(f["event"], "yes", "no"))
    tables = {site: rows.iloc[150 * index : 150 * (index + 1)] for index, site in enumerate(SITES)}
    study = load_study(folder / "study.yaml")
    asked = in_memory(tables, study, Policy(minimum_cell=1, minimum_patients=1))
    assert asked.describe().to_frame().loc["age", "mean"] == pytest.approx(rows["age"].mean())
    assert "age" in asked.table1().summary()
    assert (asked.compare(ranks=False).to_frame()["p"] < 0.05).any()
    with pytest.raises(StudyError, match="two arms"):
        asked.effect()


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1"])
def test_a_setting_that_is_no_usable_number_is_one_sentence(tmp_path: Path, value: str) -> None:
    study = make_sites(tmp_path)
    shown = medfed("stats", "glm", study, "event ~ age", "--set", f"l2={value}", "-c", tmp_path)
    said = shown.err.strip()
    assert shown.code == 2
    assert len(said.splitlines()) == 1
    expected = (
        "l2: a number is expected here, and neither infinity nor nan is one"
        if value != "-1"
        else "l2 and alpha are 0 or more"
    )
    assert expected in said
