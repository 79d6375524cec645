"""A site's privacy budget: what noisy answers cost, over all studies, read from the ledger's own rows.

A ledger row holds the event of an answer (noise over bound, sampling rate, how many), not an epsilon to be added up.
The epsilon is composed from all events whenever it is asked for, so that two studies cost less than their sum, and
another delta can be asked about later. Rows of refusals that depend on data are charged like answers.
"""

import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from medfed.canonical import canonical_json
from medfed.errors import LedgerError
from medfed.privacy.accounting import Event, Events, charged_epsilon

Accountant = Callable[[Events, float], float]
LAW = "discrete-gaussian"
OVER_BUDGET = (
    "the answer would cost more epsilon than the site has left, over all studies or for this one, so the study as a whole "
    "does not fit; the site raises `budget` in policy.yaml or approves with a larger --budget, or a new study asks with a "
    "smaller epsilon"
)


@dataclass(frozen=True)
class Charge:
    """What one call costs a site: its event, ``draws`` times (local training draws noise more than once)."""

    event: Event
    draws: int = 1

    @property
    def text(self) -> str:
        """Canonical JSON: what the ledger row and the digest of the question hold."""
        return canonical_json(
            {
                "law": LAW,
                "noise": float(self.event.noise),
                "sampling_rate": float(self.event.sampling_rate),
                "draws": self.draws,
            }
        )


def charge_of(text: str) -> Charge:
    """The charge that a ledger row holds. LedgerError where it is not one."""
    try:
        held = json.loads(text)
        if held["law"] != LAW:
            raise KeyError("law")
        return Charge(Event(float(held["noise"]), float(held["sampling_rate"])), int(held["draws"]))
    except (ValueError, KeyError, TypeError):
        raise LedgerError(
            f"the ledger holds a charge that this version can't read ({text[:80]}); install the one that wrote it"
        ) from None


@dataclass(frozen=True)
class Limits:
    """What a site may spend: over all studies at the policy's delta, and in this study at the study's."""

    budget: float
    delta: float
    study_budget: float
    study_delta: float


def added(events: Events, charge: Charge) -> dict[Event, int]:
    """The events with one more charge."""
    return {**events, charge.event: events.get(charge.event, 0) + charge.draws}


def over_all(by_study: Mapping[str, Events]) -> dict[Event, int]:
    """Events of all studies together."""
    total: dict[Event, int] = {}
    for events in by_study.values():
        for event, count in events.items():
            total[event] = total.get(event, 0) + count
    return total


def charged_events(db: sqlite3.Connection, site: str) -> dict[str, dict[Event, int]]:
    """Every event charged at a site: study hash -> event -> how often."""
    rows = db.execute(
        "select c.study, l.event, count(*) from ledger l join call c on c.id=l.call"
        " where l.site=? and l.event is not null group by c.study, l.event",
        (site,),
    )
    found: dict[str, dict[Event, int]] = {}
    for study, text, count in rows:
        charge = charge_of(text)
        events = found.setdefault(study, {})
        events[charge.event] = events.get(charge.event, 0) + charge.draws * int(count)
    return found


class Spending:
    """Events of the sites of one store, remembered until another process writes to it."""

    def __init__(self, db: sqlite3.Connection, accountant: Accountant = charged_epsilon) -> None:
        self.db = db
        self.accountant = accountant
        self._events: dict[str, dict[str, dict[Event, int]]] = {}

    def forget(self) -> None:
        """Read the ledger again: another process has written to it."""
        self._events.clear()

    def _of(self, site: str) -> dict[str, dict[Event, int]]:
        if site not in self._events:
            self._events[site] = charged_events(self.db, site)
        return self._events[site]

    def settle(
        self, spent: Mapping[str, float], study: str, charge: Charge | None, limits: Mapping[str, Limits]
    ) -> tuple[dict[str, float], set[str]]:
        """Epsilon over all studies once a call is charged, by site; and the sites whose limit, or the study's, it passes.

        spent: what stands in each site's last row, and stays where nothing is charged.
        """
        if charge is None:
            return dict(spent), set()
        after, over = {}, set()
        for site in spent:
            known, limit = self._of(site), limits[site]
            within = {**known, study: added(known.get(study, {}), charge)}
            after[site] = self.accountant(over_all(within), limit.delta)
            if after[site] > limit.budget or self.accountant(within[study], limit.study_delta) > limit.study_budget:
                over.add(site)
        return after, over

    def add(self, site: str, study: str, charge: Charge) -> None:
        """Remember what was just sealed."""
        known = self._of(site)
        known[study] = added(known.get(study, {}), charge)
