"""What the network's commands share: the extra that they need, waiting for a service, and showing how things stand."""

import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from medfed.cli.console import err
from medfed.errors import FederationError

START_WAITS = 25.0


def need_network() -> None:
    """FederationError where the extra is not installed."""
    if find_spec("nvflare") is None or find_spec("psutil") is None:
        raise FederationError(
            "a network needs NVFLARE, which is not installed here; run: pip install 'medfed[network]'"
        )


def start_in_background(
    module: str, folder: Path, log: Path, is_up: Callable[[], bool], holder: Callable[[], int | None]
) -> int:
    """Start a service and wait until it serves. FederationError, with the end of its log, when it does not."""
    from medfed.engines.nvflare.processes import start_service, tail

    running = holder()
    if running is not None:
        raise FederationError(f"{folder} is served already (process {running}); `stop` ends it")
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    process = start_service(module, folder, log)
    end = time.monotonic() + START_WAITS
    while time.monotonic() < end:
        if holder() is not None and is_up():
            return process
        if _ended(process):
            break
        time.sleep(0.1)
    raise FederationError(f"the service of {folder} did not start; {log} ends with:\n{tail(log)}")


def _ended(process: int) -> bool:
    try:
        return os.waitpid(process, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return True


def run_in_foreground(module: str, folder: Path) -> None:
    """Become the service: what systemd and a container want."""
    import sys

    err.print(f"{folder} is served; Ctrl-C ends it", markup=False)
    os.execv(sys.executable, [sys.executable, "-u", "-m", module, str(folder.resolve())])
