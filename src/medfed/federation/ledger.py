"""A site's ledger: append-only, hash-chained, over all studies; and the store it shares with keeps and answers.

One row for each approval, revocation and release. A row's hash covers the row before it, so an edit, a deletion or a
change of order breaks the chain; what is cut off at the end is found through the last signed head, which the
coordinator holds. One store may hold many sites (what-ifs): each has a chain of its own.
"""

import contextlib
import hashlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import digest
from medfed.errors import LedgerError
from medfed.federation.keys import is_signed_by

Durability = Literal["call", "process"]

_SCHEMA = """
create table if not exists call(
  id integer primary key, key text unique, study text, run text, round integer, step text, part text);
create index if not exists call_run on call(run, round);
create table if not exists ledger(
  id integer primary key, site text, number integer, kind text, call integer, subject text, digest text,
  payload text, size integer, amount integer, charge real, spent real, at text, hash text, bytes blob, file text,
  event text);
create unique index if not exists ledger_call on ledger(call, site) where call is not null;
create unique index if not exists ledger_site on ledger(site, number);
create index if not exists ledger_subject on ledger(kind, subject);
create index if not exists ledger_event on ledger(site) where event is not null;
create table if not exists keep(
  site text, slot text, run text, call integer, bytes blob, file text, primary key(site, slot, call)) without rowid;
create table if not exists local(site text, call integer, bytes blob, primary key(site, call)) without rowid;
create table if not exists cohort(site text, patients text, pseudonyms blob, primary key(site, patients)) without rowid;
create table if not exists cells(site text, study text, version text, bytes blob, primary key(site, study, version))
  without rowid;
create table if not exists opened(site text, question text, model text, primary key(site, question, model)) without rowid;
create table if not exists opening(
  id integer primary key, site text, key text, sites text, rows text, version text, roster text, word text,
  visible text, seen text, passing integer, showing integer, at text);
create unique index if not exists opening_key on opening(site, key);
create index if not exists opening_kind on opening(site, sites, rows, visible, seen);
create table if not exists noisy_opening(site text, key text, sites text, at text, primary key(site, key)) without rowid;
create table if not exists rowset(site text, patients text, pseudonyms blob, primary key(site, patients)) without rowid;
"""


@dataclass(frozen=True)
class Head:
    """The last row of one site's chain: its number (-1 for none), hash, and epsilon spent up to it."""

    number: int = -1
    hash: str = ""
    spent: float = 0.0


@dataclass(frozen=True)
class SignedHead:
    """A head with the site's signature: whoever holds it can show that a later ledger was cut."""

    site: str
    number: int
    hash: str
    signature: str


def open_store(path: Path, durability: Durability) -> sqlite3.Connection:
    """Open (and make) a site store. ``call`` syncs every commit to disk; ``process`` survives kill -9, not power loss."""
    with contextlib.suppress(OSError):  # readable by its owner only; SQLite gives its other files the same mode
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=128)
        db.execute("pragma journal_mode=wal")
        db.execute(f"pragma synchronous={'full' if durability == 'call' else 'off'}")
        _add_missing_column(db)
        db.executescript(_SCHEMA)
    except sqlite3.Error as problem:
        raise LedgerError(
            f"{path}: the ledger can't be opened ({problem}); check the disk and the file's owner"
        ) from None
    return db


def _add_missing_column(db: sqlite3.Connection) -> None:
    """Ledgers written before there were noisy answers have no column for what these cost."""
    columns = {row[1] for row in db.execute("pragma table_info(ledger)")}
    if columns and "event" not in columns:
        db.execute("alter table ledger add column event text")


def row_hash(previous: str, *words: str | int | float) -> str:
    """The hash that chains a row to the one before it. Floats are written so that they read back the same."""
    return hashlib.sha256("\x1f".join((previous, *map(str, words))).encode()).hexdigest()


def heads_of(db: sqlite3.Connection) -> dict[str, Head]:
    """The head of every site in the store."""
    rows = db.execute(
        "select site, number, hash, spent from ledger where id in (select max(id) from ledger group by site)"
    )
    return {site: Head(number, hash_, spent) for site, number, hash_, spent in rows}


def append_event(db: sqlite3.Connection, site: str, kind: str, subject: str, data: bytes, *, at: str) -> Head:
    """Add a row that is no release (an approval, a revocation, a prediction run) in its own transaction."""
    try:
        db.execute("begin immediate")
        row = db.execute(
            "select number, hash, spent from ledger where site=? order by number desc limit 1", (site,)
        ).fetchone()
        previous = Head(*row) if row else Head()
        number, payload = previous.number + 1, hashlib.sha256(data).hexdigest()
        hash_ = row_hash(
            previous.hash, site, number, kind, "", "", "", subject, "", payload, len(data), 0, 0.0, previous.spent, at
        )
        db.execute(
            "insert into ledger(site, number, kind, subject, digest, payload, size, amount, charge, spent, at, hash, bytes)"
            " values(?,?,?,?,'',?,?,0,0.0,?,?,?,?)",
            (site, number, kind, subject, payload, len(data), previous.spent, at, hash_, data),
        )
        db.execute("commit")
    except sqlite3.Error as problem:
        if db.in_transaction:
            db.execute("rollback")
        raise LedgerError(f"site {site!r}: the ledger can't be written ({problem}); nothing was recorded") from None
    return Head(number, hash_, previous.spent)


def rows_of(db: sqlite3.Connection, site: str) -> Iterator[Mapping[str, Any]]:
    """Every row of one site's chain in order, with the call it answers."""
    cursor = db.execute(
        "select l.id, l.number, l.kind, coalesce(c.key, '') as key, c.study, c.run, c.round, c.step, c.part, l.subject,"
        " l.digest, l.payload, l.size, l.amount, l.charge, l.spent, l.at, l.hash, l.bytes, l.file, l.event"
        " from ledger l left join call c on c.id = l.call where l.site=? order by l.number",
        (site,),
    )
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


@dataclass(frozen=True)
class Released:
    """What left a site through one step of one study: calls, numbers a call, bytes in all, epsilon charged."""

    step: str
    calls: int
    values: int
    bytes: int
    charge: float


def released(db: sqlite3.Connection, site: str, study_hash: str, run: str | None = None) -> list[Released]:
    """The ledger's answer to "what has left us": one line a step, of a study or of one run of it."""
    rows = db.execute(
        "select c.step, count(*), max(l.amount), sum(l.size), sum(l.charge) from ledger l join call c on c.id = l.call"
        " where l.site=? and l.kind='release' and c.study=? and (? is null or c.run=? or (c.run>? || '/' and c.run<? || '0'))"
        " group by c.step order by min(l.number)",
        (site, study_hash, run, run, run, run),
    )
    return [Released(*row) for row in rows]


def _head_message(site: str, number: int, hash_: str) -> bytes:
    return digest("medfed ledger head", site, str(number), hash_).encode()


def sign_head(site: str, head: Head, key: Ed25519PrivateKey) -> SignedHead:
    """The site's signature over its head."""
    return SignedHead(site, head.number, head.hash, key.sign(_head_message(site, head.number, head.hash)).hex())


def is_head_signed(head: SignedHead, public: str) -> bool:
    """Whether the head bears the signature of the site's key (hex)."""
    return is_signed_by(public, _head_message(head.site, head.number, head.hash), bytes.fromhex(head.signature))


def verify_ledger(db: sqlite3.Connection, site: str, known: SignedHead | None = None) -> Head:
    """Walk one site's chain. Raises LedgerError at the first row that was edited, removed, moved or cut off.

    known: the last signed head that somebody else holds; without it a cut at the end can't be seen.
    """
    head = Head()
    met = known is None or known.number < 0
    for row in rows_of(db, site):
        where = f"ledger of site {site!r}, row {row['number']}"
        if row["number"] != head.number + 1:
            raise LedgerError(
                f"{where}: row {head.number + 1} is missing or moved; the ledger was changed after sealing"
            )
        expected = row_hash(
            head.hash, site, row["number"], row["kind"], row["key"], row["study"] or "", row["part"] or "", row["subject"] or "", row["digest"], row["payload"],
            row["size"], row["amount"], row["charge"], row["spent"], row["at"], *filter(None, [row["event"]]),
        )  # fmt: skip
        if expected != row["hash"]:
            raise LedgerError(
                f"{where}: its content is not what was sealed; the ledger was edited, or rows were reordered"
            )
        if abs(float(row["spent"]) - head.spent - float(row["charge"])) > 1e-9:
            raise LedgerError(f"{where}: the running total does not follow from its charge")
        named = f"{str(row['study'])[:16]}|{row['run']}|{row['round']}|{row['step']}|"
        if row["key"] and not row["key"].startswith(named):
            raise LedgerError(f"{where}: the call it answers is not the one it was sealed for; the ledger was edited")
        data = row["bytes"]
        if data is not None and not isinstance(data, bytes):
            raise LedgerError(f"{where}: the stored bytes are not those that were sealed")
        if isinstance(data, bytes) and hashlib.sha256(data).hexdigest() != row["payload"]:
            raise LedgerError(f"{where}: the stored bytes are not those that were sealed")
        head = Head(int(row["number"]), str(row["hash"]), float(row["spent"]))
        met = met or (known is not None and known.number == head.number and known.hash == head.hash)
    if not met and known is not None:
        raise LedgerError(
            f"ledger of site {site!r}: row {known.number}, whose signed head the coordinator holds, is not in it; "
            "rows were cut off or replaced after it was signed"
        )
    return head
