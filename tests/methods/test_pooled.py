"""Every method against the pooled answer of a trusted library, on real data that packages carry."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation.gate import LIGHT
from medfed.federation.here import Here, PooledView, fit
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.methods.newton import Newton, in_study_units
from medfed.methods.recalibration import Recalibration
from medfed.study import Study, study_from_dict

sys.path.insert(0, str(Path(__file__).parent.parent / "federation"))
from consortium import GENEROUS, fixed_keys, synthetic_study, synthetic_tables

SITES = ["a", "b", "c", "d"]
OPEN = Policy(values_per_patient=GENEROUS)
M = "medfed:medfed.methods."


def study_of(frame: pd.DataFrame, outcome: str, method: str, settings: dict[str, Any], binary: bool = True) -> Study:
    variables: dict[str, Any] = {}
    for name in frame:
        low, high = float(frame[name].min()), float(frame[name].max())
        number = {
            "meaning": name,
            "type": "number",
            "unit": "1",
            "range": [low - 0.1 * (high - low) - 1e-9, high + 0.1 * (high - low) + 1e-9],
        }
        if name != outcome:
            variables[str(name)] = {**number, "role": "covariate", "missing": "mean"}
        elif binary:
            variables[outcome] = {
                "meaning": outcome,
                "type": "code",
                "role": "outcome",
                "codes": {"no": "n", "yes": "y"},
                "event": "yes",
            }
        else:
            variables[outcome] = {**number, "role": "outcome"}
    return study_from_dict(
        {
            "medfed": 1, "name": "oracle", "title": "t", "question": "q", "variables": variables,
            "task": {"kind": "risk_prediction"}, "method": {"use": M + method, "settings": settings},
            "sites": {"invited": SITES, "minimum": 4},
        }
    )  # fmt: skip


def tables_of(study: Study, frame: pd.DataFrame, outcome: str, binary: bool = True) -> dict[str, StudyTable]:
    """Ragged sites: rows dealt out in the shares 50, 25, 15 and 10 %."""
    order = np.random.default_rng(3).permutation(len(frame))
    cuts = np.split(order, (np.cumsum([0.5, 0.25, 0.15]) * len(frame)).astype(int))
    tables = {}
    for site, rows in zip(SITES, cuts, strict=True):
        part = frame.iloc[rows]
        columns: dict[str, Any] = {str(name): part[name].to_numpy(float) for name in frame if name != outcome}
        values = part[outcome].to_numpy()
        columns[outcome] = np.where(values > 0, "yes", "no") if binary else values.astype(float)
        tables[site] = StudyTable.from_columns(study, columns)
    return tables


def run(tmp_path: Path, study: Study, tables: dict[str, StudyTable], **options: Any) -> dict[str, Any]:
    method = find_method(study)
    engine, public = what_if(
        tmp_path / "sites", tables, study, [method], policy=OPEN, keys=fixed_keys(list(tables)), **options
    )
    runner = Runner(tmp_path / "coordinator", engine, study, durability="process", public_keys=public)
    try:
        return dict(runner.execute(method))
    finally:
        runner.close()


@pytest.fixture(scope="module")
def cancer() -> pd.DataFrame:
    """569 patients of the Wisconsin breast cancer data, six features that do not separate the outcome."""
    data = load_breast_cancer(as_frame=True)
    frame = data.frame[
        ["mean radius", "mean texture", "mean smoothness", "mean symmetry", "mean fractal dimension"]
    ].copy()
    frame.columns = [name.replace(" ", "_") for name in frame.columns]
    frame["malignant"] = 1 - data.target
    return frame


def test_newton_logistic_equals_statsmodels_on_breast_cancer(tmp_path: Path, cancer: pd.DataFrame) -> None:
    study = study_of(cancer, "malignant", "newton.Newton", {})
    result = run(tmp_path, study, tables_of(study, cancer, "malignant"))
    x = sm.add_constant(cancer.drop(columns="malignant"))
    pooled = sm.Logit(cancer["malignant"], x).fit(method="newton", tol=1e-14, disp=0)
    coefficients, covariance = in_study_units(result)
    errors = np.sqrt(np.diag(covariance))
    assert np.abs((coefficients - pooled.params.to_numpy()) / pooled.bse.to_numpy()).max() < 1e-8
    assert np.abs(errors / pooled.bse.to_numpy() - 1).max() < 1e-8
    assert abs(result["log_likelihood"] - pooled.llf) < 1e-7
    assert result["rounds"] <= 10
    assert result["sites"] == SITES


def test_newton_linear_equals_statsmodels_on_diabetes_progression(tmp_path: Path) -> None:
    data = load_diabetes(as_frame=True, scaled=False)
    frame = data.frame[["age", "bmi", "bp", "s5", "target"]]
    study = study_of(frame, "target", "newton.Newton", {"family": "gaussian"}, binary=False)
    result = run(tmp_path, study, tables_of(study, frame, "target", binary=False))
    pooled = sm.OLS(frame["target"], sm.add_constant(frame.drop(columns="target"))).fit()
    coefficients, covariance = in_study_units(result)
    assert np.abs((coefficients - pooled.params.to_numpy()) / pooled.bse.to_numpy()).max() < 1e-8
    assert np.abs(np.sqrt(np.diag(covariance)) / pooled.bse.to_numpy() - 1).max() < 1e-8


def test_ridge_equals_scikit_learn(tmp_path: Path, cancer: pd.DataFrame) -> None:
    study = study_of(cancer, "malignant", "newton.Newton", {"l2": 5.0})
    tables = tables_of(study, cancer, "malignant")
    result = run(tmp_path, study, tables)
    x = cancer.drop(columns="malignant").to_numpy(float)
    x = (x - x.mean(0)) / x.std(0)
    pooled = LogisticRegression(C=1 / 5.0, tol=1e-12, solver="newton-cholesky", max_iter=500).fit(
        x, cancer["malignant"]
    )
    assert np.abs(result["coefficients"][1:] - pooled.coef_[0]).max() < 1e-6
    assert abs(result["coefficients"][0] - pooled.intercept_[0]) < 1e-6


def test_standardisation_equals_pandas(tmp_path: Path, cancer: pd.DataFrame) -> None:
    frame = pd.concat([cancer, cancer], ignore_index=True)
    frame.loc[::2, "mean_texture"] = np.nan
    study = study_of(frame, "malignant", "standardise.Standardise", {})
    result = run(tmp_path, study, tables_of(study, frame, "malignant"))
    x = frame.drop(columns="malignant")
    assert np.abs(result["centre"][1:] - x.mean().to_numpy()).max() < 1e-9
    assert np.abs(result["scale"][1:] - x.std(ddof=0).to_numpy()).max() < 1e-9


@pytest.mark.parametrize(
    ("method", "settings", "tolerance"),
    [
        (
            "gradients.GradientAggregation",
            {"optimiser": "momentum", "rate": 2.0, "rounds": 3000, "tolerance": 1e-8, "l2": 0.01},
            1e-5,
        ),
        (
            "gradients.GradientAggregation",
            {"optimiser": "plain", "rate": 2.0, "rounds": 4000, "tolerance": 1e-8, "l2": 0.01},
            1e-5,
        ),
        (
            "gradients.GradientAggregation",
            {"optimiser": "adam", "rate": 0.05, "rounds": 3000, "tolerance": 1e-7, "l2": 0.01},
            1e-4,
        ),
        ("gradients.FedSGD", {"rate": 0.5, "rounds": 400, "batch": 10000, "l2": 0.01}, 1e-2),
        ("fedavg.FedAvg", {"rate": 0.5, "rounds": 400, "batch": 10000, "local_epochs": 1, "l2": 0.01}, 1e-2),
        ("scaffold.Scaffold", {"rate": 0.05, "rounds": 600, "batch": 16, "local_epochs": 1, "l2": 0.01}, 0.15),
    ],
)
def test_iterative_methods_reach_the_pooled_optimum(
    tmp_path: Path, cancer: pd.DataFrame, method: str, settings: dict[str, Any], tolerance: float
) -> None:
    study = study_of(cancer, "malignant", method, settings)
    result = run(tmp_path, study, tables_of(study, cancer, "malignant"))
    exact = study_of(cancer, "malignant", "newton.Newton", {"l2": 0.01 * len(cancer)})
    pooled = fit(find_method(exact), Here(PooledTables(exact, tables_of(exact, cancer, "malignant")), exact))
    assert np.abs(result["coefficients"] - pooled["coefficients"]).max() < tolerance


def PooledTables(study: Study, tables: dict[str, StudyTable]) -> Any:  # noqa: N802
    return lambda part: PooledView([table.on(part) for table in tables.values()])


def test_fedavg_with_one_full_batch_step_is_gradient_descent(tmp_path: Path, cancer: pd.DataFrame) -> None:
    """McMahan et al. 2017: FedAvg with one full-batch epoch and FedSGD are the same algorithm."""
    results = []
    for index, (method, settings) in enumerate(
        (
            ("fedavg.FedAvg", {"rate": 0.3, "rounds": 20, "batch": 100000}),
            ("gradients.FedSGD", {"rate": 0.3, "rounds": 20, "batch": 100000}),
        )
    ):
        study = study_of(cancer, "malignant", method, settings)
        results.append(run(tmp_path / str(index), study, tables_of(study, cancer, "malignant"))["coefficients"])
    assert np.abs(results[0] - results[1]).max() < 1e-9


def test_scaffold_stays_at_the_optimum_where_fedavg_drifts(tmp_path: Path) -> None:
    """Sites that differ pull FedAvg off the pooled optimum with many local steps; SCAFFOLD's controls cancel the pull."""
    settings = {"rate": 0.1, "rounds": 120, "batch": 100000, "local_epochs": 20}
    distance = {}
    names = ["a", "b", "c"]
    for method in ("fedavg.FedAvg", "scaffold.Scaffold"):
        study = synthetic_study(names, method={"use": M + method, "settings": settings})
        tables = synthetic_tables(study, [200, 200, 200])
        result = run(tmp_path / method, study, tables)
        exact = synthetic_study(names)
        pooled = fit(find_method(exact), Here(PooledTables(exact, synthetic_tables(exact, [200, 200, 200])), exact))
        distance[method] = np.abs(result["coefficients"] - pooled["coefficients"]).max()
    assert distance["scaffold.Scaffold"] < 0.2 * distance["fedavg.FedAvg"]


def test_recalibration_equals_statsmodels(cancer: pd.DataFrame) -> None:
    study = study_of(cancer, "malignant", "newton.Newton", {"l2": 30.0})
    tables = tables_of(study, cancer, "malignant")
    fitted = fit(find_method(study), Here(tables["a"].on, study))
    method = Recalibration(fitted["coefficients"], fitted["centre"], fitted["scale"], slope=True, prior_sd=1e6)
    line = fit(method, Here(tables["b"].on, study))
    x, y = tables["b"].on("train").arrays("features", "outcome")
    predictor = ((x - fitted["centre"]) / fitted["scale"]) @ fitted["coefficients"]
    pooled = sm.Logit(y, sm.add_constant(predictor)).fit(method="newton", tol=1e-14, disp=0)
    assert abs(line["intercept"] - pooled.params[0]) < 1e-6
    assert abs(line["slope"] - pooled.params[1]) < 1e-6


def test_perfect_separation_and_collinear_columns_are_said(tmp_path: Path, cancer: pd.DataFrame) -> None:
    frame = cancer.assign(copy=cancer["mean_radius"] * 2)
    study = study_of(frame, "malignant", "newton.Newton", {})
    with pytest.raises(FederationError, match="collinear|singular|runs away"):
        run(tmp_path / "copy", study, tables_of(study, frame, "malignant"))
    frame = cancer.assign(oracle=cancer["malignant"] * 2.0 + np.linspace(0, 0.5, len(cancer)))
    study = study_of(frame, "malignant", "newton.Newton", {})
    with pytest.raises(FederationError, match="separated perfectly by a feature; leave it out"):
        run(tmp_path / "oracle", study, tables_of(study, frame, "malignant"))


def test_a_site_that_is_away_in_mid_fit_is_not_taken_for_separation(cancer: pd.DataFrame) -> None:
    """However large the coefficients are by then: what helps is to resume, not to leave a feature out."""

    class Away:
        def __init__(self, why: str) -> None:
            self.why = why

        def sum(self, *asked: Any, **inputs: Any) -> Any:
            raise FederationError(self.why)

    study = study_of(cancer, "malignant", "newton.Newton", {})
    start = Newton().start(study)
    state = replace(start, beta=start.beta + 5.0, change=1.0, rounds=4)
    for why, told in (("south unreachable: no connection", "no connection"), (f"south refused: {LIGHT}", "runs away")):
        with pytest.raises(FederationError, match=told):
            Newton().advance(Away(why), state)  # type: ignore[arg-type]


def test_a_constant_column_is_said(tmp_path: Path, cancer: pd.DataFrame) -> None:
    frame = cancer.assign(same=3.0)
    study = study_of(frame, "malignant", "newton.Newton", {})
    # Over secure sums the count of units says it first: a number of one or two values is a code, or nothing at all.
    with pytest.raises(FederationError, match="'same' takes one or two values for nearly everybody, .* Leave it out"):
        run(tmp_path / "secure", study, tables_of(study, frame, "malignant"))
    study = study_from_dict({**study.model_dump(mode="json"), "privacy": {"sums": "plain", "minimum_cell": 10}})
    with pytest.raises(FederationError, match="'same' has the same value for every patient"):
        run(tmp_path / "plain", study, tables_of(study, frame, "malignant"))
