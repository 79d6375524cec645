"""Which sets of sites a site has helped to open, about which patients: its memory against differencing, over all runs.

A set is recorded before the site signs it, in a transaction of its own; what stands under a key stays. A plain sum or a
figure of this site is a set of one: whoever has it can take it off a total.
"""

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass

from medfed.errors import LedgerError, PrivacyError
from medfed.privacy import given_away

GIVES_AWAY = "a total over these sites, beside an earlier one, would give away the terms of one or two of them"
SHOWS_OTHERS = "figures of this site alone would show those of one or two others, which take part in a total and are not to be seen"
TOTALS_FIRST = "figures of single sites are given after the totals that they stand beside, and none is open yet"
VISIBLE, SEEN = "v", "s"


@dataclass(frozen=True)
class Rows:
    """What a total is about at this site. version: of the study table; patients: names the set of all its patients."""

    version: str
    patients: str


@dataclass(frozen=True)
class Record:
    """What is written down beside a set. words: each member's table word; word: this site's own.

    passing, showing: what the signed count says (see ``Units``); None while it is not known.
    """

    rows: Rows
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


class Openings:
    """The table ``opening`` of a site's store."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._own: set[tuple[str, str]] = set()

    def remember(self, site: str, key: str, sites: tuple[str, ...], record: Record) -> tuple[str, ...]:
        """Record a set under a key unless one stands there; the set that stands.

        Raises PrivacyError, and records nothing, where the total would give away one or two sites.
        """
        db = self.db
        try:
            db.execute("begin immediate")
            row = db.execute("select sites from opening where site=? and key=?", (site, key)).fetchone()
            if row is None:
                self._judge(site, sites, record)
                db.execute(
                    "insert into opening(site, key, sites, version, patients, roster, word, visible, seen, passing,"
                    " showing, at) values(?,?,?,?,?,?,?,?,?,?,?,?)",
                    (site, key, _text(sites), record.rows.version, record.rows.patients, record.roster,
                     record.words[site], _text(record.flagged(VISIBLE)), _text(record.flagged(SEEN)), record.passing,
                     record.showing, record.at),
                )  # fmt: skip
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
        return sites if row is None else tuple(row[0].split())

    def _judge(self, site: str, sites: tuple[str, ...], record: Record) -> None:
        earlier: list[frozenset[str]] = []
        visible: set[str] = set()
        seen: set[str] = set()
        for names, of_visible, of_seen in self._sets(site, record.rows):
            if len(names) > 1:
                earlier.append(names)
            # The last word of a site counts: a policy may have changed since.
            visible = (visible - names) | of_visible
            seen = seen | of_seen
        members = frozenset(sites)
        if members in earlier:
            return
        visible = (visible - members) | record.flagged(VISIBLE)
        seen = seen | record.flagged(SEEN)
        alone = [frozenset({name}) for name in seen]
        if given_away(members, [*earlier, *alone], visible=visible | seen):
            raise PrivacyError(GIVES_AWAY)

    def _sets(self, site: str, rows: Rows) -> list[tuple[frozenset[str], set[str], set[str]]]:
        found = self.db.execute(
            "select sites, visible, seen from opening where site=? and (version=? or patients=?) group by sites, visible, seen"
            " order by max(id)",
            (site, rows.version, rows.patients),
        )
        return [(frozenset(names.split()), set(v.split()), set(s.split())) for names, v, s in found]

    def record_own(self, alone: Mapping[str, Rows], at: str) -> None:
        """Write down, inside the transaction of a seal, that these sites' own terms are seen."""
        rows = [
            (site, f"own {rows.version}", site, rows.version, rows.patients, site, at)
            for site, rows in alone.items()
            if (site, rows.version) not in self._own
        ]
        if rows:
            self.db.executemany(
                "insert or ignore into opening(site, key, sites, version, patients, roster, word, visible, seen, at)"
                " values(?,?,?,?,?,'','','',?,?)",
                rows,
            )

    def own_recorded(self, alone: Mapping[str, Rows]) -> None:
        """The transaction has ended well."""
        self._own.update((site, rows.version) for site, rows in alone.items())

    def own_is_seen(self, site: str, rows: Rows) -> bool:
        """Whether terms of this site about these patients have left it by themselves."""
        return any(names == {site} for names, _, _ in self._sets(site, rows))

    def word(self, site: str, roster: str, version: str) -> str | None:
        """The table word under which this site's units were counted last, over this roster."""
        row = self.db.execute(
            "select word from opening where site=? and roster=? and version=? order by id desc limit 1",
            (site, roster, version),
        ).fetchone()
        return str(row[0]) if row else None

    def refuses_own(self, site: str, rows: Rows, *, reply: bool) -> str | None:
        """Why figures of this site alone may not be given beside the totals that stand, or None.

        Every other site that may do so is taken to do so as well. reply: listed figures rather than plain sums.
        """
        found = self.db.execute(
            "select sites, max(passing), max(showing) from opening where site=? and (version=? or patients=?) group by sites",
            (site, rows.version, rows.patients),
        ).fetchall()
        for sites, passing, showing in found:
            members = len(sites.split())
            visible = showing if reply else passing
            if members > 1 and (visible is None or members - visible in (1, 2)):
                return SHOWS_OTHERS
        return None

    def any_total(self, site: str, rows: Rows) -> bool:
        """Whether a total about these patients stands open."""
        return any(len(names) > 1 for names, _, _ in self._sets(site, rows))


def _text(sites: tuple[str, ...] | set[str]) -> str:
    return " ".join(sorted(sites))
