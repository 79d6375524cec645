"""What runs at a site: checks every message that comes in, keeps the processes that answer, and signs what goes out.

It listens on a unix socket only. NVFLARE's processes, which it starts and watches, carry sealed messages to it over that
socket; processes of their own, one for each study, read the data. A site makes outbound connections only.
"""

import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medfed import __version__
from medfed.canonical import canonical_json, private_folder, write_atomically
from medfed.data.site_folder import load_site
from medfed.engines.nvflare.certificates import Pair, belongs_together, fingerprint, request_for
from medfed.engines.nvflare.consortium import now
from medfed.engines.nvflare.envelope import COORDINATOR, Fresh, Message, Sealer
from medfed.engines.nvflare.frames import CHUNK, SWITCH_SECONDS, BadMessage, listen, parse, receive, send
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.join import SiteNetwork
from medfed.engines.nvflare.parts import Incoming, read_part
from medfed.engines.nvflare.processes import ServiceLock, end_tree, nvflare_environment
from medfed.engines.nvflare.reasons import NO_STUDY, NOT_ANSWERED
from medfed.engines.nvflare.step_processes import STARTER, StepProcess
from medfed.engines.nvflare.wire import CALL_FIELDS, failure_content, is_hash, one_line
from medfed.engines.site_folders import HALTED
from medfed.engines.site_roster import keep_network_roster
from medfed.errors import MedfedError
from medfed.federation.call import RUN_PATH, Failure
from medfed.federation.keys import load_signing_key
from medfed.federation.packages import installed_package

log = logging.getLogger("medfed.service")

LONGEST_WAIT = 10.0
IDLE_SECONDS = 1800.0
JOBS_AT_MOST = 32
STUDIES_AT_MOST = 6
OFFERED_AT_MOST = 64
STARTS_AGAIN_AFTER = (0.2, 1.0, 3.0, 10.0, 30.0)


@dataclass
class _Job:
    """One call being answered. done is set when content and blob are there."""

    since: float
    study: str
    done: threading.Event = field(default_factory=threading.Event)
    content: dict[str, Any] = field(default_factory=dict)
    blob: bytes = b""
    given: float = 0.0


class SiteService:
    """One site's service. ``handle`` answers one message; ``run`` serves until it is told to end."""

    def __init__(self, folder: Path) -> None:
        self.network = SiteNetwork(load_site(folder))
        self.site = self.network.site
        self.member = self.network.membership()
        self.sealer = Sealer(self.member.consortium, self.site.name, load_signing_key(self.site.keys))
        self.fresh = Fresh(self.network.folder / "heard")
        self.inbox = Inbox(self.site)
        self.incoming = Incoming(self.network.incoming)
        self.steps: dict[str, StepProcess] = {}
        self.jobs: dict[str, _Job] = {}
        self.offered: dict[str, str] = {}  # payload of an answer that is fetched in parts -> its study
        self.lock = threading.Lock()
        self.nvflare: subprocess.Popen[bytes] | None = None
        self.restart_nvflare = False
        self.heard = 0.0
        self.why = ""  # why NVFLARE's client is not started
        self.clock_apart: float | None = None
        self.coordinator: dict[str, str] = {}
        self.ending = threading.Event()
        self.package = installed_package("medfed", "medfed")

    # -- messages ----------------------------------------------------------------------------------------------------

    def handle(self, text: str, blob: bytes) -> tuple[str, bytes]:
        """The signed reply to a coordinator's message. BadMessage, and nothing else, for what is not the coordinator's or not fresh."""
        header = parse(text)
        message = self.sealer.read(header, blob, sender=COORDINATOR, public=self.member.coordinator_key)
        self.clock_apart = time.time() - float(header["at"])  # also when that is why the message is refused next
        self.fresh.check(header)
        self.heard = time.time()
        if self.network.is_halted:
            content, data = failure_content(Failure("refused", HALTED)), b""
        else:
            try:
                content, data = self._answer(message)
            except BadMessage as problem:
                content, data = failure_content(Failure("refused", str(problem))), b""
            except (MedfedError, OSError) as problem:
                log.warning("%s: %s", one_line(message.kind, 20), one_line(problem))
                content, data = failure_content(Failure("failed", NOT_ANSWERED)), b""
            except Exception:
                log.exception("a message could not be answered")
                content, data = failure_content(Failure("failed", NOT_ANSWERED)), b""
            if self.network.is_halted:  # meanwhile
                content, data = failure_content(Failure("refused", HALTED)), b""
        # The step process hashed what it sealed; a part of something larger has no hash yet.
        known = str(content.get("payload", "")) if data and content.get("size") == len(data) else ""
        reply = Message(message.kind, content, data, message.nonce, known)
        return canonical_json(self.sealer.write(reply, COORDINATOR)), data

    def _answer(self, message: Message) -> tuple[dict[str, Any], bytes]:
        content = message.content
        if message.kind == "call":
            return self._call(dict(content), message.blob, message.blob_hash)
        if message.kind == "ping":
            self.coordinator = {name: str(content.get(name, ""))[:100] for name in ("medfed", "package")}
            return {"state": "ready", "medfed": __version__, "package": self.package.sha256, "clock": time.time(),
                    "certificate": fingerprint(self.network.certificate()), "working": self._working()}, b""  # fmt: skip
        if message.kind == "have":
            return {"parts": self.incoming.parts(_hash(content, "whole"), _size(content))}, b""
        if message.kind == "part":
            self.incoming.write(_hash(content, "whole"), _size(content), _count(content, "index"), message.blob)
            return {"state": "kept"}, b""
        if message.kind == "fetch":
            return {"state": "part"}, self._fetch(_hash(content, "payload"), _count(content, "index"))
        if message.kind == "propose":
            study = self.inbox.receive(str(content.get("study")), str(content.get("note", "")), now())
            if content.get("roster") is not None:
                keep_network_roster(self.site, content["roster"], self.member.authority)
            return {"state": "received", "hash": study.hash, **self.inbox.standing(study)}, b""
        if message.kind in ("standing", "facts"):
            found = self.inbox.study(_hash(content, "study"))
            if found is None:
                return failure_content(Failure("refused", NO_STUDY)), b""
            if message.kind == "standing":
                return self.inbox.standing(found), b""
            run = content.get("run")
            if not isinstance(run, str) or not RUN_PATH.fullmatch(run):
                raise BadMessage("a message lacks its run")
            return dict(self.inbox.facts(found, run)), b""
        if message.kind == "renew":
            return self._renew(content)
        raise BadMessage("a message asks for something that medfed does not know")

    def _call(self, content: dict[str, Any], blob: bytes, blob_hash: str) -> tuple[dict[str, Any], bytes]:
        """Start the call, or join it where it runs already; "working" when it takes longer than the wait that was asked."""
        wait = content.get("wait", LONGEST_WAIT)
        if not isinstance(wait, int | float) or isinstance(wait, bool):
            raise BadMessage("a message lacks its wait")
        study, whole = _hash(content, "study"), content.get("whole")
        content = {name: content.get(name) for name in CALL_FIELDS}
        if whole is not None:
            content["inputs_file"] = str(self.incoming.finished(_hash({"whole": whole}, "whole")))
            blob_hash = whole
        content["inputs_hash"] = blob_hash
        if not self.inbox.has(study):  # before a process is started for it
            return failure_content(Failure("refused", NO_STUDY)), b""
        name = hashlib.sha256(canonical_json(content).encode()).hexdigest()
        with self.lock:
            job = self.jobs.get(name)
            if job is None or (job.done.is_set() and job.given):
                if sum(not other.done.is_set() for other in self.jobs.values()) >= JOBS_AT_MOST:
                    raise BadMessage("the site works on as many calls as it can; ask again later")
                steps = self._steps_of(study)
                job = self.jobs[name] = _Job(time.time(), study)
                threading.Thread(target=self._run_job, args=(job, steps, content, blob), daemon=True).start()
            self._forget()
        if not job.done.wait(min(max(wait, 0.0), LONGEST_WAIT)):
            return {"state": "working", "since": job.since}, b""
        job.given = time.monotonic()
        if job.content.get("state") == "answer" and not job.blob:
            self.offered[str(job.content.get("payload"))] = study
            while len(self.offered) > OFFERED_AT_MOST:
                self.offered.pop(next(iter(self.offered)), None)
        return job.content, job.blob

    def _steps_of(self, study: str) -> StepProcess:
        """The process of a study; the one that was idle longest makes room for it."""
        if study not in self.steps and len(self.steps) >= STUDIES_AT_MOST:
            busy = {job.study for job in self.jobs.values() if not job.done.is_set()}
            idle = sorted(set(self.steps) - busy, key=lambda name: self.steps[name].used)
            if not idle:
                raise BadMessage("the site works on as many studies as it can; ask again later")
            self.steps.pop(idle[0]).end()
        return self.steps.setdefault(study, StepProcess(self.network, study))

    def _fetch(self, payload: str, index: int) -> bytes:
        """A part of an answer that was given to a call, as long as the approval stands. Nothing else that lies beside it."""
        study = self.offered.get(payload)
        if study is None:
            raise BadMessage("what is asked for is no answer that was given just now; put the call again")
        if not self.inbox.is_approved(study):
            raise BadMessage("the site's approval of this study does not stand any more")
        return read_part(self.site.ledger_path.with_suffix(".blobs") / payload, index)

    def _run_job(self, job: _Job, steps: StepProcess, content: dict[str, Any], blob: bytes) -> None:
        try:
            job.content, job.blob = steps.answer(content, blob)
            size = int(job.content.get("size", 0))
            if job.content.get("state") == "answer" and not job.blob and size <= CHUNK:
                blobs = self.site.ledger_path.with_suffix(".blobs")
                job.blob = read_part(blobs / _hash(job.content, "payload"), 0)
        except Exception:
            log.exception("a call could not be answered")
            job.content, job.blob = failure_content(Failure("failed", NOT_ANSWERED)), b""
        finally:
            job.done.set()

    def _forget(self) -> None:
        """Drop answers that were given, and old ones that nobody fetched: the sealed bytes are found again."""
        old = time.monotonic() - 60
        for name in [n for n, j in self.jobs.items() if j.done.is_set() and j.given and j.given < old]:
            del self.jobs[name]
        if len(self.jobs) > 64:
            for name in [n for n, j in self.jobs.items() if j.done.is_set()]:
                del self.jobs[name]

    def _working(self) -> float | None:
        """Since when the longest running call is being worked on (unix seconds)."""
        with self.lock:
            running = [job.since for job in self.jobs.values() if not job.done.is_set()]
        return min(running, default=None)

    def _renew(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], bytes]:
        """Two steps: a request for a key made here; then the certificate, which takes over at the next quiet moment."""
        waiting = self.network.folder / "renewal.key"
        if "certificate" not in content:
            key, request = request_for(self.site.name)
            write_atomically(waiting, key, mode=0o600)
            return {"state": "request", "request": request.decode()}, b""
        pair = Pair(str(content["certificate"]).encode(), waiting.read_bytes())
        if not belongs_together(pair.certificate, pair.key, self.network.root(), self.site.name):
            raise BadMessage("a new certificate does not belong to the key that was made for it")
        self.network.use_certificate(pair)
        self.network.write_token()
        waiting.unlink()
        self.restart_nvflare = True
        return {"state": "renewed", "certificate": fingerprint(pair.certificate)}, b""

    # -- life --------------------------------------------------------------------------------------------------------

    def serve(self, server: socket.socket) -> None:
        while not self.ending.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        """Messages of one connection. What is not the coordinator's is answered with nothing but the end of it."""
        with contextlib.suppress(EOFError, OSError), connection:
            while True:
                header, blob = receive(connection)
                try:
                    text, data = self.handle(str(header.get("message", "")), blob)
                except BadMessage as problem:
                    log.warning("refused a message: %s", problem)
                    send(connection, {"refused": True})
                    continue
                except Exception:
                    log.exception("a message could not be handled")
                    send(connection, {"refused": True})
                    continue
                send(connection, {"message": text}, data)

    def watch_nvflare(self) -> None:
        """Keep NVFLARE's client running; start it again when it ends or its certificate was renewed."""
        tries, started = 0, 0.0
        while not self.ending.wait(0.2):
            for steps in list(self.steps.values()):
                if time.monotonic() - steps.used > IDLE_SECONDS and steps.lock.acquire(blocking=False):
                    try:
                        steps.end()
                    finally:
                        steps.lock.release()
            if self.network.is_halted:
                end_tree(self.nvflare, wait=0.0)
                self.nvflare = None
                for steps in list(self.steps.values()):
                    end_tree(steps.process, wait=0.0)
                continue
            if self.restart_nvflare and self._working() is None:
                time.sleep(0.5)  # the answer that announces it goes out first
                self.restart_nvflare = False
                end_tree(self.nvflare)
                tries = 0
            self._write_state()
            if self.nvflare is not None and self.nvflare.poll() is None:
                if time.monotonic() - started > 60:
                    tries = 0
                continue
            if time.monotonic() - started < STARTS_AGAIN_AFTER[min(tries, len(STARTS_AGAIN_AFTER) - 1)]:
                continue
            end_tree(self.nvflare, wait=0.0)
            tries, started = tries + 1, time.monotonic()
            self.why = self.network.why_unusable()
            if self.why:
                log.warning("site %s does not connect: %s", self.site.name, self.why)
                self.nvflare = None
                continue
            self.network.write_token()
            command = [
                sys.executable, "-u", "-m", "nvflare.private.fed.app.client.client_train", "-m",
                str(self.network.workspace.resolve()), "-s", "fed_client.json", "--set", "secure_train=true",
                f"uid={self.site.name}", "org=medfed", "config_folder=config", "heart_beat_interval=2.0",
            ]  # fmt: skip
            environment = nvflare_environment(
                self.network.run.resolve(), TMPDIR=str(private_folder(self.network.workspace.resolve() / "tmp"))
            )
            self.nvflare = STARTER.spawn(
                command, self.network.folder / "nvflare.log", environment, confined=confinement(self.network), cwd="/"
            )

    def _write_state(self) -> None:
        alive = self.nvflare is not None and self.nvflare.poll() is None
        state = {"at": time.time(), "nvflare": alive, "heard": self.heard, "working": self._working(), "why": self.why,
                 "clock_apart": self.clock_apart, "coordinator": self.coordinator, "package": self.package.sha256}  # fmt: skip
        with contextlib.suppress(OSError):
            temporary = self.network.state_path.with_suffix(".new")
            temporary.write_text(json.dumps(state))
            temporary.replace(self.network.state_path)

    def run(self) -> None:
        """Until SIGTERM or SIGINT: serve, watch, then end every child."""
        lock = ServiceLock(self.network.run)
        lock.take()
        threading.Thread(target=STARTER.serve, daemon=True).start()
        server = listen(self.network.run / "door")
        for sign in (signal.SIGTERM, signal.SIGINT):
            signal.signal(sign, lambda *_: self.ending.set())
        threading.Thread(target=self.serve, args=(server,), daemon=True).start()
        log.warning("site %s serves", self.site.name)
        try:
            self.watch_nvflare()
        finally:
            server.close()
            (self.network.run / "door").unlink(missing_ok=True)
            self.network.state_path.unlink(missing_ok=True)
            end_tree(self.nvflare)
            for steps in list(self.steps.values()):
                end_tree(steps.process, wait=0.0)
            log.warning("site %s has stopped", self.site.name)


def confinement(network: SiteNetwork) -> dict[str, object]:
    """What NVFLARE's processes keep: their workspace, and how to reach the service. Nothing else of a site's folder."""
    workspace, run = network.workspace.resolve(), network.run.resolve()
    return {"write": [str(workspace)], "read": [str(run)], "secret": str(network.site.folder.resolve())}


def _hash(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not is_hash(value):
        raise BadMessage(f"a message lacks its {name}")
    return str(value)


def _count(content: Mapping[str, Any], name: str) -> int:
    value = content.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise BadMessage(f"a message lacks its {name}")
    return value


def _size(content: Mapping[str, Any]) -> int:
    value = content.get("size")
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= 2**33:
        raise BadMessage("a message lacks its size, or passes it")
    return value


def main() -> None:
    folder = Path(sys.argv[1])
    network = SiteNetwork(load_site(folder))
    private_folder(network.run)
    os.umask(0o077)
    sys.setswitchinterval(SWITCH_SECONDS)
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    try:
        SiteService(folder).run()
    except MedfedError as problem:
        print(problem, file=sys.stderr)
        sys.exit(2)
    os._exit(0)


if __name__ == "__main__":
    main()
