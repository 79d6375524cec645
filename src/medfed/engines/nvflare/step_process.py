"""The process at a site that reads patients' rows: one for each study. It has no network and outlives no service.

It answers one call after another over an inherited socket. If it is killed, or a step takes all memory, that step is lost
and nothing else; what it had sealed is found again.
"""

import contextlib
import errno
import hashlib
import logging
import mmap
import os
import resource
import socket
import sys
from pathlib import Path
from typing import Any

from medfed.data.site_folder import SiteFolder, load_site
from medfed.engines.nvflare.frames import CHUNK, BadMessage, receive, send
from medfed.engines.nvflare.inbox import Inbox
from medfed.engines.nvflare.parts import PARTS_MISSING
from medfed.engines.nvflare.reasons import DISK, KEEP_GONE, NO_STUDY, NOT_ANSWERED, is_public, public
from medfed.engines.nvflare.wire import failure_content, read_call
from medfed.engines.site_folders import SiteLog, doors_or_reason
from medfed.errors import FederationError, LedgerError, MedfedError, PolicyViolation
from medfed.federation.blobs import IN_ROW
from medfed.federation.call import Answer, Call, Failure
from medfed.federation.door import Doors
from medfed.federation.packages import installed_package
from medfed.study import Study

log = logging.getLogger("medfed.site")

STALE = 75  # exit code: the installed package changed under us, start again
MEMORY = "MEDFED_STEP_MEMORY_GB"


class StepProcess:
    """Doors of one study at one site, opened anew for each run and whenever table, policy or keys changed."""

    def __init__(self, site: SiteFolder, study: Study) -> None:
        self.site = site
        self.study = study
        self._doors: Doors | None = None
        self._opened_for: tuple[object, ...] = ()
        self._code = {("medfed", "medfed"): installed_package("medfed", "medfed")}

    def answer(self, content: dict[str, Any], blob: bytes) -> tuple[dict[str, Any], bytes]:
        """(content, bytes) of the answer; large bytes stay in the site's blobs, named by their hash."""
        try:
            call, own = read_call(content, blob, str(content.pop("inputs_hash", "")))
        except BadMessage as problem:
            return failure_content(Failure("refused", str(problem))), b""
        doors = self._open(call)
        if isinstance(doors, str):
            return failure_content(Failure("unreachable", doors)), b""
        try:
            found = doors.answer(call, {self.site.name: own})[self.site.name]
        except LedgerError as problem:
            log.warning("site %s, %s: %s", self.site.name, call.step, problem)
            found = Failure("failed", DISK)
        except FederationError as problem:
            log.warning("site %s, %s: %s", self.site.name, call.step, problem)
            found = Failure("failed", KEEP_GONE)
        if isinstance(found, Failure):
            if not is_public(found.reason):
                log.warning("site %s, %s: %s", self.site.name, call.step, found.reason)
            return failure_content(public(found)), b""
        if len(found.data) > IN_ROW and call.phase == "open":
            doors.store.blobs.place(bytes(found.data))  # what is sealed lies there already; a message does not
        return _answer(found)

    def _open(self, call: Call) -> Doors | str:
        site, run = self.site, call.run.partition("/")[0]
        watched = (run, *map(_changed, (site.policy_path, site.folder / "site.yaml", site.keys,
                                        site.table_folder(self.study.hash))))  # fmt: skip
        if self._doors is None or watched != self._opened_for:
            if any(installed_package(*name) != loaded for name, loaded in self._code.items()):
                sys.exit(STALE)  # what is in memory is not what is on disk: nothing is answered with it
            if self._doors is not None:
                self._doors.store.db.close()
            self._doors = None
            found = doors_or_reason(site, self.study)
            if isinstance(found, str):
                return found
            self._doors, self._opened_for = found, watched
        distribution, _, dotted = call.step.partition(":")
        name = (distribution, dotted.split(".")[0])
        if dotted and name not in self._code:
            with contextlib.suppress(PolicyViolation):  # the door says it better
                self._code[name] = installed_package(*name)
        return self._doors


def _changed(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_mtime_ns, found.st_ino


def _answer(answer: Answer) -> tuple[dict[str, Any], bytes]:
    data = answer.data
    content = {"state": "answer", "payload": hashlib.sha256(data).hexdigest(), "size": len(data)}
    return content, data if len(data) <= IN_ROW else b""


def _mapped(connection: socket.socket, whole: str) -> mmap.mmap:
    """The inputs that came in parts: the service hands over an open file. By now it may have made room for others."""
    _, handles, _, _ = socket.recv_fds(connection, 1, 1)
    if len(handles) != 1:
        raise EOFError("no file came")
    try:
        if whole in os.readlink(f"/proc/self/fd/{handles[0]}"):
            return mmap.mmap(handles[0], 0, access=mmap.ACCESS_READ)
    except ValueError:  # nothing in it
        pass
    except OSError as problem:
        if problem.errno == errno.ENOMEM:
            raise MemoryError from None
    finally:
        os.close(handles[0])
    raise BadMessage(PARTS_MISSING)


def serve(connection: socket.socket, site: SiteFolder, study_hash: str) -> None:
    """Answer calls until the service hangs up."""
    study = Inbox(site).study(study_hash)
    process = StepProcess(site, study) if study is not None else None
    with contextlib.suppress(EOFError, OSError):
        while True:
            content, blob = receive(connection, blob_at_most=CHUNK)
            comes = content.pop("file", False)
            if process is None:
                reply, data = failure_content(Failure("refused", NO_STUDY)), b""
            else:
                try:
                    mapped: Any = _mapped(connection, content["inputs_hash"]) if comes else blob
                    reply, data = process.answer(content, mapped)
                except BadMessage as problem:
                    reply, data = failure_content(Failure("refused", str(problem))), b""
                except MedfedError as problem:
                    log.warning("site %s: %s", site.name, problem)
                    reply, data = failure_content(Failure("failed", NOT_ANSWERED)), b""
                except MemoryError:
                    log.warning("site %s: a step took all memory that it may have", site.name)
                    os._exit(1)
            send(connection, reply, data)


def main() -> None:
    folder, study_hash, handle = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with contextlib.suppress(OSError):  # when memory runs out, the system ends this process before any other
        Path("/proc/self/oom_score_adj").write_text("800")
    if most := os.environ.get(MEMORY):
        limit = int(float(most) * 2**30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    site = load_site(folder)
    log.addHandler(SiteLog(site))
    log.propagate = False
    serve(socket.socket(fileno=handle), site, study_hash)


if __name__ == "__main__":
    main()
