"""Real processes that try to come in, over real connections: only the right site with the right certificate and key does."""

import json
import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from network import Intruder, Network, dated, make_intruder, wait_for

from medfed.engines.nvflare import renewal
from medfed.engines.nvflare.certificates import Pair, Root, fingerprint, make_root
from medfed.engines.nvflare.channel import Unanswered
from medfed.engines.nvflare.envelope import Message
from medfed.engines.nvflare.guard import (
    NOT_ITS_CERTIFICATE,
    NOT_ITS_KEY,
    NOT_ON_THE_ROSTER,
    NOT_THE_ADMINISTRATOR,
    make_token,
)
from medfed.engines.nvflare.kit import open_kit
from medfed.federation.keys import load_signing_key, new_signing_key

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("network")]
DAY = timedelta(days=1)


# -- connections -----------------------------------------------------------------------------------------------------


def foreign_root(folder: Path) -> Root:
    made = make_root("trial")  # of the same name
    made.write(folder, "root")
    return Root.load(folder)


def is_let_in(network: Network, pair: Pair | None, folder: Path) -> bool:
    """Whether the coordinator's port goes on speaking with somebody who shows this certificate."""
    context = ssl.create_default_context(cafile=str(network.joined.coordinator.keys / "root.crt"))
    if pair is not None:
        pair.write(folder, "shown")
        context.load_cert_chain(folder / "shown.crt", folder / "shown.key")
    with socket.create_connection(("localhost", network.joined.declared.coordinator.port), timeout=20) as plain:
        try:
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.settimeout(3)
                return connection.recv(1) != b""  # its greeting; or an alert, or the end
        except TimeoutError:
            return True
        except OSError:
            return False


@pytest.mark.parametrize(
    ("shown", "words"),
    [("right", ""), ("foreign", "certificate"), ("expired", "certificate has expired"), ("not yet valid", "certificate is not yet valid"),
     ("missing", "PEER_DID_NOT_RETURN_A_CERTIFICATE"), ("made by a site", "certificate")],
)  # fmt: skip
def test_a_certificate_that_is_foreign_expired_or_missing_gets_no_connection(
    network: Network, tmp_path: Path, shown: str, words: str
) -> None:
    root = Root.load(network.joined.coordinator.keys)
    north = network.joined.site_network("north")
    key = (north.workspace / "startup" / "client.key").read_bytes()
    pairs = {
        "right": lambda: Pair(north.certificate(), key), "foreign": lambda: foreign_root(tmp_path).issue("north", days=3),
        "expired": lambda: dated(root, "north", -9 * DAY, -DAY), "not yet valid": lambda: dated(root, "north", DAY, 9 * DAY),
        "missing": lambda: None, "made by a site": lambda: issued_by_a_site(tmp_path, north.certificate(), key),
    }  # fmt: skip
    assert is_let_in(network, pairs[shown](), tmp_path) is (shown == "right")
    if words:
        line = "turned away a connection from 127.0.0.1: "
        wait_for(
            lambda: any(line in said and words in said for said in network.server_log().splitlines()),
            20,
            network.server_log,
        )


def issued_by_a_site(folder: Path, certificate: bytes, key: bytes) -> Pair:
    """A site plays root: its own key signs a certificate for another name."""
    Pair(certificate, key).write(folder, "root")
    made = Root.load(folder).issue("south", days=3)
    return Pair(made.certificate + certificate, made.key)


def test_connections_that_say_nothing_keep_nobody_out(network: Network, tmp_path: Path) -> None:
    """NVFLARE shakes hands before it accepts the next: one silent connection would close the port to all sites."""
    port = network.joined.declared.coordinator.port
    silent = [socket.create_connection(("localhost", port)) for _ in range(20)]
    try:
        north = network.joined.site_network("north")
        pair = Pair(north.certificate(), (north.workspace / "startup" / "client.key").read_bytes())
        began = time.monotonic()
        assert is_let_in(network, pair, tmp_path)
        assert time.monotonic() - began < 10
    finally:
        for connection in silent:
            connection.close()


# -- registrations ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def intruders(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Intruder]]:
    """Clients of NVFLARE that try to come in; one has every right to. Names of sites that are up, and of some that are not."""
    folder = tmp_path_factory.mktemp("intruders")
    joined, root = network.joined, Root.load(network.joined.coordinator.keys)
    key, identity = load_signing_key(joined.site("north").keys), joined.coordinator.identity()
    kits = {}
    for name in ("east", "gone", "late"):
        path, code, _ = renewal.invite(joined.coordinator, joined.declared, name)
        kits[name] = open_kit(path, code)
    renewal.remove(joined.coordinator, "gone")
    own = {name: Pair(kit.certificate.encode(), kit.key.encode()) for name, kit in kits.items()}
    for name in ("north", "south"):
        site = joined.site_network(name)
        own[name] = Pair(site.certificate(), (site.workspace / "startup" / "client.key").read_bytes())
    other = root.issue("north", days=3)

    def token(name: str, signing: Any = key, certificate: Pair | None = None, enrolment: str = "00" * 32) -> str:
        return make_token(identity, name, fingerprint((certificate or own[name]).certificate), signing, enrolment)

    cases = {
        "right": ("east", own["east"], token("east", new_signing_key(), enrolment=kits["east"].enrolment)),
        "not the roster's": ("north", other, token("north", certificate=other)),
        "not the one it names": ("north", other, token("north")),
        "another site's certificate": ("north", own["south"], token("north")),
        "another key": ("north", own["north"], token("north", new_signing_key())),
        "no token": ("late", own["late"], "None"),
        "without the kit's secret": ("late", own["late"], token("late")),
        "removed": ("gone", own["gone"], token("gone", enrolment=kits["gone"].enrolment)),
        "says admin": ("gone", own["gone"], token("gone")),
        "says relay": ("gone", own["gone"], token("gone")),
    }
    found = {name: make_intruder(joined, folder / str(n), *case) for n, (name, case) in enumerate(cases.items())}
    yield found
    for each in found.values():
        each.stop()
    renewal.remove(joined.coordinator, "east")


def test_the_right_certificate_key_and_secret_come_in(network: Network, intruders: dict[str, Intruder]) -> None:
    """The measure of all that follows: the same client, the same way."""
    bring_in(network, intruders["right"])
    assert network.joined.coordinator.members()["east"].state == "joined"


def bring_in(network: Network, right: Intruder) -> None:
    """Once: tests may run alone and in any order."""
    if right.process is None:
        right.start()
    wait_for(lambda: "east" in network.registered(), 60, right.log)


REASONS = {
    "not the roster's": NOT_ITS_CERTIFICATE, "not the one it names": NOT_ITS_CERTIFICATE,
    "another key": NOT_ITS_KEY, "no token": NOT_ITS_KEY, "without the kit's secret": NOT_ITS_KEY, "removed": NOT_ON_THE_ROSTER,
    "says admin": NOT_THE_ADMINISTRATOR, "says relay": NOT_ON_THE_ROSTER,
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_everybody_else_is_refused_with_a_reason_and_gets_no_job(
    network: Network, intruders: dict[str, Intruder], name: str
) -> None:
    intruder, line = intruders[name], f"refused the registration of {intruders[name].name}: {REASONS[name]}"
    before = network.server_log().count(line)
    intruder.start(client_type=name.removeprefix("says ") if name.startswith("says") else "regular")
    try:
        wait_for(lambda: network.server_log().count(line) > before, 60, lambda: intruder.log() + network.server_log())
        assert network.processes("worker_process", str(intruder.home)) == []
        assert not list((intruder.home / "nvflare").glob("????????-????-*"))  # nothing was deployed
        assert "Connected" not in intruder.log()
    finally:
        intruder.stop()


def test_a_site_that_uses_another_sites_name_is_not_heard(network: Network, intruders: dict[str, Intruder]) -> None:
    """The connection itself is held to the name in its certificate: it does not come as far as the roster."""
    intruder, before = intruders["another site's certificate"], network.server_log()
    intruder.start()
    try:
        wait_for(lambda: "Error processing frame" in network.server_log()[len(before) :], 60, network.server_log)
        time.sleep(5)
        assert intruder.process is not None
        assert network.processes("worker_process", str(intruder.home)) == []
        # The right one, undisturbed. Jobs are replaced when somebody new comes in, so it may take a moment.
        wait_for(lambda: answers(network, "north"), 30, network.server_log)
    finally:
        intruder.stop()


def answers(network: Network, name: str) -> bool:
    try:
        return bool(network.ask(name, Message("ping", {})).content["state"] == "ready")
    except Unanswered:
        return False


def test_the_sites_that_are_there_stay_and_no_stranger_is_among_them(
    network: Network, intruders: dict[str, Intruder]
) -> None:
    bring_in(network, intruders["right"])
    network.wait_connected(["north", "south", "west"])
    assert {"north", "south", "west"} <= network.registered() <= {"north", "south", "west", "east"}
    states = {name: member.state for name, member in network.joined.coordinator.members().items()}
    assert states == {
        "north": "joined",
        "south": "joined",
        "west": "joined",
        "east": "joined",
        "gone": "removed",
        "late": "invited",
    }


def test_a_site_is_no_administrator(network: Network, tmp_path: Path) -> None:
    """A site's certificate opens no session with which jobs are submitted or sites are asked about."""
    from nvflare.fuel.flare_api.flare_api import new_secure_session

    home, north = tmp_path / "admin", network.joined.site_network("north")
    shutil.copytree(network.joined.coordinator.admin, home)
    Pair(north.certificate(), (north.workspace / "startup" / "client.key").read_bytes()).write(
        home / "startup", "client"
    )
    for user in ("north", "coordinator@medfed.local"):
        declared = json.loads((home / "startup" / "fed_admin.json").read_text())
        declared["admin"]["username"] = user
        (home / "startup" / "fed_admin.json").write_text(json.dumps(declared))
        with pytest.raises(Exception):  # noqa: B017  NVFLARE's words for it differ
            new_secure_session(user, str(home), timeout=6)


def test_nothing_secret_stands_in_any_log(network: Network, intruders: dict[str, Intruder]) -> None:
    text = network.server_log() + "".join(network.log(name) for name in ("north", "south", "west"))
    keys = [
        network.joined.coordinator.keys / "root.key",
        *network.folder.rglob("client.key"),
        *network.folder.rglob("*.pem"),
    ]
    secrets = [
        line for path in keys for line in path.read_text().splitlines() if len(line) > 40 and "-----" not in line
    ]
    secrets += [json.loads(path.read_text())["signature"] for path in network.folder.rglob("registration.json")]
    secrets += [member.enrolment for member in network.joined.coordinator.members().values() if member.enrolment]
    assert len(secrets) > 50
    assert [secret for secret in secrets if secret in text] == []


def test_a_site_with_an_expired_certificate_says_so_itself(network: Network) -> None:
    south = network.joined.site_network("south")
    startup = south.workspace / "startup"
    kept = Pair(south.certificate(), (startup / "client.key").read_bytes())
    network.stop_site("south")
    dated(Root.load(network.joined.coordinator.keys), "south", -9 * DAY, -DAY).write(startup, "client")
    network.start_site("south")
    try:
        wait_for(lambda: "does not connect: the certificate ended on" in south.log.read_text(), 30, south.log.read_text)
        wait_for(lambda: "ended on" in json.loads(south.state_path.read_text())["why"], 10, south.state_path.read_text)
    finally:
        network.stop_site("south")
        kept.write(startup, "client")
        network.start_site("south")


def test_a_site_that_is_removed_while_it_works_is_put_out_and_stays_out(network: Network) -> None:
    wait_for(lambda: network.job_processes("west"), 60, "west has no job")
    renewal.remove(network.joined.coordinator, "west")
    wait_for(lambda: "west" not in network.registered(), 60, "west is still registered")
    wait_for(lambda: not network.job_processes("west"), 60, "west still has a job")
    network.wait_connected(["north", "south"])
    network.stop_site("west")
    network.start_site("west")
    wait_for(
        lambda: f"refused the registration of west: {NOT_ON_THE_ROSTER}" in network.server_log(), 60, network.server_log
    )
    time.sleep(3)
    assert "west" not in network.registered()
    assert network.job_processes("west") == []
    network.stop_site("west")
