"""Statistics of studies as they come: codes alone, numbers with other roles, follow-up, ranges that are too wide."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from lifelines import KaplanMeierFitter
from lifelines.utils import median_survival_times, restricted_mean_survival_time

from medfed.applications.statistics import Statistics, in_memory, question
from medfed.data.table import StudyTable
from medfed.errors import FederationError, MappingError
from medfed.study import study_from_dict

Frames = dict[str, pd.DataFrame]
SITES = {"north": 400, "south": 300, "east": 80, "west": 6}


def number(low: float, high: float, role: str = "covariate", **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "number", "role": role, "unit": "1", "range": [low, high], **more}


def code(*levels: str, role: str = "covariate", **more: Any) -> dict[str, Any]:
    return {"meaning": "m", "type": "code", "role": role, "codes": {level: level for level in levels}, **more}


CODES = {
    "death": code("no", "yes", role="outcome", event="yes"),
    "arm": code("old", "new", role="arm"),
    "sex": code("f", "m"),
}
FOLLOW_UP = {"months": number(0, 120, "time", interval=1) | {"unit": "month"}}
AGE = {"age": number(18, 100)}


def frames() -> Frames:
    """Four hospitals, one of six patients: a death or the end of follow-up after some months."""
    found = {}
    for seed, (site, count) in enumerate(SITES.items()):
        rng = np.random.default_rng(seed)
        frame = pd.DataFrame({"arm": rng.choice(["old", "new"], count), "sex": rng.choice(["f", "m"], count)})
        frame["age"] = rng.normal(55 + seed, 11, count).clip(20, 95).round()
        hazard = np.exp(-3.3 + 0.5 * (frame["arm"] == "new") + 0.02 * (frame["age"] - 55))
        death, end = rng.exponential(1 / hazard), rng.uniform(5, 110, count)
        frame["months"] = np.minimum(death, end).clip(0.1, 119).round(1)
        found[site] = frame.assign(death=np.where(death <= end, "yes", "no"))
    return found


def ask(variables: dict[str, Any], tables: Frames | None = None, sums: str = "strongest") -> Statistics:
    study = study_from_dict(
        {
            "medfed": 1, "name": "shapes", "title": "t", "question": "q", "variables": variables,
            "task": {"kind": "survival" if "months" in variables else "association"},
            "method": {"use": "medfed:medfed.methods.table_one.TableOne"}, "sites": {"invited": list(tables or SITES), "minimum": 2},
            "privacy": {"sums": sums, "minimum_cell": 10},
        }
    )  # fmt: skip
    return in_memory(tables or frames(), study)


def pooled() -> pd.DataFrame:
    return pd.concat(frames().values(), ignore_index=True).assign(event=lambda frame: (frame["death"] == "yes") * 1)


def test_a_study_of_codes_alone_has_models_tables_and_tests() -> None:
    """Under secure sums the count of units looked for the numbers of a study that has none."""
    rows, hospitals = pooled(), ask(CODES)
    fit = hospitals.glm("death ~ arm + sex")
    oracle = smf.glm(
        "event ~ C(arm, Treatment('old')) + sex", rows, family=sm.families.Binomial()
    ).fit(tol=1e-14)  # fmt: skip
    assert np.abs((fit.params.to_numpy() - oracle.params.to_numpy()) / oracle.bse.to_numpy()).max() < 1e-8
    table = hospitals.table1().to_frame().set_index(["variable", "level"])
    assert table.loc[("sex", "m"), "n (new)"] == ((rows["sex"] == "m") & (rows["arm"] == "new")).sum()
    assert set(hospitals.compare().to_frame()["variable"]) == {"death", "sex"}
    described = hospitals.describe()
    assert "quantile" not in described.summary()
    assert "Patients  786" in described.summary()


def test_a_hazard_ratio_of_the_arm_alone() -> None:
    fit = ask(CODES | FOLLOW_UP | AGE).cox("arm")
    rows = pooled()
    model = sm.PHReg(
        rows["months"], (rows["arm"] == "new").to_numpy(float)[:, None], rows["event"], ties="efron",
        strata=pd.factorize(pd.Series(np.repeat(list(SITES), list(SITES.values()))))[0],
    )  # fmt: skip
    oracle = model.fit(disp=0)
    assert abs(fit.to_frame()["coef"].iloc[0] - oracle.params[0]) / oracle.bse[0] < 1e-8


def test_a_formula_of_some_covariates_leaves_the_patients_as_they_are() -> None:
    """Those who lacked another covariate came back with it: other patients than in Table 1, and a refusal for their number."""
    study = ask({"treatment" if name == "arm" else name: v for name, v in (CODES | FOLLOW_UP | AGE).items()}).study
    asked = question(study, "cox", {"formula": "sex"})
    assert list(asked.variables) == list(study.variables)
    assert {name: variable.missing for name, variable in asked.variables.items()} == dict.fromkeys(
        asked.variables, "drop"
    )
    assert [column.name for column in asked.design.columns] == ["intercept", "sex=m"]
    assert question(study, "cox", {"formula": "treatment + sex"}).variables["treatment"].role == "arm"
    named = question(ask(CODES | FOLLOW_UP | AGE).study, "cox", {"formula": "sex"})
    assert (named.variables["arm"].role, named.arm) == ("cohort", None)
    assert [column.name for column in named.design.columns] == ["intercept", "sex=m"]
    table = StudyTable.from_columns(named, {each: frames()["north"][each].to_numpy() for each in named.variables})
    assert np.bincount(table.on("all").arrays("arm")[0]).sum() == 400, "it is read as it is stored"


@pytest.mark.parametrize("name", ["arm", "treatment"])
def test_the_arm_stays_a_condition_of_a_model_without_it(name: str) -> None:
    """Whatever the arm is called. Tables in memory may lack no value of it; sites leave such rows out when they build."""
    tables = {site: frame.rename(columns={"arm": name}) for site, frame in frames().items()}
    variables = {name if each == "arm" else each: v for each, v in (CODES | FOLLOW_UP | AGE).items()}
    fit = ask(variables, tables).cox("sex")
    rows = pooled()
    model = sm.PHReg(
        rows["months"], (rows["sex"] == "m").to_numpy(float)[:, None], rows["event"], ties="efron",
        strata=pd.factorize(pd.Series(np.repeat(list(SITES), list(SITES.values()))))[0],
    )  # fmt: skip
    oracle = model.fit(disp=0)
    assert abs(fit.to_frame()["coef"].iloc[0] - oracle.params[0]) / oracle.bse[0] < 1e-8
    lacking = {site: frame.assign(**{name: [None, *frame[name][1:]]}) for site, frame in tables.items()}
    for formula in ("sex", f"{name} + sex"):
        with pytest.raises(MappingError, match=f"variable '{name}': 1 of"):
            ask(variables, lacking).cox(formula)


def test_a_study_with_follow_up_has_a_table_one_a_description_and_models() -> None:
    """It was refused with the advice to write `task: {kind: survival}`, which stood there."""
    hospitals, rows = ask(CODES | FOLLOW_UP | AGE), pooled()
    table = hospitals.table1().to_frame().set_index(["variable", "level"])
    assert table.loc[("age", ""), "mean (new)"] == pytest.approx(rows[rows["arm"] == "new"]["age"].mean(), abs=1e-9)
    assert table.loc[("death", "yes"), "n (old)"] == ((rows["death"] == "yes") & (rows["arm"] == "old")).sum()
    assert hospitals.describe().to_frame().loc["age", "known"] == 786
    assert hospitals.glm("death ~ arm").values["patients"] == 786


@pytest.mark.parametrize("role", ["cohort", "offset", "weight"])
def test_a_number_whose_few_values_no_site_judges_is_not_described(role: str) -> None:
    """The sum of a number of two values is a count: of a covariate sites judge it, of a number with another role they did not."""
    low = 1.0 if role == "weight" else 0.0
    tables = {
        site: frame.assign(rare=np.where(np.arange(len(frame)) < 2, low + 1.0, low)) for site, frame in frames().items()
    }
    hospitals = ask(CODES | AGE | {"rare": number(low, low + 1.0, role)}, tables)
    assert list(hospitals.describe().to_frame().index) == ["age"]
    for found in (hospitals.table1(), hospitals.compare()):
        assert "rare" not in set(found.to_frame()["variable"])
    with pytest.raises(FederationError, match="a cell of 'rare' has fewer patients|'rare' takes one or two values"):
        ask(CODES | AGE | {"rare": number(low, low + 1.0)}, tables).describe()


def test_pairs_of_codes_that_were_asked_for_are_printed() -> None:
    described, rows = ask(CODES | AGE).describe(cross_tables=True), pooled()
    counted = pd.crosstab(rows["arm"], rows["sex"])
    text = described.summary()
    assert "arm × sex" in text
    line = next(line for line in text.partition("arm × sex")[2].splitlines() if line.startswith("new"))
    assert line.split()[1:] == [str(counted.loc["new", "f"]), str(counted.loc["new", "m"])]
    assert "×" not in ask(CODES | AGE).describe().summary()


def test_a_median_on_merged_cells_is_told_as_the_range_that_holds_it() -> None:
    """It was the end of its cell, with an interval of no width that held neither the median nor its limits."""
    curves, rows = ask(CODES | FOLLOW_UP | AGE).km(), pooled()
    oracle = KaplanMeierFitter().fit(rows["months"], rows["event"])
    median, limits = curves.median_range()
    assert median[0] <= np.ceil(oracle.median_survival_time_) <= median[1]
    assert median[0] < median[1] == curves.median().value
    true = median_survival_times(oracle.confidence_interval_).to_numpy().ravel()
    assert limits[0] <= np.ceil(true[0])
    assert np.ceil(true[1]) <= limits[1]
    mean, around = curves.restricted_mean_range()
    assert mean[0] <= restricted_mean_survival_time(oracle, t=120) <= mean[1] == curves.restricted_mean().value
    assert around[0] < mean[0]
    assert around[1] > mean[1]
    assert f"{median[0]:.1f} to {median[1]:.1f}" in curves.summary()
    assert f"{median[0]:.1f} 至 {median[1]:.1f}" in curves.summary("zh")


@pytest.mark.parametrize("family", ["gaussian", "gamma"])
def test_an_outcome_that_follows_from_the_columns_is_told(family: str) -> None:
    score = {"score": number(0.001, 50, "outcome")}
    tables = {site: frame.assign(score=np.exp(frame["age"] / 40)) for site, frame in frames().items()}
    if family == "gaussian":
        tables = {site: frame.assign(score=frame["age"] / 10) for site, frame in frames().items()}
    with pytest.raises(FederationError, match="the columns give the outcome of every patient without error"):
        ask({"arm": CODES["arm"]} | AGE | score, tables).glm("score ~ age", family=family)


def test_a_deviation_that_a_wide_range_hides_is_left_out() -> None:
    """Sums are rounded on the declared range: of a thousand millionth of it nothing is left, and it was printed all the same."""
    for widest, told in ((1e4, True), (1e12, False)):
        hospitals = ask(CODES | {"age": number(0, widest)})
        found = hospitals.describe().to_frame().loc["age", "deviation"]
        assert found == (pytest.approx(pooled()["age"].std(), rel=1e-6) if told else pytest.approx(np.nan, nan_ok=True))
        assert np.isfinite(hospitals.table1().to_frame().set_index("variable").loc["age", "smd (new)"]) == told
        tests = set(hospitals.compare().to_frame().query("variable == 'age'")["test"])
        assert ("t" in tests) == told


def test_a_penalised_fit_has_no_aic() -> None:
    hospitals = ask(CODES | AGE)
    assert "AIC" in hospitals.glm("death ~ arm").summary()
    assert "AIC" not in hospitals.glm("death ~ arm", l1=1.0).summary()


def weighted(value: float, ordinary: float, role: str, count: int) -> Statistics:
    """A number of this role that ``count`` patients of each of two hospitals have, and all others the ordinary one."""
    tables = {
        site: frame.assign(
            extra=np.where(np.arange(len(frame)) < count * (site in ("north", "south")), value, ordinary)
        )
        for site, frame in frames().items()
    }
    return ask(CODES | AGE | {"extra": number(0.0 if role == "offset" else 0.1, 20, role)}, tables)


@pytest.mark.parametrize("count", [2, 100])
@pytest.mark.parametrize(
    ("role", "value", "ordinary", "settings"),
    [
        ("weight", 2.0, 1.0, {"formula": "death ~ age", "weights": "frequency"}),
        ("offset", 1.0, 0.0, {"formula": "death ~ age + offset(extra)"}),
    ],
)
def test_weights_and_offsets_of_two_values_are_no_way_round_the_minimum(
    role: str, value: float, ordinary: float, settings: dict[str, Any], count: int
) -> None:
    """The sum of the weights less the rows would be how many weigh 2."""
    with pytest.raises(
        FederationError,
        match="'extra' takes one or two values for nearly everybody|a cell of 'extra' has fewer patients",
    ):
        weighted(value, ordinary, role, count).glm(**settings)


def test_weights_of_many_values_are_as_good_as_ever() -> None:
    rng = np.random.default_rng(3)
    tables = {
        site: frame.assign(extra=rng.integers(1, 5, len(frame)).astype(float)) for site, frame in frames().items()
    }
    fit = ask(CODES | AGE | {"extra": number(0.1, 20, "weight")}, tables).glm("death ~ age", weights="frequency")
    pooled = pd.concat(tables.values(), ignore_index=True)
    pooled = pooled.loc[pooled.index.repeat(pooled["extra"].astype(int))]
    theirs = smf.logit("y ~ age", pooled.assign(y=(pooled["death"] == "yes") * 1.0)).fit(disp=False)
    assert np.abs(fit.params.to_numpy() - theirs.params.to_numpy()).max() < 1e-8


@pytest.mark.parametrize("outcome", ["death", "event"])
def test_an_event_after_the_horizon_is_none_in_any_question(outcome: str) -> None:
    """Else deaths of Table 1 less those of the curve would be the few late ones."""
    tables = {site: frame.rename(columns={"death": outcome}) for site, frame in frames().items()}
    pooled = pd.concat(tables.values())
    variables = {outcome: CODES["death"], "arm": CODES["arm"], "sex": CODES["sex"]} | AGE
    variables |= {"months": FOLLOW_UP["months"] | {"horizon": 60}}
    asked = ask(variables, tables)
    late = int(((pooled[outcome] == "yes") & (pooled["months"] > 60)).sum())
    assert late > 0
    events = int((pooled[outcome] == "yes").sum()) - late
    levels = asked.describe().levels()
    assert levels.loc[(levels["variable"] == outcome) & (levels["code"] == "yes"), "patients"].tolist() == [events]
    assert asked.km().curve().events.sum() == events
    assert asked.cox("age").values["events"] == events


@pytest.mark.parametrize("sums", ["strongest", "plain"])
def test_follow_up_of_two_times_is_no_way_round_the_minimum(sums: str) -> None:
    """The sum of follow-up would be how many were followed for longer."""
    tables = {
        site: frame.assign(months=np.where(np.arange(len(frame)) < 2 * (site in ("north", "south")), 24.0, 12.0))
        for site, frame in frames().items()
        if sums == "strongest" or len(frame) > 50
    }
    for months, refused in (
        (tables, True),
        ({s: f.assign(months=12.0 + np.arange(len(f)) % 7) for s, f in tables.items()}, False),
    ):
        asked = ask(CODES | AGE | FOLLOW_UP, months, sums=sums)
        if refused:
            with pytest.raises(
                FederationError, match="'time' takes one or two values for nearly everybody|under the minimum cell"
            ):
                asked.cox("age")
        else:
            assert asked.cox("age").values["events"] > 100
