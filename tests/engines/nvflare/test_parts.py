"""Large things that come in parts: named by their hash, in memory or in a file, bounded, and never other than announced."""

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from medfed.engines.nvflare import parts
from medfed.engines.nvflare.channel import Unanswered, payload_of
from medfed.engines.nvflare.frames import CHUNK, BadMessage
from medfed.engines.nvflare.parts import Incoming
from medfed.engines.nvflare.step_process import _mapped

PATHS = [
    "/etc/passwd",
    "../" * 21 + "x",
    "./" * 25 + "../roster.json",
    "A" * 64,
    "0" * 63 + "/",
    "\x00" * 64,
    "",
    None,
    7,
    ["0" * 64],
]


@pytest.fixture(params=["in memory", "in a file"])
def incoming(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Incoming:
    if request.param == "in a file":
        monkeypatch.setattr(parts, "IN_MEMORY", 0)
    return Incoming(tmp_path / "incoming")


@pytest.mark.parametrize("name", PATHS, ids=repr)
def test_what_comes_in_is_named_by_its_hash_or_not_at_all(incoming: Incoming, tmp_path: Path, name: Any) -> None:
    """A site that names "../roster.json" as its answer would have the coordinator overwrite and remove that file."""
    (tmp_path / "roster.json").write_text("the roster")
    for act in (lambda: incoming.parts(name, 5), lambda: incoming.write(name, 5, 0, b"12345"), lambda: incoming.finished(name)):  # fmt: skip
        with pytest.raises(BadMessage):
            act()
    assert [path.name for path in tmp_path.rglob("*")] == ["roster.json"]
    with pytest.raises(Unanswered):
        payload_of({"payload": name, "size": CHUNK + 1})


def test_parts_of_another_place_size_or_content_leave_nothing(incoming: Incoming) -> None:
    for size, index, data in ((5, 1, b"12345"), (5, -1, b"12345"), (5, 0, b"1234"), (0, 0, b""), (-5, 0, b""), (parts.WHOLE_AT_MOST + 1, 0, b""),
                              (True, 0, b"x"), (1e3, 0, b"x"), (CHUNK + 1, 0, b"x")):  # fmt: skip
        with pytest.raises(BadMessage):
            incoming.write("0" * 64, size, index, data)  # type: ignore[arg-type]
    with pytest.raises(BadMessage, match="not what was announced"):
        incoming.write("0" * 64, 5, 0, b"12345")
    assert list(incoming.folder.glob("*")) == []
    assert incoming._held == {}


def test_what_was_found_to_be_what_was_announced_never_changes(incoming: Incoming) -> None:
    """Two kinds of one part are sent by many threads at a time: what is whole is what its name says, every time."""
    good, bad = b"g" * 50_000, b"b" * 50_000
    for turn in range(30):
        first = bytes([turn]) * CHUNK
        whole = hashlib.sha256(first + good).hexdigest()
        incoming.write(whole, CHUNK + len(good), 0, first)
        ready = threading.Barrier(6)

        def send(data: bytes, whole: str = whole, ready: threading.Barrier = ready) -> None:
            ready.wait()
            for _ in range(3):
                try:
                    incoming.write(whole, CHUNK + len(data), 1, data)
                except (BadMessage, OSError):
                    return

        threads = [threading.Thread(target=send, args=(data,)) for data in (good, bad) * 3]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        try:
            path = incoming.finished(whole)
        except BadMessage:
            incoming.drop(whole)
            continue
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole
        incoming.drop(whole)


def test_a_file_that_made_room_for_another_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study's process opens what the service named a moment ago; under that number may lie something else by now."""
    incoming = Incoming(tmp_path)
    first, second = (hashlib.sha256(data).hexdigest() for data in (b"first", b"second"))
    incoming.write(first, 5, 0, b"first")
    path = incoming.finished(first)
    assert _mapped(str(path), first)[:] == b"first"
    incoming.drop(first)
    incoming.write(second, 6, 0, b"second")
    assert incoming.finished(second) == path  # the same number again
    with pytest.raises(BadMessage, match="missing"):
        _mapped(str(path), first)
    (tmp_path / "secret").write_text("a key")
    for other in (tmp_path / "secret", Path("/etc/hostname"), tmp_path / "nowhere", tmp_path):
        with pytest.raises(BadMessage, match="missing"):
            _mapped(str(other), first)


def test_files_that_come_in_are_bounded_and_old_ones_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ALL_AT_MOST", 1000)
    monkeypatch.setattr(parts, "IN_MEMORY", 0)
    incoming = Incoming(tmp_path)
    used = [tmp_path / f"{number:064x}" for number in range(3)]
    for age, path in enumerate(used):
        path.write_bytes(b"x" * 300)
        os.utime(path, (time.time() - 100 + age,) * 2)
    incoming.parts("a" * 64, 300)
    assert [path.exists() for path in used] == [False, True, True]
    incoming.parts("b" * 64, 300)
    incoming.parts("c" * 64, 300)
    with pytest.raises(BadMessage, match="too much"):  # unfinished ones make no room
        incoming.parts("d" * 64, 300)


def test_what_lies_in_memory_is_bounded_in_bytes_and_in_number(tmp_path: Path) -> None:
    """Each is an open file: thousands of small ones would leave the service none to listen with."""
    incoming = Incoming(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(1000):
        incoming.parts(f"{number:064x}", 1)
    assert len(incoming._held) == parts.HELD_AT_MOST
    assert len(os.listdir("/proc/self/fd")) <= before + parts.HELD_AT_MOST
    for number in range(12):
        incoming.parts(f"{number:064d}", parts.IN_MEMORY)
    assert sum(held.size for held in incoming._held.values()) <= parts.MEMORY_AT_MOST
    for name in list(incoming._held):
        incoming.drop(name)
    assert len(os.listdir("/proc/self/fd")) <= before
