"""A study with an epsilon: noise of the right size, terms cut right, one charge an answer, budgets that stop.

The audit asks a real door. By chance it fails once in 10^9 runs; every mutant of the noise or of the clipping fails it.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_columns, synthetic_study, synthetic_tables
from private_study import FEATURES, ROWS_A_PATIENT, ask, doors_of, expected_gradient, private_study, value_of
from scipy import stats

from medfed.data.table import StudyTable
from medfed.engines.what_if import what_if
from medfed.errors import FederationError, StudyError
from medfed.federation import private
from medfed.federation.budget import Charge, charged_events, over_all
from medfed.federation.call import Answer, Failure
from medfed.federation.door import OVER_BUDGET
from medfed.federation.here import Here, PooledView, fit
from medfed.federation.ledger import rows_of, verify_ledger
from medfed.federation.opening import ring_of
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.private import NO_EPSILON, NOT_BOUNDED, NOT_CHARGED, NOT_POSSIBLE, charges_of, noise_shares
from medfed.federation.ring import decode
from medfed.federation.runner import Runner
from medfed.federation.step import Count, Out, Step, Sum, step
from medfed.methods.newton import logistic_terms
from medfed.methods.private_glm import clipped_gradient, patient_count
from medfed.methods.standardise import moments
from medfed.privacy.accounting import Event, charged_epsilon

ERROR_RATE = 1e-9


# -- the audit ---------------------------------------------------------------------------------------------------------


def audit(folder: Path) -> dict[str, bool]:
    """law: the noise in many answers has variance, mean and shape of the declared one; clipping: answers with little
    noise are the sum that was worked out by hand."""
    study = private_study(["a", "b"], features=FEATURES)
    # The study's own limit is not what is tested here.
    noisy = doors_of(
        folder / "1",
        study,
        [90, 90],
        FEATURES,
        budget=1e9,
        rows_a_patient=ROWS_A_PATIENT,
        spread=10,
        approved_budget=1e9,
    )
    exact = expected_gradient(noisy.sites["a"].table)
    zeros = np.zeros(FEATURES + 1)
    sigma = 30.0
    drawn = []
    for ordinal in range(60):
        answer = ask(noisy, clipped_gradient, Charge(Event(sigma)), ordinal, model=zeros)
        drawn.append(value_of(answer, clipped_gradient, "gradient", study) - exact)
    away = np.concatenate(drawn) / sigma
    low, high = stats.chi2.ppf([ERROR_RATE / 4, 1 - ERROR_RATE / 4], len(away))
    law = bool(
        low <= float(away @ away) <= high
        and abs(away.mean()) * math.sqrt(len(away)) <= stats.norm.isf(ERROR_RATE / 4)
        and stats.kstest(away, "norm").pvalue > ERROR_RATE / 4
    )
    little = ask(noisy, clipped_gradient, Charge(Event(0.05)), 100, model=zeros)
    off = value_of(little, clipped_gradient, "gradient", study) - exact
    most = 0.05 * stats.norm.isf(ERROR_RATE / (2 * len(off)))
    return {"law": law, "clipping": bool(np.abs(off).max() <= most)}


def test_the_noise_has_its_law_and_terms_are_cut_by_patient(tmp_path: Path) -> None:
    assert audit(tmp_path) == {"law": True, "clipping": True}


def _twice(scale: int, count: int, *rest: Any) -> np.ndarray:
    from medfed.privacy.noise import discrete_gaussian

    return discrete_gaussian(scale, count) + discrete_gaussian(scale, count)


def _by_coordinate(terms: np.ndarray, bound: float, bits: int) -> np.ndarray:
    return np.trunc(np.clip(terms, -bound, bound) * 2**bits).astype(np.int64)


def _wide(terms: np.ndarray, bound: float, bits: int) -> np.ndarray:
    from medfed.privacy.noise import clip_to_grid

    return clip_to_grid(terms, 1.5 * bound, bits)


def _of_rows(rows: np.ndarray, unit: np.ndarray, units: int) -> np.ndarray:
    return rows


def _half(scale: int, count: int, *rest: Any) -> np.ndarray:
    from medfed.privacy.noise import discrete_gaussian

    return discrete_gaussian(scale // 2, count)


def _same(scale: int, count: int, *rest: Any) -> np.ndarray:
    return np.random.default_rng(1).normal(0, scale, count).astype(np.int64)


@pytest.mark.parametrize(
    ("name", "mutant", "caught_by"),
    [
        ("discrete_gaussian", lambda scale, count, *rest: np.zeros(count, np.int64), "law"),
        ("discrete_gaussian", _twice, "law"),
        ("discrete_gaussian", _half, "law"),
        ("discrete_gaussian", _same, "law"),
        ("clip_to_grid", _by_coordinate, "clipping"),
        ("clip_to_grid", _wide, "clipping"),
        ("add_by_unit", _of_rows, "clipping"),
    ],
    ids=["no noise", "noise twice", "half the noise", "a seed", "cut by coordinate", "cut too wide", "cut by row"],
)
def test_a_mutant_of_noise_or_clipping_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, mutant: Callable[..., Any], caught_by: str
) -> None:
    monkeypatch.setattr(private, name, mutant)
    assert not audit(tmp_path)[caught_by]


def test_a_share_under_secure_sums_has_its_share_of_the_variance() -> None:
    assert [noise_shares("plain", n) for n in (3, 4, 200)] == [1, 1, 1]
    assert [noise_shares("secure", n) for n in (3, 4, 6, 100)] == [3, 3, 5, 67]
    study = private_study(["a"], features=FEATURES)
    view = StudyTable.from_columns(study, synthetic_columns(60, FEATURES, 0)).on("train")
    rows = {"gradient": np.zeros((60, FEATURES + 1))}
    drawn = []
    for _ in range(40):
        closed = private.close(clipped_gradient, rows, view, charge=Charge(Event(9.0)), shares=5, study=study)
        drawn.append(decode(closed["gradient"], *ring_of(clipped_gradient.releases["gradient"], study)))
    away = np.concatenate(drawn) / (9.0 / math.sqrt(5))
    low, high = stats.chi2.ppf([ERROR_RATE / 2, 1 - ERROR_RATE / 2], len(away))
    assert low <= float(away @ away) <= high


# -- charges -----------------------------------------------------------------------------------------------------------


def test_a_retry_gives_the_same_bytes_and_one_charge(tmp_path: Path) -> None:
    study = private_study(["a", "b"])
    doors = doors_of(tmp_path, study, [60, 60])
    first = ask(doors, patient_count, Charge(Event(20.0)))
    again = ask(doors, patient_count, Charge(Event(20.0)))
    reopened = doors_of(tmp_path, study, [60, 60])
    after_restart = ask(reopened, patient_count, Charge(Event(20.0)))
    assert isinstance(first, Answer)
    assert first.data == again.data == after_restart.data  # type: ignore[union-attr]
    assert charged_events(doors.store.db, "a") == {study.hash: {Event(20.0): 1}}
    assert doors.store.heads()["a"].spent == charged_epsilon({Event(20.0): 1}, 1e-5)
    other = ask(doors, patient_count, Charge(Event(20.0)), ordinal=1)
    assert isinstance(other, Answer)
    assert other.data != first.data
    assert charged_events(doors.store.db, "a") == {study.hash: {Event(20.0): 2}}


def test_the_same_key_with_less_noise_is_another_question(tmp_path: Path) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"]), [60, 60])
    assert isinstance(ask(doors, patient_count, Charge(Event(20.0))), Answer)
    answer = ask(doors, patient_count, Charge(Event(19.0)))
    assert isinstance(answer, Failure)
    assert "another question" in answer.reason


def test_an_answer_that_could_not_be_sealed_is_not_charged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"]), [60, 60])

    def full(*arguments: Any, **named: Any) -> None:
        raise RuntimeError("killed here")

    with monkeypatch.context() as patch:
        patch.setattr(type(doors.store), "_record", full)
        with pytest.raises(RuntimeError):
            ask(doors, patient_count, Charge(Event(20.0)))
    assert charged_events(doors.store.db, "a") == {}
    assert isinstance(ask(doors, patient_count, Charge(Event(20.0))), Answer)
    assert over_all(charged_events(doors.store.db, "a")) == {Event(20.0): 1}


@pytest.mark.parametrize(("budget", "epsilon"), [(0.5, 3.0), (3.0, 0.5)], ids=["the site's", "the study's"])
def test_a_budget_refuses_before_the_step_runs(tmp_path: Path, budget: float, epsilon: float) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"], epsilon), [60, 60], budget=budget)
    ran: list[int] = []
    run = doors.execution.run

    def watched(*arguments: Any) -> Any:
        ran.append(1)
        return run(*arguments)

    doors.execution.run = watched  # type: ignore[method-assign]
    event, answered = Event(20.0), 0
    for ordinal in range(20):
        answer = ask(doors, patient_count, Charge(event), ordinal)
        if isinstance(answer, Failure):
            assert answer.reason == OVER_BUDGET
            break
        answered += 1
    assert charged_epsilon({event: answered}, 1e-5) <= 0.5 < charged_epsilon({event: answered + 1}, 1e-5)
    assert len(ran) == answered
    assert over_all(charged_events(doors.store.db, "a")) == {event: answered}


def test_a_default_policy_has_nothing_to_spend(tmp_path: Path) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"]), [60, 60], budget=Policy().budget)
    answer = ask(doors, patient_count, Charge(Event(1000.0)))
    assert isinstance(answer, Failure)
    assert answer.reason == OVER_BUDGET


def test_two_studies_are_composed_in_one_ledger(tmp_path: Path) -> None:
    """A second study over the same ledger costs less than its epsilon beside the first, and is stopped by the site's budget."""
    spent, runs = [], []
    for name, rounds, budget in (("first-study", 4, 4.0), ("second-study", 9, 4.0), ("third-study", 2, 4.0)):
        study = private_study(["a", "b"], 2.0, name=name, settings={"rounds": rounds})
        method = find_method(study)
        engine, public = what_if(
            tmp_path / "sites", synthetic_tables(study, [80, 70]), study, [method], policy=Policy(budget=budget),
            keys=fixed_keys(["a", "b"]),
        )  # fmt: skip
        runner = Runner(tmp_path / name, engine, study, durability="process", public_keys=public)
        with contextlib.suppress(FederationError):
            runs.append(runner.execute(method))
        runner.close()
        store = engine.doors[0].store
        spent.append(verify_ledger(store.db, "a").spent)
        by_study = charged_events(store.db, "a")
        assert spent[-1] == charged_epsilon(over_all(by_study), 1e-5)
        for events in by_study.values():
            assert charged_epsilon(events, 1e-5) <= 2.0
    assert 1.99 < spent[0] <= 2.0
    assert 2.0 < spent[1] < 3.2, "composed, not added up"
    assert spent[1] < spent[2] <= 4.0
    assert len(runs) >= 2


def test_a_run_spends_its_epsilon_and_a_second_run_of_the_same_study_nothing(tmp_path: Path) -> None:
    study = private_study(["a", "b"], 1.0)
    method = find_method(study)
    engine, public = what_if(
        tmp_path / "sites", synthetic_tables(study, [80, 3]), study, [method], policy=Policy(budget=50.0),
        keys=fixed_keys(["a", "b"]),
    )  # fmt: skip
    runner = Runner(tmp_path / "c", engine, study, durability="process", public_keys=public)
    result = runner.execute(method)
    assert result["sites"] == ["a", "b"], "three patients are protected by the noise like eighty"
    spent = engine.doors[0].store.heads()["a"].spent
    assert 0.999 < spent <= 1.0
    with pytest.raises(FederationError, match="or for this one"):
        runner.execute(method, "again")
    assert engine.doors[0].store.heads()["a"].spent == spent
    runner.close()


def test_an_approval_may_allow_more_than_one_run(tmp_path: Path) -> None:
    study = private_study(["a", "b"], 1.0)
    method = find_method(study)
    engine, public = what_if(
        tmp_path / "sites", synthetic_tables(study, [80, 70]), study, [method], policy=Policy(budget=50.0),
        keys=fixed_keys(["a", "b"]), approved_budget=1.6,
    )  # fmt: skip
    runner = Runner(tmp_path / "c", engine, study, durability="process", public_keys=public)
    runner.execute(method)
    runner.execute(method, "again")
    with pytest.raises(FederationError, match="or for this one"):
        runner.execute(method, "third")
    runner.close()


def test_a_row_of_the_ledger_holds_the_event_and_an_edited_event_is_found(tmp_path: Path) -> None:
    from medfed.errors import LedgerError

    doors = doors_of(tmp_path, private_study(["a", "b"]), [60, 60])
    ask(doors, patient_count, Charge(Event(20.0, 0.5)))
    row = list(rows_of(doors.store.db, "a"))[-1]
    assert row["event"] == '{"draws":1,"law":"discrete-gaussian","noise":20.0,"sampling_rate":0.5}'
    assert row["charge"] == row["spent"] > 0
    verify_ledger(doors.store.db, "a")
    doors.store.db.execute("update ledger set event=replace(event, '20.0', '90.0') where event is not null")
    with pytest.raises(LedgerError, match="edited"):
        verify_ledger(doors.store.db, "a")


# -- what may be asked -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "charge", "epsilon", "reason"),
    [
        (patient_count, None, 3.0, NOT_CHARGED),
        (patient_count, Charge(Event(5.0)), None, NO_EPSILON),
        (moments, Charge(Event(5.0)), 3.0, NOT_BOUNDED),
        (patient_count, Charge(Event(0.01)), 3.0, NOT_POSSIBLE),
        (patient_count, Charge(Event(1e9)), 3.0, NOT_POSSIBLE),
        (patient_count, Charge(Event(5.0), draws=2), 3.0, NOT_POSSIBLE),
        (patient_count, Charge(Event(5.0, 1e-9)), 3.0, NOT_POSSIBLE),
    ],
)
def test_a_question_that_its_charge_does_not_fit_is_refused(
    tmp_path: Path, asked: Step, charge: Charge | None, epsilon: float | None, reason: str
) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"], epsilon), [60, 60], steps=[moments])
    answer = ask(doors, asked, charge)
    assert isinstance(answer, Failure)
    assert answer.reason == reason


def test_a_method_without_bounds_is_refused_by_name_before_anything_is_asked(tmp_path: Path) -> None:
    study = synthetic_study(["a", "b"], privacy={"epsilon": 3.0})
    method = find_method(study)
    engine, public = what_if(
        tmp_path / "sites", synthetic_tables(study, [80, 70]), study, [method], policy=Policy(budget=50.0)
    )
    runner = Runner(tmp_path / "c", engine, study, durability="process", public_keys=public)
    with pytest.raises(StudyError) as problem:
        runner.execute(method)
    for name in ("standardise.moments (sums, squares, known)", "newton.logistic_terms (score, information, log_likeli"):
        assert name in str(problem.value)
    assert engine.doors[0].store.db.execute("select count(*) from call").fetchone() == (0,)
    runner.close()


def test_more_rounds_than_the_noise_can_pay_for_are_refused_before_the_run() -> None:
    study = private_study(["a"], 0.01, settings={"rounds": 5000})
    with pytest.raises(StudyError, match="times a patient's bound"):
        charges_of(study, find_method(study))


def test_no_refusal_tells_of_the_rows_of_a_private_study(tmp_path: Path) -> None:
    """One row, or more than the study's limit: the answer is there, and its size says nothing."""
    study = private_study(["a", "b"], limits={"rows_per_site": 50})
    doors = doors_of(tmp_path, study, [60, 60])
    assert isinstance(ask(doors, patient_count, Charge(Event(20.0))), Answer)
    one = doors_of(tmp_path / "one", study, [1, 1])
    assert isinstance(ask(one, patient_count, Charge(Event(20.0))), Answer)


def test_a_step_that_fails_on_the_data_is_refused_sealed_and_charged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doors = doors_of(tmp_path, private_study(["a", "b"]), [60, 60])

    def fails(site: Any) -> Out:
        raise ZeroDivisionError("patient 17")

    with monkeypatch.context() as patch:
        patch.setattr(patient_count, "function", fails)
        first = ask(doors, patient_count, Charge(Event(20.0)))
    assert isinstance(first, Failure)
    assert (first.kind, "17" in first.reason) == ("refused", False)
    assert charged_events(doors.store.db, "a") == {doors.study.hash: {Event(20.0): 1}}
    again = ask(doors, patient_count, Charge(Event(20.0)))
    assert again == first
    assert verify_ledger(doors.store.db, "a").spent == charged_epsilon({Event(20.0): 1}, 1e-5)


def test_noisy_and_exact_sums_can_not_be_mixed_in_a_step() -> None:
    with pytest.raises(TypeError, match="bounded by unit"):
        step(releases={"a": Sum(unit_bound=1.0), "b": Count()})(lambda site: Out({}))
    with pytest.raises(TypeError, match="no twin"):
        patient_count.batched(lambda sites: Out({}))
    assert not logistic_terms.is_bounded


def test_a_study_without_epsilon_keeps_its_hash() -> None:
    study = synthetic_study(["a", "b"])
    content = study.model_dump(mode="json")
    del content["privacy"]["epsilon"], content["privacy"]["delta"]
    assert study.hash == study._digest(content)
    assert private_study(["a"], 1.0).privacy.delta == 1e-5
    assert private_study(["a"], 1.0).hash != private_study(["a"], 2.0).hash


# -- without noise -----------------------------------------------------------------------------------------------------


def test_the_recipe_without_noise_is_the_pooled_one_and_a_large_epsilon_is_near_it(tmp_path: Path) -> None:
    names = ["a", "b"]
    bare = private_study(names, None, settings={"rounds": 8})
    tables = synthetic_tables(bare, [400, 300])
    method = find_method(bare)
    pooled = fit(method, Here(lambda part: PooledView([t.on(part) for t in tables.values()]), bare))
    found = {}
    for epsilon in (None, 50.0):
        study = private_study(names, epsilon, settings={"rounds": 8})
        engine, public = what_if(
            tmp_path / str(epsilon) / "s", synthetic_tables(study, [400, 300]), study, [method],
            policy=Policy(budget=60.0, minimum_cell=1),
        )  # fmt: skip
        runner = Runner(tmp_path / str(epsilon) / "c", engine, study, durability="process", public_keys=public)
        found[epsilon] = runner.execute(method)["coefficients"]
        runner.close()
    assert np.abs(found[None] - pooled["coefficients"]).max() < 1e-9
    assert 0 < np.abs(found[50.0] - pooled["coefficients"]).max() < 0.05
