"""Large bytes in parts of one chunk: a transfer that breaks goes on from the last part, and memory stays bounded.

Both sides use it: a site for inputs that come in, the coordinator for answers. What is whole is a file named by its hash.
"""

import contextlib
import hashlib
import os
import re
import threading
import time
from pathlib import Path

from medfed.engines.nvflare.frames import CHUNK, BadMessage
from medfed.errors import FederationError

WHOLE_AT_MOST = 2**31
ALL_AT_MOST = 2**33
KEPT_SECONDS = 24 * 3600.0

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


class Incoming:
    """A folder of files being received. Which parts are there is one byte each in a map beside the file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def parts(self, whole: str, size: int) -> list[int]:
        """Which parts are here already; makes room for the file where there is none."""
        _check(whole, size)
        with self._lock:
            return self._parts(whole, size)

    def _parts(self, whole: str, size: int) -> list[int]:
        if (self.folder / whole).exists():
            return list(range(part_count(size)))
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        marks = self._map(whole)
        if not marks.exists():
            self._tidy(size)
            handle = os.open(self._file(whole), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(handle, size)
            finally:
                os.close(handle)
            marks.write_bytes(b"\0" * part_count(size))
        here = marks.read_bytes()
        if len(here) != part_count(size):
            raise BadMessage("what is announced has another size than before")
        return [index for index, mark in enumerate(here) if mark]

    def write(self, whole: str, size: int, index: int, data: bytes) -> None:
        """Keep one part; the last one makes the file whole, after its hash was checked. Writing it again is no error."""
        _check(whole, size)
        count = part_count(size)
        expected = CHUNK if index < count - 1 else size - CHUNK * (count - 1)
        if not 0 <= index < count or len(data) != expected:
            raise BadMessage("a part has another place or size than was announced")
        if (self.folder / whole).exists():
            return
        self.parts(whole, size)
        handle = os.open(self._file(whole), os.O_WRONLY)
        try:
            os.pwrite(handle, data, index * CHUNK)
        finally:
            os.close(handle)
        with self._lock:
            if (self.folder / whole).exists():
                return
            mark = os.open(self._map(whole), os.O_WRONLY)
            try:
                os.pwrite(mark, b"\1", index)
            finally:
                os.close(mark)
            if b"\0" not in self._map(whole).read_bytes():
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
        """The whole file. BadMessage where parts are missing."""
        _check(whole, 1)
        path = self.folder / whole
        if not path.exists():
            raise BadMessage("parts of the inputs are missing; send them first")
        os.utime(path)
        return path

    def drop(self, whole: str) -> None:
        for path in (self.folder / whole, self._file(whole), self._map(whole)):
            path.unlink(missing_ok=True)

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
