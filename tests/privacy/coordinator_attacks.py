"""A coordinator after one site's words: it holds every message and total, and, where told, other sites' secrets.

Each attack returns what it takes the target's words to be, or None. The same code runs against the protocol as it is,
where it must fail, and against mutants with one protection switched off, where it must succeed.
"""

from collections.abc import Collection, Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from secure_rounds import Consortium, exchange

from medfed.errors import PrivacyError
from medfed.privacy.agreement import mask_seed, private_key, self_mask_seed, shared_secret
from medfed.privacy.checks import dealers_digest, signed, survivors_digest
from medfed.privacy.context import Context
from medfed.privacy.coordinator_side import CoordinatorSide
from medfed.privacy.masks import add_masks, pair_sign
from medfed.privacy.messages import (
    KeyList,
    Keys,
    Masked,
    Shares,
    SignedSurvivors,
    Survivors,
    SurvivorSignature,
    Unmasking,
    as_bytes,
    list_digest,
)
from medfed.privacy.neighbours import Graph, graph_of
from medfed.privacy.reveal import held_by
from medfed.privacy.routing import deliveries, key_list
from medfed.privacy.sealing import MASK_KEY, SELF_SEED, commit_to_share
from medfed.privacy.shares import combine
from medfed.privacy.site_side import SiteSide

Words = np.ndarray


class Notebook:
    """All that the coordinator learnt in one attempt: public keys, masked words, shares by dealer and kind."""

    def __init__(self, group: Consortium, context: Context) -> None:
        mine = [message for message in group.heard if getattr(message, "context", "") == context.digest]
        self.context = context
        self.listed = next(message for message in mine if isinstance(message, KeyList))
        self.graph: Graph = graph_of(len(group.roster.sites), self.listed.sites, list_digest(self.listed))
        self.dealt = {message.site: message for message in mine if isinstance(message, Shares)}
        self.masked = {message.site: message.values for message in mine if isinstance(message, Masked)}
        self.shares: dict[tuple[str, int], dict[str, bytes]] = {}
        for message in mine:
            if isinstance(message, Unmasking):
                dealers = held_by(self.graph, message.site, sorted(self.dealt))
                for dealer, share in zip(dealers, message.shares, strict=True):
                    self.note(dealer, message.site, share.tobytes())

    def note(self, dealer: str, holder: str, share: bytes) -> None:
        """File a share under its kind, which the dealer's own commitments tell."""
        committed = self.dealt[dealer].commitments[self.graph.holders(dealer).index(holder)]
        for kind in (SELF_SEED, MASK_KEY):
            if commit_to_share(self.context, dealer, holder, kind, share) == committed[kind].tobytes():
                self.shares.setdefault((dealer, kind), {})[holder] = share

    def secret(self, dealer: str, kind: int) -> bytes | None:
        found = self.shares.get((dealer, kind), {})
        if len(found) < self.graph.threshold:
            return None
        used = sorted(found)[: self.graph.threshold]
        points = tuple(self.graph.holders(dealer).index(holder) + 1 for holder in used)
        return combine(points, [found[holder] for holder in used])

    def strip(self, target: str) -> Words:
        """The target's masked words with every mask taken off whose seed is known."""
        words, masks = self.masked[target].copy(), []
        publics = dict(zip(self.listed.sites, self.listed.mask_keys, strict=True))
        if seed := self.secret(target, SELF_SEED):
            masks.append((self_mask_seed(seed, self.context, target), -1))
        own = self.secret(target, MASK_KEY)
        for peer in self.dealt:
            other = self.secret(peer, MASK_KEY)
            if peer == target or not (own or other):
                continue
            one, public = (own, publics[peer]) if own else (other, publics[target])
            assert one is not None
            shared = shared_secret(private_key(one), public.tobytes(), peer)
            masks.append((mask_seed(shared, self.context, target, peer), -pair_sign(target, peer)))
        add_masks(words, masks)
        return words


def run(group: Consortium, context: Context, values: Mapping[str, Words], until: str = "a signature of the count",
        **options: object) -> tuple[CoordinatorSide, dict[str, SiteSide]]:  # fmt: skip
    coordinator, sides = CoordinatorSide(context, group.roster), group.sides(context)
    return exchange(group, coordinator, sides, values, until=until, **options), sides  # type: ignore[arg-type]


def listen(group: Consortium, values: Mapping[str, Words], target: str) -> Words:
    """Honest but curious: an ordinary sum in which another site drops; every mask whose seed came up is taken off."""
    context = group.context(len(values[target]))
    dropped = next(site for site in group.roster.sites if site != target)
    run(group, context, values, drops={dropped: "masked words"})
    return Notebook(group, context).strip(target)


def claim_drop(group: Consortium, values: Mapping[str, Words], target: str) -> Words:
    """Its masked words arrived, but the coordinator says that the target dropped, and gets its mask key."""
    context = group.context(len(values[target]))
    coordinator, sides = run(group, context, values, until="a signature of the survivors")
    ask_for(group, context, coordinator, sides, [site for site in sides if site != target])
    return Notebook(group, context).strip(target)


def ask_both(group: Consortium, values: Mapping[str, Words], target: str) -> Words | None:
    """First the others say that the target dropped, then all say that it did not: both kinds of share."""
    context = group.context(len(values[target]))
    coordinator, sides = run(group, context, values, until="a signature of the survivors")
    try:
        ask_for(group, context, coordinator, sides, [site for site in sides if site != target])
        ask_for(group, context, coordinator, sides, list(sides))
    except PrivacyError:
        pass
    return Notebook(group, context).strip(target)


def ask_for(
    group: Consortium, context: Context, coordinator: CoordinatorSide, sides: Mapping[str, SiteSide], wanted: list[str]
) -> None:
    """Have a survivor set signed by its members, then ask them for the shares that go with it."""
    sites = tuple(sorted(wanted))
    signatures = [group.carried(sides[site].sign_survivors(Survivors(context.digest, sites))) for site in sites]
    claim = SignedSurvivors(context.digest, sites, sites, np.stack([each.signature for each in signatures]))
    for site in sites:
        group.carried(sides[site].unmask(claim))


def split_view(group: Consortium, values: Mapping[str, Words], target: str, helpers: Collection[str] = ()) -> Words:
    """The target hears that all survived, the others that it dropped; helpers sign both and give all they hold."""
    context = group.context(len(values[target]))
    _, sides = run(group, context, values, until="a signature of the survivors")
    notebook = Notebook(group, context)
    whole = tuple(sides)
    without = tuple(site for site in whole if site != target)
    for site in helpers:
        for dealer, pair in sides[site]._held.items():
            for share in pair:
                notebook.note(dealer, site, share)
    dealt = dealers_digest(list_digest(notebook.listed), sorted(notebook.dealt))
    for sites, honest in ((whole, [target]), (without, [s for s in without if s not in helpers])):
        named = survivors_digest(dealt, sites)
        blank = {site: SurvivorSignature(site, context.digest, named, np.zeros(64, np.uint8)) for site in helpers}
        signatures = {site: signed(message, group.keys[site]) for site, message in blank.items()}
        for site in honest:
            signatures[site] = sides[site].sign_survivors(Survivors(context.digest, sites))
        signers = tuple(sorted(signatures))
        claim = SignedSurvivors(context.digest, sites, signers, np.stack([signatures[s].signature for s in signers]))
        for site in honest:
            try:
                given = sides[site].unmask(claim)
            except PrivacyError:
                continue
            for dealer, share in zip(held_by(notebook.graph, site, whole), given.shares, strict=True):
                notebook.note(dealer, site, share.tobytes())
    return notebook.strip(target)


def two_totals(group: Consortium, values: Mapping[str, Words], target: str) -> Words | None:
    """A retry of the same call without the target: one total less the other is its words."""
    totals = []
    for attempt, drops in enumerate(({}, {target: "masked words"})):
        context = group.context(len(values[target]), attempt=attempt)
        try:
            totals.append(run(group, context, values, drops=drops)[0].total)
        except PrivacyError:
            return None
    difference: Words = totals[0] - totals[1]
    return difference


def same_masks_again(group: Consortium, values: Mapping[str, Words], target: str) -> Words:
    """Two calls that use one attempt's secrets: the target's seed from the one, its mask key from the other."""
    first = group.context(len(values[target]))
    run(group, first, values)
    second = group.context(len(values[target]), ordinal=1)
    coordinator, sides = run(group, second, values, until="a signature of the survivors")
    ask_for(group, second, coordinator, sides, [site for site in sides if site != target])
    notebook, earlier = Notebook(group, second), Notebook(group, first)
    seed = earlier.secret(target, SELF_SEED)
    assert seed is not None
    words = notebook.strip(target)
    add_masks(words, [(self_mask_seed(seed, second, target), -1)])
    return words


def impersonate(group: Consortium, values: Mapping[str, Words], target: str) -> Words | None:
    """The coordinator plays every other site towards the target, with keys that it made itself."""
    context = group.context(len(values[target]))
    real = group.sides(context)[target]
    fakes = {
        site: SiteSide(site, group.keys[site], context, group.roster, remember={}.setdefault)
        for site in group.roster.sites if site != target
    }  # fmt: skip
    # It has no site's long-term key: the signatures are its own.
    mallory = Ed25519PrivateKey.from_private_bytes(b"m" * 32)
    keys = {site: signed(fake.advertise(), mallory) for site, fake in fakes.items()}
    listed = key_list(context.digest, keys | {target: real.advertise()})
    sides = {**fakes, target: real}
    try:
        return _play(group, context, sides, listed, values, target)
    except PrivacyError:
        return None


def _play(
    group: Consortium, context: Context, sides: Mapping[str, SiteSide], listed: KeyList, values: Mapping[str, Words],
    target: str,
) -> Words:  # fmt: skip
    shares = {target: sides[target].share(listed)}
    for site, fake in sides.items():
        if site != target:
            fake._replies["keys"] = ("", _row(listed, site))
            shares[site] = fake.share(listed)
    graph = graph_of(len(group.roster.sites), listed.sites, list_digest(listed))
    delivered = deliveries(listed, graph, shares)
    words = sides[target].mask(delivered[target], values[target]).values.copy()
    seeds: dict[str, bytes] = {}
    for site, fake in sides.items():
        if site != target:
            fake.mask(delivered[site], values[site])
            seeds[site] = fake._held[target][SELF_SEED]
    used = tuple(sorted(seeds))[: graph.threshold]
    points = tuple(graph.holders(target).index(site) + 1 for site in used)
    masks = [(self_mask_seed(combine(points, [seeds[site] for site in used]), context, target), -1)]
    public = _row(listed, target).mask_key.tobytes()
    for site, fake in sides.items():
        if site != target:
            shared = shared_secret(private_key(fake._own["mask"]), public, target)
            masks.append((mask_seed(shared, context, target, site), -pair_sign(target, site)))
    add_masks(words, masks)
    return words


def _row(listed: KeyList, site: str) -> Keys:
    at = listed.sites.index(site)
    return Keys(
        site, listed.context, listed.channel_keys[at], listed.mask_keys[at], listed.seed_commitments[at],
        listed.tables[at], as_bytes(listed.signatures[at].tobytes()),
    )  # fmt: skip


def other_question(group: Consortium, values: Mapping[str, Words], target: str) -> Words | None:
    """The others are asked something to which they answer zero, so the total is the target's alone."""
    asked, harmless = (group.context(len(values[target]), question=word * 64) for word in "qz")
    nothing = {site: words if site == target else np.zeros_like(words) for site, words in values.items()}
    sides = group.sides(harmless) | {target: group.sides(asked)[target]}
    try:
        done = exchange(
            group, CoordinatorSide(harmless, group.roster), sides, nothing, until="a signature of the count"
        )
    except PrivacyError:
        return None
    return done.total
