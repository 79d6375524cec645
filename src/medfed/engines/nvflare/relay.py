"""The two objects that live in NVFLARE's dispatcher job. They carry sealed messages and understand none of them.

``CoordinatorRelay`` runs in the server's job process and opens a unix socket for the runner and the supervisor;
``SiteRelay`` runs in a site's job process and hands each message to the site's service, which has the data, over another.
Neither process can read a patient's row, sign a message or decide anything.
"""

import contextlib
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nvflare.collab import collab

from medfed.engines.nvflare.frames import BLOB_AT_MOST, SWITCH_SECONDS, BadMessage, connect, listen, receive, send

NOBODY_THERE = "the service of the site does not answer"
REFUSED = '{"refused":true}'
SEPARATOR = b"\n\x00\n"


class CoordinatorRelay:
    """Server side: answers {"to": site, "timeout": s, "message": header} + blob with the site's reply."""

    def __init__(self, at: str) -> None:
        self.at = at

    @collab.main
    def main(self) -> None:
        """Until the job ends: serve the socket."""
        sys.setswitchinterval(SWITCH_SECONDS)
        proxies = {client.name: client for client in collab.clients}
        where = Path(os.environ["MEDFED_RUN"]) / self.at
        server = listen(where)
        (where.parent / f"{self.at}.pid").write_text(str(os.getpid()))
        server.settimeout(0.5)
        try:
            while not collab.is_aborted:
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                threading.Thread(target=_serve, args=(connection, proxies), daemon=True).start()
        finally:
            server.close()
            where.unlink(missing_ok=True)


def _serve(connection: socket.socket, proxies: dict[str, Any]) -> None:
    connection.settimeout(None)
    with contextlib.suppress(EOFError, OSError, BadMessage), connection:
        while True:
            header, blob = receive(connection)
            if header.get("list"):
                send(connection, {"sites": sorted(proxies), "pid": os.getpid()})
                continue
            site, timeout = str(header.get("to")), float(header.get("timeout", 15.0))
            if site not in proxies:
                send(connection, {"error": "absent"})
                continue
            started = time.monotonic()
            try:
                reply = proxies[site](timeout=timeout).call(header["message"], blob)
            except Exception:  # NVFLARE's words may hold anything; the runner needs to know only how it failed
                waited = time.monotonic() - started
                send(connection, {"error": "silent" if waited >= 0.9 * timeout else "gone"})
                continue
            if not isinstance(reply, bytes) or len(reply) > BLOB_AT_MOST + 2**20 or SEPARATOR not in reply:
                send(connection, {"error": "gone"})
                continue
            text, _, answer = reply.partition(SEPARATOR)
            send(connection, {"message": text.decode(errors="replace")}, answer)


class SiteRelay:
    """Site side: passes a message to the site's service and its reply back. One connection a thread."""

    def __init__(self, at: str) -> None:
        self.at = at
        self._local = threading.local()
        sys.setswitchinterval(SWITCH_SECONDS)

    @collab.publish
    def call(self, header: str, blob: bytes) -> bytes:
        """The service's reply: header, separator, blob. Raises a fixed sentence when the service is away."""
        for fresh in (False, True):
            try:
                connection = self._connection(fresh)
                send(connection, {"message": header}, blob)
                reply, answer = receive(connection)
                return str(reply.get("message", REFUSED)).encode() + SEPARATOR + answer
            except (OSError, EOFError, BadMessage):
                self._local.connection = None
        raise ConnectionError(NOBODY_THERE) from None

    def _connection(self, fresh: bool) -> socket.socket:
        found: socket.socket | None = getattr(self._local, "connection", None)
        if found is None or fresh:
            found = self._local.connection = connect(Path(os.environ["MEDFED_RUN"]) / self.at, timeout=120.0)
        return found
