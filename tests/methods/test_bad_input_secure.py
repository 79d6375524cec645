"""What a model can't be fitted to, where only totals are seen: four sites, default policies, a minimum of ten in every cell.

One sentence each, which says what is wrong and what to do; ``test_glm_bad_input`` is the same of plain sums and two sites.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf

from medfed.errors import FederationError, MedfedError, PolicyViolation
from medfed.federation.policy import Policy
from medfed.federation.units import Layout, interactions_of
from medfed.methods.describe import Description
from medfed.methods.glm_result import GlmFit

sys.path.insert(0, str(Path(__file__).parent))
from statistics_consortium import GENEROUS, code, dealt, number, run, study_of

VARIABLES = {
    "event": code("no", "yes", role="outcome", event="yes"),
    "arm": code("old", "new", role="arm", reference="old"),
    "stage": code("i", "ii", "iii"),
    "age": number(0, 120),
    "dose": number(-100, 100),
}


@pytest.fixture
def patients() -> pd.DataFrame:
    rng = np.random.default_rng(12)
    n = 1000
    frame = pd.DataFrame({"age": rng.uniform(20, 90, n), "dose": rng.uniform(0, 5, n)})
    frame["arm"] = rng.choice(["old", "new"], n)
    frame["stage"] = rng.choice(["i", "ii", "iii"], n)
    risk = 1 / (1 + np.exp(2 - 0.02 * frame["age"] - 0.3 * (frame["arm"] == "new")))
    frame["event"] = np.where(rng.random(n) < risk, "yes", "no")
    return frame


def uneven(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Four sites; the last one has three patients."""
    parts = dealt(frame.iloc[:-3], sites=3)
    return {**parts, "small": frame.iloc[-3:].reset_index(drop=True)}


def asked(
    folder: Path, parts: dict[str, pd.DataFrame], formula: str, *, method: str = "glm.Glm",
    variables: dict[str, Any] | None = None, changes: dict[str, Any] | None = None, policy: Policy | None = None,
    **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    study = study_of(
        VARIABLES | (variables or {}), method, {**({"formula": formula} if formula else {}), **settings}, list(parts),
        **({"privacy": {"minimum_cell": 10}} | (changes or {})),
    )  # fmt: skip
    return run(folder, study, parts, policy or Policy())


def refused(
    folder: Path, frame: pd.DataFrame, formula: str, error: type[MedfedError] = FederationError, **more: Any
) -> str:
    with pytest.raises(error) as told:
        asked(folder, uneven(frame), formula, **more)
    assert len(str(told.value).splitlines()) == 1
    return str(told.value)


def test_perfect_separation_names_the_column(tmp_path: Path, patients: pd.DataFrame) -> None:
    separated = patients.assign(dose=(patients["event"] == "yes") * 2.0 + np.linspace(0, 0.5, len(patients)))
    told = refused(tmp_path, separated, "~ age + dose")
    assert "'dose' makes the model so steep" in told, "which sites refuse before the fit has run away"
    assert "separates the outcome" in told


def test_collinear_columns_are_named(tmp_path: Path, patients: pd.DataFrame) -> None:
    told = refused(tmp_path, patients.assign(dose=patients["age"] * 0.5 - 10), "~ arm + age + dose")
    assert "'age'" in told
    assert "'dose'" in told
    assert "collinear" in told


def test_a_category_at_one_site_only_is_fitted_as_in_the_pooled_rows(tmp_path: Path, patients: pd.DataFrame) -> None:
    parts = uneven(patients)
    for site, part in parts.items():
        if site != "a":
            parts[site] = part.assign(stage=part["stage"].replace("iii", "ii"))
    found = GlmFit(asked(tmp_path, parts, "~ stage + age"))
    assert list(found.values["sites"]) == ["a", "b", "c", "small"]
    frame = pd.concat(parts.values()).assign(y=lambda f: (f["event"] == "yes") * 1.0)
    pooled = smf.glm("y ~ stage + age", frame, family=sm.families.Binomial()).fit(tol=1e-14)
    assert np.abs((found.params.to_numpy() - pooled.params.to_numpy()) / pooled.bse.to_numpy()).max() < 1e-8


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_a_weight_that_is_not_above_0_is_refused(tmp_path: Path, patients: pd.DataFrame, weight: float) -> None:
    # Weights of one or two values are counts, and are held back before.
    weights = np.random.default_rng(1).uniform(0.6, 1.9, len(patients))
    frame = patients.assign(w=np.where(np.arange(len(patients)) == len(patients) - 1, weight, weights))
    told = refused(tmp_path, frame, "~ age", variables={"w": number(0.5, 2.0, "weight")})
    assert "a weight (w) is 0, negative or missing at a site" in told


def interacting(patients: pd.DataFrame, events: int, others: int) -> pd.DataFrame:
    """A cell of new x iii with so many events, and others; every pair of two variables has many."""
    cell = patients.index[(patients["arm"] == "new") & (patients["stage"] == "iii")]
    frame = patients.copy()
    frame.loc[cell[events + others :], "stage"] = "ii"
    frame.loc[cell[:events], "event"] = "yes"
    frame.loc[cell[events : events + others], "event"] = "no"
    return frame


@pytest.mark.parametrize(("events", "others"), [(0, 1), (4, 40), (40, 0)])
def test_an_interaction_that_makes_a_small_cell_is_refused_by_name(
    tmp_path: Path, patients: pd.DataFrame, events: int, others: int
) -> None:
    """Of three variables: the cell of arm x stage by outcome; all cells of two of them may be seen but where one is 1."""
    frame = interacting(patients, events, others)
    told = refused(tmp_path, frame, "~ arm*stage + age")
    assert (
        "a cell of 'stage' by 'arm' has" if events + others == 1 else "a cell of 'arm' by 'stage' by 'event' has"
    ) in told
    assert "has fewer patients than may be seen (minimum cell 10; each site counts in lots of up to" in told
    if events + others > 30:
        found = asked(tmp_path / "main", uneven(frame), "~ arm + stage + age")
        assert found["patients"] == 1000, "without the interaction nothing shows that cell"


def test_a_full_interaction_is_that_of_statsmodels_though_a_site_has_one_patient_in_its_cell(
    tmp_path: Path, patients: pd.DataFrame
) -> None:
    found = GlmFit(asked(tmp_path, uneven(patients), "~ arm*stage + age"))
    frame = patients.assign(y=(patients["event"] == "yes") * 1.0)
    frame["arm"] = pd.Categorical(frame["arm"], ["old", "new"])
    pooled = smf.glm("y ~ arm*stage + age", frame, family=sm.families.Binomial()).fit(tol=1e-14)
    ours = {
        name.replace("[T.", "=").replace("]", ""): value for name, value in pooled.params.items() if name != "Intercept"
    }
    error = {name.replace("[T.", "=").replace("]", ""): value for name, value in pooled.bse.items()}
    for name, value in ours.items():
        assert abs(found.params[name] - value) < 1e-8 * error[name]


def test_sites_judge_the_cells_of_an_interaction_whoever_asks(patients: pd.DataFrame) -> None:
    """A count of units over all sites, against pandas; no site opens a sum of this study on it."""
    frame = interacting(patients, 4, 40)
    study = study_of(VARIABLES, "glm.Glm", {"formula": "~ arm*stage"}, ["a", "b", "c"], privacy={"minimum_cell": 10})
    from medfed.data.table import StudyTable

    assert interactions_of(study) == (("arm", "stage"),)
    layout = Layout(study, 3)
    table = StudyTable.from_columns(study, {name: frame[name].to_numpy() for name in study.variables})
    counts = layout.count(table.on("all"), np.zeros(table.rows, np.int64))[0]
    joint = counts[-np.prod(layout.shape(layout.interactions[0])) :].reshape(layout.shape(layout.interactions[0]))
    expected = frame.groupby(["arm", "stage", "event"]).size()
    for arm, i in (("old", 0), ("new", 1)):
        for stage, j in (("i", 0), ("ii", 1), ("iii", 2)):
            for event, k in (("no", 0), ("yes", 1)):
                assert joint[i, j, k] == expected.get((arm, stage, event), 0)
    varied = layout.varied(table.on("all"), np.zeros(table.rows, np.int64))
    words = layout.words(counts[None], varied, lot=1, passing=True, showing=True, secret=b"s")
    assert layout.read(words).refuses("train", 10, 10) is not None
    plain = Layout(study_of(VARIABLES, "glm.Glm", {"formula": "~ arm + stage"}, ["a", "b", "c"]), 3)
    counts = plain.count(table.on("all"), np.zeros(table.rows, np.int64))
    words = plain.words(counts, varied, lot=1, passing=True, showing=True, secret=b"s")
    assert plain.read(words).refuses("train", 10, 10) is None


def test_fewer_patients_than_coefficients_is_refused(tmp_path: Path, patients: pd.DataFrame) -> None:
    """By default a release has at most one number a patient, which is reached first; a policy may allow more."""
    rng = np.random.default_rng(4)
    names = [f"x{index}" for index in range(90)]
    few = patients.iloc[:80].assign(event=np.tile(["no", "yes"], 40), arm=np.repeat(["old", "new"], 40), stage="i")
    few = few.assign(**{name: rng.normal(size=80) for name in names})
    wide = {"variables": {name: number(-9, 9) for name in names}}
    told = refused(tmp_path, few, f"~ {' + '.join(names)}", **wide)
    assert "the release has more values for each patient than the policy allows" in told
    told = refused(tmp_path / "more", few, f"~ {' + '.join(names)}", policy=Policy(values_per_patient=GENEROUS), **wide)
    assert "80 patients can't carry 91 coefficients; leave terms out of the formula" in told


def test_totals_that_overflow_the_ring_are_refused_before_anything_is_asked(
    tmp_path: Path, patients: pd.DataFrame
) -> None:
    changes = {"limits": {"rows_per_site": 1_000_000_000}, "privacy": {"minimum_cell": 10}}
    told = refused(tmp_path, patients, "~ age", PolicyViolation, changes=changes)
    assert "overflow the ring of exact sums; lower the limit, rows_per_site or the number of sites" in told


def test_no_convergence_says_the_last_change(tmp_path: Path, patients: pd.DataFrame) -> None:
    told = refused(tmp_path, patients, "~ age + arm", most_rounds=2)
    assert "no convergence in 2 rounds (last change" in told


def test_one_heavy_patient_of_an_arm_holds_an_average_effect_back(tmp_path: Path, patients: pd.DataFrame) -> None:
    """Arms of a small site are not held to the minimum, yet within an arm nobody may stand out."""
    found = asked(tmp_path, uneven(patients), "~ age", method="causal.Causal")
    assert found["patients"] == 1000
    rng = np.random.default_rng(3)
    chance = 1 / (1 + np.exp(-(patients["age"] - 60) / 3))
    steep = patients.assign(arm=np.where(rng.random(len(patients)) < chance, "new", "old"))
    steep.loc[steep.index[0], ["age", "arm"]] = [30.0, "new"]
    told = refused(tmp_path / "steep", steep, "~ age", method="causal.Causal")
    assert "rest on fewer patients than may be seen" in told


def test_patients_of_a_tiny_site_are_counted_where_others_are(tmp_path: Path, patients: pd.DataFrame) -> None:
    """Three patients above 100, where nobody else is: a bin of theirs, or a total less theirs, would show them."""
    parts = uneven(patients)
    parts["small"] = parts["small"].assign(age=[101.0, 104.0, 119.0])
    found = Description(asked(tmp_path, parts, "", method="describe.Describe"))
    bins = found.histogram("age")
    assert bins["patients"].sum() == 1000
    assert ((bins["patients"] == 0) | (bins["patients"] >= 10)).all()
    assert bins.loc[bins["low"] >= 100, "patients"].sum() == 0
    overlap = np.asarray(asked(tmp_path / "effect", parts, "~ age", method="causal.Causal")["overlap"])
    assert overlap.sum() == 1000
    assert ((overlap == 0) | (overlap >= 10)).all()


def test_a_histogram_that_would_show_a_few_is_left_out_and_the_rest_is_told(
    tmp_path: Path, patients: pd.DataFrame
) -> None:
    """Half of the ages are low and half high, and the mean, where a tiny site counts its own, is where nobody is."""
    spread = np.arange(1000) % 4 / 4
    parts = uneven(patients.assign(age=np.where(np.arange(1000) % 2, 20.0 + spread, 110.0 - spread)))
    found = Description(asked(tmp_path, parts, "", method="describe.Describe", quantiles=""))
    assert found.histogram("age")["patients"].isna().all()
    frame = found.to_frame()
    assert frame.loc["age", "mean"] == pytest.approx(65.0, abs=0.5)
    assert "age" in found.summary()


def test_what_makes_too_few_is_named_with_what_to_do(tmp_path: Path, patients: pd.DataFrame) -> None:
    """Nobody is sent to join levels where a few values are missing, a number hardly varies, or there are few patients."""
    mean, lots = (
        {"age": number(0, 120, missing="mean")},
        "(minimum cell 10; each site counts in lots of up to 4, rounded down)",
    )
    few = patients.copy()
    few.loc[few.index[:6], "age"] = np.nan
    told = refused(tmp_path / "missing", few, "~ age", variables=mean)
    assert f"the patients with missing values of 'age' are fewer than may be seen, though not none {lots}" in told
    assert "`missing: drop`" in told
    by_arm = patients.copy()
    by_arm.loc[by_arm.index[by_arm["arm"] == "new"][:60], "age"] = np.nan
    by_arm.loc[by_arm.index[by_arm["arm"] == "old"][:2], "age"] = np.nan
    told = refused(tmp_path / "by", by_arm, "~ age + arm", variables=mean)
    assert (
        "missing values of 'age' are fewer than may be seen, though not none, among those of a level of 'arm'" in told
    )
    constant = patients.assign(dose=5.0)
    told = refused(tmp_path / "constant", constant, "~ age + dose")
    assert f"'dose' takes one or two values for nearly everybody, so that its sums count the few others {lots}" in told
    hardly = constant.copy()
    hardly.loc[hardly.index[:5], "dose"] = [1.0, 2.0, 3.0, 4.0, 6.0]
    assert "'dose' takes one or two values" in refused(tmp_path / "hardly", hardly, "~ age + dose")
    unknown = patients.assign(age=np.nan)
    unknown.loc[unknown.index[:4], "age"] = [50.0, 51.0, 52.0, 53.0]
    told = refused(tmp_path / "known", unknown, "~ dose + age", variables=mean)
    assert "fewer patients than may be seen have a value of 'age'" in told
    told = refused(tmp_path / "patients", patients.iloc[:13], "~ age")
    assert f"the sites have fewer patients in all, or in a part of the study, than may be seen {lots}" in told
    assert "invite more sites" in told
    assert "Join levels" not in told
