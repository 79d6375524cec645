"""Holes that a hostile review found, each kept shut: limits, names of parts and rosters, replays, answers, stores."""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from consortium import fixed_keys, synthetic_columns, synthetic_study, synthetic_tables
from test_attacks import SITES, ask, doors_for, releases

from medfed.canonical import pack, unpack
from medfed.data.table import StudyTable
from medfed.engines.embedded import Embedded
from medfed.engines.what_if import what_if
from medfed.errors import LedgerError, PolicyViolation
from medfed.federation import gate
from medfed.federation.approval import revoke
from medfed.federation.call import Answer, Call, Failure, Own, check_one_input
from medfed.federation.ledger import open_store, verify_ledger
from medfed.federation.packages import find_method, step_name
from medfed.federation.policy import Policy
from medfed.federation.runner import Runner
from medfed.methods.gradients import batch_gradient
from medfed.methods.newton import logistic_terms


def test_the_least_integer_passes_no_limit() -> None:
    sizes = dict(synthetic_study(SITES).sizes)
    with pytest.raises(PolicyViolation, match="passes its limit"):
        check_one_input("beta", np.array([-(2**63), 0, 0, 0, 0]), logistic_terms, sizes, limit=20.0)


@pytest.mark.parametrize("centre", [-15.0, 0.0])
def test_a_tiny_scale_is_refused_whoever_is_there(tmp_path: Path, centre: float) -> None:
    """It would tell, by overflow or none, whether a patient is near ``centre``."""
    doors = doors_for(tmp_path, synthetic_study(SITES))
    inputs = {"beta": np.zeros(5), "centre": np.array([0, 0, centre, 0, 0]), "scale": np.array([1, 1, 1e-308, 1, 1])}
    answer = ask(doors, step=step_name(logistic_terms), inputs=inputs)
    assert isinstance(answer, Failure)
    assert "blows features up" in answer.reason
    assert releases(doors) == 0


@pytest.mark.parametrize("part", ["train:00", "train:\u0660", "train:99", "train:x", "train:", "TRAIN"])
def test_a_fold_has_one_name(tmp_path: Path, part: str) -> None:
    doors = doors_for(tmp_path, synthetic_study(SITES, parts={"kind": "folds", "folds": 2}))
    assert isinstance(ask(doors, part=part), Failure)


@pytest.mark.parametrize("roster", [("a", "a"), ("b",)])
def test_a_site_alone_is_found_under_another_roster(tmp_path: Path, roster: tuple[str, ...]) -> None:
    assert isinstance(ask(doors_for(tmp_path, synthetic_study(SITES)), roster=roster), Failure)


def test_what_is_sealed_does_not_leave_after_a_revocation(tmp_path: Path) -> None:
    study = synthetic_study(SITES)
    doors = doors_for(tmp_path, study)
    assert isinstance(ask(doors), Answer)
    db = open_store(tmp_path / "sites.db", "process")
    revoke(db, site="a", study_hash=study.hash, key=doors.sites["a"].key, at="2026-01-01")
    db.close()
    answer = ask(doors)
    assert isinstance(answer, Failure)
    assert "withdrawn" in answer.reason


@pytest.mark.parametrize(
    "sql",
    [
        "update call set study='x'",
        "update call set step='x'",
        "update call set part='valid'",
        "update ledger set bytes='text' where kind='release'",
    ],
)
def test_edits_beside_the_ledgers_own_columns_are_found(tmp_path: Path, sql: str) -> None:
    doors = doors_for(tmp_path, synthetic_study(SITES))
    assert isinstance(ask(doors), Answer)
    verify_ledger(doors.store.db, "a")
    doors.store.db.execute(sql)
    with pytest.raises(LedgerError):
        verify_ledger(doors.store.db, "a")


@pytest.mark.parametrize("known", [1, 117])
def test_a_number_known_or_missing_for_few_is_held(tmp_path: Path, known: int) -> None:
    study = synthetic_study(SITES)
    columns = synthetic_columns(120, 4, 3)
    columns["x1"][known:] = np.nan
    table = StudyTable.from_columns(study, columns)
    engine, _ = what_if(tmp_path, {"a": table, "b": table}, study, [find_method(study)], keys=fixed_keys(SITES))
    answer = ask(engine.doors[0])
    assert isinstance(answer, Failure)
    assert answer.reason == gate.SMALL_CELL


def test_a_site_with_more_rows_than_the_study_declares_is_refused(tmp_path: Path) -> None:
    answer = ask(doors_for(tmp_path, synthetic_study(SITES, limits={"rows_per_site": 100})))
    assert isinstance(answer, Failure)
    assert "rows_per_site" in answer.reason


def test_a_refusal_that_depends_on_data_is_counted_and_the_same_on_a_retry(tmp_path: Path) -> None:
    policy = Policy(steepest=1e12)
    doors = doors_for(tmp_path, synthetic_study(SITES), policy)
    inputs = {"beta": np.array([0, 20.0, 0, 0, 0]), "centre": np.array([0, 3.0, 0, 0, 0]), "scale": np.ones(5)}
    answers = [ask(doors, step=step_name(logistic_terms), inputs=inputs) for _ in range(3)]
    assert {answer.reason for answer in answers if isinstance(answer, Failure)} == {gate.CONCENTRATED}
    assert doors.store.db.execute("select count(*) from ledger where kind='refusal'").fetchone() == (1,)
    assert doors.store.calls_answered(doors.study.hash)["a"] == 1
    verify_ledger(doors.store.db, "a")


def test_which_rows_are_in_a_mini_batch_depends_on_the_sites_secret(tmp_path: Path) -> None:
    """The coordinator knows study seed and call: with a public seed 120 gradients would give every row."""
    use = {"use": "medfed:medfed.methods.gradients.FedSGD", "settings": {"batch": 20}}
    study = synthetic_study(SITES, method=use)
    inputs = {"model": np.zeros(5), "centre": np.zeros(5), "scale": np.ones(5)}
    data = []
    for name, keys in (("one", fixed_keys(SITES)), ("same", fixed_keys(SITES)), ("other", None)):
        tables = synthetic_tables(study, [120, 90])
        engine, _ = what_if(tmp_path / name, tables, study, [find_method(study)], keys=keys)
        answer = ask(engine.doors[0], step=step_name(batch_gradient), inputs=inputs)
        assert isinstance(answer, Answer)
        data.append(answer.data)
    assert data[0] == data[1]
    assert data[0] != data[2]


class Tampering:
    """A fault proxy: site b's answers come twice, or are replaced."""

    def __init__(self, engine: Embedded, tree: dict[str, Any] | None) -> None:
        self.engine, self.tree = engine, tree
        self.sites, self.protections = engine.sites, engine.protections

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        for site, answer in self.engine.exchange(call, own, deadline):
            if site == "b" and self.tree is not None and isinstance(answer, Answer):
                answer = Answer(pack(self.tree))
            yield site, answer
            yield site, answer


@pytest.mark.parametrize(
    ("tree", "counted", "patients"),
    [
        (None, ["a", "b"], 210),
        ({"evil": np.zeros(5, np.int64)}, ["a"], 120),
        (
            {"score": np.int64(1), "information": np.int64(1), "log_likelihood": np.int64(1), "rows": np.int64(1)},
            ["a"],
            120,
        ),
    ],
)
def test_an_answer_counts_once_and_only_as_declared(
    tmp_path: Path, tree: dict[str, Any] | None, counted: list[str], patients: int
) -> None:
    study = synthetic_study(SITES)
    method = find_method(study)
    engine, _ = what_if(tmp_path / "s", synthetic_tables(study, [120, 90]), study, [method], keys=fixed_keys(SITES))
    runner = Runner(tmp_path / "c", Tampering(engine, tree), study, durability="process")
    result = runner.execute(method, "r")
    runner.close()
    assert result["sites"] == counted
    assert result["patients"] == patients


def test_deep_or_crossing_names_are_damage() -> None:
    def framed(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    entry = b'{"dtype":"F64","shape":[1],"data_offsets":[0,8]}'
    for data in (framed(b"[" * 200_000), framed(b'{"a":' + entry + b',"a/b":' + entry + b"}") + bytes(8)):
        with pytest.raises(LedgerError, match="damaged"):
            unpack(data)
