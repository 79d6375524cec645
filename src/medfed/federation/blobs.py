"""Large bytes beside a store: files named by their hash, written and synced before a row names them."""

import contextlib
import hashlib
import os
import time
from pathlib import Path

from medfed.canonical import write_atomically
from medfed.errors import LedgerError

IN_ROW = 256 * 1024


class BlobFolder:
    """Keeps small bytes in the row and large ones in a file; a row holds (bytes, None) or (None, file name)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, data: bytes) -> tuple[bytes | None, str | None]:
        """What the row is to hold; a large value is on disk when this returns."""
        if len(data) <= IN_ROW:
            return data, None
        name = hashlib.sha256(data).hexdigest()
        path = self.folder / name
        if not path.exists():
            write_atomically(path, data, mode=0o600)
        return None, name

    def read(self, data: bytes | None, name: str | None) -> bytes:
        """The bytes behind a row. LedgerError when their file is gone or changed."""
        if name is None:
            if data is None:
                raise LedgerError("the bytes of this answer were dropped after their round was finished")
            return data
        path = self.folder / name
        try:
            content = path.read_bytes()
        except OSError:
            raise LedgerError(f"{path} is missing; restore it from a backup") from None
        if hashlib.sha256(content).hexdigest() != name:
            raise LedgerError(f"{path} is not what was sealed; restore it from a backup")
        return content

    def drop_all_but(self, names: set[str], *, older_than_seconds: float = 3600.0) -> None:
        """Remove files that no row names any more. Young ones may be about to be named by another process."""
        if not self.folder.exists():
            return
        limit = time.time() - older_than_seconds
        for entry in os.scandir(self.folder):
            if entry.name not in names and not entry.name.startswith(".") and entry.stat().st_mtime < limit:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(entry.path)
