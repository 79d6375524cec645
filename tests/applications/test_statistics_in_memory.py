"""Statistics of data frames as a newcomer asks them: names of one's own, the study's path, and frames that do not fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
import statsmodels.formula.api as smf
from typer.testing import CliRunner

from medfed.applications.statistics import ASKED, in_memory, question
from medfed.cli.main import app
from medfed.errors import MappingError, StudyError
from medfed.evaluation.statistics_shown import Model
from medfed.study import load_study

STUDY = Path(__file__).parents[2] / "studies" / "indomethacin" / "study.yaml"
FORMULA = "pancreatitis ~ arm + age + risk"


def patients(count: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "pancreatitis": rng.choice(["no", "yes"], count, p=[0.7, 0.3]),
            "arm": rng.choice(["placebo", "indomethacin"], count),
            "age": rng.integers(20, 90, count).astype(float),
            "risk": rng.integers(0, 10, count) * 0.5,
        }
    )


@pytest.fixture
def frames() -> dict[str, pd.DataFrame]:
    return {name: patients(count, count) for name, count in (("a", 200), ("b", 150), ("c", 30))}


def pooled_fit(frames: dict[str, pd.DataFrame], formula: str) -> Any:
    rows = pd.concat(frames.values())
    rows = rows.assign(event=(rows["pancreatitis"] == "yes").astype(int))
    right = formula.partition("~")[2].replace("arm", "C(arm, Treatment('placebo'))")
    return smf.glm(f"event ~ {right}", rows, family=sm.families.Binomial()).fit(tol=1e-14)


def test_every_table_is_a_site_whomever_the_study_invites(frames: dict[str, pd.DataFrame]) -> None:
    """The study invites four hospitals by other names: before, tables under names of one's own were left out unsaid."""
    fit = in_memory(frames, STUDY).glm(FORMULA)
    assert fit.values["sites"] == ["a", "b", "c"]
    expected = pooled_fit(frames, FORMULA)
    assert np.abs((fit.params.to_numpy() - expected.params.to_numpy()) / expected.bse.to_numpy()).max() < 1e-8
    for names in ("ab", "bc"):
        assert in_memory({name: patients(300, ord(name)) for name in names}, STUDY).glm(FORMULA).values["sites"] == [
            *names
        ]


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda frame: frame.drop(columns="age"), "site 'c': .*'age' is not among the columns"),
        (lambda frame: frame.assign(age="old"), "site 'c', variable 'age': 30 of 30 values are not numbers"),
        (lambda frame: frame.assign(age=500.0), "site 'c', variable 'age': 30 of 30 values lie outside .* 18 to 110"),
        (lambda frame: frame.assign(age=np.nan), "site 'c': .*30 of 30 values are missing"),
        (lambda frame: frame.assign(arm="drug"), "site 'c': .*'drug' is not a code"),
        (lambda frame: frame.iloc[:0], "site 'c': the table has no rows"),
    ],
)
def test_a_frame_that_does_not_fit_is_told_by_site_and_variable(
    frames: dict[str, pd.DataFrame], spoil: Callable[[pd.DataFrame], pd.DataFrame], said: str
) -> None:
    frames["c"] = spoil(frames["c"])
    with pytest.raises(MappingError, match=said):
        in_memory(frames, STUDY).glm(FORMULA)


@pytest.mark.parametrize("names", [[], ["A b!", "b", "c"]])
def test_sites_without_a_name_are_told(names: list[str], frames: dict[str, pd.DataFrame]) -> None:
    with pytest.raises(StudyError, match="invited"):
        in_memory(dict(zip(names, frames.values(), strict=False)), STUDY)


def test_one_quantile_is_a_number_and_some_are_a_list(frames: dict[str, pd.DataFrame]) -> None:
    ask = in_memory(frames, STUDY)
    assert list(ask.describe(quantiles=0.5).to_frame().filter(regex="^q..$")) == ["q50"]
    several = ask.describe(quantiles=[0.1, 0.9])  # type: ignore[arg-type]
    assert list(several.to_frame().filter(regex="^q..$")) == ["q10", "q90"]


def test_an_effect_takes_its_formula_as_a_model_does(frames: dict[str, pd.DataFrame]) -> None:
    ask = in_memory(frames, STUDY)
    one, other = (found.to_frame() for found in (ask.effect(FORMULA), ask.effect(formula=FORMULA)))
    pd.testing.assert_frame_equal(one, other)


def test_tests_stand_in_the_order_of_the_formula_also_when_read_from_a_run(frames: dict[str, pd.DataFrame]) -> None:
    fit = in_memory(frames, STUDY).glm("pancreatitis ~ risk + arm + age")
    values = dict(fit.values)
    values["tests"] = json.loads(json.dumps(values["tests"], sort_keys=True))
    assert list(Model(values).tests()["term"]) == ["risk", "arm", "age", "all terms"]
    pd.testing.assert_frame_equal(Model(values).tests(), fit.tests())


def test_all_kinds_of_errors_that_were_asked_for_are_printed(frames: dict[str, pd.DataFrame]) -> None:
    fit = in_memory(frames, STUDY).glm(FORMULA, covariance="all")
    text = fit.summary()
    for kind in ("model", "HC0", "site"):
        assert f"{np.sqrt(fit.cov_params(kind).loc['arm=indomethacin', 'arm=indomethacin']):.4f}" in text
    assert "clustered by site" in text
    assert "截距" in fit.summary("zh")
    assert "所有项" in fit.summary("zh")


def test_a_small_coefficient_is_printed_with_the_figures_that_its_error_has(frames: dict[str, pd.DataFrame]) -> None:
    fit = in_memory(frames, STUDY).glm("pancreatitis ~ I(age**2)")
    line = next(line for line in fit.summary().splitlines() if line.startswith("I(age**2)"))
    estimate, error = (float(word.replace("−", "-")) for word in line.split()[1:3])
    assert error == pytest.approx(fit.bse["I(age**2)"], rel=0.05)
    assert estimate == pytest.approx(fit.params["I(age**2)"], abs=0.05 * error)


def test_a_kind_that_is_not_there_is_answered_with_those_that_help_names() -> None:
    helped = CliRunner().invoke(app, ["stats", "--help"]).output
    assert all(f" {kind} " in helped for kind in ASKED)
    with pytest.raises(StudyError, match="choose " + ", ".join(ASKED)):
        question(load_study(STUDY), "lm", {})
