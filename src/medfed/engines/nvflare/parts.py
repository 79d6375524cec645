"""Large bytes in parts of one chunk: a transfer that breaks goes on from the last part, and memory stays bounded.

Both sides use it: a site for inputs that come in, the coordinator for answers. What is whole is a file named by its hash; up
to 64 MB it is a file in memory, which costs no disk and is gone with its process.
"""

import contextlib
import hashlib
import mmap
import os
import re
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from medfed.canonical import private_folder
from medfed.engines.nvflare.frames import CHUNK, BadMessage
from medfed.errors import FederationError

WHOLE_AT_MOST = 2**31
ALL_AT_MOST = 2**33
KEPT_SECONDS = 24 * 3600.0
IN_MEMORY = 64 * 2**20
MEMORY_AT_MOST = 4 * IN_MEMORY
HELD_AT_MOST = 64
PARTS_MISSING = "parts of the inputs are missing; send them first"

_HASH = re.compile(r"[0-9a-f]{64}")


def part_count(size: int) -> int:
    return -(-size // CHUNK)


def _check(whole: object, size: object) -> None:
    """A name becomes a file's name here, so it is a hash or nothing."""
    if not (isinstance(whole, str) and _HASH.fullmatch(whole)):
        raise BadMessage("what is announced is not named by its hash")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 < size <= WHOLE_AT_MOST:
        raise BadMessage("what is announced passes the size that is allowed")


def read_part(path: Path, index: int) -> bytes:
    """One part of a file. FederationError where it is not there."""
    try:
        with open(path, "rb") as file:
            file.seek(index * CHUNK)
            return file.read(CHUNK)
    except OSError:
        raise FederationError(f"{path} can't be read") from None


@dataclass
class _Held:
    """A file in memory that is being received. marks: one byte a part."""

    handle: int
    size: int
    marks: bytearray
    whole: bool = False
    used: float = field(default_factory=time.monotonic)


class Incoming:
    """Files being received, below ``folder`` or in memory. Which parts are there is one byte each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def parts(self, whole: str, size: int) -> list[int]:
        """Which parts are here already; makes room for the file where there is none."""
        _check(whole, size)
        with self._lock:
            here = self._marks_in_memory(whole, size) if size <= IN_MEMORY else self._marks_on_disk(whole, size)
        if len(here) != part_count(size):
            raise BadMessage("what is announced has another size than before")
        return [index for index, mark in enumerate(here) if mark]

    def _marks_in_memory(self, whole: str, size: int) -> bytes:
        held = self._held.get(whole)
        if held is None:
            while sum(h.size for h in self._held.values()) + size > MEMORY_AT_MOST or len(self._held) >= HELD_AT_MOST:
                self._drop_held(min(self._held, key=lambda name: self._held[name].used))
            handle = os.memfd_create(f"medfed-{whole}", os.MFD_CLOEXEC)
            os.ftruncate(handle, size)
            held = self._held[whole] = _Held(handle, size, bytearray(part_count(size)))
        return bytes(held.marks)

    def _marks_on_disk(self, whole: str, size: int) -> bytes:
        if (self.folder / whole).exists():
            return b"\1" * part_count(size)
        private_folder(self.folder)
        marks = self._map(whole)
        if not marks.exists():
            self._tidy(size)
            handle = os.open(self._file(whole), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(handle, size)
            finally:
                os.close(handle)
            marks.write_bytes(b"\0" * part_count(size))
        return marks.read_bytes()

    def write(self, whole: str, size: int, index: int, data: bytes) -> None:
        """Keep one part; the last one makes the file whole, after its hash was checked. Writing it again is no error."""
        _check(whole, size)
        count = part_count(size)
        expected = CHUNK if index < count - 1 else size - CHUNK * (count - 1)
        if not 0 <= index < count or len(data) != expected:
            raise BadMessage("a part has another place or size than was announced")
        if index in self.parts(whole, size):
            return
        if size <= IN_MEMORY:
            self._write_in_memory(whole, index, data)
        else:
            self._write_on_disk(whole, index, data)

    def _write_in_memory(self, whole: str, index: int, data: bytes) -> None:
        with self._lock:  # also while bytes are written: none may change after they were found to be what was announced
            held = self._held.get(whole)
            if held is None:
                raise BadMessage("too much came in at the same time; it is asked for again")
            if held.marks[index]:
                return
            os.pwrite(held.handle, data, index * CHUNK)
            held.marks[index] = 1
            held.used = time.monotonic()
            if all(held.marks):
                with mmap.mmap(held.handle, held.size, access=mmap.ACCESS_READ) as content:
                    held.whole = hashlib.sha256(content).hexdigest() == whole
                if not held.whole:
                    self._drop_held(whole)
                    raise BadMessage("what came in parts is not what was announced; it is asked for again")

    def _write_on_disk(self, whole: str, index: int, data: bytes) -> None:
        with self._lock:
            marks = self._map(whole)
            if not marks.exists() or marks.read_bytes()[index : index + 1] != b"\0":
                return
            for path, content, at in ((self._file(whole), data, index * CHUNK), (marks, b"\1", index)):
                handle = os.open(path, os.O_WRONLY)
                try:
                    os.pwrite(handle, content, at)
                finally:
                    os.close(handle)
            if b"\0" not in marks.read_bytes():
                self._finish(whole)

    def _finish(self, whole: str) -> None:
        state = hashlib.sha256()
        with open(self._file(whole), "rb") as file:
            while block := file.read(CHUNK):
                state.update(block)
        if state.hexdigest() != whole:
            self.drop(whole)
            raise BadMessage("what came in parts is not what was announced; it is asked for again")
        os.replace(self._file(whole), self.folder / whole)
        self._map(whole).unlink(missing_ok=True)

    def finished(self, whole: str) -> Path:
        """The whole file, to be opened while this process lives. BadMessage where parts are missing."""
        _check(whole, 1)
        held = self._held.get(whole)
        if held is not None and held.whole:
            return Path(f"/proc/{os.getpid()}/fd/{held.handle}")
        path = self.folder / whole
        if not path.exists():
            raise BadMessage(PARTS_MISSING)
        os.utime(path)
        return path

    def drop(self, whole: str) -> None:
        """Forget a file and what came of it. A mapping of it stays good."""
        if whole in self._held:
            self._drop_held(whole)
        for path in (self.folder / whole, self._file(whole), self._map(whole)):
            path.unlink(missing_ok=True)

    def _drop_held(self, whole: str) -> None:
        os.close(self._held.pop(whole).handle)

    def _tidy(self, coming: int) -> None:
        """Remove what is a day old, then whole files that were used longest ago; refuse what still finds no room."""
        held, whole = 0, []
        for entry in os.scandir(self.folder):
            with contextlib.suppress(FileNotFoundError):
                found = entry.stat()
                if time.time() - found.st_mtime > KEPT_SECONDS:
                    os.unlink(entry.path)
                    continue
                held += found.st_size
                if _HASH.fullmatch(entry.name):
                    whole.append((found.st_mtime, found.st_size, entry.path))
        for _, size, path in sorted(whole):
            if held + coming <= ALL_AT_MOST:
                break
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)  # who reads it has it open
            held -= size
        if held + coming > ALL_AT_MOST:
            raise BadMessage("too much has come in that was not used; try again later")

    def _file(self, whole: str) -> Path:
        return self.folder / f"{whole}.part"

    def _map(self, whole: str) -> Path:
        return self.folder / f"{whole}.map"
