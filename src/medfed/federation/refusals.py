"""Rows of a site's ledger that hold no answer: refusals, sealed under their call's key, and steps that failed, counted.

A refusal that depends on the data tells something. So it is bound to its key like an answer, and under an epsilon it
is charged like one. A failure binds nothing: mended, the site may answer.
"""

import hashlib
import sqlite3
from collections.abc import Mapping
from typing import Literal

from medfed.errors import LedgerError
from medfed.federation.budget import Charge, Limits
from medfed.federation.call import Call
from medfed.federation.ledger import Head, row_hash
from medfed.federation.seal import SiteStore


def record_refusals(
    store: SiteStore,
    call: Call,
    reasons: Mapping[str, str],
    digests: Mapping[str, str],
    *,
    at: str,
    charge: Charge | None,
    limits: Mapping[str, Limits],
) -> list[str]:
    """Seal refusals under their call's key: a retry gets the same one. Returns the sites."""
    data = {site: text.encode() for site, text in reasons.items()}
    return _record(store, call, "refusal", data, digests, at, charge, limits)


def record_failures(store: SiteStore, call: Call, sites: list[str], *, at: str) -> list[str]:
    """Count steps that raised. Returns the sites."""
    return _record(store, call, "failure", dict.fromkeys(sites, b""), {}, at, None, {})


def _record(
    store: SiteStore,
    call: Call,
    kind: Literal["refusal", "failure"],
    data: Mapping[str, bytes],
    digests: Mapping[str, str],
    at: str,
    charge: Charge | None,
    limits: Mapping[str, Limits],
) -> list[str]:
    db, bound, heads = store.db, kind == "refusal", {}
    event = charge.text if charge is not None else None
    try:
        db.execute("begin immediate")
        standing = store.heads()
        number = store.call_number(call) if bound else None
        taken = {s for (s,) in db.execute("select site from ledger where call=?", (number,))} if bound else set()
        new = {site: text for site, text in data.items() if site not in taken}
        before = {site: standing.get(site, Head()) for site in new}
        # Over the limit or not: the refusal stands, and what it told is spent.
        after, _ = store.spending.settle({s: head.spent for s, head in before.items()}, call.study, charge, limits)
        for site, text in new.items():
            head, payload, spent = before[site], hashlib.sha256(text).hexdigest(), after[site]
            named = (call.key, call.study, call.part) if bound else ("", "", "")
            asked, cost = digests.get(site, ""), spent - head.spent
            hash_ = row_hash(
                head.hash, site, head.number + 1, kind, *named, call.study, asked, payload, len(text), 0, cost, spent,
                at, *((event,) if event else ()),
            )  # fmt: skip
            db.execute(
                "insert into ledger(site, number, kind, call, subject, digest, payload, size, amount, charge, spent,"
                " at, hash, bytes, event) values(?,?,?,?,?,?,?,?,0,?,?,?,?,?,?)",
                (site, head.number + 1, kind, number, call.study, asked, payload, len(text), cost, spent, at, hash_,
                 text, event),
            )  # fmt: skip
            heads[site] = Head(head.number + 1, hash_, spent)
        db.execute("commit")
    except sqlite3.Error as problem:
        if db.in_transaction:
            db.execute("rollback")
        raise LedgerError(
            f"{store.path}: a refusal could not be recorded ({problem}); free space, then resume"
        ) from None
    except BaseException:
        if db.in_transaction:
            db.execute("rollback")
        raise
    store.remember_heads(heads, call.study, charge)
    return list(heads)
