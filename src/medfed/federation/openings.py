"""Which sets of sites a site has helped to open, about which patients: its memory against differencing, over all runs.

A set is recorded before the site signs it, in a transaction of its own; what stands under a key stays. A plain sum or a
figure of this site is a set of one: whoever has it can take it off a total. Totals are compared whatever step, inputs or
study they are of; what counts is which of this site's patients they are over (``rowset``).
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest
from medfed.errors import LedgerError, PrivacyError
from medfed.privacy import Total, newly_exposed

Patients = NDArray[np.uint64]

GIVES_AWAY = "a total over these sites, beside an earlier one, would give away the terms of one or two of them"
SHOWS_OTHERS = "figures of this site alone would show those of one or two others, which take part in a total and are not to be seen"
TOTALS_FIRST = "figures of single sites are given after the totals that they stand beside, and none is open yet"
VISIBLE, SEEN = "v", "s"


def distinct(patients: Patients) -> Patients:
    """Sorted, each once. By sorting: ten times as fast as ``np.unique``, which hashes, where nearly all differ."""
    order = np.sort(patients)
    found: Patients = order[np.append(True, order[1:] != order[:-1])[: len(order)]]
    return found


def row_sets(*patients: Patients) -> dict[str, Patients]:
    """Sets of patients (sorted pseudonyms) by what names them: the same patients, the same name, whatever the study."""
    return {digest(np.ascontiguousarray(each).tobytes()): each for each in patients if len(each)}


@dataclass(frozen=True, eq=False)
class Record:
    """What is written down beside a set of sites. rows: the sets of this site's patients that are summed over.

    words: each member's table word. version: of this site's study table. passing, showing: what the signed count says (see
    ``Units``); None while it is not known.
    """

    rows: Mapping[str, Patients]
    version: str
    roster: str
    words: Mapping[str, str]
    passing: int | None
    showing: int | None
    at: str

    def flagged(self, flag: str) -> set[str]:
        return {site for site, word in self.words.items() if flag in flags_of(word)}


def table_word_with(word: str, *, visible: bool, seen: bool) -> str:
    """A table word that also tells whether a site's terms may be seen, or have been."""
    return f"{word}:{VISIBLE * visible}{SEEN * seen}"


def flags_of(word: str) -> str:
    """What a table word tells beside the table."""
    return word.partition(":")[2]


def is_same_table(one: str, other: str) -> bool:
    """Whether two words of a site differ at most in what was seen of its terms."""
    return one.partition(":")[0] == other.partition(":")[0] and (VISIBLE in flags_of(one)) == (
        VISIBLE in flags_of(other)
    )


def groups_of(sets: Mapping[str, Patients]) -> dict[str, frozenset[int]]:
    """Numbers the groups into which sets of patients cut each other; which of them each set is made of."""
    if not sets:
        return {}
    everybody = distinct(np.concatenate(list(sets.values())))
    group = np.zeros(len(everybody), dtype=np.int64)
    inside = {name: np.isin(everybody, own, assume_unique=True) for name, own in sets.items()}
    for member in inside.values():
        group = np.unique(2 * group + member, return_inverse=True)[1]
    return {name: frozenset(np.unique(group[member]).tolist()) for name, member in inside.items()}


@dataclass(frozen=True)
class _Opened:
    """One opening as it stands: sites, rows, flags, and how many of the sites may be seen by themselves."""

    sites: frozenset[str]
    rows: frozenset[str]
    visible: frozenset[str]
    seen: frozenset[str]
    passing: int | None
    showing: int | None


class Openings:
    """The tables ``opening`` and ``rowset`` of a site's store."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._own: set[tuple[str, str]] = set()
        self._stands: set[tuple[str, str, str]] = set()

    def remember(self, site: str, key: str, sites: tuple[str, ...], record: Record) -> tuple[str, ...]:
        """Record a set under a key unless one stands there; the set that stands.

        Raises PrivacyError, and records nothing, where the total would give away one or two sites.
        """
        db = self.db
        with self._transaction():
            row = db.execute("select sites from opening where site=? and key=?", (site, key)).fetchone()
            what = (site, _text(sites), _text(record.rows))
            if row is None:
                if what not in self._stands:
                    self._judge(site, frozenset(sites), record)
                self._keep_rows(site, record.rows)
                db.execute(
                    "insert into opening(site, key, sites, rows, version, roster, word, visible, seen, passing, showing, at)"
                    " values(?,?,?,?,?,?,?,?,?,?,?,?)",
                    (site, key, _text(sites), _text(record.rows), record.version, record.roster, record.words[site],
                     _text(record.flagged(VISIBLE)), _text(record.flagged(SEEN)), record.passing, record.showing, record.at),
                )  # fmt: skip
        if row is None:
            self._stands.add(what)
        return sites if row is None else tuple(row[0].split())

    def remember_noisy(self, site: str, key: str, sites: tuple[str, ...], at: str) -> tuple[str, ...]:
        """Record the set of a sum that carries noise unless one stands under its key; the set that stands.

        It is compared with no other: what a subtraction would show, the noise hides.
        """
        with self._transaction():
            self.db.execute("insert or ignore into noisy_opening values(?,?,?,?)", (site, key, _text(sites), at))
            row = self.db.execute("select sites from noisy_opening where site=? and key=?", (site, key)).fetchone()
        return tuple(row[0].split())

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        db = self.db
        try:
            db.execute("begin immediate")
            yield
            db.execute("commit")
        except sqlite3.Error as problem:
            if db.in_transaction:
                db.execute("rollback")
            raise LedgerError(
                f"the set of an opening could not be recorded ({problem}); nothing was opened. Free space, then resume"
            ) from None
        except BaseException:
            if db.in_transaction:
                db.execute("rollback")
            raise

    def _judge(self, site: str, sites: frozenset[str], record: Record) -> None:
        earlier = self._opened(site)
        rows = frozenset(record.rows)
        new = rows.difference(*(each.rows for each in earlier if each.sites == sites))
        if not new:
            return
        visible: set[str] = set()
        seen = record.flagged(SEEN)
        for each in earlier:
            # The last word of a site counts: a policy may have changed since.
            visible = (visible - each.sites) | each.visible
            seen |= each.seen
        visible = (visible - sites) | record.flagged(VISIBLE) | seen
        groups = groups_of(self._patients(site, earlier) | dict(record.rows))
        before = [Total(each.sites, groups[name]) for each in earlier for name in sorted(each.rows)]
        before += [Total(frozenset({name}), groups[about]) for name in sorted(seen) for about in sorted(rows)]
        for name in sorted(new):
            total = Total(sites, groups[name])
            if newly_exposed(total, before, visible=visible):
                raise PrivacyError(GIVES_AWAY)
            before.append(total)

    def _opened(self, site: str) -> list[_Opened]:
        """What this site has opened, oldest first; equal ones once."""
        found = self.db.execute(
            "select sites, rows, visible, seen, max(passing), max(showing) from opening where site=?"
            " group by sites, rows, visible, seen order by max(id)", (site,),
        )  # fmt: skip
        return [
            _Opened(_words(sites), _words(rows), _words(visible), _words(seen), passing, showing)
            for sites, rows, visible, seen, passing, showing in found
        ]

    def _patients(self, site: str, opened: Iterable[_Opened]) -> dict[str, Patients]:
        """The patients of every row set that these are about."""
        names = set().union(*(each.rows for each in opened))
        found = self.db.execute("select patients, pseudonyms from rowset where site=?", (site,))
        return {name: np.frombuffer(data, dtype=np.uint64) for name, data in found if name in names}

    def _keep_rows(self, site: str, rows: Mapping[str, Patients]) -> None:
        self.db.executemany(
            "insert or ignore into rowset(site, patients, pseudonyms) values(?,?,?)",
            [(site, name, np.ascontiguousarray(patients).tobytes()) for name, patients in rows.items()],
        )

    # -- figures of this site alone ----------------------------------------------------------------------------------

    def record_own(self, alone: Mapping[str, Patients], at: str) -> None:
        """Write down, inside the transaction of a seal, that these sites' own terms about these patients are seen."""
        for site, patients in alone.items():
            rows = row_sets(patients)
            for name in rows:
                if (site, name) not in self._own:
                    self._keep_rows(site, rows)
                    self.db.execute(
                        "insert or ignore into opening(site, key, sites, rows, version, roster, word, visible, seen, at)"
                        " values(?,?,?,?,'','','','',?,?)",
                        (site, f"own {name}", site, name, site, at),
                    )

    def own_recorded(self, alone: Mapping[str, Patients]) -> None:
        """The transaction has ended well."""
        self._own.update((site, name) for site, patients in alone.items() for name in row_sets(patients))

    def own_is_seen(self, site: str, patients: Patients) -> bool:
        """Whether terms of this site about some of these patients have left it by themselves."""
        return self._overlaps(site, [each for each in self._opened(site) if each.sites == {site}], patients)

    def any_total(self, site: str, patients: Patients) -> bool:
        """Whether a total about some of these patients stands open."""
        return self._overlaps(site, [each for each in self._opened(site) if len(each.sites) > 1], patients)

    def _overlaps(self, site: str, opened: list[_Opened], patients: Patients) -> bool:
        sets = self._patients(site, opened).values()
        return any(len(np.intersect1d(own, patients, assume_unique=True)) for own in sets)

    def refuses_own(self, site: str, patients: Patients, *, reply: bool) -> str | None:
        """Why figures of this site alone about these patients may not be given beside the totals that stand, or None.

        Every other site that may give them is taken to do so as well, so a total that figures of this kind add up to must
        have no hidden site in it, or three and more. reply: listed figures rather than plain sums.
        """
        opened = self._opened(site)
        risky: set[str] = set()
        for sites in {each.sites for each in opened if len(each.sites) > 1}:
            same = [each for each in opened if each.sites == sites]
            counts = [count for each in same if (count := each.showing if reply else each.passing) is not None]
            if not counts or len(sites) - max(counts) in (1, 2):
                risky |= set().union(*(each.rows for each in same))
        if not risky:
            return None
        own = set().union(*(each.rows for each in opened if each.sites == {site}))
        sets = self._patients(site, opened) | row_sets(patients)
        groups = groups_of(sets)
        basis = [groups[name] for name in own | set(row_sets(patients))]
        if any(_adds_up(groups[name], basis) for name in risky):
            return SHOWS_OTHERS
        return None

    def counted_apart(self, site: str) -> list[list[Patients]]:
        """For each count of units that stands, the sets of this site's patients that it told apart."""
        # Beside a sum stands what the count of units said; beside the count itself nothing. Figures of one site have no version.
        found = self.db.execute(
            "select distinct rows from opening where site=? and passing is null and version != ''", (site,)
        ).fetchall()
        sets = {
            name: np.frombuffer(data, dtype=np.uint64)
            for name, data in self.db.execute("select patients, pseudonyms from rowset where site=?", (site,))
        }
        return [[sets[name] for name in sorted(_words(rows))] for (rows,) in found]

    def word(self, site: str, roster: str, version: str) -> str | None:
        """The table word under which this site's units were counted last, over this roster."""
        row = self.db.execute(
            "select word from opening where site=? and roster=? and version=? order by id desc limit 1",
            (site, roster, version),
        ).fetchone()
        return str(row[0]) if row else None


def _adds_up(whole: frozenset[int], parts: list[frozenset[int]]) -> bool:
    """Whether sums over some sets of groups make up, with any weights, the sum over another."""
    groups = sorted(whole.union(*parts))
    matrix = np.array([[group in part for group in groups] for part in parts], dtype=np.float64)
    target = np.array([[group in whole for group in groups]], dtype=np.float64)
    return bool(np.linalg.matrix_rank(np.concatenate([matrix, target])) == np.linalg.matrix_rank(matrix))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _text(words: Iterable[str]) -> str:
    return " ".join(sorted(words))
