"""Studies over a real network on this machine: the same bits, sites that come and go, what the status says of them."""

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from faults import Bench, compare
from faults_runner import SITES, study_of
from loopback import Loopback, synthetic, write_site

from medfed.applications.network.officer import build_and_approve
from medfed.applications.network.party import copy_site
from medfed.canonical import pack
from medfed.engines.nvflare.engine import Networked
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.processes import ServiceLock
from medfed.engines.nvflare.proposals import propose, standings
from medfed.engines.site_folders import SiteFolders
from medfed.federation.approval import revoke
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.federation import Federation
from medfed.federation.keys import load_signing_key
from medfed.federation.ledger import open_store
from medfed.federation.packages import find_method, step_name
from medfed.federation.runner import Runner
from medfed.federation.status import status_of
from medfed.methods.standardise import moments
from medfed.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]

NEWTON = study_of("newton")
# Whoever is away is left out after twelve seconds, while two of four have answered.
QUORUM = synthetic(SITES, name="quorum", sites={"invited": list(SITES), "minimum": 2, "deadline_minutes": 0.2})
PROPOSED = synthetic(SITES, name="proposed", question="Another question?")


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("net")
    for index, site in enumerate(SITES):
        write_site(folder, site, 150 + 11 * index, seed=index)
        copy_site(folder / "sites" / site, folder / "alone" / "sites" / site)
    found = Loopback(folder, SITES, [NEWTON, QUORUM])
    found.set_up()
    found.up()
    yield found
    found.down()


def run(folder: Path, engine: Any, study: Study, name: str) -> bytes:
    with (
        closing(engine),
        closing(Runner(folder / "coordinator", engine, study, public_keys=engine.public_keys)) as runner,
    ):
        return pack(runner.execute(find_method(study), name))


def test_a_study_over_a_network_has_the_same_bits_as_in_one_process(net: Loopback) -> None:
    alone = net.folder / "alone"
    for site in SITES:
        build_and_approve(alone / "sites" / site, NEWTON)
    over = run(net.folder, Networked(net.folder, NEWTON), NEWTON, "same")
    assert over == run(alone, SiteFolders(alone, NEWTON), NEWTON, "same")


def one_call(net: Loopback, study: Study, run_name: str, round_: int = 1) -> tuple[dict[str, Any], float]:
    """Every site's answer or failure to one call, and how long it took."""
    engine = Networked(net.folder, study)
    call = Call(study.hash, run_name, round_, step_name(moments), 0, "train", SITES, {})
    start = time.monotonic()
    with closing(engine):
        return dict(engine.exchange(call, dict.fromkeys(SITES, Own()))), time.monotonic() - start


class Watched:
    """A method of one call, which can be looked at while it waits."""

    def __init__(self, rounds: int) -> None:
        self.rounds, self.steps = rounds, (moments,)
        self.sites: list[tuple[str, ...]] = []

    def start(self, study: Study) -> dict[str, Any]:
        return {"done": 0}

    def advance(self, federation: Federation, state: dict[str, Any]) -> dict[str, Any]:
        self.sites.append(federation.sum(moments).sites)
        return {"done": state["done"] + 1}

    def done(self, state: dict[str, Any]) -> bool:
        return bool(state["done"] >= self.rounds)

    def result(self, state: dict[str, Any]) -> dict[str, Any]:
        return state


def test_a_site_that_is_away_is_waited_for_left_out_and_taken_back_and_the_status_says_so(net: Loopback) -> None:
    folder = net.folder / "coordinator"
    engine, method = Networked(net.folder, QUORUM), Watched(6)
    stopped_at = time.time()
    assert ServiceLock(net.site("beta").run).stop_holder()
    seen: list[Any] = []

    def work() -> None:
        with closing(Runner(folder, engine, QUORUM, public_keys=engine.public_keys)) as mine:
            mine.execute(method, "away")

    thread = threading.Thread(target=work)
    thread.start()
    while thread.is_alive() and len(method.sites) < 2:
        seen += [s for s in status_of(folder) if s.run == "away" and s.state == "running" and s.waits]
        time.sleep(0.1)
    net.start_site("beta")
    thread.join(120)
    engine.close()
    assert method.sites[0] == method.sites[1] == ("alpha", "delta", "gamma"), "left out after the deadline"
    waits = [w for s in seen for w in s.waits if w.site == "beta" and w.state == "away"]
    assert waits, "the status names the site that was stopped"
    assert {w.site for s in seen for w in s.waits if w.state == "away"} == {"beta"}, "and nobody else"
    assert all(stopped_at - 1 <= w.since <= time.time() for w in waits)
    assert any("not connected" in w.why or "does not answer" in w.why or "went away" in w.why for w in waits)
    first = seen[-1]
    assert first.answered >= first.minimum == 2
    assert first.until is not None
    net.until(lambda: net.connected() == set(SITES), 60)
    answers, _ = one_call(net, QUORUM, "back")
    assert all(isinstance(answer, Answer) for answer in answers.values()), "taken back when it returns"


def test_a_revocation_counts_from_the_next_call(net: Loopback) -> None:
    answers, _ = one_call(net, QUORUM, "revoked", 1)
    assert all(isinstance(answer, Answer) for answer in answers.values())
    site = net.site("gamma").site
    with closing(open_store(site.ledger_path, "call")) as db:
        revoke(
            db, site="gamma", study_hash=QUORUM.hash, key=load_signing_key(site.keys), at=datetime.now(UTC).isoformat()
        )
    answers, _ = one_call(net, QUORUM, "revoked", 2)
    assert answers["gamma"] == Failure("refused", "the site has withdrawn its approval of this study")
    assert sum(isinstance(answer, Answer) for answer in answers.values()) == 3
    build_and_approve(site.folder, QUORUM)


def test_a_proposal_lands_in_the_inboxes_and_the_answers_come_back(net: Loopback) -> None:
    found = propose(net.network, PROPOSED, "please")
    assert {site: how["state"] for site, how in found.items()} == dict.fromkeys(SITES, "pending")
    box = Inbox(net.site("alpha").site)
    proposal = box.find("proposed")
    assert (proposal.study.hash, proposal.note) == (PROPOSED.hash, "please")
    box.decline(proposal.study, "not our question", datetime.now(UTC).isoformat())
    build_and_approve(net.site("beta").site.folder, PROPOSED)
    found = standings(net.network, PROPOSED)
    assert (found["alpha"]["state"], found["alpha"]["reason"]) == ("declined", "not our question")
    assert found["beta"]["state"] == "approved"
    assert found["delta"]["state"] == "pending"


def test_a_halted_site_answers_nothing(net: Loopback) -> None:
    net.site("delta").halt("a test")
    try:
        answers, _ = one_call(net, QUORUM, "halted")
        assert isinstance(answers["delta"], Failure)
        assert sum(isinstance(answer, Answer) for answer in answers.values()) == 3
    finally:
        net.site("delta").lift_halt()
        net.until(lambda: net.connected() == set(SITES), 60)


def test_kills_stops_and_a_lying_line_change_nothing(net: Loopback) -> None:
    bench = Bench(net, "newton", seed=3, pace=0.05)
    quiet, _ = bench.quiet()
    faults = bench.with_faults(
        4, only=[("kill", "site job"), ("kill", "server job"), ("kill", "runner"), ("kill", "step")]
    )
    assert compare("faults", quiet, faults) == []
    assert all(happened.over is not None for happened in bench.happened)
    line, counts = bench.with_messages()
    assert compare("line", quiet, line) == []
    assert counts["corrupt answer"] + counts["replay answer"] + counts["duplicate"] > 0
