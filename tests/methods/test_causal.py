"""Average effects across sites against statsmodels' treatment effects and plain formulas on pooled rows."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels
import statsmodels.api as sm
from statsmodels.treatment.treatment_effects import TreatmentEffect

from medfed.errors import FederationError, StudyError
from medfed.methods.causal import Causal
from medfed.methods.causal_result import CausalEffect, e_value

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import code, dealt, number, run, study_of

Parts = dict[str, pd.DataFrame]
COVARIATES = ["married", "mage", "prenatal", "first"]


def read_births() -> pd.DataFrame | None:
    """Birth weights of 4,642 children in Pennsylvania and whether their mothers smoked (Cattaneo 2010)."""
    path = Path(statsmodels.__file__).parent / "treatment" / "tests" / "results" / "cataneo2.csv"
    if not path.exists():
        return None
    raw = pd.read_csv(path)
    return pd.DataFrame(
        {
            "weight": raw["bweight"].astype(float),
            "low": np.where(raw["lbweight"] > 0, "yes", "no"),
            "smoking": np.where(raw["mbsmoke_"] > 0, "smoker", "none"),
            "married": np.where(raw["mmarried_"] > 0, "yes", "no"),
            "mage": raw["mage"].astype(float),
            "prenatal": np.where(raw["prenatal1_"] > 0, "yes", "no"),
            "first": np.where(raw["fbaby_"] > 0, "yes", "no"),
        }
    )


@pytest.fixture(scope="module")
def births() -> pd.DataFrame:
    found = read_births()
    if found is None:
        pytest.skip("this statsmodels comes without the data of its tests")
    return found


def variables_of(outcome: str) -> dict[str, Any]:
    outcomes = {
        "weight": number(200, 6000, "outcome"),
        "low": code("no", "yes", role="outcome", event="yes"),
    }
    return {
        outcome: outcomes[outcome],
        "smoking": code("none", "smoker", role="arm", reference="none"),
        "married": code("no", "yes"),
        "mage": number(10, 60),
        "prenatal": code("no", "yes"),
        "first": code("no", "yes"),
    }


def found_for(folder: Path, frame: pd.DataFrame, outcome: str, **settings: Any) -> CausalEffect:
    parts = dealt(frame)
    study = study_of(variables_of(outcome), "causal.Causal", settings, list(parts))
    return CausalEffect(study, run(folder, study, parts))


def design(frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    x = np.column_stack(
        [
            np.ones(len(frame)),
            frame["married"] == "yes",
            frame["mage"],
            frame["prenatal"] == "yes",
            frame["first"] == "yes",
        ]
    ).astype(float)
    return x, (frame["smoking"] == "smoker").to_numpy(float)


def test_inverse_weighting_and_aipw_equal_statsmodels_on_birth_weights(tmp_path: Path, births: pd.DataFrame) -> None:
    effects = found_for(tmp_path, births, "weight").effects()
    x, arm = design(births)
    names = ["const", "married", "mage", "prenatal", "first"]
    selection = sm.Logit(arm, pd.DataFrame(x, columns=names)).fit(method="newton", tol=1e-14, disp=0)
    theirs = TreatmentEffect(sm.OLS(births["weight"], pd.DataFrame(x, columns=names)), arm, results_select=selection)
    for estimator, result in (("ipw", theirs.ipw(disp=False)), ("aipw", theirs.aipw(disp=False))):
        row = effects.loc[(estimator, "difference")]
        error = float(np.asarray(result.results_gmm.bse)[0])
        assert abs(row["estimate"] - float(np.asarray(result.results_gmm.params)[0])) < 1e-6 * error
        # Of inverse weighting the whole of it; AIPW's influence function leaves out what vanishes to first order.
        assert abs(row["standard_error"] / error - 1) < (1e-5 if estimator == "ipw" else 0.03)


def influence(frame: pd.DataFrame, y: np.ndarray, *, logistic: bool) -> dict[str, np.ndarray]:
    """Means under both arms and their covariance, by the formulas of Lunceford and Davidian 2004, row by row."""
    x, arm = design(frame)
    selection = sm.Logit(arm, x).fit(method="newton", tol=1e-14, disp=0)
    e = selection.predict()
    models = [
        sm.Logit(y[arm == a], x[arm == a]).fit(method="newton", tol=1e-14, disp=0) if logistic else sm.OLS(y[arm == a], x[arm == a]).fit()
        for a in (0, 1)
    ]  # fmt: skip
    m0, m1 = (model.predict(x) for model in models)
    psi = np.stack([m0 + (1 - arm) / (1 - e) * (y - m0), m1 + arm / e * (y - m1)])
    aipw = psi.mean(1)
    weights = np.stack([(1 - arm) / (1 - e), arm / e])
    ipw = (weights * y).sum(1) / weights.sum(1)
    n = len(y)
    phi = weights * (y - ipw[:, None]) / weights.mean(1)[:, None]
    score = x * (arm - e)[:, None]
    derivative = np.stack([(phi[0] * e) @ x, (phi[1] * (e - 1)) @ x]) / n
    information = (x * (e * (1 - e))[:, None]).T @ x / n
    phi = phi + derivative @ np.linalg.solve(information, score.T)
    centred = psi - aipw[:, None]
    return {"ipw": ipw, "aipw": aipw, "ipw_cov": phi @ phi.T / n**2, "aipw_cov": centred @ centred.T / n**2}


@pytest.mark.parametrize("outcome", ["weight", "low"])
def test_means_and_errors_equal_their_formulas_on_pooled_rows(
    tmp_path: Path, births: pd.DataFrame, outcome: str
) -> None:
    found = found_for(tmp_path, births, outcome)
    y = births["weight"].to_numpy() if outcome == "weight" else (births["low"] == "yes").to_numpy(float)
    expected = influence(births, y, logistic=outcome == "low")
    effects = found.effects()
    for index, estimator in enumerate(("ipw", "aipw")):
        errors = np.sqrt(np.diag(expected[f"{estimator}_cov"]))
        means = np.asarray(found.values["means"])[index]
        assert np.abs((means - expected[estimator]) / errors).max() < 1e-8
        covariance = np.asarray(found.values["covariances"])[index]
        assert np.abs(np.sqrt(np.diag(covariance)) / errors - 1).max() < 1e-8
        contrast = np.array([-1, 1])
        error = np.sqrt(contrast @ expected[f"{estimator}_cov"] @ contrast)
        assert abs(effects.loc[(estimator, "difference"), "standard_error"] / error - 1) < 1e-8
        if outcome == "low":
            slope = np.array([-1, 1]) / expected[estimator]
            error = np.sqrt(slope @ expected[f"{estimator}_cov"] @ slope)
            assert abs(effects.loc[(estimator, "ratio"), "standard_error"] / error - 1) < 1e-8


def test_balance_and_overlap_are_those_of_the_pooled_rows(tmp_path: Path, births: pd.DataFrame) -> None:
    found = found_for(tmp_path, births, "weight")
    x, arm = design(births)
    e = sm.Logit(arm, x).fit(method="newton", tol=1e-14, disp=0).predict()
    weights = arm / e + (1 - arm) / (1 - e)
    table = found.balance()
    for index, name in enumerate(["married=yes", "mage", "prenatal=yes", "first=yes"], start=1):
        column = x[:, index]
        spread = np.sqrt((column[arm == 1].var(ddof=1) + column[arm == 0].var(ddof=1)) / 2)
        before = (column[arm == 1].mean() - column[arm == 0].mean()) / spread
        means = [np.average(column[arm == a], weights=weights[arm == a]) for a in (0, 1)]
        assert abs(table.loc[name, "before"] - before) < 1e-8
        assert abs(table.loc[name, "after"] - (means[1] - means[0]) / spread) < 1e-8
    assert table["before"].abs().max() > 0.5
    assert table["after"].abs().max() < 0.1
    overlap = found.overlap()
    assert overlap["patients of none"].tolist() == np.histogram(e[arm == 0], 32, (0, 1))[0].tolist()
    assert overlap["patients of smoker"].tolist() == np.histogram(e[arm == 1], 32, (0, 1))[0].tolist()


MEANINGS = {"low": {"en": "Low dose", "zh": "低剂量"}, "high": {"en": "High dose", "zh": "高剂量"}}


def test_arms_are_told_by_code_in_frames_and_by_meaning_to_people() -> None:
    """The reference is declared last here and comes first in every figure."""
    variables = {
        "event": code("no", "yes", role="outcome", event="yes"),
        "dose": {**code("low", "high", role="arm", reference="high"), "codes": MEANINGS},
        "age": number(18, 110),
    }
    study = study_of(variables, "causal.Causal", {}, ["a", "b", "c"])
    values = {
        "means": np.array([[0.2, 0.1], [0.21, 0.11]]), "covariances": np.tile(1e-4 * np.eye(2), (2, 1, 1)),
        "is_event": True, "deviation": 1.0, "arm_patients": np.array([60.0, 40.0]), "effective": np.array([55.5, 35.5]),
        "sites": ["a", "b", "c"], "held_back": {}, "names": ["age"], "balance": np.array([[0.4], [0.01]]),
        "overlap": np.array([[50.0, 10.0], [20.0, 20.0]]),
    }  # fmt: skip
    effect = CausalEffect(study, values)
    assert list(effect.effects().loc["ipw"].index) == ["mean of high", "mean of low", "difference", "ratio"]
    assert effect.effects().loc[("ipw", "mean of high"), "estimate"] == 0.2
    assert effect.overlap()["patients of low"].tolist() == [20.0, 20.0]
    assert effect.overlap()["low"].tolist() == [0.0, 0.5], "a code is not taken for the lower edge"
    shown = effect.summary()
    for said in ("60 (High dose) + 40 (Low dose)", "mean, Low dose", "difference, Low dose less High dose",
                 "ratio, Low dose to High dose (error of its logarithm)"):  # fmt: skip
        assert said in shown
    assert not {"first", "second"} & set(shown.split())
    chinese = effect.summary("zh")
    assert "低剂量与高剂量之比（其对数的标准误）" in chinese
    assert "60 (高剂量) + 40 (低剂量)" in chinese


def test_e_values_are_the_published_ones() -> None:
    """VanderWeele and Ding 2017: breast feeding and respiratory death, 3.9 (1.8 to 8.7): 7.26, of the limit 3.0."""
    point, limit = e_value(3.9, 1.8, 8.7)
    assert f"{point:.2f}" == "7.26"
    assert f"{limit:.1f}" == "3.0"
    assert e_value(1 / 3.9)[0] == pytest.approx(point)
    assert e_value(1.2, 0.9, 1.6)[1] == 1.0


def test_patients_who_could_not_have_had_the_other_arm_are_named(tmp_path: Path, births: pd.DataFrame) -> None:
    frame = births.assign(first=np.where(births["smoking"] == "smoker", "yes", "no"))
    with pytest.raises(FederationError, match="'first=yes' separates the arms"):
        found_for(tmp_path, frame, "weight")


def test_a_study_without_two_arms_is_told(tmp_path: Path, births: pd.DataFrame) -> None:
    variables = {name: v for name, v in variables_of("weight").items() if name != "smoking"}
    parts = dealt(births)
    with pytest.raises(StudyError, match="an average effect is of two arms"):
        run(tmp_path, study_of(variables, "causal.Causal", {}, list(parts)), parts)
    with pytest.raises(ValueError, match="clip is from 0"):
        Causal(clip=0.7)


def test_the_summary_reads_as_one_in_both_languages(tmp_path: Path, births: pd.DataFrame) -> None:
    found = found_for(tmp_path, births, "low")
    assert "doubly robust" in found.summary()
    assert "双重稳健" in found.summary("zh")
    assert found.e_values().loc["aipw", "e_value"] > found.e_values().loc["aipw", "e_value_of_limit"] > 1
