"""Survival in three lines: hazard ratios and curves of a consortium in memory, with their tables and charts."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg

sys.path.insert(0, str(Path(__file__).parent.parent / "methods"))
from survival_data import LUNG, lung_frame, survival_study

from medfed.applications.statistics import Statistics, in_memory, question
from medfed.errors import StudyError
from medfed.evaluation.report_data import StatisticsShown
from medfed.evaluation.report_statistics import statistics_figures


@pytest.fixture(scope="module")
def trial() -> tuple[Statistics, pd.DataFrame]:
    frame = lung_frame()
    study = survival_study(
        LUNG, sorted(frame["site"].unique()), "cox.Cox", privacy={"minimum_cell": 10, "sums": "strongest"}
    )
    tables = {site: part.assign(event=np.where(part["event"] > 0, "yes", "no")) for site, part in frame.groupby("site")}
    return in_memory(tables, study), frame


def test_hazard_ratios_are_those_of_statsmodels(trial: tuple[Statistics, pd.DataFrame], tmp_path: Path) -> None:
    institutions, frame = trial
    fit = institutions.cox("age + ph_ecog")
    strata = pd.factorize(frame["site"])[0]
    x = frame[["age", "ph_ecog"]].to_numpy(float)
    oracle = PHReg(frame["time"], x, status=frame["event"], ties="efron", strata=strata).fit(disp=0, tol=1e-14)
    assert np.allclose(fit.to_frame()["coef"], oracle.params, atol=1e-9)
    assert list(fit.to_frame().index) == ["age", "ph_ecog"]
    assert "Sites counted: 18" in fit.summary()
    assert "按机构分层" in fit.summary("zh")
    drawn = fit.plot(tmp_path / "forest.svg").read_text()
    assert drawn.startswith("<svg")
    assert "Hazard ratios" in drawn


def test_curves_have_a_frame_a_chart_and_say_what_merging_changes(
    trial: tuple[Statistics, pd.DataFrame], tmp_path: Path
) -> None:
    curves = trial[0].km()
    frame = curves.to_frame()
    assert frame["at_risk"].iloc[0] == 226
    assert frame["events"].sum() == 163
    assert (frame[["events", "censored"]] >= 10).to_numpy().all()
    assert "(a bound: how many left in each declared interval was never seen)" in curves.summary()
    assert "At risk" in curves.plot(tmp_path / "curves.svg").read_text()


def test_a_report_has_their_tables_and_charts_in_both_languages(trial: tuple[Statistics, pd.DataFrame]) -> None:
    institutions, _ = trial
    asked = question(institutions.study, "cox", {"formula": "age + sex"})
    for kind, found in (("cox", institutions.cox("age + sex")), ("km", institutions.km())):
        shown = StatisticsShown.model_validate(statistics_figures(kind, found.values, found.study))
        assert shown.patients == 226
        for lang in ("en", "zh"):
            (drawn,) = shown.figures[lang]
            assert drawn.svg.startswith("<svg")
            assert shown.tables[lang][0].rows
            assert drawn.rows
        assert shown.tables["en"][0].columns != shown.tables["zh"][0].columns
    assert [name for name, variable in asked.variables.items() if variable.role == "covariate"] == ["age", "sex"]


def test_what_is_no_sum_of_covariates_is_told(trial: tuple[Statistics, pd.DataFrame]) -> None:
    for formula in ("age * sex", "age + weight", "event ~ log(age)"):
        with pytest.raises(
            StudyError, match=r"a survival model is a sum of covariates of the study, as in 'age \+ sex'"
        ):
            trial[0].cox(formula)
