"""One baseline hazard over all sites: equal to the pooled fit with times moved to the merged grid. And the grid itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.duration.hazard_regression import PHReg
from survival_data import (
    DIALYSIS,
    EVENT,
    LUNG,
    OPEN,
    Consortium,
    code,
    consortium,
    dialysis_frame,
    fixed_keys,
    lung_frame,
    number,
    run,
)

from medfed.canonical import pack
from medfed.engines.what_if import what_if
from medfed.federation.call import Answer, Call, Own
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.methods.cox_cells import cell_risks
from medfed.methods.cox_fit import CoxFit
from medfed.methods.time_grid import interval_of, merged_cuts, on_cuts
from medfed.methods.unstratified_cox import UnstratifiedCox

U = "unstratified_cox.UnstratifiedCox"


@pytest.fixture(scope="module")
def dialysis() -> pd.DataFrame:
    return dialysis_frame()


@pytest.fixture(scope="module")
def lung() -> pd.DataFrame:
    return lung_frame()


@pytest.fixture(scope="module")
def on_events(tmp_path_factory: pytest.TempPathFactory, dialysis: pd.DataFrame) -> tuple[Consortium, dict[str, Any]]:
    """The 67 centres on the grid whose cells have ten events: the data and one run's result."""
    data = consortium(dialysis, DIALYSIS, U, {"cells": "events"})
    return data, run(tmp_path_factory.mktemp("events"), data)


def moved(data: Consortium, ends: np.ndarray) -> np.ndarray:
    """Times moved to the end of their cell."""
    return np.asarray(ends)[np.searchsorted(ends, data.time - 1e-9)]


def pooled(data: Consortium, times: np.ndarray, ties: str, rows: Any = slice(None)) -> Any:
    return PHReg(times[rows], data.x[rows], status=data.event[rows], ties=ties).fit(disp=0, tol=1e-14)


def assert_equals(result: dict[str, Any], oracle: Any) -> None:
    errors = np.sqrt(np.diag(result["covariance"]))
    assert np.abs(result["coefficients"] - oracle.params).max() < 1e-9
    assert np.abs(errors - oracle.bse).max() < 1e-9
    assert abs(result["log_likelihood"] - oracle.llf) < 1e-7


@pytest.mark.parametrize(
    ("ties", "cells", "expected"), [("breslow", "events", 33), ("efron", "events", 33), ("breslow", "covariates", 12)]
)
def test_unstratified_cox_equals_statsmodels_on_times_moved_to_the_grid(
    tmp_path: Path, dialysis: pd.DataFrame, ties: str, cells: str, expected: int
) -> None:
    data = consortium(dialysis, DIALYSIS, U, {"ties": ties, "cells": cells})
    result = run(tmp_path, data)
    assert len(result["cells"]["events"]) == expected
    assert min(result["cells"]["events"].min(), result["cells"]["censored"].min()) >= 10
    assert_equals(result, pooled(data, moved(data, result["cells"]["time"]), ties))
    assert result["rounds"] <= 10
    assert result["concordance"]["pairs"] == 134983


def test_what_the_grid_changes_is_measured_in_the_stratified_model(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, U, {"ties": "efron"} | {"cells": "events"})
    result = run(tmp_path, data)
    strata = pd.factorize(data.site)[0]
    fits = [
        PHReg(times, data.x, status=data.event, ties="efron", strata=strata).fit(disp=0, tol=1e-14)
        for times in (moved(data, result["cells"]["time"]), data.time)
    ]
    difference = fits[0].params - fits[1].params
    assert np.abs(result["grid_difference"] - difference).max() < 0.02 * fits[1].bse.max()
    ungrouped = pooled(data, data.time, "efron")
    assert np.abs(result["coefficients"] - ungrouped.params).max() < 2e-3
    assert np.abs((result["coefficients"] - ungrouped.params) / ungrouped.bse).max() < 0.1


def test_a_grid_of_single_intervals_is_the_ungrouped_fit(tmp_path: Path, lung: pd.DataFrame) -> None:
    variables = LUNG | {"time": LUNG["time"] | {"interval": 1}}
    data = consortium(lung, variables, U, {"ties": "efron", "minimum_cell": 1})
    result = run(tmp_path, data)
    assert_equals(result, pooled(data, data.time, "efron"))


def test_proportionality_on_the_grid_equals_r_survival(tmp_path: Path) -> None:
    """cox.zph(coxph(Surv(time, status) ~ age + sex + wt.loss, lung)) of R's survival 3: transform km, 214 patients."""
    lung = pytest.importorskip("lifelines.datasets", reason="lifelines is not installed").load_lung()
    lung = lung.dropna(subset=["wt.loss"]).rename(columns={"wt.loss": "wt_loss", "status": "event"})
    lung["sex"] = np.where(lung["sex"].astype(float) == 1, "male", "female")
    lung["site"] = np.where(np.arange(len(lung)) % 2, "a", "b")
    frame = lung[["time", "event", "age", "sex", "wt_loss", "site"]].astype({"time": float, "age": float})
    variables = {
        "time": LUNG["time"] | {"interval": 1}, "event": EVENT, "age": LUNG["age"], "sex": LUNG["sex"],
        "wt_loss": number(-50, 100, "lb"),
    }  # fmt: skip
    data = consortium(frame, variables, U, {"ties": "efron", "minimum_cell": 1, "transform": "km"})
    tests = run(tmp_path, data)["proportionality"]
    published = {"age": 0.5077, "sex": 2.5489, "wt_loss": 0.0144}
    assert {name: round(test["chi2"], 4) for name, test in tests["variables"].items()} == published
    assert tests["all"]["chi2"] == pytest.approx(3.0051, abs=5e-5)


@pytest.mark.parametrize("after", [0, 6])
def test_lost_centres_leave_the_fit_of_those_who_stay(tmp_path: Path, dialysis: pd.DataFrame, after: int) -> None:
    data = consortium(dialysis, DIALYSIS, U, {"cells": "events"})
    lost = sorted(data.tables)[::4][:12]
    result = run(tmp_path, data, lost, after=after)
    rows = ~np.isin(data.site, lost)
    assert len(result["sites"]) == 55
    oracle = pooled(data, moved(data, result["cells"]["time"]), "breslow", rows)
    assert_equals(result, oracle)
    assert result["events"] == data.event[rows].sum()
    null = PHReg(moved(data, result["cells"]["time"])[rows], data.x[rows], status=data.event[rows], ties="breslow")
    assert result["null_log_likelihood"] == pytest.approx(null.loglike(np.zeros(6)), abs=1e-7)


def test_c_index_over_all_pairs_is_near_the_pooled_one_and_says_how_near(
    on_events: tuple[Consortium, dict[str, Any]],
) -> None:
    utils = pytest.importorskip("lifelines.utils", reason="lifelines is not installed")
    data, result = on_events
    across = result["concordance_across"]
    exact = utils.concordance_index(data.time, -(data.x @ result["coefficients"]), data.event)
    assert abs(across["value"] - exact) < 0.005
    assert abs(across["value"] - exact) < across["largest_error"]
    assert across["pairs_across"] > 40 * across["pairs_within"]
    assert min(across["groups"], across["cells"]) >= 7


def test_baseline_hazard_is_breslows_on_the_grid(on_events: tuple[Consortium, dict[str, Any]]) -> None:
    data, result = on_events
    times = moved(data, result["cells"]["time"])
    reference = np.concatenate([data.x[:, :2].mean(0), np.zeros(4)])
    risk = np.exp((data.x - reference) @ result["coefficients"])
    steps = [(data.event * (times == t)).sum() / risk[times >= t].sum() for t in result["cells"]["time"]]
    assert np.abs(result["baseline"]["cumulative_hazard"] - np.cumsum(steps)).max() < 1e-9
    found = CoxFit(data.study, result)
    patient = found.predict({"num_age": 70.0, "fac_disease": "renal"})
    shift = (70.0 - reference[0]) * result["coefficients"][0] + result["coefficients"][5]
    assert np.abs(patient["survival"] - np.exp(-np.cumsum(steps) * np.exp(shift))).max() < 1e-9


def person_periods(data: Consortium, cuts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One row a patient and cell: whether the event came in it, and the cell's indicator beside the features."""
    cell = np.searchsorted(cuts, data.time - 1e-9)
    rows = np.repeat(np.arange(len(cell)), cell + 1)
    at = np.concatenate([np.arange(last + 1) for last in cell])
    happened = (data.event[rows] > 0) & (at == cell[rows])
    return happened.astype(float), np.concatenate([np.eye(len(cuts))[at], data.x[rows]], axis=1)


def test_discrete_hazards_equal_logistic_regression_of_person_periods(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, "discrete_hazards.DiscreteHazards")
    result = run(tmp_path, data)
    cuts = result["cells"]["cuts"]
    happened, x = person_periods(data, cuts)
    oracle = sm.Logit(happened, x).fit(method="newton", tol=1e-14, disp=0)
    count = len(cuts)
    assert count == 12
    assert np.abs(result["coefficients"] - oracle.params[count:]).max() < 1e-9
    assert np.abs(np.sqrt(np.diag(result["covariance"])) - oracle.bse[count:]).max() < 1e-9
    assert abs(result["log_likelihood"] - oracle.llf) < 1e-7
    null = sm.Logit(happened, x[:, :count]).fit(method="newton", tol=1e-14, disp=0)
    assert abs(result["null_log_likelihood"] - null.llf) < 1e-7
    at_mean = np.concatenate([np.eye(count), np.tile(np.r_[data.x[:, :2].mean(0), np.zeros(4)], (count, 1))], axis=1)
    survival = CoxFit(data.study, result).baseline["survival"]
    assert np.abs(survival - np.cumprod(1 - oracle.predict(at_mean))).max() < 1e-9


def test_discrete_hazards_without_lost_centres_equal_those_of_the_rest(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    data = consortium(dialysis, DIALYSIS, "discrete_hazards.DiscreteHazards")
    lost = sorted(data.tables)[::5]
    result = run(tmp_path, data, lost, after=5)
    rows = ~np.isin(data.site, lost)
    kept = Consortium(data.study, {}, data.frame[rows], data.x[rows])
    happened, x = person_periods(kept, result["cells"]["cuts"])
    oracle = sm.Logit(happened, x).fit(method="newton", tol=1e-14, disp=0)
    assert np.abs(result["coefficients"] - oracle.params[len(result["cells"]["cuts"]) :]).max() < 1e-9
    assert result["patients"] == rows.sum()


# -- the grid


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=40),
    st.integers(2, 15),
    st.booleans(),
)
def test_merged_cells_show_no_small_count_and_lose_nobody(
    counts: list[tuple[int, int]], least: int, may_be_empty: bool
) -> None:
    table = np.array(counts, dtype=float)
    empty = np.array([False, may_be_empty])
    cuts = merged_cuts(table, np.full(2, float(least)), empty)
    if cuts is None:
        total = table.sum(0)
        assert (total < least).any()
        return
    merged = on_cuts(table, cuts)
    assert cuts[-1] == len(table)
    assert (np.diff(cuts, prepend=0) > 0).all()
    assert (merged.sum(0) == table.sum(0)).all()
    assert ((merged >= least) | (empty & (merged == 0))).all()


def test_a_time_on_a_border_belongs_to_the_interval_it_ends() -> None:
    assert interval_of(np.array([0.0, 0.1, 1.0, 1.001, 9.99, 10.0]), 1.0, 10).tolist() == [0, 0, 0, 1, 9, 9]
    assert interval_of(np.array([0.3, 0.6, 0.1 + 0.2]), 0.3, 10).tolist() == [0, 1, 0]


def test_every_cell_question_carries_the_counts_of_its_cells() -> None:
    """So that who judges counts judges cells too: no step takes cuts without releasing them, or only pairs and totals."""
    without = {step.name.rpartition(".")[2] for step in UnstratifiedCox().steps if "cuts" in step.takes
               and not {"events", "censored"} <= set(step.releases)}  # fmt: skip
    assert without == {"score_table", "grouped_pairs_within"}


def test_a_site_answers_on_one_set_of_cuts_and_on_none_with_small_cells(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    n = 240
    frame = pd.DataFrame({
        "time": rng.integers(1, 11, n).astype(float), "event": rng.integers(0, 2, n),
        "sex": rng.choice(["f", "m"], n), "site": np.where(np.arange(n) % 2, "a", "b"),
    })  # fmt: skip
    variables = {
        "time": {**number(0, 10, "month"), "role": "time", "interval": 1}, "event": EVENT, "sex": code(["f", "m"]),
    }  # fmt: skip
    data = consortium(frame, variables, U, privacy={"minimum_cell": 10, "sums": "plain"})
    policy = Policy(minimum_cell=10)
    engine, _ = what_if(tmp_path, data.tables, data.study, [find_method(data.study)], policy=policy)

    def ask(cuts: list[float], round_: int, beta: float = 0.0) -> set[str]:
        inputs = {
            "beta": np.array([0.0, beta]), "centre": np.zeros(2), "scale": np.ones(2), "cuts": np.array(cuts),
        }  # fmt: skip
        call = Call(data.study.hash, "main", round_, step_name(cell_risks), 0, "train", ("a", "b"), inputs)
        answers = engine.exchange(call, {"a": Own(), "b": Own()}, None)
        return {"answered" if isinstance(answer, Answer) else answer.reason for _, answer in answers}

    assert ask([1.0, 10.0], 1) == {"a released count is under the minimum cell or is not a count"}
    assert ask([5.0, 10.0], 2) == {"answered"}
    assert ask([5.0, 10.0], 3, beta=0.2) == {"answered"}
    assert ask([6.0, 10.0], 4) == {"more models would be opened on these rows than the study names"}
    assert ask([5.0, 5.0, 10.0], 5) <= {"the step stopped with an error; the site's own log has the details",
                                        "more models would be opened on these rows than the study names"}  # fmt: skip


def test_lung_cancer_trial_on_the_grid_equals_statsmodels(tmp_path: Path, lung: pd.DataFrame) -> None:
    data = consortium(lung, LUNG, U, {"ties": "breslow"}, limits={"rows_per_site": 1000})
    result = run(tmp_path, data, policy=OPEN)
    assert len(result["sites"]) == 18
    assert_equals(result, pooled(data, moved(data, result["cells"]["time"]), "breslow"))


def test_numbers_alone_need_no_levels(tmp_path: Path, dialysis: pd.DataFrame) -> None:
    variables = {name: variable for name, variable in DIALYSIS.items() if name != "fac_disease"}
    frame = dialysis.drop(columns="fac_disease")
    for use in (U, "discrete_hazards.DiscreteHazards"):
        result = run(tmp_path / use, consortium(frame, variables, use))
        assert len(result["cells"]["events"]) == 33
        assert len(result["coefficients"]) == 2


class Dying:
    """A coordinator that is gone after some calls."""

    def __init__(self, engine: Any, calls: int) -> None:
        self.engine, self.left = engine, calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def exchange(self, call: Call, own: Any, deadline: float | None = None) -> Any:
        if call.phase != "head":
            self.left -= 1
            if self.left < 0:
                raise KeyboardInterrupt
        yield from self.engine.exchange(call, own, deadline)


@pytest.mark.parametrize(
    ("use", "calls"),
    [("cox.Cox", 3), ("cox.Cox", 7), (U, 4), (U, 15), (U, 22), ("discrete_hazards.DiscreteHazards", 5),
     ("kaplan_meier.KaplanMeier", 1)],
)  # fmt: skip
def test_a_run_that_was_cut_off_goes_on_to_the_same_bytes(
    tmp_path: Path, lung: pd.DataFrame, use: str, calls: int
) -> None:
    settings = {"by": "sex"} if use.startswith("kaplan") else {}
    data = consortium(lung, LUNG, use, settings)
    method = find_method(data.study)
    keys = fixed_keys(list(data.tables))
    engine, public = what_if(tmp_path / "sites", data.tables, data.study, [method], policy=OPEN, keys=keys)
    cut = Runner(tmp_path / "coordinator", Dying(engine, calls), data.study, durability="process", public_keys=public)
    with pytest.raises(KeyboardInterrupt):
        cut.execute(method)
    cut.close()
    again = Runner(tmp_path / "coordinator", engine, data.study, durability="process", public_keys=public)
    result = again.execute(method)
    again.close()
    assert pack(result) == pack(run(tmp_path / "undisturbed", data))
