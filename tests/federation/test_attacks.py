"""Attacks on doors, keys, stores and ledgers that do not get through: replays, other names, races, clocks, hostile bytes."""

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study, synthetic_tables

from medfed.canonical import pack, unpack
from medfed.engines.what_if import what_if
from medfed.errors import FederationError, LedgerError
from medfed.federation.admission import NOT_APPROVED_STEP, OVER_BUDGET, Access
from medfed.federation.approval import approve, packages_of
from medfed.federation.budget import Charge
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.door import OTHER_QUESTION, Doors
from medfed.federation.ledger import open_store, verify_ledger
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.ring import decode, encode
from medfed.federation.runner import Progress, Runner
from medfed.methods.standardise import moments
from medfed.privacy.accounting import Event
from medfed.study import Study

SITES = ["a", "b"]
MOMENTS = step_name(moments)


def doors_for(folder: Path, study: Study, policy: Policy | None = None, **options: Any) -> Doors:
    tables = synthetic_tables(study, [120, 90])
    engine, _ = what_if(
        folder, tables, study, [find_method(study)], policy=policy or Policy(), keys=fixed_keys(SITES), **options
    )
    return engine.doors[0]


def ask(doors: Doors, **changes: Any) -> Answer | Failure:
    """``moments``, put to site a; anything about the call may be changed."""
    asked: dict[str, Any] = dict(
        study=doors.study.hash, run="main", round=1, step=MOMENTS, ordinal=0, part="train",
        roster=doors.study.sites.invited, inputs={},
    )  # fmt: skip
    return doors.answer(Call(**asked | changes), {"a": Own()})["a"]


def releases(doors: Doors) -> int:
    return int(doors.store.db.execute("select count(*) from ledger where kind='release'").fetchone()[0])


@pytest.mark.parametrize(
    "name",
    [
        "medfed:medfed.methods.fedavg.moments",  # the same object, found in another module
        "medfed:medfed.methods.newton.moments",
        "medfed:medfed.methods.newton.logistic_terms.function",
        "medfed:medfed.federation.packages.find_step",
        "MEDFED:medfed.methods.standardise.moments",
        "medfed:medfed.methods.standardise..moments",
        "medfed:medfed/methods/standardise.moments",
        "medfed:os.path.join",
        "medfed:.moments",
        ":medfed.methods.standardise.moments",
        MOMENTS + "\n",
    ],
)
def test_a_step_answers_to_its_approved_name_only(tmp_path: Path, name: str) -> None:
    doors = doors_for(tmp_path, synthetic_study(SITES))
    answer = ask(doors, step=name)
    assert isinstance(answer, Failure)
    assert answer.kind == "refused"
    assert releases(doors) == 0


def test_a_reexported_step_is_not_among_the_approved(tmp_path: Path) -> None:
    answer = ask(doors_for(tmp_path, synthetic_study(SITES)), step="medfed:medfed.methods.fedavg.moments")
    assert isinstance(answer, Failure)
    assert answer.reason == NOT_APPROVED_STEP


@pytest.mark.parametrize("claim", [{"protection": "secure"}, {"phase": "seal"}, {"phase": "open"}])
def test_a_call_that_claims_to_be_secure_does_not_switch_the_rules_for_counts_off(
    tmp_path: Path, claim: dict[str, str]
) -> None:
    doors = doors_for(tmp_path, synthetic_study(SITES))
    assert isinstance(ask(doors, **claim), Failure)
    assert releases(doors) == 0


@pytest.mark.parametrize("change", [{"variant": "other"}, {"part": "train:1"}, {"roster": ("b", "a")}])
def test_a_key_is_answered_for_one_variant_fold_and_roster_only(tmp_path: Path, change: dict[str, Any]) -> None:
    variant = {"use": "medfed:medfed.methods.newton.Newton", "settings": {"l2": 1.0}}
    study = synthetic_study(SITES, parts={"kind": "folds", "folds": 2}, variants={"other": variant})
    doors = doors_for(tmp_path, study)
    assert isinstance(ask(doors), Answer)
    answer = ask(doors, **change)
    assert isinstance(answer, Failure)
    assert answer.reason == OTHER_QUESTION
    assert releases(doors) == 1


@pytest.mark.parametrize(
    "change",
    [{"run": "main|1"}, {"run": "ma%"}, {"run": "ma\x1fin"}, {"run": "main\n"}, {"run": ""}, {"round": -1}, {"ordinal": -1}],
)  # fmt: skip
def test_a_call_whose_key_could_be_read_in_two_ways_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    doors = doors_for(tmp_path, synthetic_study(SITES))
    answer = ask(doors, **change)
    assert isinstance(answer, Failure)
    assert releases(doors) == 0


@pytest.mark.parametrize("name", ["ma%", "main/1/fit", "Ünïcode", "a|1", "x\n", "", "a" * 81])
def test_a_run_has_a_plain_name(tmp_path: Path, name: str) -> None:
    study = synthetic_study(SITES)
    method = find_method(study)
    engine, _ = what_if(tmp_path / "s", synthetic_tables(study, [120, 90]), study, [method], keys=fixed_keys(SITES))
    runner = Runner(tmp_path / "c", engine, study, durability="process")
    with pytest.raises(FederationError, match="run's name"):
        runner.execute(method, name)
    runner.close()


def test_two_processes_can_not_spend_a_budget_twice(tmp_path: Path) -> None:
    """The other process spends the last epsilon after this one has looked and before it seals."""
    study, policy = synthetic_study(SITES), Policy(budget=1.0)
    spend: dict[str, Any] = {
        "charge": lambda call: Charge(Event(1.0)),
        "accountant": lambda events, delta: float(sum(events.values())),
    }
    first = doors_for(tmp_path, study, policy, **spend)
    second = doors_for(tmp_path, study, policy, **spend)
    looked: list[Any] = []
    run = second.execution.run

    def run_late(*arguments: Any) -> Any:
        looked.append(ask(first, ordinal=1))
        return run(*arguments)

    second.execution.run = run_late  # type: ignore[method-assign]
    answer = ask(second)
    assert isinstance(looked[0], Answer)
    assert isinstance(answer, Failure)
    assert answer.reason == OVER_BUDGET
    assert verify_ledger(second.store.db, "a").spent == 1.0


@pytest.mark.parametrize(
    ("day", "answered"),
    [(datetime(2026, 3, 31, 23, 59, 59, tzinfo=UTC), True), (datetime(2026, 4, 1, tzinfo=UTC), False)],
)
def test_an_approval_holds_through_its_last_day(tmp_path: Path, day: datetime, answered: bool) -> None:
    study = synthetic_study(SITES)
    table, key = synthetic_tables(study, [120, 90])["a"], fixed_keys(["a"])["a"]
    names = [step_name(step) for step in find_method(study).steps]
    db = open_store(tmp_path / "sites.db", "process")
    approve(
        db, site="a", study=study, steps=names, packages=packages_of(names), table_version=table.version,
        until="2026-03-31", key=key, at="2026-01-01",
    )  # fmt: skip
    db.close()
    now = [day]
    doors = Doors(
        tmp_path / "sites.db", {"a": Access(table, Policy(), key)}, study, durability="process", clock=lambda: now[0]
    )
    assert isinstance(ask(doors), Answer) is answered
    now[0] = datetime(2020, 1, 1, tzinfo=UTC)  # a clock that goes back breaks no chain
    assert isinstance(ask(doors, ordinal=1), Answer)
    verify_ledger(doors.store.db, "a")


class _Stop(Exception):
    pass


def test_a_coordinator_restored_from_an_older_copy_gets_the_same_bytes_and_charges_nothing_twice(
    tmp_path: Path,
) -> None:
    study = synthetic_study(SITES, method={"use": "medfed:medfed.methods.fedavg.FedAvg", "settings": {"rounds": 12}})
    method = find_method(study)
    engine, _ = what_if(tmp_path / "s", synthetic_tables(study, [120, 90]), study, [method], keys=fixed_keys(SITES))

    def stop(progress: Progress) -> None:
        if progress.kind == "round" and progress.round == 6:
            raise _Stop

    runner = Runner(tmp_path / "c", engine, study, durability="process", listener=stop)
    with pytest.raises(_Stop):
        runner.execute(method, "r")
    runner.close()
    shutil.copytree(tmp_path / "c", tmp_path / "older")
    results, counts = [], []
    for folder in ("c", "older"):
        runner = Runner(tmp_path / folder, engine, study, durability="process")
        results.append(pack(runner.execute(method, "r")))
        counts.append(releases(engine.doors[0]))
        runner.close()
    assert results[0] == results[1]
    assert counts[0] == counts[1]


def test_giving_up_a_round_of_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    study = synthetic_study(SITES)
    method = find_method(study)
    engine, _ = what_if(tmp_path / "s", synthetic_tables(study, [120, 90]), study, [method], keys=fixed_keys(SITES))
    runner = Runner(tmp_path / "c", engine, study, durability="process")
    before, count = pack(runner.execute(method, "r")), releases(engine.doors[0])
    runner.abandon("r")
    assert pack(runner.execute(method, "r")) == before
    assert releases(engine.doors[0]) == count
    runner.close()


def test_changed_bytes_of_a_tree_are_a_tree_or_a_ledger_error() -> None:
    tree = {"a": np.arange(3.0), "b": {"c": np.arange(4), "d": "x"}, "e": [1, 2]}
    whole, rng = pack(tree), random.Random(0)
    for length in range(len(whole)):
        with pytest.raises(LedgerError):
            unpack(whole[:length])
    for _ in range(5000):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            unpack(bytes(data))
        except LedgerError:
            continue


def test_totals_of_both_widths_agree_on_halves_of_the_grid_and_on_negative_numbers() -> None:
    values = np.array([-0.3, 2.0**-41, -(2.0**-41), 3 * 2.0**-41, -(2.0**21), 2.0**21 - 2.0**-30])
    totals = [decode(encode(values, limbs) + encode(-2 * values, limbs), limbs) for limbs in (1, 2)]
    assert (totals[0] == totals[1]).all()
