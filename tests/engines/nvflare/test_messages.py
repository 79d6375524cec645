"""A site answers messages of its coordinator and no others, and of those only what they may ask.

The service is asked in this process, as NVFLARE's relay would.
"""

import contextlib
import hashlib
import json
import threading
from typing import Any

import pytest
from asking import NOW, Clock, call_of, is_refused, put
from joined import Joined, a_study

from medfed.canonical import canonical_json
from medfed.engines.nvflare import site_service
from medfed.engines.nvflare.envelope import CLOCKS_APART_SECONDS, Message, Sealer
from medfed.engines.nvflare.frames import HEADER_AT_MOST, BadMessage
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.site_service import JOBS_AT_MOST, STUDIES_AT_MOST, SiteService
from medfed.federation.budget import Charge
from medfed.federation.keys import new_signing_key
from medfed.privacy.accounting import Event

TRAVERSALS = ["../../etc/passwd", "/etc/passwd", "..", "a/../../b", "\x00", "x" * 5000, "%2e%2e/", "~root", ""]


def test_the_coordinator_is_answered_and_the_answer_is_signed_for_its_question(
    service: SiteService, sealer: Sealer
) -> None:
    assert put(service, sealer, Message("ping", {})).content["state"] == "ready"


def test_a_forged_signature_is_not_answered(service: SiteService, sealer: Sealer) -> None:
    header = sealer.write(Message("ping", {}), "north")
    right = header["signature"]
    for wrong in ("0" * 128, right[:-2] + ("00" if right[-2:] != "00" else "11"), "", right.upper(), f" {right}", right[::-1]):  # fmt: skip
        with pytest.raises(BadMessage):
            service.handle(canonical_json(header | {"signature": wrong}), b"")


def test_another_key_consortium_name_or_recipient_is_not_answered(
    joined: Joined, service: SiteService, sealer: Sealer, clock: Clock
) -> None:
    identity = joined.coordinator.identity()
    others = {
        "another coordinator's key": Sealer(identity, "coordinator", new_signing_key(), clock),
        "another consortium": Sealer("0" * 16, "coordinator", sealer.key, clock),
        "a site's name": Sealer(identity, "south", sealer.key, clock),
        "its own name and key": Sealer(identity, "north", service.sealer.key, clock),
    }
    for other in others.values():
        with pytest.raises(BadMessage):
            service.handle(canonical_json(other.write(Message("ping", {}), "north")), b"")
    with pytest.raises(BadMessage):  # right in all, for another site
        service.handle(canonical_json(sealer.write(Message("ping", {}), "south")), b"")


def test_a_message_is_heard_once_also_by_many_threads_and_after_a_restart(
    joined: Joined, service: SiteService, sealer: Sealer, clock: Clock
) -> None:
    text = canonical_json(sealer.write(Message("ping", {}), "north"))
    answered: list[str] = []
    ready = threading.Barrier(8)

    def hear() -> None:
        ready.wait()
        with contextlib.suppress(BadMessage):
            answered.append(service.handle(text, b"")[0])

    threads = [threading.Thread(target=hear) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answered) == 1
    again = SiteService(joined.site("north").folder)  # as after kill -9: nothing was said goodbye to
    again.fresh.__init__(again.fresh.path, clock)  # type: ignore[misc]
    with pytest.raises(BadMessage, match="heard before"):
        again.handle(text, b"")
    clock.now -= 300  # a clock that was set back opens nothing either
    with pytest.raises(BadMessage, match="heard before"):
        service.handle(text, b"")


def test_an_old_message_and_one_of_the_future_are_not_answered(
    service: SiteService, sealer: Sealer, clock: Clock
) -> None:
    header = sealer.write(Message("ping", {}), "north")
    for apart in (-CLOCKS_APART_SECONDS - 1, CLOCKS_APART_SECONDS + 1, -1e9, 1e11):
        clock.now = NOW + apart
        with pytest.raises(BadMessage):
            service.handle(canonical_json(header), b"")
    clock.now = NOW + CLOCKS_APART_SECONDS - 1
    service.handle(canonical_json(header), b"")


def test_what_was_heard_is_remembered_within_bounds(
    service: SiteService, sealer: Sealer, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("medfed.engines.nvflare.envelope.NONCES_AT_MOST", 50)
    fresh, refused = service.fresh, 0
    for _ in range(80):
        try:
            fresh.check(sealer.write(Message("ping", {}), "north"))
        except BadMessage:
            refused += 1
    assert refused >= 30
    clock.now += 2 * CLOCKS_APART_SECONDS + 1
    fresh.check(sealer.write(Message("ping", {}), "north"))
    assert len(fresh._seen) == 1


def test_a_cut_long_deep_or_oversized_message_is_not_answered(service: SiteService, sealer: Sealer) -> None:
    text = canonical_json(sealer.write(Message("ping", {"a": 1}, b"blob"), "north"))
    deep = canonical_json(sealer.write(Message("ping", {"a": json.loads("[" * 40 + "]" * 40)}), "north"))
    wide = canonical_json(sealer.write(Message("ping", {"a": "x" * HEADER_AT_MOST}), "north"))
    bomb = '{"content":' + "[" * 100_000
    hidden = '{"a":"' + "\\" * 3 + '"' + "[" * 5000
    for bad in (
        text[:-1],
        text[: len(text) // 2],
        "",
        deep,
        wide,
        bomb,
        hidden,
        "[]",
        "null",
        text + text,
        "\ud800",
        "é",
    ):
        with pytest.raises(BadMessage):
            service.handle(bad, b"blob")
    for blob in (b"", b"blo", b"blob!", b"blub"):
        with pytest.raises(BadMessage):
            service.handle(text, blob)


@pytest.mark.parametrize(
    "changes",
    [
        {"at": 10**400}, {"at": -1}, {"at": 2**80}, {"at": True}, {"at": "now"}, {"v": 2}, {"v": True}, {"v": "1"}, {"size": -1},
        {"size": 10**30}, {"blob": "0" * 64}, {"nonce": "x" * 32}, {"nonce": "0" * 31}, {"nonce": ["0" * 32]}, {"kind": 7},
        {"content": []}, {"content": None}, {"extra": 1}, {"consortium": None}, {"from": ["coordinator"]},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_types_in_a_header_are_not_answered_even_if_signed(
    service: SiteService, sealer: Sealer, changes: dict[str, Any]
) -> None:
    with pytest.raises(BadMessage):
        put(service, sealer, Message("ping", {}), **changes)


@pytest.mark.parametrize(
    "message",
    [
        Message("shell", {}), Message("", {}), Message("Call", {}), Message("call", {}), Message("__class__", {}),
        Message("have", {"whole": "0" * 64, "size": 2**40}), Message("have", {"whole": "0" * 64, "size": 0}),
        Message("part", {"whole": "0" * 64, "size": 10, "index": 5}, b"x"), Message("have", {"whole": "0" * 64, "size": True}),
        Message("part", {"whole": "0" * 64, "size": 10, "index": -1}, b"x"), Message("part", {}, b"x"),
        Message("fetch", {"payload": "0" * 64, "index": 0}), Message("fetch", {"payload": "0" * 64, "index": 2**31}),
        Message("propose", {}), Message("propose", {"study": "["}), Message("propose", {"study": "[" * 100_000}),
        Message("propose", {"study": '"\\ud800"'}), Message("propose", {"study": "1e999"}), Message("propose", {"study": {"medfed": 1}}),
        Message("standing", {"study": "0" * 64}), Message("facts", {"study": "0" * 64, "run": "main"}),
        Message("renew", {"certificate": "-----BEGIN CERTIFICATE-----"}), Message("renew", {"certificate": 7}),
        Message("renew", {"certificate": "中" * 100}),
    ],
    ids=lambda message: f"{message.kind}-{str(message.content)[:30]}",
)  # fmt: skip
def test_unknown_kinds_and_wrong_contents_are_refused(service: SiteService, sealer: Sealer, message: Message) -> None:
    assert is_refused(put(service, sealer, message))


@pytest.mark.parametrize("name", ["study", "whole", "payload", "run", "step", "part", "roster", "variant", "kept"])
def test_paths_in_names_are_refused(joined: Joined, service: SiteService, sealer: Sealer, name: str) -> None:
    study = a_study(["north", "south"])
    before = sorted(joined.folder.parent.rglob("*"))
    for text in TRAVERSALS:
        messages = [call_of(**{"study": "0" * 64, name: [text] if name == "roster" else text})]
        if name in ("study", "run"):
            messages += [Message("facts", {"study": study.hash, "run": "main"} | {name: text})]
            messages += [Message("standing", {"study": text})]
        if name == "whole":
            messages += [Message(kind, {"whole": text, "size": 1, "index": 0}, b"x") for kind in ("have", "part")]
        if name == "payload":
            messages += [Message("fetch", {"payload": text, "index": 0})]
        for message in messages:
            assert is_refused(put(service, sealer, message)), message
    for named in ({"name": "../../x"}, {"sites": {"invited": ["north", "../x"], "minimum": 1}}):
        text = json.dumps(json.loads(study.model_dump_json()) | named)
        assert is_refused(put(service, sealer, Message("propose", {"study": text})))
    for site in TRAVERSALS[:-1]:
        with pytest.raises(BadMessage):
            put(service, sealer, Message("ping", {}), to=site)
    allowed = {joined.site("north").folder / "network" / name for name in ("heard", "incoming")}
    assert {p for p in set(joined.folder.parent.rglob("*")) - set(before) if not p.name.startswith(".")} <= allowed


def test_a_call_cannot_name_a_file_of_the_site_as_its_inputs(
    joined: Joined, service: SiteService, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service alone says where inputs lie: a coordinator that names a file would open any file of the site."""
    study = a_study(["north", "south"])
    Inbox(joined.site("north")).receive(study.model_dump_json(), "", "2026-01-01")
    passed: list[dict[str, Any]] = []

    def answer(self: object, content: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        passed.append(dict(content))
        return {"state": "failure", "kind": "refused", "reason": "x"}, b""

    monkeypatch.setattr(site_service.StepProcess, "answer", answer)
    charge = Charge(Event(1.9, 0.05)).text
    message = call_of(
        study.hash, charge=charge, inputs_file="/etc/passwd", inputs_hash="0" * 64, extra={"deep": 1}, wait=5
    )
    put(service, sealer, message)
    assert len(passed) == 1
    assert set(passed[0]) == {*site_service.CALL_FIELDS, "inputs_hash"}
    assert passed[0]["charge"] == charge
    assert passed[0]["inputs_hash"] == hashlib.sha256(message.blob).hexdigest()


def test_nothing_is_started_for_a_study_that_was_not_proposed(service: SiteService, sealer: Sealer) -> None:
    for number in range(3 * STUDIES_AT_MOST):
        assert is_refused(put(service, sealer, call_of(f"{number:064x}")))
    assert service.steps == {}
    assert service.jobs == {}


def test_only_so_many_studies_and_calls_are_worked_on_at_a_time(
    joined: Joined, service: SiteService, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(site_service.StepProcess, "answer", lambda *_: (go_on.wait(20), ({"state": "done"}, b""))[1])
    studies = [a_study(["north", "south"], seed=100 + n) for n in range(STUDIES_AT_MOST + 3)]
    for study in studies:
        put(service, sealer, Message("propose", {"study": study.model_dump_json()}))
    try:
        states = [put(service, sealer, call_of(study.hash, wait=0)).content["state"] for study in studies]
        assert states == ["working"] * STUDIES_AT_MOST + ["failure"] * 3
        more = [
            put(service, sealer, call_of(studies[0].hash, wait=0, ordinal=n)).content["state"] for n in range(1, 60)
        ]
        assert more.count("working") == JOBS_AT_MOST - STUDIES_AT_MOST
        assert len(service.jobs) == JOBS_AT_MOST
    finally:
        go_on.set()
    for job in list(service.jobs.values()):
        assert job.done.wait(10)
    assert put(service, sealer, call_of(studies[-1].hash, wait=5)).content["state"] == "done"  # an idle one made room
    assert len(service.steps) == STUDIES_AT_MOST


def test_files_that_lie_beside_answers_can_not_be_fetched(joined: Joined, service: SiteService, sealer: Sealer) -> None:
    """What a site keeps for itself lies beside what it has sealed, named by its hash too."""
    blobs = joined.site("north").ledger_path.with_suffix(".blobs")
    blobs.mkdir(exist_ok=True)
    (blobs / ("a" * 64)).write_bytes(b"control variates of this site")
    assert is_refused(put(service, sealer, Message("fetch", {"payload": "a" * 64, "index": 0})))


def test_a_halt_that_comes_while_a_call_is_answered_holds_the_answer_back(
    service: SiteService, sealer: Sealer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(message: Message) -> tuple[dict[str, Any], bytes]:
        service.network.halt("now")
        return {"state": "answer"}, b"figures"

    monkeypatch.setattr(service, "_answer", answer)
    try:
        assert is_refused(put(service, sealer, Message("ping", {})))
    finally:
        service.network.lift_halt()


def test_a_proposal_that_would_deceive_its_reader_is_refused(
    joined: Joined, service: SiteService, sealer: Sealer
) -> None:
    for title in ("A\x1b[2Jtitle", "A\u202eeltit", "A\x9b2Jtitle"):
        text = a_study(["north", "south"], title=title).model_dump_json()
        assert is_refused(put(service, sealer, Message("propose", {"study": text})))
    study = a_study(["north", "south"], title="谁会　发生结局事件？")
    reply = put(service, sealer, Message("propose", {"study": study.model_dump_json(), "note": "hello\x1b[2J\nthere"}))
    assert reply.content["hash"] == study.hash
    assert Inbox(joined.site("north")).find(study.hash).note == "hello[2J there"
