"""Secure sums over a real network: the same bits as in one process, processes that are killed in every stage, no site's terms."""

import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, synthetic, write_site

sys.path.insert(0, str(Path(__file__).parents[2] / "federation"))

from secure_faults import Proxy
from what_is_seen import sealed_words, store_of, terms_seen, traffic_of

from medfed.applications.network.officer import build_and_approve
from medfed.applications.network.party import copy_site
from medfed.applications.statistics import open_consortium, question
from medfed.canonical import pack, unpack
from medfed.data.site_folder import load_site
from medfed.engines.nvflare.engine import Networked
from medfed.engines.nvflare.processes import ServiceLock
from medfed.engines.nvflare.proposals import propose
from medfed.engines.site_folders import SiteFolders
from medfed.engines.site_roster import add_to_roster, read_roster
from medfed.errors import FederationError
from medfed.federation.call import Call
from medfed.federation.keys import load_signing_key, public_hex
from medfed.federation.opening import ring_of
from medfed.federation.packages import find_method, find_step
from medfed.federation.ring import decode
from medfed.federation.runner import Runner
from medfed.study import Study

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]

SITES = ("alpha", "beta", "gamma", "delta")
ROWS = (150, 170, 90, 3)
SHORT = {"invited": list(SITES), "minimum": 2, "deadline_minutes": 0.15}
STUDY, HASTY = synthetic(SITES), synthetic(SITES, name="hasty", sites=SHORT)
NOISY = synthetic(
    SITES, name="noisy", privacy={"epsilon": 20}, evaluation={"design": "none"},
    method={"use": "medfed:medfed.methods.private_glm.PrivateGLM", "settings": {"rounds": 7}},
)  # fmt: skip


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    folder = tmp_path_factory.mktemp("net")
    alone = folder / "alone"
    for index, (site, rows) in enumerate(zip(SITES, ROWS, strict=True)):
        write_site(folder, site, rows, seed=index)
        policy = folder / "sites" / site / "policy.yaml"
        policy.write_text(policy.read_text().replace("budget: 0 ", "budget: 30 "))
        copy_site(folder / "sites" / site, alone / "sites" / site)
        home = load_site(alone / "sites" / site)
        add_to_roster(home.folder, site, public_hex(load_signing_key(home.keys)))
    found = Loopback(folder, SITES, [])
    found.set_up()
    found.up()
    for study in (STUDY, HASTY, NOISY):
        # Whoever is just being connected gets it at the next try.
        found.until(lambda s=study: {h["state"] for h in propose(found.network, s, "").values()} == {"pending"}, 60)
        for site in SITES:
            build_and_approve(folder / "sites" / site, study)
    for site in SITES:
        build_and_approve(alone / "sites" / site, STUDY)
    yield found
    found.down()


def run(folder: Path, engine: Any, study: Study, name: str) -> bytes:
    with closing(Runner(folder / "coordinator", engine, study)) as runner:
        return pack(runner.execute(find_method(study), name))


@pytest.fixture(scope="module")
def in_one_process(net: Loopback) -> bytes:
    with closing(SiteFolders(net.folder / "alone", STUDY)) as engine:
        assert engine.protections == ("plain", "secure")
        return run(net.folder / "alone", engine, STUDY, "same")


def test_every_site_believes_the_keys_that_the_authority_of_its_kit_signed(net: Loopback) -> None:
    keys = {site: net.network.members()[site].public_key for site in SITES}
    for site in SITES:
        home = load_site(net.folder / "sites" / site)
        assert read_roster(home) == keys
        assert net.site(site).membership().authority == net.network.authority_key()


def test_the_same_bits_as_in_one_process_and_nothing_of_a_site(net: Loopback, in_one_process: bytes) -> None:
    with closing(Networked(net.folder, STUDY)) as engine:
        assert engine.protections == ("plain", "secure")
        proxy = Proxy(engine)
        assert run(net.folder, proxy, STUDY, "same") == in_one_process
    stores = {site: net.folder / "sites" / site / "ledger.db" for site in SITES}
    assert min(len(sealed_words(path, site)) for site, path in stores.items()) > 20
    data = traffic_of(proxy) + (net.folder / "coordinator" / "runner.db").read_bytes()
    assert terms_seen(data + store_of(net.folder / "coordinator" / "runs"), stores) == {}


def test_processes_of_sites_that_are_killed_in_every_stage_change_nothing(net: Loopback, in_one_process: bytes) -> None:
    """The process that reads patients' rows has all secrets of an attempt; it is killed before it answers, once a stage."""
    left = ["seal", "keys", "KeyList", "Delivery", "Survivors", "SignedSurvivors"]

    def fault(call: Call, site: str, stage: str) -> None:
        due = site == "beta" and left and stage == left[0] and call.round > 6 - len(left)
        if due and net.signal(
            "step", "beta", signal.SIGKILL
        ):  # before a study's first call there is no process to kill
            left.pop(0)

    with closing(Networked(net.folder, STUDY)) as engine:
        assert run(net.folder, Proxy(engine, fault), STUDY, "killed") == in_one_process
    assert left == []


def charged_answers(path: Path) -> dict[str, dict[str, Any]]:
    """What a site sealed with noise, by call."""
    with closing(sqlite3.connect(path)) as db:
        rows = db.execute(
            "select c.key, l.bytes from ledger l join call c on c.id=l.call where l.event is not null"
        ).fetchall()
    return {key: unpack(data) for key, data in rows}


def test_shares_of_noise_add_up_to_what_was_sealed_whatever_is_killed(net: Loopback) -> None:
    """Noise is drawn once: a total is the sum of the sites' sealed words, and is charged once a call."""
    left = ["seal", "keys", "KeyList", "Delivery", "Survivors", "SignedSurvivors"]

    def fault(call: Call, site: str, stage: str) -> None:
        due = site == "beta" and left and stage == left[0] and call.round > 7 - len(left)
        if due and net.signal("step", "beta", signal.SIGKILL):
            left.pop(0)

    with closing(Networked(net.folder, NOISY)) as engine:
        proxy = Proxy(engine, fault)
        with closing(Runner(net.folder / "coordinator", proxy, NOISY)) as runner:
            result = runner.execute(find_method(NOISY), "noisy")
            stores = {site: net.folder / "sites" / site / "ledger.db" for site in SITES}
            sealed = {site: charged_answers(path) for site, path in stores.items()}
            keys = set(sealed["beta"])
            totals = {key: runner.store.journaled(key) for key in keys}
    assert left == []
    assert result["sites"] == sorted(SITES), "three patients among them"
    assert len(keys) == 8, "a count and seven gradients"
    for key, journaled in totals.items():
        assert journaled is not None
        (name,) = journaled[1]["values"]
        words = sum(sealed[site][key][name] for site in SITES)
        bits = ring_of(find_step(key.split("|")[3]).releases[name], NOISY)  # type: ignore[arg-type]
        assert (decode(words, *bits) == journaled[1]["values"][name]).all()
    assert terms_seen(traffic_of(proxy) + (net.folder / "coordinator" / "runner.db").read_bytes(), stores) == {}


def test_a_site_that_goes_after_an_opening_is_waited_for_and_the_run_goes_on_when_it_is_back(net: Loopback) -> None:
    with closing(Networked(net.folder, HASTY)) as engine:
        wanted = run(net.folder, engine, HASTY, "quiet")
    stopped: list[float] = []

    def fault(call: Call, site: str, stage: str) -> None:
        if call.round == 3 and stage == "Delivery" and not stopped:
            stopped.append(time.monotonic())
            assert ServiceLock(net.site("gamma").run).stop_holder()

    with closing(Networked(net.folder, HASTY)) as engine:
        with pytest.raises(FederationError, match="gamma took part in the totals so far and is missing now"):
            run(net.folder, Proxy(engine, fault), HASTY, "gone")
        assert time.monotonic() - stopped[0] >= 9, "it was waited for till the deadline"
    net.start_site("gamma")
    net.until(lambda: net.connected() == set(SITES), 120)
    with closing(Networked(net.folder, HASTY)) as engine:
        assert run(net.folder, engine, HASTY, "gone") == wanted


@pytest.mark.parametrize("kind", ["glm", "table1", "describe"])
def test_statistics_are_the_same_bits_as_in_one_process(net: Loopback, kind: str) -> None:
    """`medfed stats` on a running consortium: the question that nobody has approved, then its answer."""
    settings = {"formula": "event ~ x0 + x1"} if kind == "glm" else {}
    asked = question(STUDY, kind, settings)
    alone = net.folder / "alone"
    with pytest.raises(FederationError, match=r"approved this question yet.*medfed consortium propose "):
        open_consortium(net.folder, STUDY).ask(kind, **settings)
    net.until(lambda: {h["state"] for h in propose(net.network, asked, "").values()} == {"pending"}, 60)
    for site in SITES:
        build_and_approve(net.folder / "sites" / site, asked)
        build_and_approve(alone / "sites" / site, asked)
    over_network = open_consortium(net.folder, STUDY).ask(kind, **settings)
    here = open_consortium(alone, STUDY).ask(kind, **settings)
    assert pack(dict(over_network.values)) == pack(dict(here.values))
    assert list(here.values["sites"]) == sorted(SITES)
