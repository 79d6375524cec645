"""A line between runner and dispatcher that delays, loses, resets, duplicates, corrupts and replays messages, by seed."""

import random
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from medfed.engines.nvflare.frames import BadMessage, connect, listen, receive, send

# Of a hundred messages.
CHANCES = {"delay": 6, "loss": 1, "reset": 4, "duplicate": 5, "corrupt question": 4, "corrupt answer": 4,
           "replay question": 4, "replay answer": 4}  # fmt: skip


class FaultyLine:
    """Listens at ``at`` and passes messages to ``relay``. counts: what it did."""

    def __init__(self, relay: Path, at: Path, *, seed: int, lost_for: float = 25.0) -> None:
        self.relay = relay
        self.at = at
        self.lost_for = lost_for
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.questions: list[tuple[dict[str, Any], bytes]] = []
        self.answers: list[tuple[dict[str, Any], bytes]] = []
        self._lock = threading.Lock()
        self._server: socket.socket | None = None

    def start(self) -> None:
        self._server = listen(self.at)
        threading.Thread(target=self._serve, daemon=True).start()

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.at.unlink(missing_ok=True)

    def _serve(self) -> None:
        assert self._server is not None
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._pass, args=(connection,), daemon=True).start()

    def _pass(self, connection: socket.socket) -> None:
        with suppress(EOFError, OSError, BadMessage), connection, connect(self.relay) as beyond:
            while True:
                header, blob = receive(connection)
                fault = self._draw()
                if fault == "delay":
                    time.sleep(0.3 + 2.0 * self.random.random())
                elif fault == "loss":
                    time.sleep(self.lost_for)
                    return
                elif fault == "reset":
                    return
                elif fault == "corrupt question":
                    header, blob = self._corrupt(header, blob)
                elif fault == "replay question" and self.questions:
                    old = self.random.choice(self.questions)
                    send(beyond, *old)
                    receive(beyond)
                elif fault == "duplicate":
                    send(beyond, header, blob)
                    receive(beyond)
                send(beyond, header, blob)
                reply, data = receive(beyond)
                if fault == "corrupt answer":
                    reply, data = self._corrupt(reply, data)
                elif fault == "replay answer" and self.answers:
                    reply, data = self.random.choice(self.answers)
                with self._lock:
                    self.questions = [*self.questions[-50:], (header, blob)]
                    self.answers = [*self.answers[-50:], (reply, data)]
                send(connection, reply, data)

    def _draw(self) -> str:
        with self._lock:
            place = self.random.random() * 100
            for fault, chance in CHANCES.items():
                place -= chance
                if place < 0:
                    self.counts[fault] += 1
                    return fault
            self.counts["passed"] += 1
        return ""

    def _corrupt(self, header: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """Change one byte, of the blob or of the signed header's text."""
        if blob and self.random.random() < 0.5:
            at = self.random.randrange(len(blob))
            return header, blob[:at] + bytes([blob[at] ^ 1 << self.random.randrange(8)]) + blob[at + 1 :]
        text = str(header.get("message", ""))
        if not text:
            return header, blob
        at = self.random.randrange(len(text))
        return header | {"message": text[:at] + self.random.choice("0123456789abcdef") + text[at + 1 :]}, blob
