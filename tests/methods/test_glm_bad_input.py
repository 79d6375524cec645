"""What a generalised linear model can't be fitted to: one sentence that says what is wrong and what to do."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from medfed.data.table import StudyTable
from medfed.errors import FederationError, MedfedError, PolicyViolation, StudyError
from medfed.federation.here import Here
from medfed.federation.here import fit as fit_here
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.methods.glm_result import GlmFit

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, code, dealt, number, run, study_of

CAREFUL = Policy(values_per_patient=GENEROUS)  # what may be seen of a site stays as it is: ten patients at least


@pytest.fixture
def patients() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    n = 1200
    frame = pd.DataFrame({"age": rng.uniform(20, 90, n), "dose": rng.uniform(0, 5, n)})
    frame["arm"] = rng.choice(["old", "new"], n)
    frame["stage"] = rng.choice(["i", "ii", "iii"], n)
    risk = 1 / (1 + np.exp(2 - 0.02 * frame["age"] - 0.3 * (frame["arm"] == "new")))
    frame["event"] = np.where(rng.random(n) < risk, "yes", "no")
    frame["count"] = rng.poisson(2.0, n).astype(float)
    return frame


VARIABLES = {
    "event": code("no", "yes", role="outcome", event="yes"),
    "arm": code("old", "new", role="arm", reference="old"),
    "stage": code("i", "ii", "iii"),
    "age": number(0, 120),
    "dose": number(-100, 100),
}


def fit(
    folder: Path, frame: pd.DataFrame, formula: str, *, variables: dict[str, Any] | None = None, sites: int = 2,
    policy: Policy | None = None, minimum_cell: int = 1, changes: dict[str, Any] | None = None, **settings: Any,
) -> GlmFit:  # fmt: skip
    parts = dealt(frame, sites=sites)
    declared = study_of(
        VARIABLES | (variables or {}), "glm.Glm", {"formula": formula, **settings}, list(parts),
        **({"privacy": {"minimum_cell": minimum_cell}} | (changes or {})),
    )  # fmt: skip
    return GlmFit(run(folder, declared, parts, **({"policy": policy} if policy else {})))


def refused(error: type[MedfedError], folder: Path, *arguments: Any, **settings: Any) -> str:
    with pytest.raises(error) as told:
        fit(folder, *arguments, **settings)
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


def test_perfect_separation_names_the_column(tmp_path: Path, patients: pd.DataFrame) -> None:
    separated = patients.assign(dose=(patients["event"] == "yes") * 2.0 + np.linspace(0, 0.5, len(patients)))
    told = refused(FederationError, tmp_path, separated, "~ age + dose")
    assert "the fit runs away: 'dose' separates the outcome perfectly" in told
    assert "set an l2 penalty" in told
    # Sites that show ten patients at least hold back what is too steep or rests on fewer; the reason is still the separation.
    told = refused(FederationError, tmp_path / "careful", separated, "~ age + dose", policy=CAREFUL)
    assert "'dose'" in told
    assert "separates the outcome" in told
    assert fit(tmp_path / "ridge", separated, "~ age + dose", l2=1.0).params["dose"] > 1


def test_a_level_without_an_event_is_separation(tmp_path: Path, patients: pd.DataFrame) -> None:
    frame = patients.assign(event=np.where(patients["stage"] == "iii", "no", patients["event"]))
    assert "'stage=iii' separates the outcome" in refused(FederationError, tmp_path, frame, "~ stage + age")


def test_collinear_columns_are_named(tmp_path: Path, patients: pd.DataFrame) -> None:
    frame = patients.assign(dose=patients["age"] * 0.5 - 10)
    told = refused(FederationError, tmp_path, frame, "~ arm + age + dose")
    assert "'age'" in told and "'dose'" in told and "'arm=new'" not in told  # noqa: PT018
    assert "collinear" in told


def test_a_column_that_never_varies_is_named(tmp_path: Path, patients: pd.DataFrame) -> None:
    told = refused(FederationError, tmp_path, patients.assign(dose=3.0), "~ age + dose")
    assert "'dose' has the same value for every patient" in told


def test_a_category_at_one_site_only_is_fitted_as_in_the_pooled_rows(tmp_path: Path, patients: pd.DataFrame) -> None:
    parts = dealt(patients, sites=3)
    parts = {
        site: part.assign(stage=np.where((part["stage"] == "iii") & (site != "a"), "ii", part["stage"]))
        for site, part in parts.items()
    }
    study = study_of(VARIABLES, "glm.Glm", {"formula": "~ stage + age"}, list(parts))
    found = GlmFit(run(tmp_path, study, parts))
    frame = pd.concat(parts.values()).assign(y=lambda f: (f["event"] == "yes") * 1.0)
    pooled = smf.glm("y ~ stage + age", frame, family=sm.families.Binomial()).fit(tol=1e-14)
    assert np.abs((found.params.to_numpy() - pooled.params.to_numpy()) / pooled.bse.to_numpy()).max() < 1e-8


def test_a_category_that_nobody_has_is_named(tmp_path: Path, patients: pd.DataFrame) -> None:
    frame = patients.assign(stage=np.where(patients["stage"] == "iii", "ii", patients["stage"]))
    assert "no patient who was counted has 'stage=iii'" in refused(FederationError, tmp_path, frame, "~ stage")


def test_no_convergence_says_the_last_change(tmp_path: Path, patients: pd.DataFrame) -> None:
    told = refused(FederationError, tmp_path, patients, "~ age + arm", most_rounds=2)
    assert "no convergence in 2 rounds (last change" in told


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan])
def test_a_weight_that_is_not_above_0_is_refused(tmp_path: Path, patients: pd.DataFrame, weight: float) -> None:
    frame = patients.assign(w=1.0)
    frame.loc[7, "w"] = weight
    weighted = {"w": number(0.5, 2.0, "weight")}
    if np.isnan(weight):
        with pytest.raises(MedfedError, match="are missing"):
            fit(tmp_path, frame, "~ age", variables=weighted)
        return
    told = refused(FederationError, tmp_path, frame, "~ age", variables=weighted)
    assert "a weight (w) is 0, negative or missing at a site" in told


def test_an_outcome_that_the_family_can_not_have_is_refused(tmp_path: Path, patients: pd.DataFrame) -> None:
    counts = {"event": code("no", "yes"), "count": number(-5, 100, "outcome")}
    frame = patients.assign(count=np.where(np.arange(len(patients)) == 3, -1.0, patients["count"]))
    told = refused(FederationError, tmp_path, frame, "~ age", variables=counts, family="poisson")
    assert "the outcome (count) has a value that this family can't have" in told
    frame = patients.assign(event="no")
    assert "every patient has the same outcome" in refused(FederationError, tmp_path / "same", frame, "~ age")
    told = refused(StudyError, tmp_path / "family", patients, "~ age", family="poisson")
    assert "family 'poisson' needs an outcome of type number" in told


def test_an_offset_of_the_logarithm_of_0_is_refused(tmp_path: Path, patients: pd.DataFrame) -> None:
    counts = {"event": code("no", "yes"), "count": number(0, 100, "outcome"), "years": number(0.1, 9, "offset")}
    frame = patients.assign(years=np.where(np.arange(len(patients)) == 3, 0.0, 1.0))
    told = refused(FederationError, tmp_path, frame, "~ age + offset(log(years))", variables=counts, family="poisson")
    assert "an offset is not a finite number" in told


def test_an_interaction_that_makes_a_cell_of_one_patient_is_refused(tmp_path: Path, patients: pd.DataFrame) -> None:
    frame = patients.assign(stage=np.where(patients["arm"] == "new", "i", patients["stage"]))
    new = frame.index[frame["arm"] == "new"]
    frame.loc[new[:200], "stage"] = "ii"
    frame.loc[new[200], "stage"] = "iii"
    told = refused(FederationError, tmp_path / "site", frame, "~ arm*stage", policy=CAREFUL)
    assert "a count of patients that the sums would show is under the minimum cell" in told
    # Where a site's own sums are not seen, the total is judged.
    study = study_of(VARIABLES, "glm.Glm", {"formula": "~ arm*stage"}, ["a"], privacy={"minimum_cell": 10})
    table = StudyTable.from_columns(study, {name: frame[name].to_numpy() for name in study.variables})
    with pytest.raises(
        FederationError, match="'arm=new:stage=iii' makes a cell of fewer than 10 patients with or without"
    ):
        fit_here(find_method(study), Here(table.on, study))


def test_a_cell_of_three_factors_is_judged_at_the_site(tmp_path: Path, patients: pd.DataFrame) -> None:
    """The gate judges pairs of codes; a cell of arm x stage x event is seen in the sums of an interaction."""
    few = patients.assign(
        event=np.where((patients["arm"] == "new") & (patients["stage"] == "ii"), "no", patients["event"])
    )
    chosen = few.index[(few["arm"] == "new") & (few["stage"] == "ii")][::30]
    few.loc[chosen, "event"] = "yes"
    assert fit(tmp_path / "main", few, "~ arm + stage", policy=CAREFUL).values["patients"] == 1200
    told = refused(FederationError, tmp_path, few, "~ arm*stage", policy=CAREFUL)
    assert "rest on fewer patients than may be seen" in told


def test_fewer_patients_than_coefficients_is_said_first(tmp_path: Path, patients: pd.DataFrame) -> None:
    told = refused(FederationError, tmp_path, patients.iloc[:8], "~ arm*stage + age*dose")
    assert "8 patients can't carry 9 coefficients" in told


def test_totals_that_overflow_the_ring_are_refused_before_anything_is_asked(
    tmp_path: Path, patients: pd.DataFrame
) -> None:
    told = refused(PolicyViolation, tmp_path, patients, "~ age", changes={"limits": {"rows_per_site": 1_000_000_000}})
    assert "overflow the ring of exact sums; lower the limit, rows_per_site or the number of sites" in told


def test_counts_without_overdispersion_are_told_to_be_poisson(tmp_path: Path, patients: pd.DataFrame) -> None:
    counts = {"event": code("no", "yes"), "count": number(0, 100, "outcome")}
    frame = patients.assign(count=np.tile([1.0, 2.0], 600))
    told = refused(FederationError, tmp_path, frame, "~ age", variables=counts, family="negative_binomial")
    assert "not overdispersed" in told


def test_a_formula_with_a_slip_is_told_before_the_run(tmp_path: Path, patients: pd.DataFrame) -> None:
    assert "did you mean 'age'" in refused(StudyError, tmp_path, patients, "event ~ agee")
