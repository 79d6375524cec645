"""A coordinator with the right key that asks for what was not approved: refused with a public reason; nothing sealed or charged.

The service answers in this process; steps run in the site's own process, as in the field.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import call_of, put
from joined import AT, PLUGIN, Joined, a_study, ledger_rows, make_joined, propose_and_approve

from medfed.canonical import pack
from medfed.engines.nvflare.envelope import Message
from medfed.engines.nvflare.reasons import NO_STUDY, is_public
from medfed.engines.nvflare.site_service import SiteService
from medfed.engines.nvflare.step_processes import STARTER
from medfed.federation.admission import ALONE, ENOUGH_CALLS, NOT_APPROVED_STEP, PACKAGE_CHANGED
from medfed.federation.approval import revoke
from medfed.federation.keys import load_signing_key, new_signing_key
from medfed.federation.ledger import open_store
from medfed.federation.packages import Package
from medfed.federation.secure_site import OTHER_QUESTION
from medfed.study import Study

BOTH = ["north", "south"]
MOMENTS = "medfed:medfed.methods.standardise.moments"
TERMS = "medfed:medfed.methods.newton.logistic_terms"
ABOVE = f"{PLUGIN}:medfed_test_plugin.median.patients_above"
ROW = f"{PLUGIN}:medfed_test_plugin.hostile.returns_a_row"
P = 3  # coefficients: intercept, age, weight


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return make_joined(tmp_path_factory.mktemp("asking") / "consortium", BOTH)


@pytest.fixture(scope="module")
def studies(joined: Joined) -> dict[str, Study]:
    median = {"use": f"{PLUGIN}:medfed_test_plugin.median.Median", "settings": {}}
    found = {
        "approved": a_study(BOTH),
        "another": a_study(BOTH, name="another", method=median),
        "changed": a_study(BOTH, seed=99),  # the same name; proposed and built, not approved
    }
    for study in found.values():
        propose_and_approve(joined, study, ["north"])
    end_approval(joined, found["changed"])
    return found


def end_approval(joined: Joined, study: Study) -> None:
    site = joined.site("north")
    with closing(open_store(site.ledger_path, "call")) as db:
        revoke(db, site="north", study_hash=study.hash, key=load_signing_key(site.keys), at=AT)


@contextmanager
def approved_as(joined: Joined, study: Study, **changes: Any) -> Iterator[None]:
    """While a run goes on, the approval is another one; then it is as before."""
    propose_and_approve(joined, study, ["north"], **changes)
    yield
    propose_and_approve(joined, study, ["north"])


@pytest.fixture(scope="module")
def service(joined: Joined) -> Iterator[SiteService]:
    threading.Thread(target=STARTER.serve, daemon=True).start()
    found = SiteService(joined.site("north").folder)
    yield found
    for steps in found.steps.values():
        steps.end()


Ask = Callable[..., dict[str, Any]]


@pytest.fixture
def ask(joined: Joined, service: SiteService, studies: dict[str, Study]) -> Ask:
    def asked(study: str = "approved", inputs: Any = None, **changes: Any) -> dict[str, Any]:
        found = studies[study].hash if study in studies else study
        message = call_of(found, **{"wait": 10.0} | changes)
        if inputs is not None:
            message = Message("call", message.content, pack({"inputs": inputs, "each": {}}))
        return dict(put(service, joined.sealer, message).content)

    return asked


@pytest.fixture
def refused(joined: Joined, ask: Ask) -> Ask:
    """Asks, and holds the site to it: a refusal with a sentence that may leave, and not one row more in the ledger."""

    def asked(*args: Any, **changes: Any) -> str:
        before = ledger_rows(joined.site("north"))
        found = ask(*args, **changes)
        assert found["state"] == "failure", found
        assert found["kind"] in ("refused", "unreachable")
        assert is_public(found["reason"]) or found["reason"].startswith("a call"), found
        assert ledger_rows(joined.site("north")) == before
        return str(found["reason"])

    return asked  # type: ignore[return-value]


def terms(size: float = 0.0) -> dict[str, np.ndarray]:
    return {"beta": np.full(P, size), "centre": np.zeros(P), "scale": np.ones(P)}


def test_what_was_approved_is_answered_once_and_the_same_again(joined: Joined, ask: Ask) -> None:
    """The measure of all that follows: this very question is answered."""
    before = len(ledger_rows(joined.site("north")))
    first = ask(ordinal=0)
    assert first["state"] == "answer"
    assert len(ledger_rows(joined.site("north"))) == before + 1
    assert ask(ordinal=0, wait=9.0)["payload"] == first["payload"]
    assert len(ledger_rows(joined.site("north"))) == before + 1
    assert ask(step=TERMS, inputs=terms(), run="terms")["state"] == "answer"


@pytest.mark.parametrize(
    "step",
    [ABOVE, ROW, "medfed:medfed.methods.newton.moments", "medfed:medfed.methods.fedavg.local_training", "medfed:os.system",
     "medfed:medfed.federation.keys.load_signing_key", f"{PLUGIN}:medfed.methods.standardise.moments", "nowhere:nowhere.step"],
)  # fmt: skip
def test_a_step_that_was_not_approved_and_another_studys_step(refused: Ask, step: str) -> None:
    assert refused(step=step) == NOT_APPROVED_STEP


def test_a_step_is_answered_under_its_own_study_only(ask: Ask, refused: Ask) -> None:
    guess = {"guess": np.zeros(P)}
    assert refused(step=ABOVE, inputs=guess) == NOT_APPROVED_STEP
    assert refused("another", step=MOMENTS) == NOT_APPROVED_STEP
    assert ask("another", step=ABOVE, inputs=guess)["state"] == "answer"


def test_a_changed_study_of_the_same_name_and_one_that_never_came(refused: Ask) -> None:
    assert "withdrawn" in refused("changed")
    assert refused("0" * 64) == NO_STUDY


def test_another_approval_counts_from_the_next_call_on(
    joined: Joined, ask: Ask, refused: Ask, studies: dict[str, Study]
) -> None:
    """A package with other files, another table, an end that has passed, fewer calls, no approval any more."""
    study = studies["approved"]
    assert ask(run="before")["state"] == "answer"
    for changes, words in (
        ({"packages": [Package("medfed", "0.1.0", "0" * 64)]}, PACKAGE_CHANGED),
        ({"packages": []}, PACKAGE_CHANGED),
        ({"table_version": "0" * 64}, "table is not the version"),
        ({"until": "2020-01-01"}, "has ended"),
        ({"most_calls": 1}, ENOUGH_CALLS),
        ({"steps": [TERMS]}, NOT_APPROVED_STEP),
        ({"key": new_signing_key()}, "not signed by its key"),
    ):
        with approved_as(joined, study, **changes):
            assert words in refused(run="during")
    end_approval(joined, study)
    assert "withdrawn" in refused(run="during")
    assert "withdrawn" in refused(run="before")  # what was sealed is not sent again either
    propose_and_approve(joined, study, ["north"])
    assert ask(run="during")["state"] == "answer"


@pytest.mark.parametrize(
    ("roster", "words"),
    [
        (["north"], ALONE), (["south"], "not on the roster"), ([], "not on the roster"), (["north", "north"], "twice"),
        (["north", "south", "west"], "does not invite"), (["north", "stranger"], "does not invite"),
        (["north", "../south"], "no site's name"), (["north"] * 10_001, "too long"), ("north", "no roster"), ([7], "no site's name"),
    ],
    ids=range(10),
)  # fmt: skip
def test_another_roster(refused: Ask, roster: Any, words: str) -> None:
    assert words in refused(roster=roster, run="roster")


@pytest.mark.parametrize(
    "changes",
    [{"protection": "secure"}, {"phase": "seal"}, {"phase": "open"}, {"protection": "secure", "phase": "open"}, {"protection": "none"},
     {"protection": None}, {"phase": "Answer"}],
    ids=str,
)  # fmt: skip
def test_a_claim_that_the_sum_is_secure_or_anything_else_that_would_switch_rules_off(
    refused: Ask, changes: dict[str, Any]
) -> None:
    refused(run="claim", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"part": "test"}, {"part": "valid"}, {"part": "all"}, {"part": "train:7"}, {"part": "../train"}, {"variant": "x"}, {"variant": "../x"},
        {"run": "../x"}, {"run": "main/0/../../x"}, {"run": ""}, {"run": "/etc"}, {"round": -1}, {"ordinal": -1}, {"round": 10**9},
        {"kept": "../x"}, {"kept": "nowhere"}, {"settled": 7}, {"step": ""}, {"step": "../x:y"}, {"step": "medfed:" + "x." * 400},
    ],
    ids=str,
)  # fmt: skip
def test_names_and_numbers_that_medfed_does_not_write(refused: Ask, changes: dict[str, Any]) -> None:
    refused(**{"run": "names"} | changes)


@pytest.mark.parametrize(
    "inputs",
    [
        {}, terms(21), terms(np.nan), terms(-np.inf), terms() | {"more": np.zeros(1)}, {"beta": np.zeros(P)}, terms() | {"beta": np.zeros(P + 1)},
        terms() | {"beta": np.zeros((P, P))}, terms() | {"scale": np.full(P, 1e-9)},
        terms() | {"beta": np.zeros(0)},
    ],
    ids=range(10),
)  # fmt: skip
def test_inputs_that_could_isolate_a_patient_or_do_not_fit(refused: Ask, inputs: dict[str, np.ndarray]) -> None:
    refused(step=TERMS, inputs=inputs, run="inputs")


def test_another_question_under_the_same_call(ask: Ask, refused: Ask) -> None:
    assert ask(step=TERMS, inputs=terms(), run="again")["state"] == "answer"
    assert refused(step=TERMS, inputs=terms(0.5), run="again") == OTHER_QUESTION


def test_inputs_by_the_name_of_a_file_are_read_from_what_came_in_and_nowhere_else(joined: Joined, refused: Ask) -> None:
    """An empty call whose inputs are said to lie in a file of the site: its table, its ledger, its key."""
    home = joined.site("north").folder
    for path in (home / "ledger.db", home / "keys" / "site_signing.pem", Path("/etc/hostname"), Path("/dev/zero")):
        assert "lacks the input" in refused(step=TERMS, inputs={}, run="file", inputs_file=str(path))
        assert "lacks its whole" in refused_message(refused, whole=str(path))


def refused_message(refused: Ask, **changes: Any) -> str:
    try:
        return refused(**changes)  # type: ignore[return-value]
    except AssertionError as problem:
        return str(problem)


def test_parts_of_an_answer_are_given_while_the_approval_stands(
    joined: Joined, service: SiteService, studies: dict[str, Study]
) -> None:
    blobs = joined.site("north").ledger_path.with_suffix(".blobs")
    blobs.mkdir(exist_ok=True)
    (blobs / ("b" * 64)).write_bytes(b"large")
    fetch = Message("fetch", {"payload": "b" * 64, "index": 0})
    assert put(service, joined.sealer, fetch).content["state"] == "failure"
    service.offered["b" * 64] = studies["approved"].hash
    assert put(service, joined.sealer, fetch).blob == b"large"
    service.offered["b" * 64] = studies["changed"].hash
    assert put(service, joined.sealer, fetch).content["state"] == "failure"
