"""The runner's store: runs, checkpoints, journal and the sites' signed heads. One SQLite file, one writer.

Everything that a service may later keep in another database goes through this class.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from medfed.canonical import pack, unpack
from medfed.errors import FederationError, LedgerError
from medfed.federation.blobs import BlobFolder
from medfed.federation.ledger import Durability, SignedHead

_SCHEMA = """
create table if not exists run(
  run text primary key, study text, text text, state text, reason text, started text, ended text, result blob) without rowid;
create table if not exists journal(call text primary key, run text, round integer, question text, outcome blob) without rowid;
create table if not exists checkpoint(path text primary key, round integer, counted text, state blob) without rowid;
create table if not exists head(site text, number integer, hash text, signature text, public text, primary key(site))
  without rowid;
create table if not exists opening(
  id integer primary key, key text unique, study text, attempt integer, sites text, visible text);
create table if not exists roster(run text primary key, keys text) without rowid;
create table if not exists counted(
  study text, question text, roster text, sites text, count blob, primary key(study, question, roster, sites)) without rowid;
"""


class RunnerStore:
    """Opened by the one runner; holds the folder's lock until closed. Read-only views need no lock (``read_only``)."""

    def __init__(self, folder: Path, durability: Durability = "call", *, read_only: bool = False) -> None:
        self.folder = folder
        self.path = folder / "runner.db"
        self.blobs = BlobFolder(folder / "runner.blobs")
        self._lock: int | None = None
        none_started = FederationError(f"{folder}: no run was ever started here; start one with `medfed run`")
        if read_only:
            if not self.path.exists():
                raise none_started
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(folder)
        try:
            self.db = sqlite3.connect(self.path, isolation_level=None, timeout=10)
            if not read_only:
                self.db.execute("pragma journal_mode=wal")
                self.db.execute(f"pragma synchronous={'full' if durability == 'call' else 'off'}")
                self.db.executescript(_SCHEMA)
            made = self.db.execute("select 1 from sqlite_master where name='head'").fetchone()
        except sqlite3.Error as problem:
            self.close()
            raise FederationError(
                f"{self.path} can't be opened ({problem}); check the disk and the file's owner"
            ) from None
        if made is None:  # a kill or a full disk between making the file and its last table
            self.close()
            raise none_started

    def close(self) -> None:
        if hasattr(self, "db"):
            self.db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write(self, sql: str, values: tuple[Any, ...]) -> None:
        try:
            self.db.execute(sql, values)
        except sqlite3.Error as problem:
            raise FederationError(
                f"{self.path} can't be written ({problem}); nothing is lost: free space or mend the disk, then `medfed resume`"
            ) from None

    # -- runs ------------------------------------------------------------------------------------------------------

    def start_run(self, run: str, study_hash: str, text: str, at: str) -> None:
        """Record a run, or find it again under the same study."""
        row = self.db.execute("select study from run where run=?", (run,)).fetchone()
        if row is None:
            self._write("insert into run values(?,?,?,'running','',?,'',null)", (run, study_hash, text, at))
        elif row[0] != study_hash:
            raise FederationError(f"run {run!r} belongs to another version of the study; start a new run")
        else:
            self._write("update run set state='running', reason='' where run=? and state<>'finished'", (run,))

    def end_run(self, run: str, state: str, reason: str, at: str, result: Mapping[str, Any] | None = None) -> None:
        data = pack(result) if result is not None else None
        self._write(
            "update run set state=?, reason=?, ended=?, result=coalesce(?, result) where run=?",
            (state, reason, at, data, run),
        )

    def runs(self) -> list[dict[str, Any]]:
        cursor = self.db.execute("select run, study, state, reason, started, ended from run order by started, run")
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]

    def study_text(self, run: str) -> str:
        row = self.db.execute("select text from run where run=?", (run,)).fetchone()
        if row is None:
            raise FederationError(f"there is no run {run!r} in {self.folder}; `medfed status` lists them")
        return str(row[0])

    def result(self, run: str) -> dict[str, Any] | None:
        row = self.db.execute("select result from run where run=?", (run,)).fetchone()
        return unpack(row[0]) if row and row[0] is not None else None

    # -- journal and checkpoints -----------------------------------------------------------------------------------

    def journaled(self, key: str) -> tuple[str, Mapping[str, Any]] | None:
        row = self.db.execute("select question, outcome from journal where call=?", (key,)).fetchone()
        if row is None:
            return None
        # A large outcome lies in a synced file, and its row holds the file's name as text.
        data = self.blobs.read(None, row[1]) if isinstance(row[1], str) else row[1]
        return row[0], unpack(data)

    def journal(self, key: str, run: str, round_: int, question: str, outcome: Mapping[str, Any]) -> None:
        inline, file = self.blobs.place(pack(outcome))
        self._write("insert into journal values(?,?,?,?,?)", (key, run, round_, question, file or inline))

    def checkpoint(self, path: str) -> tuple[int, dict[str, dict[str, str]], dict[str, Any]] | None:
        """Round, counted pointers and state of a run path. FederationError when the stored state is damaged."""
        row = self.db.execute("select round, counted, state from checkpoint where path=?", (path,)).fetchone()
        if row is None:
            return None
        try:
            return int(row[0]), json.loads(row[1]), unpack(row[2])
        except (LedgerError, ValueError, TypeError):
            raise FederationError(
                f"{self.path}: the checkpoint of run {path!r} is truncated or damaged; "
                "restore the coordinator's folder from a backup, or start a new run"
            ) from None

    def write_checkpoint(self, path: str, round_: int, counted: Mapping[str, Any], state: bytes) -> None:
        self._write("insert or replace into checkpoint values(?,?,?,?)", (path, round_, json.dumps(counted), state))

    def next_round(self, path: str) -> None:
        """Give up the open round: same state, same pointers, next number."""
        self._write("update checkpoint set round=round+1 where path=?", (path,))

    def calls(self, run: str) -> list[tuple[str, int, str]]:
        """(path, round, key) of every journaled call of a run and its children, in no order."""
        rows = self.db.execute(
            "select run, round, call from journal where run=? or run like ? escape '\\'",
            (run, run.replace("_", "\\_").replace("%", "\\%") + "/%"),
        )
        return [(path, int(round_), key) for path, round_, key in rows]

    # -- secure sums -------------------------------------------------------------------------------------------------

    def run_roster(self, run: str, find: Callable[[], Mapping[str, str]]) -> dict[str, str]:
        """The sites and keys over which a run's sums are secure, as ``find`` gives them at its start.

        {} where its sums are plain; a run that has an outcome in plain stays so.
        """
        row = self.db.execute("select keys from roster where run=?", (run,)).fetchone()
        if row is not None:
            known: dict[str, str] = json.loads(row[0])
            return known
        if self.calls(run):
            return {}
        found = dict(find())
        if found:
            self._write("insert into roster values(?,?)", (run, json.dumps(found)))
        return found

    def next_attempt(self, key: str, study: str) -> tuple[int, tuple[str, ...]]:
        """The number of a new attempt to open a call, recorded before it begins; and the set that was fixed, or ()."""
        row = self.db.execute("select attempt, sites from opening where key=?", (key,)).fetchone()
        if row is None:
            self._write("insert into opening(key, study, attempt, sites, visible) values(?,?,0,'','')", (key, study))
            return 0, ()
        self._write("update opening set attempt=attempt+1 where key=?", (key,))
        return int(row[0]) + 1, tuple(row[1].split())

    def fix_survivors(self, key: str, sites: Sequence[str], visible: Sequence[str]) -> None:
        """Record the set over which a call is opened, before any site is asked to sign it."""
        self._write("update opening set sites=?, visible=? where key=?", (" ".join(sites), " ".join(visible), key))

    def survivors(self, key: str) -> tuple[str, ...]:
        """The set that was fixed for a call, or ()."""
        row = self.db.execute("select sites from opening where key=?", (key,)).fetchone()
        return tuple(row[0].split()) if row else ()

    def opened_sets(self, study: str) -> list[tuple[frozenset[str], set[str]]]:
        """Every set over which something of a study was or may have been opened, and whose terms may be seen; oldest first."""
        rows = self.db.execute(
            "select sites, visible from opening where study=? and sites<>'' group by sites, visible order by max(id)",
            (study,),
        )
        return [(frozenset(sites.split()), set(visible.split())) for sites, visible in rows]

    def keep_count(self, study: str, question: str, roster: str, sites: Sequence[str], count: bytes) -> None:
        """Keep a signed count, to show it before every sum over these sites."""
        self._write(
            "insert or replace into counted values(?,?,?,?,?)", (study, question, roster, " ".join(sites), count)
        )

    def kept_count(self, study: str, question: str, roster: str, sites: Sequence[str]) -> bytes | None:
        row = self.db.execute(
            "select count from counted where study=? and question=? and roster=? and sites=?",
            (study, question, roster, " ".join(sites)),
        ).fetchone()
        return bytes(row[0]) if row else None

    def drop_count(self, study: str, question: str, roster: str, sites: Sequence[str]) -> None:
        """Forget a count that no longer holds."""
        self._write(
            "delete from counted where study=? and question=? and roster=? and sites=?",
            (study, question, roster, " ".join(sites)),
        )

    # -- heads -----------------------------------------------------------------------------------------------------

    def write_heads(self, heads: Sequence[tuple[SignedHead, str]]) -> None:
        """Keep signed heads, each with the public key it was checked with; one commit for all."""
        rows = [(head.site, head.number, head.hash, head.signature, public) for head, public in heads]
        try:
            self.db.execute("begin")
            self.db.executemany("insert or replace into head values(?,?,?,?,?)", rows)
            self.db.execute("commit")
        except sqlite3.Error as problem:
            if self.db.in_transaction:
                self.db.execute("rollback")
            raise FederationError(
                f"{self.path} can't be written ({problem}); free space, then `medfed resume`"
            ) from None

    def heads(self) -> dict[str, tuple[SignedHead, str]]:
        """The last signed head of every site, and the public key it was checked with."""
        rows = self.db.execute("select site, number, hash, signature, public from head")
        return {site: (SignedHead(site, int(number), hash_, sig), public) for site, number, hash_, sig, public in rows}


def _take_lock(folder: Path) -> int:
    handle = os.open(folder / "runner.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise FederationError(
            f"{folder} is in use by another runner; `medfed status` shows it. Wait until it ends, or stop it"
        ) from None
    return handle


def is_locked(folder: Path) -> bool:
    """Whether a living runner holds the folder: a dead one never does."""
    path = folder / "runner.lock"
    if not path.exists():
        return False
    handle = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(handle, fcntl.LOCK_UN)
        return False
    except OSError:
        return True
    finally:
        with suppress(OSError):
            os.close(handle)
