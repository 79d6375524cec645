"""Child processes that end with their parent, and one service a folder.

A service holds a lock as long as it lives, so whether it runs is never guessed from a file that a dead one left.
"""

import contextlib
import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from medfed.errors import FederationError

_PR_SET_PDEATHSIG = 1


def spawn(
    command: Sequence[str], log: Path, environment: Mapping[str, str], **options: object
) -> subprocess.Popen[bytes]:
    """Start a command in a group of its own; it is killed when this process ends, however it ends.

    Linux sends that signal when the *thread* that started the child ends, so start children from a lasting thread.
    """
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        child: subprocess.Popen[bytes] = subprocess.Popen(  # type: ignore[call-overload]
            [sys.executable, "-u", "-m", "medfed.engines.nvflare.processes", str(os.getpid()), *command],
            stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, env=dict(environment), start_new_session=True,
            **options,
        )  # fmt: skip
        return child
    finally:
        os.close(handle)


def end_tree(process: subprocess.Popen[bytes] | None, *, wait: float = 3.0) -> None:
    """End a child and all that it started: first asked, then killed."""
    if process is None:
        return
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        family = psutil.Process(process.pid).children(recursive=True)
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(wait)
    for member in family:
        with contextlib.suppress(psutil.Error):
            member.kill()
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    process.wait()
    psutil.wait_procs(family, timeout=3.0)


class ServiceLock:
    """Held by the one service of a folder; tells others its process number."""

    def __init__(self, run: Path) -> None:
        self.path = run / "service.lock"
        self._handle: int | None = None

    def take(self) -> None:
        """FederationError when another service holds it."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            raise FederationError(f"{self.path.parent.parent} is served already; stop that service first") from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        self._handle = handle

    def holder(self) -> int | None:
        """Process number of the living service, None when there is none."""
        try:
            handle = os.open(self.path, os.O_RDWR)
        except OSError:
            return None
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
        except OSError:
            with contextlib.suppress(ValueError):
                return int(os.pread(handle, 20, 0))
            return None
        finally:
            os.close(handle)

    def stop_holder(self, patience: float = 20.0) -> bool:
        """Ask the living service to end and wait until it has; False when none was running. Killed when it will not."""
        holder = self.holder()
        if holder is None:
            return False
        for sign, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(holder, sign)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                if self.holder() != holder:
                    return True
                time.sleep(0.05)
        raise FederationError(f"process {holder} does not end; end it yourself, then try again")


def start_service(module: str, folder: Path, log: Path, environment: Mapping[str, str] | None = None) -> int:
    """Start a service that outlives this command; returns its process number."""
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        child = subprocess.Popen(
            [sys.executable, "-u", "-m", module, str(folder.resolve())],
            stdin=subprocess.DEVNULL, stdout=handle, stderr=handle, start_new_session=True, cwd="/",
            env=dict(environment or os.environ),
        )  # fmt: skip
    finally:
        os.close(handle)
    return child.pid


def tail(log: Path, lines: int = 5) -> str:
    """The last lines of a log, for a person whose service did not start."""
    with contextlib.suppress(OSError):
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])
    return ""


def nvflare_environment(run: Path, **more: str) -> dict[str, str]:
    """What NVFLARE's processes see: no secrets of the caller's environment, less memory kept by malloc."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL", "TZ", "HOME", "USER", "LD_LIBRARY_PATH", "VIRTUAL_ENV")}  # fmt: skip
    return (
        kept | {"MEDFED_RUN": str(run), "MALLOC_ARENA_MAX": "2", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"} | more
    )


def _become() -> None:
    """``python -m ...processes PARENT COMMAND...``: tie this process's life to its parent's, then become the command."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    _become()
