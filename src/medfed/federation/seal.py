"""A site's store behind its door: what is sealed, what is kept, and the one transaction that makes an answer final."""

import hashlib
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack, pack_rows, unpack
from medfed.data.table import View
from medfed.errors import FederationError, LedgerError
from medfed.federation.blobs import BlobFolder
from medfed.federation.budget import Accountant, Charge, Limits, Spending
from medfed.federation.call import Answer, Call, Failure, Own
from medfed.federation.ledger import Durability, Head, heads_of, open_store, row_hash
from medfed.federation.openings import Openings
from medfed.federation.remembered import Cells
from medfed.federation.step import Step
from medfed.privacy.accounting import charged_epsilon

_ROUNDS_BETWEEN_PRUNING = 16


class JudgedBefore(Exception):
    """Another process wrote to the store since the rules were judged; nothing was sealed."""


class SiteStore:
    """One SQLite file (and a folder of large blobs) for one site, or for all sites of a what-if."""

    def __init__(self, path: Path, durability: Durability, accountant: Accountant = charged_epsilon) -> None:
        self.path = path
        self.db = open_store(path, durability)
        self.spending = Spending(self.db, accountant)
        self.blobs = BlobFolder(path.with_suffix(".blobs"))
        named = self.db.execute(
            "select file from ledger where file is not null union select file from keep where file is not null"
        )
        self.blobs.drop_all_but({file for (file,) in named})
        self.new_cohort = False
        self.openings = Openings(self.db)
        self._heads = heads_of(self.db)
        self._heads_at = self.version()
        self._kept: dict[tuple[str, str, str], Mapping[str, Any]] = {}
        self._cohorts: dict[str, dict[str, NDArray[np.uint64]]] = {}
        self._recorded: set[tuple[str, str]] = set()
        self._remembered: dict[str, list[Cells]] = {}
        self._cells: set[tuple[str, str, str]] = set()
        self._opened: dict[tuple[str, str], set[str]] = {}
        self._recent: dict[tuple[str, str, str], list[str]] = {}
        self._pruned: dict[str, int] = {}
        self._call_ids: dict[str, int] = {}

    def version(self) -> int:
        """Changes when another process writes to the store (an approval, a revocation)."""
        return int(self.db.execute("pragma data_version").fetchone()[0])

    def heads(self) -> Mapping[str, Head]:
        """The last row of every chain."""
        version = self.version()
        if version != self._heads_at:
            self._heads, self._heads_at = heads_of(self.db), version
            self.spending.forget()
        return self._heads

    def remember_heads(self, heads: Mapping[str, Head], study: str, charge: Charge | None) -> None:
        """Heads and charges that were just committed."""
        self._heads = {**self._heads, **heads}
        if charge is not None:
            for site in heads:
                self.spending.add(site, study, charge)

    def forget(self) -> None:
        """Drop what was read of tables that another process may have written to."""
        self._cohorts.clear()
        self._remembered.clear()
        self._opened.clear()
        self._recorded.clear()

    def sealed(self, key: str, sites: Sequence[str]) -> dict[str, tuple[str, Answer | Failure]]:
        """What is already sealed under a call key: site -> (digest, the answer or the refusal)."""
        rows = self.db.execute(
            "select site, kind, digest, payload, bytes, file from ledger where call=(select id from call where key=?)",
            (key,),
        )
        found: dict[str, tuple[str, Answer | Failure]] = {}
        for site, kind, asked, payload, inline, file in rows:
            if site not in sites:
                continue
            data = self.blobs.read(inline, file)
            if not isinstance(data, bytes) or hashlib.sha256(data).hexdigest() != payload:
                raise LedgerError(f"{self.path}: the bytes sealed under {key} are not what they were; restore a backup")
            found[site] = (asked, Failure("refused", data.decode()) if kind == "refusal" else Answer(data))
        return found

    def call_number(self, call: Call) -> int:
        """The row of a call, made where there is none; inside a transaction."""
        return int(
            self.db.execute(
                "insert into call(key, study, run, round, step, part) values(?,?,?,?,?,?)"
                " on conflict(key) do update set key=key returning id",
                (call.key, call.study, call.run, call.round, call.step, call.part),
            ).fetchone()[0]
        )

    def kept(self, site: str, slot: str, call: str, asking: Call) -> Mapping[str, Any]:
        """What the site kept at an earlier call of the asking run, or of a run above it. FederationError where it is gone."""
        study, _, rest = call.partition("|")
        run = rest.partition("|")[0]
        if study != asking.study[:16] or not (asking.run == run or asking.run.startswith(f"{run}/")):
            raise FederationError(f"site {site!r}: {call} is a call of another run; what it kept is not read here")
        tree = self._kept.get((site, slot, call))
        if tree is None:
            row = self.db.execute(
                "select bytes, file from keep where site=? and slot=? and call=(select id from call where key=?)",
                (site, slot, call),
            ).fetchone()
            if row is None:
                raise FederationError(
                    f"site {site!r} no longer holds what it kept at {call}; the run was restored from an older state, "
                    "so start a new run"
                )
            tree = self._kept[site, slot, call] = unpack(self.blobs.read(*row))
        return tree

    def _call_id(self, key: str | None) -> int:
        if key is None:
            return -1
        if key not in self._call_ids:
            if len(self._call_ids) > 4096:
                self._call_ids.clear()
            row = self.db.execute("select id from call where key=?", (key,)).fetchone()
            self._call_ids[key] = int(row[0]) if row else -1
        return self._call_ids[key]

    def cohorts(self, site: str, view: View) -> Sequence[NDArray[np.uint64]]:
        """Row sets (sorted pseudonyms) that this site has answered about, other than the view's own."""
        known = self._cohorts.get(site)
        if known is None:
            known = self._cohorts[site] = {
                patients: np.frombuffer(data, dtype=np.uint64)
                for patients, data in self.db.execute("select patients, pseudonyms from cohort where site=?", (site,))
            }
        own = _patients_digest(view)
        return [pseudonyms for patients, pseudonyms in known.items() if patients != own]

    def remembered(self, site: str) -> Sequence[Cells]:
        """The tables that rows of this site were asked about in, and who was in which cell of them."""
        if site not in self._remembered:
            rows = self.db.execute("select bytes from cells where site=?", (site,))
            self._remembered[site] = [Cells.from_bytes(data) for (data,) in rows]
        return self._remembered[site]

    def remembers(self, site: str, study: str, version: str) -> bool:
        """Whether the cells of a study's table are written down."""
        if (site, study, version) in self._cells:
            return True
        row = self.db.execute("select 1 from cells where site=? and study=? and version=?", (site, study, version))
        if row.fetchone() is None:
            return False
        self._cells.add((site, study, version))
        return True

    def models_opened(self, site: str, question: str) -> set[str]:
        """Digests of the inputs with which a counted question was already put."""
        if (site, question) not in self._opened:
            rows = self.db.execute("select model from opened where site=? and question=?", (site, question))
            self._opened[site, question] = {model for (model,) in rows}
        return self._opened[site, question]

    def calls_answered(self, study_hash: str) -> dict[str, int]:
        """How many calls of a study each site has answered, over all runs."""
        rows = self.db.execute(
            "select site, count(*) from (select l.site from ledger l join call c on c.id=l.call where c.study=?"
            " union all select site from ledger where kind='failure' and subject=?) group by site",
            (study_hash, study_hash),
        )
        return {site: int(count) for site, count in rows}

    def seal(
        self,
        call: Call,
        step: Step,
        names: Sequence[str],
        *,
        digests: Mapping[str, str],
        blobs: Sequence[bytes],
        keep: Any,
        local: Sequence[Mapping[str, Any] | None],
        own: Mapping[str, Own],
        charge: Charge | None,
        amount: int,
        at: str,
        limits: Mapping[str, Limits],
        cohorts: Mapping[str, View],
        cells: Mapping[str, tuple[str, Callable[[], Cells]]],
        opened: Mapping[str, tuple[str, str]],
        alone: Collection[str],
        judged: int,
    ) -> set[str] | None:
        """Make answers final in one transaction; returns the sites whose budget could not hold the cost (not sealed).

        cells: of sites whose table (version) is asked about for the first time, what works out who is in which cell.
        alone: the sites whose answers are seen by themselves. judged: ``version`` from before the rules were judged.
        Raises JudgedBefore where it has changed: another study may have shown what this answer is not to be beside.

        None, and nothing done, where another process has sealed under this key since it was looked up.

        Everything or nothing: after a crash the store is as before, or has ledger row, charge, bytes and keep.
        """
        db = self.db
        kept = self._packed_keep(keep, len(names)) if step.keeps is not None and step.keeps.writes else None
        places = [self.blobs.place(data) for data in blobs]
        keep_places = [self.blobs.place(data) for data in kept] if kept is not None else None
        new_cohorts = [site for site in names if site in cohorts and (site, call.part) not in self._recorded]
        try:
            db.execute("begin immediate")
            if self.version() != judged:
                raise JudgedBefore
            standing = self.heads()
            heads = {site: standing.get(site, Head()) for site in names}
            # Composed inside the transaction: another process may have spent meanwhile.
            spent, over = self.spending.settle({s: heads[s].spent for s in names}, call.study, charge, limits)
            event = charge.text if charge is not None else None
            number = self.call_number(call)
            if any(s in names for (s,) in db.execute("select site from ledger where call=?", (number,))):
                db.execute("rollback")
                return None
            rows = []
            for site, data, (inline, file) in zip(names, blobs, places, strict=True):
                if site in over:
                    continue
                head = heads[site]
                payload, size = file or hashlib.sha256(data).hexdigest(), len(data)
                cost = spent[site] - head.spent
                hash_ = row_hash(
                    head.hash, site, head.number + 1, "release", call.key, call.study, call.part, "", digests[site],
                    payload, size, amount, cost, spent[site], at, *((event,) if event else ()),
                )  # fmt: skip
                rows.append(
                    (site, head.number + 1, "release", number, "", digests[site], payload, size, amount, cost,
                     spent[site], at, hash_, inline, file, event)
                )  # fmt: skip
                heads[site] = Head(head.number + 1, hash_, spent[site])
            db.executemany(
                "insert into ledger(site, number, kind, call, subject, digest, payload, size, amount, charge, spent, at,"
                " hash, bytes, file, event) values(?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                rows,
            )
            sealed = [site for site in names if site not in over]
            if keep_places is not None and step.keeps is not None:
                slot = step.keeps.slot
                placed = dict(zip(names, keep_places, strict=True))
                db.executemany(
                    "insert into keep(site, slot, run, call, bytes, file) values(?,?,?,?,?,?)",
                    [(site, slot, call.run, number, *placed[site]) for site in sealed],
                )
                db.executemany(
                    "delete from keep where site=? and slot=? and run=? and call not in (?,?,?)",
                    [
                        (s, slot, call.run, number, self._call_id(own[s].kept), self._call_id(own[s].settled))
                        for s in sealed
                    ],
                )
            self._record(call, sealed, local, names, number, cohorts, new_cohorts, opened)
            db.executemany(
                "insert or ignore into cells(site, study, version, bytes) values(?,?,?,?)",
                (
                    (site, call.study, version, found().to_bytes())
                    for site, (version, found) in cells.items()
                    if site in sealed
                ),
            )
            own_rows = {site: cohorts[site].pseudonyms for site in sealed if site in alone}
            self.openings.record_own(own_rows, at)
            self._prune(call)
            db.execute("commit")
        except sqlite3.Error as problem:
            if db.in_transaction:
                db.execute("rollback")
            raise LedgerError(
                f"{self.path}: the answer could not be sealed ({problem}); nothing was released. "
                "Free space or mend the disk, then resume the run"
            ) from None
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise
        self.remember_heads({site: heads[site] for site in sealed}, call.study, charge)
        self._remember(call, step, names, sealed, keep, own, cohorts, cells, opened)
        self.openings.own_recorded(own_rows)
        return over

    def _record(
        self,
        call: Call,
        sealed: Sequence[str],
        local: Sequence[Mapping[str, Any] | None],
        names: Sequence[str],
        number: int,
        cohorts: Mapping[str, View],
        new_cohorts: Sequence[str],
        opened: Mapping[str, tuple[str, str]],
    ) -> None:
        written = [
            (site, number, pack(values))
            for site, values in zip(names, local, strict=True)
            if values is not None and site in sealed
        ]
        if written:
            self.db.executemany("insert or replace into local(site, call, bytes) values(?,?,?)", written)
        if new_cohorts:
            self.db.executemany(
                "insert or ignore into cohort(site, patients, pseudonyms) values(?,?,?)",
                (
                    (site, _patients_digest(cohorts[site]), np.ascontiguousarray(cohorts[site].pseudonyms).tobytes())
                    for site in new_cohorts
                    if site in sealed
                ),
            )
        if opened:
            self.db.executemany(
                "insert or ignore into opened(site, question, model) values(?,?,?)",
                [(site, *opened[site]) for site in sealed],
            )

    def _prune(self, call: Call) -> None:
        """Drop the bytes (never the rows) of rounds that lie behind a checkpoint, and keeps of finished children.

        A call of round r means that round r - 1 is checkpointed. Done every few rounds: it costs more than it frees.
        """
        last = self._pruned.get(call.run, 0)
        if call.round - 1 - last < _ROUNDS_BETWEEN_PRUNING and call.round > 1:
            return
        self._pruned[call.run] = call.round - 1
        # Children of round q lie under "run/q/": between "run/" and "run0", the character after the slash.
        below = (f"{call.run}/", f"{call.run}0", len(call.run) + 2)
        children = "select id from call where run>=? and run<? and cast(substr(run, ?) as integer) between ? and ?"
        finished = f"select id from call where run=? and round between ? and ? union all {children}"
        rounds = (last, call.round - 1)
        self.db.execute(
            f"update ledger set bytes=null, file=null where kind='release' and call in ({finished})",
            (call.run, *rounds, *below, *rounds),
        )
        self.db.execute(f"delete from keep where call in ({children})", (*below, *rounds))

    def _remember(
        self,
        call: Call,
        step: Step,
        names: Sequence[str],
        sealed: Sequence[str],
        keep: Any,
        own: Mapping[str, Own],
        cohorts: Mapping[str, View],
        cells: Collection[str],
        opened: Mapping[str, tuple[str, str]],
    ) -> None:
        self.new_cohort = False
        for site in sealed:
            if site in cells:
                self._remembered.pop(site, None)
            if site in cohorts and (site, call.part) not in self._recorded:
                self.new_cohort = True
                self._recorded.add((site, call.part))
                view = cohorts[site]
                self._cohorts.setdefault(site, {})[_patients_digest(view)] = view.pseudonyms
            if opened:
                question, model = opened[site]
                self._opened.setdefault((site, question), set()).add(model)
        if keep is None or step.keeps is None or not step.keeps.writes:
            return
        slot = step.keeps.slot
        for index, site in enumerate(names):
            recent = self._recent.setdefault((site, slot, call.run), [])
            recent.append(call.key)
            for old in [key for key in recent if key not in (own[site].kept, own[site].settled, call.key)]:
                self._kept.pop((site, slot, old), None)
                recent.remove(old)
            own_keep = keep[index] if isinstance(keep, list) else {name: value[index] for name, value in keep.items()}
            self._kept[site, slot, call.key] = own_keep

    @staticmethod
    def _packed_keep(keep: Any, count: int) -> list[bytes]:
        if isinstance(keep, list):
            return [pack({name: np.asarray(value) for name, value in own.items()}) for own in keep]
        return pack_rows({name: np.asarray(value) for name, value in keep.items()}) if count else []


def _patients_digest(view: View) -> str:
    """Names a row set: the same patients, the same digest, whatever the study."""
    return digest(np.ascontiguousarray(view.pseudonyms).tobytes())
