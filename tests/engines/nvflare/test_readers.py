"""Whatever a site, a relay or a file says, the readers of this side raise their own error, in time, and touch nothing else."""

import contextlib
import json
import os
import random
import socket
import stat
import struct
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joined import Joined, make_joined

from medfed.canonical import pack, unpack
from medfed.engines.nvflare.frames import (
    BLOB_AT_MOST,
    HEADER_AT_MOST,
    BadMessage,
    connect,
    listen,
    parse,
    receive,
    send,
)
from medfed.engines.nvflare.kit import Kit, open_kit, seal_kit
from medfed.engines.nvflare.wire import CALL_FIELDS, call_blob, call_content, read_call, read_failure
from medfed.errors import FederationError, LedgerError
from medfed.federation.budget import Charge
from medfed.federation.call import Call, Failure, Opening, Own
from medfed.privacy.accounting import Event


@pytest.fixture(scope="module")
def joined(tmp_path_factory: pytest.TempPathFactory) -> Joined:
    return make_joined(tmp_path_factory.mktemp("readers") / "consortium", ["north"])


# -- frames ----------------------------------------------------------------------------------------------------------


def received(data: bytes, **options: Any) -> Any:
    mine, theirs = socket.socketpair()
    with mine, theirs:
        theirs.setblocking(False)
        theirs.send(data)
        theirs.shutdown(socket.SHUT_WR)
        return receive(mine, **options)


def test_a_stream_of_anything_is_a_message_its_end_or_a_bad_message() -> None:
    rng = random.Random(5)
    mine, theirs = socket.socketpair()
    with mine, theirs:
        send(theirs, {"a": [1, {"b": "c"}]}, b"blob" * 10)
        good = mine.recv(10_000)
    assert received(good) == ({"a": [1, {"b": "c"}]}, b"blob" * 10)
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(rng.choice((1, 2, 6))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            header, _ = received(bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw))
            assert isinstance(header, dict)
        except (BadMessage, EOFError):
            pass


def test_lengths_that_pass_the_limits_are_refused_before_anything_is_read() -> None:
    for lengths in ((HEADER_AT_MOST + 1, 0), (2**32 - 1, 2**32 - 1), (2, BLOB_AT_MOST + 1)):
        with pytest.raises(BadMessage, match="passes the size"):
            received(struct.pack("<II", *lengths) + b"{}")
    with pytest.raises(BadMessage, match="passes the size"):
        received(struct.pack("<II", 2, 11) + b"{}" + b"x" * 11, blob_at_most=10)


def test_a_message_that_drips_in_is_given_up_in_time() -> None:
    mine, theirs = socket.socketpair()
    stop = threading.Event()

    def drip() -> None:
        theirs.send(struct.pack("<II", 1000, 0))
        while not stop.wait(0.05):
            theirs.send(b" ")

    with mine, theirs:
        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                receive(mine, seconds=0.5)
        finally:
            stop.set()
            thread.join()
        assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    "text",
    ["[" * 17, '{"a":' * 17 + "1" + "}" * 17, '{"a":NaN}', '{"a":Infinity}', '{"a":1,"a":2}', '{"a":"\ud800"}', b"\xff\xfe{\x00}\x00",
     '{"a":' + "9" * 5000 + "}", "{", "7", '"x"', b"\x00", '{"a":"' + '\\"' * 9 + "[" * 99, "é" * HEADER_AT_MOST],
    ids=lambda text: repr(text)[:20],
)  # fmt: skip
def test_text_that_medfed_does_not_write_is_a_bad_message(text: str | bytes) -> None:
    with pytest.raises(BadMessage):
        parse(text)


def test_brackets_inside_words_are_not_taken_for_depth() -> None:
    value = {"a": '[{["\\' * 50, "b": [[[1]]]}
    assert parse(json.dumps(value)) == value


def test_a_socket_is_closed_to_others_and_a_stale_one_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o755)
    for _ in range(2):
        with listen(folder / "door"):
            assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
            assert stat.S_IMODE(os.stat(folder / "door").st_mode) == 0o600
            connect(folder / "door").close()


# -- calls -----------------------------------------------------------------------------------------------------------

CALL = Call(
    "a" * 64, "main/0/evaluation", 3, "medfed:medfed.methods.newton.logistic_terms", 1, "train", ("north", "south"),
    {"beta": np.zeros(3)}, charge=Charge(Event(1.9, 0.05), draws=3),
)  # fmt: skip
OWN = Own("a" * 16 + "|main|1|medfed:x.y|0", None, {"each": np.ones(2)})
CONTENT = call_content(CALL) | {"kept": OWN.kept, "settled": OWN.settled}
ODD: list[Any] = [
    None,
    True,
    -1,
    2**31,
    10**40,
    1.5,
    "",
    "x",
    "../x",
    "/x",
    "\x00",
    "a" * 64 + "\n",
    "é" * 9,
    [],
    {},
    [[]],
    ["../x"],
    "x" * 2000,
]


def test_a_message_of_a_secure_sum_is_read_as_it_was_written_and_nothing_else_is_read() -> None:
    opening = Opening(2, "count", "b" * 64, b"counts")
    call = replace(CALL, protection="secure", phase="open", inputs={}, opening=opening)
    for message in (None, b"", b"keys"):
        own = Own(OWN.kept, None, {}, message)
        content = call_content(call) | {"kept": own.kept, "settled": None}
        assert set(content) == set(CALL_FIELDS)
        read, mine = read_call(content, call_blob(call, own))
        assert (read.opening, read.inputs_digest, read.digest, mine) == (opening, "b" * 64, call.digest, own)
    asked = content["opening"]
    for odd in ODD:
        for changed in (odd, asked | {"attempt": odd}, asked | {"purpose": odd}, asked | {"inputs": odd}):
            if changed in (asked | {"attempt": 2**31},):
                continue
            with pytest.raises(BadMessage):
                read_call(content | {"opening": changed}, call_blob(call, own))
    for blob in (call_blob(CALL, OWN), pack({}), pack({"shown": np.zeros(3)}), pack({"shown": "text"}), b"x"):
        with pytest.raises(BadMessage):
            read_call(content, blob)
    with pytest.raises(BadMessage, match="another phase"):
        read_call(CONTENT | {"opening": asked}, call_blob(CALL, OWN))


def test_a_call_is_read_as_it_was_written_and_nothing_else_is_read() -> None:
    call, own = read_call(CONTENT, call_blob(CALL, OWN))
    assert (call.key, call.digest, own.kept) == (CALL.key, CALL.digest, OWN.kept)
    assert set(CONTENT) == set(CALL_FIELDS)
    rng = random.Random(7)
    allowed = {
        "variant": {None, "x"},
        "charge": {None},
        "part": set(),
        "roster": set(),
        "kept": {None},
        "settled": {None},
        "opening": {None},
        "run": {"x"},
        "step": {""},
    }
    for name in CALL_FIELDS:
        for value in ODD:
            try:
                read_call(CONTENT | {name: value}, call_blob(CALL, OWN))
            except BadMessage:
                continue
            assert (name in ("round", "ordinal") and value == 2**31) is False
            assert value == [] or (isinstance(value, str | None) and value in allowed.get(name, set())), (name, value)
    for _ in range(3000):
        raw = bytearray(call_blob(CALL, OWN))
        for _ in range(rng.choice((1, 2, 9))):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        try:
            read, mine = read_call(CONTENT, bytes(raw[: rng.randrange(len(raw) + 1)] if rng.random() < 0.3 else raw))
        except BadMessage:
            continue
        assert all(hasattr(value, "dtype") for value in (*read.inputs.values(), *mine.each.values()))


def safetensors(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff" * 8, struct.pack("<Q", 2**63), safetensors(b"[" * 200_000), safetensors([]), safetensors({"a": None}),
        safetensors({"a": {"dtype": "F64", "shape": [10**40], "data_offsets": [0, 8]}}, b"x" * 8),
        safetensors({"a": {"dtype": "F64", "shape": [2**62, 4], "data_offsets": [0, 8]}}, b"x" * 8),
        safetensors({"a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 2**70]}}, b"x" * 8),
        safetensors({"a": {"dtype": "F64", "shape": [1], "data_offsets": [-8, 0]}}, b"x" * 8),
        safetensors({"a": {"dtype": "O", "shape": [1], "data_offsets": [0, 8]}}, b"x" * 8),
        safetensors({"a": {"dtype": "F64", "shape": "x", "data_offsets": [0.0, 8.0]}}, b"x" * 8),
        safetensors({"__metadata__": {"scalars": "[" * 100_000}}), safetensors({"__metadata__": {"scalars": 7}}),
        safetensors({"__metadata__": 7}), safetensors({"a/b": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}, "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}, b"x" * 8),
    ],
    ids=range(16),
)  # fmt: skip
def test_arrays_that_are_none_are_a_ledger_error(data: bytes) -> None:
    with pytest.raises(LedgerError):
        unpack(data)


def test_a_failures_words_can_not_move_a_terminals_cursor() -> None:
    found = read_failure({"kind": "failed", "reason": "a\x1b[2J\nb\u202ec\x9b" + "x" * 9000})
    assert found == Failure("failed", "a[2J bc" + "x" * 393)
    for bad in (
        {},
        {"kind": "answer", "reason": "x"},
        {"kind": "failed", "reason": 7},
        {"kind": ["failed"], "reason": "x"},
    ):
        with pytest.raises(BadMessage):
            read_failure(bad)


# -- kits ------------------------------------------------------------------------------------------------------------


def test_a_kit_that_is_none_is_a_sentence(joined: Joined, tmp_path: Path) -> None:
    path = joined.coordinator.kits / "north.kit"
    kit = open_kit(path, joined.codes["north"])
    rng = random.Random(3)
    good, other = path.read_bytes(), tmp_path / "kit"
    for _ in range(40):
        raw = bytearray(good)
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        other.write_bytes(bytes(raw[: rng.randrange(len(raw))] if rng.random() < 0.3 else raw))
        with contextlib.suppress(FederationError):
            assert open_kit(other, joined.codes["north"]) == kit  # spaces between words were changed
    for text in ("", "[]", "{}", "[" * 100_000, "7", '{"medfed_kit":1}', "\x00", "x" * 300_000):
        other.write_text(text)
        with pytest.raises(FederationError):
            open_kit(other, "code")
    other.unlink()
    for wrong in (tmp_path, other):
        with pytest.raises(FederationError):
            open_kit(wrong, "code")
    with pytest.raises(FederationError, match="does not open"):
        open_kit(path, "aaaa-aaaa-aaaa-aaaa")


@pytest.mark.parametrize(
    "changes",
    [{"site": "../north"}, {"site": 7}, {"host": "a b"}, {"host": "x\n"}, {"port": "80"}, {"port": 0}, {"scheme": "file"}, {"key": None},
     {"coordinator_key": "00"}, {"enrolment": ""}, {"root": ["x"]}, {"name": "../x"}, {"consortium": "a/b"}],
    ids=str,
)  # fmt: skip
def test_a_sealed_kit_with_unsound_contents_is_refused(joined: Joined, tmp_path: Path, changes: dict[str, Any]) -> None:
    kit = open_kit(joined.coordinator.kits / "north.kit", joined.codes["north"])
    data = seal_kit(Kit(**asdict(kit) | changes), "code")
    (tmp_path / "kit").write_bytes(data)
    with pytest.raises(FederationError, match="new kit|is not a kit"):
        open_kit(tmp_path / "kit", "code")
