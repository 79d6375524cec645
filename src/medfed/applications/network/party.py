"""One party of the demo: its folder, the system user that it runs as, and the commands that it types."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from medfed.errors import MedfedError

FIRST_USER = 61_000
NOT_ADMINISTRATOR = "all parties run as you: only the administrator may start processes as other users"
NOT_READABLE = "all parties run as you: other users can't read this folder or this Python"


@dataclass(frozen=True)
class Party:
    """name: coordinator or a site's; folder: its own; user: number of its system user, None for the one who runs this."""

    name: str
    folder: Path
    user: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    def start(self, *command: str, module: str = "medfed") -> subprocess.Popen[bytes]:
        """A command of medfed as this party, in the background."""
        own: dict[str, Any] = {}
        if self.user is not None:
            own = {"user": self.user, "group": self.user, "extra_groups": []}
        environment = os.environ | {"HOME": str(self.folder), "USER": self.name} | dict(self.environment)
        return subprocess.Popen(
            [sys.executable, "-m", module, *command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=environment, cwd=self.folder, umask=0o077, **own,
        )  # fmt: skip

    def finish(self, process: subprocess.Popen[bytes], what: str) -> str:
        """Wait for a command; its output. MedfedError with what it said when it failed."""
        shown, said = process.communicate(timeout=600)
        if process.returncode != 0:
            raise MedfedError(
                f"{self.name}: {what} ended with an error: {said.decode(errors='replace').strip()[-600:]}"
            )
        return shown.decode()

    def type(self, *command: str, module: str = "medfed") -> str:
        """A command of medfed as this party; its output."""
        return self.finish(self.start(*command, module=module), " ".join(command[:2]))

    def ask(self, *command: str) -> Any:
        """The JSON that a command prints."""
        return json.loads(self.type(*command, "--json"))

    def give(self) -> None:
        """Make the folder this party's own: nobody else of this machine can look into it."""
        if self.user is not None:
            for path in (self.folder, *self.folder.rglob("*")):
                os.chown(path, self.user, self.user, follow_symlinks=False)
        os.chmod(self.folder, 0o700)

    def processes(self) -> list[psutil.Process]:
        """All living processes of this party's services, by their command lines."""
        mine = str(self.folder.resolve())
        found = []
        for process in psutil.process_iter(["cmdline", "pid"]):
            words = process.info["cmdline"] or []
            if process.pid != os.getpid() and any(word == mine or word.startswith(f"{mine}/") for word in words):
                found.append(process)
        return found

    def kill(self) -> int:
        """``kill -9`` of every process of this party at once; how many there were."""
        found = self.processes()
        for process in found:
            process.suspend()  # so that none starts another while they are killed
        for process in found:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=5)
        return len(found)


def separate_users(folder: Path, count: int) -> tuple[list[int | None], str]:
    """Numbers of system users for the parties, and a word on why there are none where that can't be.

    The numbers need no account: nothing outside ``folder`` is changed.
    """
    if os.geteuid() != 0:
        return [None] * count, NOT_ADMINISTRATOR
    numbers: list[int | None] = [FIRST_USER + index for index in range(count)]
    probe = "import os, medfed; os.stat('sites')"
    try:
        subprocess.run(
            [sys.executable, "-c", probe], cwd=folder, user=FIRST_USER, group=FIRST_USER, extra_groups=[],
            capture_output=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return [None] * count, NOT_READABLE
    return numbers, ""


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: Any, seconds: float, what: str) -> float:
    """Until ``true()``; how long it took. MedfedError after ``seconds``."""
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        if true():
            return time.monotonic() - start
        time.sleep(0.05)
    raise MedfedError(f"{what} did not happen within {seconds:g} seconds")


def copy_site(source: Path, to: Path) -> None:
    """What belongs to a site before it joins anything: export, mapping, policy, keys."""
    for name in ("data", "keys"):
        shutil.copytree(source / name, to / name)
    for name in ("site.yaml", "policy.yaml"):
        shutil.copy2(source / name, to / name)
