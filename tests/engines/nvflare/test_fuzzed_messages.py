"""Twelve thousand mutated messages, seeded: none gets anything but a refusal."""

import json
import random
import resource
from typing import Any

from asking import Clock, call_of
from joined import Joined, a_study, ledger_rows

from medfed.canonical import canonical_json
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.frames import CHUNK, BadMessage
from medfed.engines.nvflare.parts import HELD_AT_MOST
from medfed.engines.nvflare.site_service import SiteService

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**300, 1e308, -0.0, "", "x", "../../x", "/", "\x00", "é" * 40, "𝔘\u202e",
    "0" * 64, "f" * 64, "a" * 3000, [], [[]], {}, {"a": {"b": {"c": []}}}, [1, "2", None], {"../x": 1}, "NaN", "main/0/..", "north",
]  # fmt: skip


def originals(study: str) -> list[Message]:
    return [
        Message("ping", {}), call_of(study), Message("have", {"whole": "1" * 64, "size": 9_000_000}),
        Message("part", {"whole": "2" * 64, "size": CHUNK + 4, "index": 1}, b"data"), Message("fetch", {"payload": "3" * 64, "index": 0}),
        Message("propose", {"study": '{"medfed": 1}', "note": "n"}), Message("standing", {"study": study}),
        Message("facts", {"study": study, "run": "main"}), Message("renew", {}),
    ]  # fmt: skip


def mutated_bytes(rng: random.Random, data: bytes) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5, 20))):
        where = rng.randrange(len(raw) + 1)
        what = rng.randrange(6)
        if what == 0 and where < len(raw):
            raw[where] ^= 1 << rng.randrange(8)
        elif what == 1:
            raw[where : where + rng.randrange(1, 40)] = b""
        elif what == 2:
            raw[where:where] = rng.choice(
                (b"{", b"[" * 50, b'"', b"\\u0000", b"\xff\xfe", b"9" * 400, b"1e999", b"-", b"\xf0\x9d\x94\x98")
            )
        elif what == 3:
            del raw[where:]
        elif what == 4:
            other = rng.randrange(len(raw) + 1)
            raw[where:where] = raw[min(where, other) : max(where, other)]
        elif raw:
            raw[where % len(raw)] = rng.randrange(256)
    return bytes(raw)


def mutated_value(rng: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        if rng.random() < 0.15:
            return {k: v for k, v in value.items() if k != name}
        if rng.random() < 0.15:
            return value | {str(rng.choice(VALUES))[:50]: rng.choice(VALUES)}
        other = value[rng.choice(list(value))] if rng.random() < 0.2 else mutated_value(rng, value[name])
        return value | {name: other}
    if isinstance(value, list) and value and rng.random() < 0.6:
        return [mutated_value(rng, each) if rng.random() < 0.5 else each for each in value] * rng.choice((1, 1, 1, 3))
    return rng.choice(VALUES)


def test_no_mutated_message_gets_anything_but_a_refusal(
    joined: Joined, service: SiteService, sealer: Sealer, clock: Clock
) -> None:
    """6,000 that the coordinator did not sign (bytes changed), 6,000 that it signed (fields changed): no approval stands."""
    rng = random.Random(11)
    study = a_study(["north", "south"], title="fuzz")
    ledger = ledger_rows(joined.site("north"))
    outside = {p for p in joined.folder.parent.rglob("*") if not p.is_relative_to(joined.site("north").folder)}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages = originals(study.hash)
    refused = answered = 0
    for _ in range(6000):
        message = rng.choice(messages)
        header = sealer.write(message, "north")
        text, blob = (
            mutated_bytes(rng, canonical_json(header).encode()).decode("utf-8", "surrogateescape"),
            message.blob,
        )
        if rng.random() < 0.1:
            text, blob = canonical_json(header), mutated_bytes(rng, blob + b"x")
        try:
            service.handle(text, blob)
        except BadMessage:
            refused += 1
        else:  # only where the change was none: the same content, written otherwise
            assert json.loads(text) == header
            assert blob == message.blob
            answered += text != canonical_json(header)
    assert answered <= 5, answered
    harmless = {"ping": {"ready"}, "have": {None}, "part": {"kept"}, "renew": {"request"}}
    for _ in range(6000):
        message = rng.choice(messages[:-1] if rng.random() < 0.99 else messages)
        header = sealer.write(message, "north")
        changed = mutated_value(rng, header if rng.random() < 0.3 else header["content"])
        header = changed if "kind" in (changed if isinstance(changed, dict) else {}) else header | {"content": changed}
        header.pop("signature", None)
        try:
            header["signature"] = sealer.key.sign(b"medfed message\n" + canonical_json(header).encode()).hex()
            text = canonical_json(header)
        except ValueError:
            continue
        try:
            reply, blob = service.handle(text, message.blob)
        except BadMessage:
            refused += 1
            continue
        found = json.loads(reply)
        assert blob == b""
        state = found["content"].get("state")
        assert state == "failure" or state in harmless.get(found["kind"], set()), found
        refused += state == "failure"
    assert refused > 10_000, refused
    assert ledger_rows(joined.site("north")) == ledger
    assert {p for p in joined.folder.parent.rglob("*") if not p.is_relative_to(joined.site("north").folder)} == outside
    assert service.steps == {}
    assert service.jobs == {}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 150 * 1024
    folder = joined.site("north").folder / "network" / "incoming"
    assert all(set(p.name) <= set("0123456789abcdef.partmap") for p in folder.glob("*"))
    assert len(service.incoming._held) <= HELD_AT_MOST
