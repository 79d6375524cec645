"""What runs at the coordinator: keeps NVFLARE's server and the dispatcher job going, and says how every site stands.

NVFLARE's own word on a job is not trusted: after a kill it says "running" of a job that is gone. This service asks the
dispatcher and every site through it, again and again, and replaces the job when it is dead or stale, or when a site that
is not in it is connected. A run outlives the job: the runner asks again.
"""

import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from medfed import __version__
from medfed.canonical import private_folder
from medfed.engines.nvflare.certificates import ADMIN, Root, days_left
from medfed.engines.nvflare.channel import Unanswered, coordinator_sealer, line_to, sites_in_dispatcher
from medfed.engines.nvflare.consortium import Network
from medfed.engines.nvflare.envelope import Message
from medfed.engines.nvflare.processes import ServiceLock, end_tree, nvflare_environment, spawn
from medfed.engines.nvflare.proposals import deliver
from medfed.engines.nvflare.renewal import RENEW_DAYS, renew_server, renew_site
from medfed.errors import MedfedError
from medfed.federation.packages import installed_package

log = logging.getLogger("medfed.service")

LOOK_EVERY = 0.5
DEAD_AFTER = 4.0
STALE_AFTER = 8.0
START_TAKES_AT_MOST = 40.0
FIRST_JOB_WAITS = 6.0
HEARTBEAT_FRESH = 12.0


@dataclass
class SiteState:
    """How one site stands. state: connected | away | joining; since: unix seconds."""

    state: str = "away"
    since: float = field(default_factory=time.time)
    why: str = "the site has not connected yet"
    medfed: str = ""
    package: str = ""
    working: float | None = None
    failing: float = 0.0

    def become(self, state: str, why: str = "") -> None:
        if state != self.state:
            self.state, self.since = state, time.time()
        self.why = why


class CoordinatorService:
    """Supervises NVFLARE for one consortium."""

    def __init__(self, consortium: Path) -> None:
        self.network = Network(consortium)
        self.declared = self.network.declared()
        self.sealer = coordinator_sealer(self.network.keys, self.network.identity())
        self.sites: dict[str, SiteState] = {}
        self.server: subprocess.Popen[bytes] | None = None
        self.server_since = 0.0
        self.job = ""
        self.job_state, self.job_since = "none", time.time()
        self.in_job: set[str] = set()
        self.job_process = 0
        self.relay_heard = 0.0
        self.registered: dict[str, float] = {}
        self.registered_at = 0.0
        self.admin_heard = time.time()
        self.wanted = ""
        self.ending = threading.Event()
        self.package = installed_package("medfed", "medfed")
        self._pinging: set[str] = set()
        self._renewed_at = 0.0

    # -- what is seen ------------------------------------------------------------------------------------------------

    def look(self) -> None:
        """Ask the dispatcher which sites it has, and every site of it whether it answers."""
        found = sites_in_dispatcher(self.network.relay)
        if found is None:
            if self.job_state == "running" and time.time() - self.relay_heard > 1.0:
                self._job("lost")
        else:
            self.in_job, self.job_process = found
            self.relay_heard = time.time()
            if self.job_state != "running" and self.job:
                self._job("running")
        members = self.network.joined()
        for name in list(self.sites):
            if name not in members:
                del self.sites[name]
        for name, member in members.items():
            state = self.sites.setdefault(name, SiteState())
            if found is None or name not in self.in_job:
                state.failing = state.failing or time.time()
                connected = time.time() - self.registered.get(name, 0.0) < HEARTBEAT_FRESH
                if connected:
                    state.become("joining", "the site is connected; the dispatcher is being started with it")
                else:
                    state.become("away", "the site is not connected to the coordinator")
            elif name not in self._pinging:
                self._pinging.add(name)
                threading.Thread(target=self._ping, args=(name, member.public_key), daemon=True).start()

    def _ping(self, name: str, public_key: str) -> None:
        state = self.sites[name]
        ping = Message("ping", {"medfed": __version__, "package": self.package.sha256})
        try:
            with line_to(self.network.relay, self.sealer, name, public_key) as line:
                content = line.ask(ping, timeout=3.0).content
        except Unanswered as problem:
            state.failing = state.failing or time.time()
            if time.time() - state.failing > 2.0:
                state.become("away", _AWAY.get(problem.why, "the site does not answer"))
        else:
            state.failing = 0.0
            if content.get("state") == "failure":
                state.become("away", str(content.get("reason", ""))[:300])
            else:
                if state.state != "connected":
                    with contextlib.suppress(Unanswered, OSError, ValueError, KeyError):
                        deliver(self.network, self.sealer, name, public_key)
                state.become("connected")
                state.medfed, state.package = str(content.get("medfed", "")), str(content.get("package", ""))
                working = content.get("working")
                state.working = float(working) if isinstance(working, int | float) else None
        finally:
            self._pinging.discard(name)

    # -- what is done ------------------------------------------------------------------------------------------------

    def why_replace(self) -> str:
        """Why the dispatcher job has to be replaced; "" when it need not, or not yet."""
        now = time.time()
        fresh = {n for n, at in self.registered.items() if now - at < HEARTBEAT_FRESH} & set(self.network.joined())
        if self.job_state == "starting":
            return "it did not start" if now - self.job_since > START_TAKES_AT_MOST else ""
        if not fresh:
            return ""
        if self.job_state == "none":
            all_here = fresh == set(self.network.joined())
            return "there is none" if all_here or now - self.server_since > FIRST_JOB_WAITS + 6 else ""
        if self.job_state == "lost" or now - self.relay_heard > STALE_AFTER:
            return (
                "it is gone"
                if self.job_state == "lost" and now - self.job_since > 0.5
                else ("it does not answer" if now - self.relay_heard > STALE_AFTER else "")
            )
        if missing := fresh - self.in_job:
            return f"{', '.join(sorted(missing))} came back"
        dead = [
            n for n in fresh & self.in_job if (s := self.sites.get(n)) and s.failing and now - s.failing > DEAD_AFTER
        ]
        return f"{', '.join(sorted(dead))} is connected but does not answer in it" if dead else ""

    def administer(self) -> None:
        """In a thread of its own, since NVFLARE's session may block: who is registered, and the job."""
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        session: Any = None
        while not self.ending.wait(0.5):
            try:
                if session is None:
                    if not self._server_runs() or time.time() - self.server_since < 1.0:
                        continue
                    with _quiet():
                        session = new_secure_session(ADMIN, str(self.network.admin.resolve()), timeout=8.0)
                info = session.get_system_info()
                seen = {client.name: float(client.last_connect_time) for client in info.client_info}
                self.registered, self.registered_at = seen, time.time()
                self.admin_heard = time.time()
                if reason := self.why_replace():
                    self._replace(session, reason)
            except Exception as problem:  # whatever NVFLARE says: a new session is made
                log.warning("NVFLARE's session: %s", type(problem).__name__)
                with contextlib.suppress(Exception):
                    session.close()
                session = None
                self.ending.wait(1.0)
        with contextlib.suppress(Exception):
            session.close()

    def _replace(self, session: Any, reason: str) -> None:
        log.warning("a new dispatcher job, since %s", reason)
        self.wanted = reason
        old = self.job_process
        if self.job:
            with contextlib.suppress(Exception):
                session.abort_job(self.job)
        if old:  # an aborted job that does not hear of it (stopped, hung) is ended here
            end = time.time() + 3.0
            while time.time() < end and _alive(old):
                time.sleep(0.1)
            with contextlib.suppress(OSError):
                os.kill(old, signal.SIGKILL)
        self.network.relay.unlink(missing_ok=True)
        self.in_job, self.job_process = set(), 0
        self.job = session.submit_job(str(self.network.job.resolve()))
        self._job("starting")

    def _job(self, state: str) -> None:
        if state != self.job_state:
            self.job_state, self.job_since = state, time.time()

    def _server_runs(self) -> bool:
        return self.server is not None and self.server.poll() is None

    def keep_server(self) -> None:
        """Start NVFLARE's server, and again when it ends or answers nothing any more."""
        now = time.time()
        stale = now - max(self.admin_heard, self.server_since) > 25.0
        if self._server_runs() and not stale:
            return
        if self.server is not None:
            log.warning("NVFLARE's server %s; it is started again", "does not answer" if stale else "ended")
        end_tree(self.server, wait=0.5)
        if self.job_process:
            with contextlib.suppress(OSError):
                os.kill(self.job_process, signal.SIGKILL)
        self.network.relay.unlink(missing_ok=True)
        for left in ("jobs", "snapshots", "transfer"):  # of jobs that no longer run
            shutil.rmtree(self.network.server / left, ignore_errors=True)
        private_folder(self.network.server / "transfer")
        for old in self.network.server.glob("????????-????-????-????-????????????"):
            shutil.rmtree(old, ignore_errors=True)
        self.job, self.in_job, self.job_process, self.registered = "", set(), 0, {}
        self._job("none")
        command = [
            sys.executable, "-u", "-m", "nvflare.private.fed.app.server.server_train", "-m",
            str(self.network.server.resolve()), "-s", "fed_server.json", "--set", "secure_train=true", "org=medfed",
            "config_folder=config",
        ]  # fmt: skip
        environment = nvflare_environment(
            self.network.run.resolve(), MEDFED_CONSORTIUM=str(self.network.consortium.resolve())
        )
        self.server = spawn(command, self.network.folder / "nvflare.log", environment, cwd="/")
        self.server_since = self.admin_heard = time.time()

    def renew(self) -> None:
        """Certificates that end soon are renewed: a site's over its line, the server's when nothing is being carried."""
        if time.time() - self._renewed_at < 60.0:
            return
        self._renewed_at = time.time()
        days = min(RENEW_DAYS, self.declared.certificate_days / 3)
        root = Root.load(self.network.keys)
        for name, member in self.network.joined().items():
            issued = self.network.folder / "issued" / f"{name}.crt"
            state = self.sites.get(name)
            if state and state.state == "connected" and issued.exists() and days_left(issued.read_bytes()) < days:
                try:
                    renew_site(self.network, root, self.sealer, member, self.declared.certificate_days)
                    log.warning("the certificate of %s was renewed", name)
                except (Unanswered, MedfedError) as problem:
                    log.warning("the certificate of %s could not be renewed: %s", name, problem)
        server = (self.network.server / "startup" / "server.crt").read_bytes()
        if days_left(server) < days and all(state.working is None for state in self.sites.values()):
            renew_server(self.network, root, self.declared)
            log.warning("the server's certificate was renewed; the server starts again")
            end_tree(self.server)

    def write_state(self) -> None:
        """How things stand, for `medfed status`, the runner and people."""
        state = {
            "at": time.time(),
            "process": os.getpid(),
            "server": {"alive": self._server_runs(), "since": self.server_since},
            "dispatcher": {"state": self.job_state, "since": self.job_since, "why": self.wanted},
            "sites": {name: asdict(site) for name, site in list(self.sites.items())},
        }
        with contextlib.suppress(OSError):
            temporary = self.network.state_path.with_suffix(".new")
            temporary.write_text(json.dumps(state))
            temporary.replace(self.network.state_path)

    def run(self) -> None:
        """Until SIGTERM or SIGINT."""
        ServiceLock(self.network.run).take()
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self.ending.set())
        threading.Thread(target=self.administer, daemon=True).start()
        log.warning("consortium %s is served on port %s", self.declared.name, self.declared.coordinator.port)
        try:
            while not self.ending.is_set():
                self.keep_server()
                self.look()
                self.write_state()
                with contextlib.suppress(MedfedError):
                    self.renew()
                self.ending.wait(LOOK_EVERY)
        finally:
            end_tree(self.server)
            if self.job_process:
                with contextlib.suppress(OSError):
                    os.kill(self.job_process, signal.SIGKILL)
            self.network.relay.unlink(missing_ok=True)
            self.network.state_path.unlink(missing_ok=True)
            log.warning("the coordinator's service has stopped")


_AWAY = {
    "silent": "the site does not answer",
    "gone": "the site's service is not running or not reachable",
    "no dispatcher": "the dispatcher is being started",
    "not in the dispatcher": "the site is not connected to the coordinator",
    "not verified": "what the site answers is not signed with the key that is bound to its name",
    "refused": "the site does not accept the coordinator's messages; compare clocks and versions",
}


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
        yield


def main() -> None:
    consortium = Path(sys.argv[1])
    private_folder(Network(consortium).run)
    os.umask(0o077)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        CoordinatorService(consortium).run()
    except MedfedError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    os._exit(0)


if __name__ == "__main__":
    main()
