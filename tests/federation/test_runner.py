"""Runs: locks, determinism, quorum, abandoning, children, status, damaged checkpoints, failures of sites."""

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_study, synthetic_tables
from medfed_test_plugin import hostile

from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.errors import FederationError
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.packages import find_method
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.federation.status import status_of
from medfed.methods.newton import Newton, logistic_terms
from medfed.study import Study

SITES = ["a", "b", "c"]
WITH_PLUGIN = Policy.model_validate(
    {"packages": {"medfed": {}, "medfed-test-plugin": {}}, "steps": ["medfed:*", "medfed-test-plugin:*"]}
)


PLAIN = {"sums": "plain", "minimum_cell": 10}


def study_with(**changes: Any) -> Study:
    return synthetic_study(SITES, **{"privacy": PLAIN, **changes})


def engine_for(folder: Path, study: Study, methods: list[Any], **options: Any) -> tuple[Embedded, dict[str, str]]:
    return what_if(
        folder / "sites", synthetic_tables(study, [120, 90, 60]), study, methods, keys=fixed_keys(SITES), **options
    )


def runner_for(folder: Path, engine: Any, study: Study) -> Runner:
    return Runner(folder / "coordinator", engine, study, durability="process")


class Absent:
    """A fault proxy: some sites can't be reached."""

    def __init__(self, engine: Embedded, away: set[str]) -> None:
        self.engine, self.away = engine, away
        self.sites, self.protections = engine.sites, engine.protections

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        for site in self.away & set(own):
            yield site, Failure("unreachable", "no connection")
        yield from self.engine.exchange(call, {s: o for s, o in own.items() if s not in self.away}, deadline)


def test_a_folder_has_one_runner(tmp_path: Path) -> None:
    study = study_with()
    engine, _ = engine_for(tmp_path, study, [find_method(study)])
    first = runner_for(tmp_path, engine, study)
    with pytest.raises(FederationError, match="in use by another runner"):
        runner_for(tmp_path, engine, study)
    first.close()
    runner_for(tmp_path, engine, study).close()


def test_too_few_sites_stop_the_run_and_the_same_question_is_asked_on_resume(tmp_path: Path) -> None:
    study = study_with(sites={"invited": SITES, "minimum": 3})
    method = find_method(study)
    engine, _ = engine_for(tmp_path, study, [method])
    runner = runner_for(tmp_path, Absent(engine, {"b"}), study)
    with pytest.raises(FederationError, match="2 of 3 sites answered 'moments', the study needs 3 .*unreachable"):
        runner.execute(method, "r")
    runner.close()
    (status,) = status_of(tmp_path / "coordinator")
    assert status.state == "stopped"
    assert "the study needs 3" in status.reason
    assert status.open_round == 1
    runner = runner_for(tmp_path, engine, study)
    result = runner.execute(method, "r")
    runner.close()
    assert result["sites"] == SITES
    db = engine.doors[0].store.db
    repeated = db.execute(
        "select site, call, count(*) from ledger where kind='release' group by 1, 2 having count(*)>1"
    )
    assert repeated.fetchall() == []
    assert status_of(tmp_path / "coordinator")[0].state == "finished"


def test_a_site_that_is_away_is_left_out_while_the_quorum_holds(tmp_path: Path) -> None:
    study = study_with(sites={"invited": SITES, "minimum": 2})
    method = find_method(study)
    engine, _ = engine_for(tmp_path, study, [method])
    runner = runner_for(tmp_path, Absent(engine, {"b"}), study)
    assert runner.execute(method, "r")["sites"] == ["a", "c"]
    runner.close()


@dataclass(frozen=True)
class Restless:
    """Asks something else each time: what a method must not do."""

    steps: ClassVar = (logistic_terms,)
    answers: ClassVar[list[float]] = [0.0]

    def start(self, study: Study) -> dict[str, Any]:
        return {"rounds": 0}

    def advance(self, federation: Any, state: dict[str, Any]) -> dict[str, Any]:
        p = len(federation.study.design.columns)
        federation.sum(logistic_terms, beta=np.full(p, self.answers[0]), centre=np.zeros(p), scale=np.ones(p))
        raise RuntimeError("a crash before the checkpoint")

    def done(self, state: dict[str, Any]) -> bool:
        return bool(state["rounds"])

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


def test_asking_something_else_on_replay_is_an_error(tmp_path: Path) -> None:
    study = study_with()
    engine, _ = engine_for(tmp_path, study, [Restless()])
    for asked, error, words in ((0.0, RuntimeError, "a crash"), (0.1, FederationError, "not deterministic")):
        Restless.answers[0] = asked
        runner = runner_for(tmp_path, engine, study)
        with pytest.raises(error, match=words):
            runner.execute(Restless(), "r")
        runner.close()


def test_an_abandoned_round_is_asked_anew_under_the_next_number(tmp_path: Path) -> None:
    study = study_with(sites={"invited": SITES, "minimum": 3})
    method = find_method(study)
    engine, _ = engine_for(tmp_path, study, [method])
    runner = runner_for(tmp_path, Absent(engine, {"b"}), study)
    with pytest.raises(FederationError):
        runner.execute(method, "r")
    runner.abandon("r")
    runner.close()
    runner = runner_for(tmp_path, engine, study)
    runner.execute(method, "r")
    runner.close()
    rounds = engine.doors[0].store.db.execute(
        "select distinct c.round from ledger l join call c on c.id=l.call where l.site='a' order by 1"
    )
    assert [r for (r,) in rounds][:2] == [1, 2], "what was sealed in round 1 stays; round 2 asks again"


def test_a_run_belongs_to_one_version_of_the_study(tmp_path: Path) -> None:
    study, other = study_with(), study_with(seed=99)
    engine, _ = engine_for(tmp_path, study, [find_method(study)])
    runner = runner_for(tmp_path, engine, study)
    runner.execute(find_method(study), "r")
    runner.close()
    runner = runner_for(tmp_path, engine, other)
    with pytest.raises(FederationError, match="another version of the study"):
        runner.execute(find_method(other), "r")
    runner.close()


def test_a_truncated_checkpoint_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    study = study_with()
    engine, _ = engine_for(tmp_path, study, [find_method(study)])
    runner = runner_for(tmp_path, engine, study)
    runner.execute(find_method(study), "r")
    runner.close()
    db = sqlite3.connect(tmp_path / "coordinator" / "runner.db")
    db.execute("update checkpoint set state=substr(state, 1, 100)")
    db.commit()
    runner = runner_for(tmp_path, engine, study)
    with pytest.raises(FederationError, match="checkpoint of run 'r' is truncated or damaged"):
        runner.execute(find_method(study), "r")
    runner.close()


@pytest.mark.parametrize("asked", [hostile.returns_nan, hostile.raises_with_a_record])
def test_a_site_whose_step_fails_is_named_without_its_words(tmp_path: Path, asked: Any) -> None:
    @dataclass(frozen=True)
    class AskOnce(Restless):
        steps: ClassVar = (asked,)

        def advance(self, federation: Any, state: dict[str, Any]) -> dict[str, Any]:
            federation.sum(asked)
            return {"rounds": 1}

    study = study_with()
    engine, _ = engine_for(tmp_path, study, [AskOnce()], policy=WITH_PLUGIN)
    runner = runner_for(tmp_path, engine, study)
    with pytest.raises(FederationError, match="0 of 3 sites answered") as problem:
        runner.execute(AskOnce(), "r")
    runner.close()
    assert "Smith" not in str(problem.value)


def test_a_child_gives_what_the_method_gives_alone(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Parent(Restless):
        steps: ClassVar = Newton().steps

        def advance(self, federation: Any, state: dict[str, Any]) -> dict[str, Any]:
            return {"rounds": 1, "fit": dict(federation.child("inner", Newton()))}

    study = study_with()
    engine, _ = engine_for(tmp_path, study, [Newton()])
    runner = runner_for(tmp_path, engine, study)
    inner = runner.execute(Parent(), "parent")["fit"]
    alone = runner.execute(Newton(), "alone")
    runner.close()
    assert (np.asarray(inner["coefficients"]) == np.asarray(alone["coefficients"])).all()


def test_a_second_run_under_another_name_draws_the_same(tmp_path: Path) -> None:
    study = study_with(
        method={"use": "medfed:medfed.methods.fedavg.FedAvg", "settings": {"rounds": 5, "participation": 0.7}}
    )
    method = find_method(study)
    engine, _ = engine_for(tmp_path, study, [method])
    runner = runner_for(tmp_path, engine, study)
    results = [runner.execute(method, name)["coefficients"] for name in ("one", "two")]
    runner.close()
    assert (results[0] == results[1]).all()
