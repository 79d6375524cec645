"""A real network for tests: services of a coordinator and of sites, in processes of their own, over TLS on this machine."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
from joined import SITES, Joined, a_study, make_joined, propose_and_approve
from nvflare.lighter.utils import Identity, generate_cert, generate_keys, serialize_cert, serialize_pri_key

from medfed.engines.nvflare.certificates import ADMIN, Pair, Root
from medfed.engines.nvflare.channel import line_to
from medfed.engines.nvflare.envelope import Message
from medfed.engines.nvflare.guard import TOKEN_FILE
from medfed.engines.nvflare.processes import ServiceLock, end_tree, nvflare_environment, start_service
from medfed.engines.nvflare.workspace import write_certificate, write_site
from medfed.study import Study


def a_free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def wait_for(what: Callable[[], Any], seconds: float, said: str | Callable[[], str]) -> Any:
    """The first true value of ``what``; AssertionError with ``said`` when it takes longer."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            if found := what():
                return found
        time.sleep(0.1)
    raise AssertionError(said if isinstance(said, str) else said())


@dataclass
class Network:
    """A consortium whose services run. study: proposed to every site, built and approved there."""

    joined: Joined
    study: Study

    @property
    def folder(self) -> Path:
        return self.joined.folder

    def start_coordinator(self) -> None:
        network = self.joined.coordinator
        start_service("medfed.engines.nvflare.coordinator_service", self.folder, network.folder / "service.log")

    def start_site(self, name: str) -> None:
        network = self.joined.site_network(name)
        start_service("medfed.engines.nvflare.site_service", network.site.folder, network.log)

    def stop_coordinator(self) -> None:
        ServiceLock(self.joined.coordinator.run).stop_holder()

    def stop_site(self, name: str) -> None:
        ServiceLock(self.joined.site_network(name).run).stop_holder()

    def state(self) -> dict[str, Any]:
        """What the coordinator's service says."""
        found: dict[str, Any] = json.loads(self.joined.coordinator.state_path.read_text())
        return found

    def are_connected(self, names: Sequence[str]) -> bool:
        sites = self.state()["sites"]
        return all(sites[name]["state"] == "connected" for name in names)

    def wait_connected(self, names: Sequence[str], seconds: float = 180.0) -> None:
        wait_for(lambda: self.are_connected(names), seconds, lambda: f"{names} did not connect: {self.state()}")

    def ask(self, name: str, message: Message, seconds: float = 20.0) -> Message:
        """A question of the coordinator to a site, by the dispatcher."""
        member = self.joined.coordinator.members()[name]
        with line_to(self.joined.coordinator.relay, self.joined.sealer, name, member.public_key) as line:
            return line.ask(message, timeout=seconds)

    def processes(self, *words: str) -> list[psutil.Process]:
        """Processes of this network whose command line holds all the words."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or ())
            if str(self.folder) in line and all(word in line for word in words):
                found.append(process)
        return found

    def job_processes(self, name: str) -> list[psutil.Process]:
        return self.processes(str(self.joined.site(name).folder), "worker_process")

    def log(self, name: str) -> str:
        """All that a site's service and its NVFLARE have logged."""
        network = self.joined.site_network(name)
        logs = [network.log, network.folder / "nvflare.log", *network.workspace.rglob("*log*.txt")]
        return "\n".join(path.read_text(errors="replace") for path in logs if path.exists())

    def server_log(self) -> str:
        network = self.joined.coordinator
        logs = [network.folder / "service.log", network.folder / "nvflare.log", *network.server.rglob("*log*.txt")]
        return "\n".join(path.read_text(errors="replace") for path in logs if path.exists())

    @contextlib.contextmanager
    def admin_session(self, role: str = "project_admin", name: str = ADMIN) -> Iterator[Any]:
        """A session of NVFLARE's administrator, with a certificate that the consortium's root issues for it."""
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        network = self.joined.coordinator
        home = self.folder / f"admin-{role}-{time.monotonic_ns()}"
        shutil.copytree(network.admin, home)
        Root.load(network.keys).issue(name, days=3, role=role).write(home / "startup", "client")
        declared = json.loads((home / "startup" / "fed_admin.json").read_text())
        declared["admin"]["username"] = name
        (home / "startup" / "fed_admin.json").write_text(json.dumps(declared))
        with contextlib.redirect_stdout(io.StringIO()):
            session = new_secure_session(name, str(home), timeout=10)
        try:
            yield session
        finally:
            with contextlib.suppress(Exception):
                session.close()

    def registered(self) -> set[str]:
        """Who is registered with NVFLARE's server, by its own word."""
        with self.admin_session() as session:
            return {client.name for client in session.get_system_info().client_info}


def dated(root: Root, name: str, since: timedelta, until: timedelta) -> Pair:
    """A certificate for ``name`` that is valid from now + since to now + until."""
    key, public = generate_keys()
    now = datetime.now(UTC)
    made = generate_cert(
        Identity(name, "medfed"), Identity("trial"), root.key, public, not_valid_before=now + since, not_valid_after=now + until,
    )  # fmt: skip
    return Pair(serialize_cert(made), serialize_pri_key(key))


@dataclass
class Intruder:
    """NVFLARE's own client, started by hand with whatever certificate and token. name: what it says it is."""

    home: Path
    name: str
    process: subprocess.Popen[bytes] | None = None

    def start(self, *, client_type: str = "regular") -> None:
        """client_type: as NVFLARE's client says it; another one is a client whose code was changed."""
        code = (
            "import runpy; from nvflare.private.defs import ClientType; "
            f"ClientType.REGULAR = {client_type!r}; runpy.run_module('nvflare.private.fed.app.client.client_train', run_name='__main__')"
        )
        workspace = self.home / "nvflare"
        command = [
            sys.executable, "-c", code, "-m", str(workspace), "-s", "fed_client.json", "--set", "secure_train=true",
            f"uid={self.name}", "org=medfed", "config_folder=config", "heart_beat_interval=2.0",
        ]  # fmt: skip
        with open(self.home / "out", "wb") as out:
            self.process = subprocess.Popen(
                command, env=nvflare_environment(self.home / "run"), cwd="/", stdout=out, stderr=out
            )

    def stop(self) -> None:
        end_tree(self.process, wait=1.0)

    def log(self) -> str:
        logs = [self.home / "out", *(self.home / "nvflare").rglob("*log*.txt")]
        return "\n".join(path.read_text(errors="replace") for path in logs if path.exists())


def make_intruder(joined: Joined, home: Path, name: str, pair: Pair | None, token: str) -> Intruder:
    """A workspace as of site ``name``, with another certificate (None: none at all) and a token of the test's choice."""
    address = joined.declared.coordinator
    write_site(
        home / "nvflare", name, joined.declared.name, host=address.host, port=address.port, scheme=address.scheme
    )
    root = (joined.coordinator.keys / "root.crt").read_bytes()
    write_certificate(home / "nvflare", pair or Pair(b"", b""), root)
    if pair is None:
        for path in (home / "nvflare" / "startup").glob("client.*"):
            path.unlink()
    (home / "run").mkdir(mode=0o700)
    (home / "run" / TOKEN_FILE).write_text(token)
    return Intruder(home, name)


@contextlib.contextmanager
def bring_up(
    folder: Path, sites: Sequence[str] = SITES, *, study: Study | None = None, start: Sequence[str] | None = None
) -> Iterator[Network]:
    """Start everything and wait until all are connected; at the end nothing is left running. start: only these sites."""
    joined = make_joined(folder / "consortium", sites, port=a_free_port())
    found = Network(joined, study or a_study(sites))
    propose_and_approve(joined, found.study, sites)
    try:
        found.start_coordinator()
        for name in sites if start is None else start:
            found.start_site(name)
        found.wait_connected(sites if start is None else start)
        yield found
    finally:
        bring_down(found)


def bring_down(network: Network) -> None:
    for path in network.folder.rglob("service.lock"):
        with contextlib.suppress(Exception):
            ServiceLock(path.parent).stop_holder()
    for process in network.processes():
        with contextlib.suppress(psutil.Error):
            if process.pid != os.getpid():
                process.send_signal(signal.SIGKILL)
