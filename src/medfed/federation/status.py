"""What a run is doing at this moment: who is waited for, since when, why, and what happens next.

The runner keeps two small files while it lives; readers believe them only as long as the runner holds its folder's lock.
"""

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medfed.federation.call import Waiting
from medfed.federation.store import RunnerStore, is_locked


class StatusFile:
    """Written by the runner. ``now``: one line of JSON, then one character for each site asked: "." while it is waited
    for, "+" once it has answered (one byte written, so that an answer costs a microsecond). ``now.sites``: how those stand
    of which there is something to say.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "now"
        self.sites_path = folder / "now.sites"
        self._handle: int | None = None
        self._where: dict[str, int] = {}
        self._waits: dict[str, Waiting] = {}
        self._lock = threading.Lock()

    def begin(
        self,
        path: str,
        round_: int,
        step: str = "",
        sites: Sequence[str] = (),
        *,
        seconds: float = 0.0,
        minimum: int = 0,
    ) -> None:
        """A round or a call begins. seconds: how long a call waits; minimum: how many sites have to answer."""
        if self._handle is None:
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        at = time.time()
        head = {"path": path, "round": round_, "step": step, "sites": list(sites), "process": os.getpid(), "at": at,
                "until": at + seconds, "minimum": minimum}  # fmt: skip
        text = json.dumps(head) + "\n"
        data = (text + "." * len(sites)).encode()
        os.pwrite(self._handle, data, 0)
        os.ftruncate(self._handle, len(data))
        start = len(data) - len(sites)
        self._where = {site: start + index for index, site in enumerate(sites)}
        with self._lock:
            if self._waits:
                self._waits.clear()
                self._write_waits()

    def answered(self, site: str) -> None:
        if self._handle is not None and site in self._where:
            os.pwrite(self._handle, b"+", self._where[site])

    def waits(self, waiting: Waiting) -> None:
        """A site is not simply answering; written when that is news."""
        with self._lock:
            known = self._waits.get(waiting.site)
            if known is None or (known.state, known.why) != (waiting.state, waiting.why):
                self._waits[waiting.site] = waiting
                self._write_waits()

    def _write_waits(self) -> None:
        content = {w.site: {"state": w.state, "since": w.since, "why": w.why} for w in list(self._waits.values())}
        temporary = self.sites_path.with_suffix(".new")
        temporary.write_text(json.dumps(content))
        temporary.replace(self.sites_path)

    def clear(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self.path.unlink(missing_ok=True)
        self.sites_path.unlink(missing_ok=True)


def _read_now(folder: Path) -> dict[str, Any]:
    try:
        head, _, marks = (folder / "now").read_text().partition("\n")
        now: dict[str, Any] = json.loads(head)
    except (OSError, ValueError):
        return {}
    now["waiting"] = [site for site, mark in zip(now["sites"], marks, strict=False) if mark == "."]
    try:
        now["waits"] = json.loads((folder / "now.sites").read_text())
    except (OSError, ValueError):
        now["waits"] = {}
    return now


def _is_suspended(process: object) -> bool:
    """Whether a process is stopped by a signal (SIGSTOP): it holds its lock, and does nothing."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


@dataclass(frozen=True)
class WaitingFor:
    """One site that has not answered. state: asked | working | away; since: unix seconds; why: a sentence, where away."""

    site: str
    state: str
    since: float
    why: str


@dataclass(frozen=True)
class RunStatus:
    """What is true of a run now. state: running | suspended | interrupted | stopped | finished.

    until: when the open call stops waiting (unix seconds); minimum, answered: sites that have to answer, and that have.
    """

    run: str
    study: str
    state: str
    reason: str
    rounds_finished: int
    calls_journaled: int
    open_round: int | None
    step: str
    waiting: tuple[str, ...]
    started: str
    ended: str
    path: str = ""
    waits: tuple[WaitingFor, ...] = ()
    until: float | None = None
    minimum: int = 0
    answered: int = 0


def status_of(folder: Path) -> list[RunStatus]:
    """Every run of a coordinator's folder. A dead runner's run is "interrupted", never "running"."""
    store = RunnerStore(folder, read_only=True)
    try:
        now = _read_now(folder) if is_locked(folder) else {}
        return [_status(store, row, now) for row in store.runs()]
    finally:
        store.close()


def _status(store: RunnerStore, row: Mapping[str, Any], now: Mapping[str, Any]) -> RunStatus:
    saved = store.checkpoint(row["run"])
    rounds, state = saved[0] if saved else 0, row["state"]
    # One lock a folder: of the runs marked running, only the one that the runner speaks of is alive.
    mine = now if str(now.get("path", "")).partition("/")[0] == row["run"] else {}
    if state == "running":
        state = "interrupted" if not mine else "suspended" if _is_suspended(mine["process"]) else "running"
    if state not in ("running", "suspended"):
        mine = {}
    waiting = tuple(mine.get("waiting", ()))
    open_call = bool(mine.get("step"))
    return RunStatus(
        run=row["run"],
        study=row["study"],
        state=state,
        reason=row["reason"],
        rounds_finished=rounds,
        calls_journaled=len(store.calls(row["run"])),
        open_round=rounds + 1 if state != "finished" else None,
        step=str(mine.get("step", "")),
        waiting=waiting,
        started=row["started"],
        ended=row["ended"],
        path=str(mine.get("path", "")),
        waits=tuple(_waiting_for(site, mine) for site in waiting),
        until=float(mine["until"]) if open_call else None,
        minimum=int(mine.get("minimum", 0)),
        answered=len(mine.get("sites", ())) - len(waiting),
    )


def _waiting_for(site: str, now: Mapping[str, Any]) -> WaitingFor:
    known = now["waits"].get(site)
    if known is None:
        return WaitingFor(site, "asked", float(now["at"]), "")
    return WaitingFor(site, str(known["state"]), float(known["since"]), str(known["why"]))
