"""A site officer's signed yes to a study's hash, with its conditions. No approval, no step."""

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import canonical_json
from medfed.errors import PolicyViolation
from medfed.federation.keys import is_signed_by, public_hex
from medfed.federation.ledger import Head, append_event
from medfed.federation.packages import Package, installed_package
from medfed.study import Study

MOST_CALLS = 2000


@dataclass(frozen=True)
class Approval:
    """What was approved: study hash, steps, the packages that hold them (with file hashes), table version, last day.

    roster: the sites among whose terms this site's may be hidden, and their public keys (hex); the only keys that it believes
    in a secure sum. most_calls: how many calls the site answers in all. Sums are not rows, but thousands of different sums over the same
    rows can be solved for them. budget: epsilon that the study may spend here over all its runs, if another than its own.
    """

    site: str
    study: str
    name: str
    until: str
    table_version: str
    steps: tuple[str, ...]
    packages: tuple[Package, ...]
    most_calls: int
    officer: str = ""
    roster: Mapping[str, str] = field(default_factory=dict)
    budget: float | None = None

    def message(self) -> bytes:
        content = asdict(self)
        if self.budget is None:
            del content["budget"]
        return b"medfed approval\n" + canonical_json(content).encode()


def packages_of(steps: Sequence[str]) -> tuple[Package, ...]:
    """The installed packages that hold these steps, hashed now."""
    found = {}
    for name in steps:
        distribution, _, dotted = name.partition(":")
        key = (distribution, dotted.split(".")[0])
        if key not in found:
            found[key] = installed_package(distribution, dotted)
    return tuple(found[key] for key in sorted(found))


def approve(
    db: sqlite3.Connection,
    *,
    site: str,
    study: Study,
    steps: Sequence[str],
    packages: Sequence[Package],
    table_version: str,
    until: str,
    key: Ed25519PrivateKey,
    at: str,
    most_calls: int = MOST_CALLS,
    officer: str = "",
    roster: Mapping[str, str] | None = None,
    budget: float | None = None,
) -> Head:
    """Sign an approval and write it into the ledger. ``until``: the last day, ISO (2027-06-30).

    roster: of the sites that the study invites, those whose keys the officer has seen to; without it sums are plain.
    """
    believed = {name: public for name, public in (roster or {}).items() if name in study.sites.invited}
    if site in believed and believed[site] != public_hex(key):
        raise PolicyViolation(f"the roster has another key of site {site!r} than its own; nothing was approved")
    try:
        until = date.fromisoformat(until).isoformat()
    except ValueError:
        raise PolicyViolation(f"an approval ends on a day like 2027-06-30, not {until!r}") from None
    approval = Approval(
        site, study.hash, study.name, until, table_version, tuple(steps), tuple(packages), most_calls, officer, believed,
        budget,
    )  # fmt: skip
    message = approval.message()
    envelope = {"message": message.decode(), "signature": key.sign(message).hex()}
    return append_event(db, site, "approval", study.hash, canonical_json(envelope).encode(), at=at)


def revoke(db: sqlite3.Connection, *, site: str, study_hash: str, key: Ed25519PrivateKey, at: str) -> Head:
    """Withdraw an approval; the site answers no call of this study from now on."""
    message = f"medfed revocation\n{site}\n{study_hash}".encode()
    envelope = {"message": message.decode(), "signature": key.sign(message).hex()}
    return append_event(db, site, "revocation", study_hash, canonical_json(envelope).encode(), at=at)


def read_approval(data: bytes, key: Ed25519PrivateKey) -> Approval:
    """The approval in a ledger row, if the site's own key signed it. Raises PolicyViolation."""
    envelope: Mapping[str, Any] = json.loads(data)
    message = str(envelope["message"]).encode()
    if not is_signed_by(public_hex(key), message, bytes.fromhex(envelope["signature"])):
        raise PolicyViolation("the approval in the ledger was not signed by this site's key")
    content = json.loads(message.partition(b"\n")[2])
    content["steps"] = tuple(content["steps"])
    content["packages"] = tuple(Package(**package) for package in content["packages"])
    return Approval(**content)


def approvals_for(
    db: sqlite3.Connection, study_hash: str, keys: Mapping[str, Ed25519PrivateKey]
) -> dict[str, Approval | str]:
    """For every site of the store: its standing approval of the study, or the sentence that says why there is none."""
    rows = db.execute(
        "select site, kind, bytes from ledger where id in (select max(id) from ledger"
        " where kind in ('approval', 'revocation') and subject=? group by site)",
        (study_hash,),
    )
    latest = {site: (kind, data) for site, kind, data in rows}
    standing: dict[str, Approval | str] = {}
    for site, key in keys.items():
        kind, data = latest.get(site, ("none", b""))
        if kind == "approval":
            try:
                approval = read_approval(data, key)
                mine = approval.site == site and approval.study == study_hash
                standing[site] = approval if mine else "the site's approval is of another study or site"
            except (PolicyViolation, ValueError, KeyError, TypeError):
                standing[site] = "the site's approval is damaged or not signed by its key"
        elif kind == "revocation":
            standing[site] = "the site has withdrawn its approval of this study"
        else:
            standing[site] = "the site has not approved this version of the study"
    return standing


def version_sealed(db: sqlite3.Connection, site: str, study_hash: str, call: str, key: Ed25519PrivateKey) -> str | None:
    """The table version that was approved when the site sealed its answer to a call."""
    row = db.execute(
        "select bytes from ledger where site=? and kind='approval' and subject=? and number<"
        "(select number from ledger where site=? and call=(select id from call where key=?)) order by number desc limit 1",
        (site, study_hash, site, call),
    ).fetchone()
    return read_approval(row[0], key).table_version if row else None


def approved_names(db: sqlite3.Connection, site: str, *, standing: bool = False) -> dict[str, str]:
    """Hash and name of every study that a site has approved; ``standing``: whose approval it has not withdrawn."""
    found: dict[str, str] = {}
    rows = db.execute(
        "select kind, subject, bytes from ledger where site=? and kind in ('approval', 'revocation') order by number",
        (site,),
    )
    for kind, subject, data in rows:
        if kind == "approval":
            found[subject] = json.loads(json.loads(data)["message"].partition("\n")[2])["name"]
        elif standing:
            found.pop(subject, None)
    return found
