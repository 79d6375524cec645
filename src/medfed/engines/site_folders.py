"""The embedded engine over site folders on this machine: each site keeps its own store, keys, policy and ledger."""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path

from medfed.data.site_folder import SiteFolder, load_site
from medfed.data.stored import open_table
from medfed.data.table import StudyTable
from medfed.engines.facts import Heads, SiteFacts
from medfed.errors import LedgerError, MappingError, PolicyViolation
from medfed.federation.admission import Access
from medfed.federation.call import Answer, Call, Failure, Own, Protection
from medfed.federation.door import Doors
from medfed.federation.gate import minimum_cell
from medfed.federation.keys import load_signing_key, public_hex
from medfed.federation.ledger import Durability, released, verify_ledger
from medfed.federation.opening import approved_roster, secure_roster
from medfed.federation.policy import Policy, load_policy
from medfed.study import Study

log = logging.getLogger("medfed.site")

NO_TABLE = "the site has not built its table for this version of the study"
TABLE_CHANGED = (
    "the site's table is damaged or was changed since it was built; the site builds, checks and approves again"
)
LEDGER_CHANGED = "the site's ledger is damaged or was changed; `medfed site verify` says where"
NOT_READABLE = (
    "the site's policy, keys or ledger can't be read; the site's own `medfed site verify` and `preview` say why"
)
HALTED = "the site has halted: nothing leaves it until its officer lifts that"
NOT_HERE = "the site's folder is not here"


def _now() -> datetime:
    return datetime.now(UTC)


def open_doors(
    site: SiteFolder, study: Study, *, durability: Durability = "call", clock: Callable[[], datetime] = _now
) -> Doors:
    """A site's door for one study, over its own ledger. Raises MappingError or PolicyViolation where it can't open."""
    access = Access(open_table(site, study), load_policy(site.policy_path), load_signing_key(site.keys))
    return Doors(site.ledger_path, {site.name: access}, study, durability=durability, clock=clock)


class SiteLog(logging.FileHandler):
    """A site's own log, readable by its owner only: what a step said when it failed may quote a record."""

    def __init__(self, site: SiteFolder) -> None:
        super().__init__(site.folder / "site.log", encoding="utf-8", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.addFilter(lambda record: isinstance(record.args, tuple) and record.args[:1] == (site.name,))

    def _open(self) -> TextIOWrapper:
        handle = os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        return os.fdopen(handle, "a", encoding="utf-8")


def doors_or_reason(
    site: SiteFolder, study: Study, *, durability: Durability = "call", clock: Callable[[], datetime] = _now
) -> Doors | str:
    """The site's door for a study once its ledger is verified, or the sentence that says why it stays closed."""
    if (site.folder / "network" / "halted").exists():
        return HALTED
    try:
        door = open_doors(site, study, durability=durability, clock=clock)
    except MappingError:
        return TABLE_CHANGED if site.table_folder(study.hash).exists() else NO_TABLE
    except (PolicyViolation, LedgerError, sqlite3.Error):
        return NOT_READABLE
    try:
        verify_ledger(door.store.db, site.name)
    except LedgerError:
        door.store.db.close()
        return LEDGER_CHANGED
    return door


def find_sites(consortium: Path) -> dict[str, SiteFolder]:
    """Every site folder below consortium/sites, by the site's name."""
    found: dict[str, SiteFolder] = {}
    for folder in sorted((consortium / "sites").glob("*/site.yaml")):
        site = load_site(folder.parent)
        if site.name in found:
            raise MappingError(f"{folder}: the site {site.name!r} is also in {found[site.name].folder}; rename one")
        found[site.name] = site
    if not found:
        raise MappingError(
            f"{consortium} has no site folders (sites/NAME/site.yaml); make them with `medfed site init`"
        )
    return found


class SiteFolders:
    """Carries calls to the sites below one consortium folder, one after the other."""

    def __init__(
        self,
        consortium: Path,
        study: Study,
        *,
        durability: Durability = "call",
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self.folders = find_sites(consortium)
        self.doors: dict[str, Doors] = {}
        self.closed: dict[str, str] = {}
        self._logs: list[SiteLog] = []
        for name in study.sites.invited:
            if name not in self.folders:
                self.closed[name] = NOT_HERE
                continue
            door = doors_or_reason(self.folders[name], study, durability=durability, clock=clock)
            if isinstance(door, str):
                self.closed[name] = door
                continue
            self.doors[name] = door
            self._logs.append(SiteLog(self.folders[name]))
            log.addHandler(self._logs[-1])
        self.sites = tuple(study.sites.invited)
        self.study = study

    @property
    def roster(self) -> dict[str, str]:
        """The sites that all who approved, approved to be summed with, and their keys."""
        return approved_roster(door.standing_approval(name) for name, door in self.doors.items())

    @property
    def protections(self) -> tuple[Protection, ...]:
        return ("plain", "secure") if secure_roster(self.study, self.roster) else ("plain",)

    @property
    def tables(self) -> dict[str, StudyTable]:
        """The tables of the sites that are open here: for a what-if's pooled comparison."""
        return {name: door.sites[name].table for name, door in self.doors.items()}

    @property
    def public_keys(self) -> dict[str, str]:
        return {name: public_hex(door.sites[name].key) for name, door in self.doors.items()}

    def exchange(
        self, call: Call, own: Mapping[str, Own], deadline: float | None = None
    ) -> Iterator[tuple[str, Answer | Failure]]:
        for name, mine in own.items():
            if name in self.doors:
                yield from self.doors[name].answer(call, {name: mine}).items()
            else:
                yield name, Failure("unreachable", self.closed.get(name, NOT_HERE))

    def facts(self, run: str, heads: Heads) -> dict[str, SiteFacts]:
        """Of every invited site, read from its own ledger."""
        return {name: self._facts(name, run, heads) for name in self.sites}

    def _facts(self, name: str, run: str, heads: Heads) -> SiteFacts:
        folder = self.folders.get(name)
        title = {lang: folder.title(lang) if folder else name for lang in ("en", "zh")}
        if name not in self.doors:
            return SiteFacts(title, self.closed.get(name))
        door = self.doors[name]
        db, access = door.store.db, door.sites[name]
        approval, head, ledger = door.standing_approval(name), door.store.heads().get(name), None
        if head is not None:
            verified = True
            try:
                verify_ledger(db, name, heads[name][0] if name in heads else None)
            except LedgerError:
                verified = False
            ledger = {"rows": head.number + 1, "head": head.hash, "verified": verified, "epsilon": head.spent}
        return SiteFacts(
            title,
            releases=tuple(released(db, name, self.study.hash, run)),
            # Beside the values in a call it would tell how many patients there are, which noise hides.
            patients=access.table.on("all").patients if self.study.privacy.epsilon is None else None,
            approval=None
            if approval is None
            else {"until": approval.until, "hash": approval.study, "table_version": approval.table_version},
            ledger=ledger,
            minimum_cell=minimum_cell(access.policy, self.study),
            usual_minimum=access.policy.minimum_cell >= Policy().minimum_cell,
        )

    def close(self) -> None:
        for door in self.doors.values():
            door.store.db.close()
        for handler in self._logs:
            log.removeHandler(handler)
            handler.close()
