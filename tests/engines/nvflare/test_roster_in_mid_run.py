"""The engine asks a site that was removed nothing more, also when it is removed while it is waited for."""

import threading
import time
from pathlib import Path

import pytest

from medfed.engines.nvflare import engine as engine_module
from medfed.engines.nvflare import renewal
from medfed.engines.nvflare.consortium import TEMPLATE, Network
from medfed.engines.nvflare.engine import REMOVED, Networked
from medfed.federation.call import Answer, Call, Failure, Own, Waiting
from medfed.federation.keys import new_signing_key, public_hex
from medfed.study import study_from_dict

STUDY = study_from_dict({
    "medfed": 1, "name": "example", "title": "An example", "question": "Who has the event?",
    "variables": {
        "event": {"meaning": "Event", "type": "code", "role": "outcome", "codes": {"no": "No", "yes": "Yes"}, "event": "yes"},
        "age": {"meaning": "Age", "type": "number", "role": "covariate", "unit": "year", "range": [0, 120]},
    },
    "task": {"kind": "risk_prediction"}, "method": {"use": "medfed:medfed.methods.newton.Newton"},
    "sites": {"invited": ["north", "south"], "minimum": 1},
})  # fmt: skip


@pytest.fixture
def consortium(tmp_path: Path) -> Path:
    """Two sites that have joined; nothing runs."""
    (tmp_path / "consortium.yaml").write_text(TEMPLATE.format(name="test", host="localhost", port=8002))
    network = Network(tmp_path)
    renewal.create(network, network.declared())
    for site in STUDY.sites.invited:
        renewal.invite(network, network.declared(), site)
        network.change(site, state="joined", public_key=public_hex(new_signing_key()), enrolment="")
    return tmp_path


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call's clock stands still while the coordinator's own side is down, as it is here; not for ten minutes."""
    monkeypatch.setattr(engine_module, "STANDS_STILL_AT_MOST", 1.0)


def ask(engine: Networked, phase: str = "answer", deadline: float = 1.0) -> dict[str, Answer | Failure]:
    call = Call(
        STUDY.hash, "main", 1, "medfed:medfed.methods.standardise.moments", 0, "train", engine.sites, {}, phase=phase
    )  # type: ignore[arg-type]
    return dict(engine.exchange(call, dict.fromkeys(engine.sites, Own()), deadline))


def test_a_site_that_is_removed_is_left_out_from_the_next_call_on(consortium: Path) -> None:
    engine = Networked(consortium, STUDY)
    assert "dispatcher is not up" in str(ask(engine, deadline=0.3)["north"])
    renewal.remove(Network(consortium), "north")
    answers = ask(engine, deadline=0.3)
    assert answers["north"] == Failure("unreachable", REMOVED)
    assert answers["south"] != answers["north"]
    engine.close()


def test_a_site_that_is_removed_while_it_is_waited_for_is_waited_for_no_longer(consortium: Path) -> None:
    engine, began = Networked(consortium, STUDY), time.monotonic()
    threading.Timer(0.5, renewal.remove, (Network(consortium), "north")).start()
    threading.Timer(0.5, renewal.remove, (Network(consortium), "south")).start()
    answers = ask(engine, deadline=60.0)
    assert set(answers.values()) == {Failure("unreachable", REMOVED)}
    assert time.monotonic() - began < 30
    engine.close()


def test_nobody_is_told_of_a_wait_for_the_end_of_a_ledger_since_the_run_does_not_wait(consortium: Path) -> None:
    engine, told = Networked(consortium, STUDY), list[Waiting]()
    engine.on_wait = told.append
    ask(engine, "head", 0.3)
    assert told == []
    ask(engine, "answer", 0.3)
    assert {waiting.site for waiting in told} == {"north", "south"}
    engine.close()
