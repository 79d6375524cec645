"""Secure sums among sites in this process: every message passes as bytes, and every one is kept for the attackers."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.privacy.context import Context
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.messages import Message, SignedCount, read_message, write_message
from medfed.privacy.roster import Roster, call_roster, sign_roster
from medfed.privacy.signatures import public_hex
from medfed.privacy.site_side import SiteSide

STAGES = ("keys", "shares", "masked words", "a signature of the survivors", "shares to open the sum")


@dataclass
class Consortium:
    """Sites with long-term keys and ledgers; a signed directory."""

    keys: dict[str, Ed25519PrivateKey]
    roster: Roster
    ledgers: dict[str, dict[str, tuple[str, ...]]]
    heard: list[Message] = field(default_factory=list)
    # What a mutant changes of every site.
    site_class: type[SiteSide] = SiteSide

    def context(self, length: int, **changes: Any) -> Context:
        asked: dict[str, Any] = dict(
            study="5" * 64, run="main", round=1, step="medfed:medfed.methods.newton.logistic_terms", ordinal=0,
            question="q" * 64, roster=self.roster.digest, length=length, purpose="count",
        )  # fmt: skip
        return Context(**asked | changes)

    def sides(self, context: Context, sites: Sequence[str] | None = None, **options: Any) -> dict[str, SiteSide]:
        """A fresh side for each site, over its own ledger."""
        return {
            site: self.site_class(
                site, self.keys[site], context, self.roster, remember=self.ledgers[site].setdefault,
                **({"table": f"table of {site}"} | options),
            )
            for site in sites or self.roster.sites
        }  # fmt: skip

    def carried(self, message: Any) -> Any:
        """The message after a journey as bytes; the coordinator keeps it."""
        arrived = read_message(write_message(message))
        self.heard.append(arrived)
        return arrived


def consortium(count: int, seed: int = 0) -> Consortium:
    """``count`` sites whose keys follow from ``seed``."""
    draw = random.Random(seed)
    keys = {f"site{n:03d}": Ed25519PrivateKey.from_private_bytes(draw.randbytes(32)) for n in range(count)}
    authority = Ed25519PrivateKey.from_private_bytes(draw.randbytes(32))
    directory = sign_roster(Roster.of({site: public_hex(key) for site, key in keys.items()}), authority)
    roster = call_roster(directory, public_hex(authority), sorted(keys))
    return Consortium(keys, roster, {site: {} for site in keys})


def exchange(
    group: Consortium,
    coordinator: CoordinatorSide,
    sides: Mapping[str, SiteSide],
    values: Mapping[str, np.ndarray],
    *,
    drops: Mapping[str, str] | None = None,
    count: SignedCount | None = None,
    until: str = "nothing",
) -> CoordinatorSide:
    """Carry one attempt to its end, or to a stage. drops: {site: stage from which nothing is heard of it}."""
    gone = dict(drops or {})
    lost: set[str] = set()
    while coordinator.stage not in (until, "nothing"):
        lost |= {site for site, stage in gone.items() if stage == coordinator.stage}
        for site, request in coordinator.requests().items():
            if site in lost or site not in sides:
                continue
            asked = None if request is None else group.carried(request)
            coordinator.receive(site, group.carried(sides[site].answer(asked, values[site], count)))
        coordinator.advance()
    return coordinator


def add_up(
    group: Consortium, values: Mapping[str, np.ndarray], *, drops: Mapping[str, str] | None = None, **changes: Any
) -> CoordinatorSide:
    """One count over the consortium, opened by the coordinator; the sites' own check of it is left to other tests."""
    context = group.context(len(next(iter(values.values()))), **changes)
    coordinator = CoordinatorSide(context, group.roster)
    return exchange(group, coordinator, group.sides(context), values, drops=drops, until="a signature of the count")


def count_over(group: Consortium, *, drops: Mapping[str, str] | None = None, **changes: Any) -> SignedCount:
    """A signed count of 20 units a site."""
    units = {site: np.array([20], np.int64) for site in group.roster.sites}
    context = group.context(1, **({"step": "count", "run": "count"} | changes))
    return exchange(group, CoordinatorSide(context, group.roster), group.sides(context), units, drops=drops).count


def random_words(sites: Sequence[str], length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Any words of 64 bits, so that totals wrap round too."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(np.int64)
    return {site: rng.integers(info.min, info.max, length, np.int64, endpoint=True) for site in sites}


def plain_total(values: Mapping[str, np.ndarray], sites: Sequence[str]) -> np.ndarray:
    """The sum modulo 2**64, without any protocol."""
    total = sum(values[site].astype(object) for site in sites)
    return np.array([(int(word) + 2**63) % 2**64 - 2**63 for word in total], np.int64)
