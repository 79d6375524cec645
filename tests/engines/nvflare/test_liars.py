"""A relay or a site that lies gets nothing done: it is unanswered or left out, and the coordinator goes on."""

import json
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID
from joined import Joined, a_study, make_joined

from medfed.canonical import canonical_json
from medfed.engines.nvflare.certificates import Root
from medfed.engines.nvflare.channel import Channel, Unanswered, sites_in_dispatcher
from medfed.engines.nvflare.engine import Networked
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.frames import CHUNK, BadMessage, listen, receive, send
from medfed.engines.nvflare.relay import CoordinatorRelay, SiteRelay
from medfed.errors import FederationError
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.keys import load_signing_key, new_signing_key


class Liar:
    """A relay that answers what ``says`` makes of the question; with the site's key where it has one."""

    def __init__(self, path: Path, says: Callable[[dict[str, Any], bytes], tuple[Any, bytes] | bytes]) -> None:
        self.says = says
        self.server = listen(path)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with connection:
            while True:
                try:
                    header, blob = receive(connection)
                    said = self.says(header, blob)
                    if isinstance(said, bytes):
                        connection.sendall(said)
                        return
                    send(connection, *said)
                except (OSError, EOFError, BadMessage):
                    return


@pytest.fixture
def lie(tmp_path: Path) -> Iterator[Callable[..., tuple[Channel, Sealer]]]:
    liars = []

    def made(says: Callable[..., Any]) -> tuple[Channel, Sealer]:
        key = new_signing_key()
        site = Sealer("c", "north", key)
        path = tmp_path / f"run{len(liars)}" / "relay"
        liars.append(Liar(path, lambda header, blob: says(site, header, blob)))
        return Channel(
            path, Sealer("c", "coordinator", new_signing_key()), "north", site.key.public_key().public_bytes_raw().hex()
        ), site

    yield made
    for liar in liars:
        liar.server.close()


def honest(
    site: Sealer, header: dict[str, Any], content: dict[str, Any], blob: bytes = b"", **changes: Any
) -> tuple[dict[str, Any], bytes]:
    asked = json.loads(header["message"])
    message = replace(Message(asked["kind"], content, blob, asked["nonce"]), **changes)
    return {"message": canonical_json(site.write(message, "coordinator"))}, blob


def test_an_answer_to_another_question_is_none(lie: Any) -> None:
    kept: list[Any] = []

    def reorders(site: Sealer, header: dict[str, Any], blob: bytes) -> Any:
        kept.append(honest(site, header, {"n": len(kept)}))
        return kept[0]  # the first answer, again and again

    channel, _ = lie(reorders)
    assert channel.ask(Message("ping", {}), timeout=5).content == {"n": 0}
    with pytest.raises(Unanswered, match="not verified"):
        channel.ask(Message("ping", {}), timeout=5)
    channel.close()


LIES: dict[str, Callable[[Sealer, dict[str, Any], bytes], Any]] = {
    "another kind": lambda site, header, blob: honest(site, header, {}, kind="call"),
    "a changed blob": lambda site, header, blob: (honest(site, header, {}, b"figures")[0], b"figurez"),
    "a blob too many": lambda site, header, blob: (honest(site, header, {})[0], b"x"),
    "another's key": lambda site, header, blob: honest(replace(site, key=new_signing_key()), header, {}),
    "another site": lambda site, header, blob: honest(replace(site, name="south"), header, {}),
    "the question back": lambda site, header, blob: ({"message": header["message"]}, blob),
    "no message": lambda site, header, blob: ({}, b""),
    "a number": lambda site, header, blob: ({"message": 7}, b""),
    "a surrogate": lambda site, header, blob: struct.pack("<II", 20, 0) + b'{"message":"\\ud800"}',
    "depth": lambda site, header, blob: ({"message": "[" * 50_000}, b""),
    "an unknown error": lambda site, header, blob: ({"error": {"a": ["x"]}}, b""),
    "no JSON": lambda site, header, blob: struct.pack("<II", 4, 0) + b"oops",
    "no frame": lambda site, header, blob: b"HTTP/1.1 200 OK\r\n\r\n",
    "a huge frame": lambda site, header, blob: struct.pack("<II", 2**31, 2**31),
    "half a frame": lambda site, header, blob: struct.pack("<II", 1000, 0) + b"{",
    "nothing": lambda site, header, blob: b"",
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lying_relay_is_unanswered(lie: Any, name: str) -> None:
    channel, _ = lie(LIES[name])
    try:
        with pytest.raises(Unanswered):
            channel.ask(Message("ping", {}), timeout=3)
    finally:
        channel.close()


# -- a site with its own right key, that lies ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    found = make_joined(tmp_path_factory.mktemp("liars") / "consortium", ["north", "south"])
    for name in ("north", "south"):
        public = load_signing_key(found.site(name).keys).public_key().public_bytes_raw().hex()
        found.coordinator.change(name, state="joined", public_key=public)
    return found


@pytest.fixture
def lying_site(joined: Joined) -> Iterator[Callable[[Callable[[Message], tuple[dict[str, Any], bytes]]], Networked]]:
    """A network's engine, where site north says what it likes, rightly signed."""
    liars, engines = [], []

    def made(says: Callable[[Message], tuple[dict[str, Any], bytes]]) -> Networked:
        sealer = Sealer(joined.coordinator.identity(), "north", load_signing_key(joined.site("north").keys))

        def relayed(header: dict[str, Any], blob: bytes) -> Any:
            asked = json.loads(header["message"])
            content, data = says(Message(asked["kind"], asked["content"], blob))
            return honest(sealer, header, content, data)

        liars.append(Liar(joined.coordinator.relay, relayed))
        engines.append(Networked(joined.folder, a_study(["north", "south"])))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()
    for liar in liars:
        liar.server.close()


def ask_north(engine: Networked, seconds: float = 1.0) -> Answer | Failure:
    call = Call(engine.study.hash, "main", 1, "medfed:medfed.methods.standardise.moments", 0, "train", engine.sites, {})
    return dict(engine.exchange(call, {"north": Own()}, seconds))["north"]


def test_a_site_can_not_choose_a_file_of_the_coordinator(joined: Joined, lying_site: Any, tmp_path: Path) -> None:
    """Named as the answer's hash, a path would be written to, and what lies there removed."""
    victim = joined.coordinator.folder / "victim"
    victim.write_text("precious")
    before = sorted(joined.coordinator.folder.rglob("*"))
    for path in ("./" * 26 + "../../victim", "../victim".rjust(64, "/"), str(victim)):
        engine = lying_site(lambda message, path=path: ({"state": "answer" if message.kind == "call" else "part", "payload": path, "size": CHUNK + 3}, b""))  # fmt: skip
        assert isinstance(ask_north(engine), Failure)
    assert victim.read_text() == "precious"
    assert set(joined.coordinator.folder.rglob("*")) - set(before) <= {joined.coordinator.relay}


@pytest.mark.parametrize(
    "content",
    [{}, {"state": "answer"}, {"state": "answer", "payload": "0" * 64, "size": 2**60}, {"state": "answer", "payload": "0" * 64, "size": -1},
     {"state": "answer", "payload": "0" * 64, "size": True}, {"state": "answer", "payload": "0" * 64, "size": 0}, {"state": ["answer"]},
     {"state": "failure"}, {"state": "failure", "kind": "answer", "reason": "x"}, {"state": "failure", "kind": [], "reason": {}}],
    ids=str,
)  # fmt: skip
def test_answers_that_are_none_leave_the_site_out(lying_site: Any, content: dict[str, Any]) -> None:
    found = ask_north(lying_site(lambda message: (content, b"")))
    assert isinstance(found, Failure)


def test_parts_that_are_not_the_answer_are_refused_and_nothing_stays(joined: Joined, lying_site: Any) -> None:
    def says(message: Message) -> tuple[dict[str, Any], bytes]:
        if message.kind == "call":
            return {"state": "answer", "payload": "0" * 64, "size": CHUNK + 3}, b""
        return {"state": "part"}, b"x" * (CHUNK if message.content["index"] == 0 else 3)

    assert isinstance(ask_north(lying_site(says)), Failure)
    assert not (joined.coordinator.folder / "incoming" / ("0" * 64)).exists()


@pytest.mark.parametrize("parts", [None, 7, "all", {"a": 1}, [[0]], ["0", 10**9, -1]], ids=repr)
def test_what_a_site_says_it_has_is_not_trusted(lying_site: Any, parts: Any) -> None:
    engine = lying_site(lambda message: ({"parts": parts, "state": "kept"}, b""))
    engine._channels["north"].put(b"x" * (CHUNK + 1), "0" * 64, timeout=3)


STANDING = {"state": "approved", "until": "2099-12-31", "table_version": "t", "minimum_cell": 10, "usual_minimum": True}
RELEASED = {"step": "medfed:medfed.methods.standardise.moments", "calls": 1, "values": 2, "bytes": 3, "charge": 0.0}


@pytest.mark.parametrize(
    ("standing", "facts"),
    [
        (STANDING | {"minimum_cell": "<script>"}, {}), (STANDING | {"minimum_cell": 10**400}, {}), (STANDING | {"minimum_cell": None}, {}),
        (STANDING, {"releases": 7}), (STANDING, {"releases": [7]}), (STANDING, {"releases": [RELEASED | {"calls": "many"}]}),
        (STANDING, {"releases": [RELEASED | {"charge": 10**400}]}), (STANDING, {"releases": [RELEASED | {"step": ["s"]}]}),
        (STANDING, {"releases": [RELEASED | {"values": -1}]}), (STANDING, {"head": 7}), (STANDING, {"head": {"number": "x"}}),
        (STANDING, {"head": {"number": 10**400, "hash": "h", "spent": 10**400}}), ({}, {}), ({"state": ["approved"]}, {}),
    ],
    ids=range(14),
)  # fmt: skip
def test_facts_that_are_none_are_left_out_of_the_report(lying_site: Any, standing: Any, facts: Any) -> None:
    engine = lying_site(lambda message: (standing if message.kind == "standing" else facts, b""))
    found = engine.facts("main", {})["north"]
    assert found.releases == ()
    assert found.ledger is None or found.ledger["rows"] < 2**63


def test_facts_of_an_honest_site_stand_in_the_report(lying_site: Any) -> None:
    facts = {"releases": [RELEASED], "head": {"number": 4, "hash": "h", "spent": 0.0}}
    engine = lying_site(lambda message: (STANDING if message.kind == "standing" else facts, b""))
    found = engine.facts("main", {})["north"]
    assert asdict(found.releases[0]) == RELEASED
    assert found.ledger == {"rows": 5, "head": "h", "verified": False, "epsilon": 0.0}


def test_the_words_of_a_site_are_one_plain_line(lying_site: Any) -> None:
    engine = lying_site(lambda message: ({"state": "failure", "kind": "refused", "reason": "no\x1b[2J\nmore"}, b""))
    assert ask_north(engine) == Failure("refused", "no[2J more")


# -- certificate requests, the dispatcher's word ---------------------------------------------------------------------


def request_with(key: Any, name: str = "north", algorithm: Any = None) -> bytes:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    return x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # fmt: skip


def test_a_request_for_a_certificate_is_held_to_its_name_and_kind_of_key(joined: Joined) -> None:
    root = Root.load(joined.coordinator.keys)
    right = rsa.generate_private_key(65537, 2048)
    good = request_with(right, algorithm=hashes.SHA256())
    assert root.issue_for_request("north", good, days=3)
    der = bytearray(x509.load_pem_x509_csr(good).public_bytes(serialization.Encoding.DER))
    broken = []
    for index in range(0, len(der), 7):
        changed = der.copy()
        changed[index] ^= 0x55
        body = __import__("base64").encodebytes(bytes(changed))
        broken.append(b"-----BEGIN CERTIFICATE REQUEST-----\n" + body + b"-----END CERTIFICATE REQUEST-----\n")
    wrong = [
        request_with(right, "south", hashes.SHA256()), request_with(rsa.generate_private_key(65537, 1024), algorithm=hashes.SHA256()),
        request_with(ec.generate_private_key(ec.SECP256R1()), algorithm=hashes.SHA256()), request_with(ed25519.Ed25519PrivateKey.generate()),
        b"", b"-----BEGIN CERTIFICATE REQUEST-----", "中".encode(),
    ]  # fmt: skip
    for request in wrong + broken:
        with pytest.raises(FederationError):
            root.issue_for_request("north", request, days=3)


def test_the_process_of_the_dispatcher_is_the_one_that_listens(tmp_path: Path) -> None:
    """Its number is signalled when it hangs: what it says of itself is not believed."""
    for pid in (1, -1, "x", None, 10**30):
        liar = Liar(
            tmp_path / "run" / "relay",
            lambda header, blob, pid=pid: ({"pid": pid, "sites": ["north", 7, "../x", ["y"]]}, b""),
        )
        assert sites_in_dispatcher(tmp_path / "run" / "relay") == ({"north"}, os.getpid())
        liar.server.close()
    for reply in ({"sites": 7}, {}, {"sites": "north"}):
        liar = Liar(tmp_path / "run" / "relay", lambda header, blob, reply=reply: (reply, b""))
        assert sites_in_dispatcher(tmp_path / "run" / "relay") == (set(), os.getpid())
        liar.server.close()


@pytest.mark.parametrize("at", ["/run/docker.sock", "../door", "", "relay/../door", "door\x00"])
def test_a_job_can_not_choose_which_socket_of_a_machine_is_spoken_to(at: str) -> None:
    for kind in (CoordinatorRelay, SiteRelay):
        with pytest.raises(ValueError, match="no other"):
            kind(at)
    assert (CoordinatorRelay("relay").at, SiteRelay("door").at) == ("relay", "door")


def test_nothing_is_raised_at_a_site_that_would_travel_with_its_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDFED_RUN", str(tmp_path / "nowhere"))
    relay = SiteRelay("door")
    for header, blob in (("{}", b""), ("\ud800", b""), (7, None)):
        assert relay.call(header, blob) == b"nobody\n\x00\n"  # type: ignore[arg-type]
    liar = Liar(tmp_path / "nowhere" / "door", lambda header, blob: ({"refused": True}, b""))
    assert relay.call("{}", b"") == b"refused\n\x00\n"
    assert relay.call("\ud800", b"") == b"nobody\n\x00\n"
    liar.server.close()
