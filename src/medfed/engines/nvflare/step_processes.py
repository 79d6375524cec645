"""The processes that read rows, one a study: started when they are needed, confined, and started again when they end."""

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from medfed.engines.nvflare.frames import BadMessage, receive, send
from medfed.engines.nvflare.join import SiteNetwork
from medfed.engines.nvflare.parts import PARTS_MISSING
from medfed.engines.nvflare.processes import end_tree, spawn
from medfed.engines.nvflare.reasons import STEP_ENDED
from medfed.engines.nvflare.wire import failure_content
from medfed.federation.call import Failure

log = logging.getLogger("medfed.service")

STEP_CONFINEMENT = {"tcp": False}


class Starter:
    """Starts children from one lasting thread: they are killed when the thread that started them ends."""

    def __init__(self) -> None:
        self._asked: list[tuple[tuple[Any, ...], dict[str, Any], list[Any], threading.Event]] = []
        self._wake = threading.Condition()

    def spawn(self, *args: Any, **options: Any) -> subprocess.Popen[bytes]:
        out: list[Any] = []
        done = threading.Event()
        with self._wake:
            self._asked.append((args, options, out, done))
            self._wake.notify()
        done.wait()
        if isinstance(out[0], BaseException):
            raise out[0]
        return out[0]  # type: ignore[no-any-return]

    def serve(self) -> None:
        """Run by the lasting thread, for ever."""
        while True:
            with self._wake:
                while not self._asked:
                    self._wake.wait()
                args, options, out, done = self._asked.pop(0)
            try:
                out.append(spawn(*args, **options))
            except OSError as problem:
                out.append(problem)
            done.set()


STARTER = Starter()


class StepProcess:
    """The process of one study, started when it is needed and again when it ends."""

    def __init__(self, network: SiteNetwork, study: str) -> None:
        self.network = network
        self.study = study
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: socket.socket | None = None
        self.used = time.monotonic()

    def answer(self, content: Mapping[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """One call after another. A process that ends under a call is started again, once.

        Inputs that came in parts are handed over as an open file: the process may open none of ours.
        """
        path = content.get("inputs_file")
        asked = {name: value for name, value in content.items() if name != "inputs_file"} | {"file": path is not None}
        with self.lock, contextlib.ExitStack() as opened:
            try:
                files = [opened.enter_context(open(path, "rb"))] if path is not None else []
            except OSError:
                return failure_content(Failure("refused", PARTS_MISSING)), b""
            for _ in range(2):
                self.used = time.monotonic()
                try:
                    connection = self._connected()
                    send(connection, asked, blob)
                    if files:
                        socket.send_fds(connection, [b"F"], [files[0].fileno()])
                    return receive(connection)
                except (OSError, EOFError, BadMessage):
                    log.warning("the process of study %s ended", self.study[:16])
                    self.end()
            return failure_content(Failure("failed", STEP_ENDED)), b""

    def _connected(self) -> socket.socket:
        if self.process is None or self.process.poll() is not None or self.connection is None:
            self.end()
            mine, theirs = socket.socketpair()
            with theirs:
                os.set_inheritable(theirs.fileno(), True)
                command = [
                    sys.executable, "-m", "medfed.engines.nvflare.step_process",
                    str(self.network.site.folder.resolve()), self.study, str(theirs.fileno()),
                ]  # fmt: skip
                self.process = STARTER.spawn(
                    command, self.network.log, dict(os.environ), confined=STEP_CONFINEMENT,
                    pass_fds=(theirs.fileno(),), cwd="/",
                )  # fmt: skip
            self.connection = mine
        return self.connection

    def end(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        end_tree(self.process, wait=0.0)
        self.process = None
