"""A site's side of one attempt at a secure sum. No files, sockets or clocks: messages in, messages out.

Each stage is answered once. The same request again gets the same reply, byte for byte; another one is refused, also
after an error. Secrets live in this object only and are dropped with the last answer.
"""

import os
from collections.abc import Callable, Mapping
from typing import TypeVar, cast

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import digest
from medfed.errors import PrivacyError
from medfed.privacy.agreement import mask_seed, private_key, public_bytes, self_mask_seed, shared_secret
from medfed.privacy.checks import (
    UNSIGNED,
    acknowledgement,
    check_context,
    check_count,
    check_list,
    check_quorum,
    check_sites,
    dealers_digest,
    signed,
    survivors_digest,
)
from medfed.privacy.context import Context
from medfed.privacy.counting import counted, unsigned_count
from medfed.privacy.masks import IntArray, add_masks, pair_sign
from medfed.privacy.messages import (
    CountSignature,
    Delivery,
    KeyList,
    Keys,
    Masked,
    Reply,
    Request,
    Shares,
    SignedCount,
    SignedSurvivors,
    Survivors,
    SurvivorSignature,
    Transcript,
    Unmasking,
    as_bytes,
    expect_array,
    list_digest,
    raw,
    rows,
)
from medfed.privacy.neighbours import Graph, graph_of
from medfed.privacy.reveal import held_by
from medfed.privacy.roster import Roster
from medfed.privacy.sealing import (
    MASK_KEY,
    SEALED_BYTES,
    SELF_SEED,
    commit_to_seed,
    commit_to_share,
    open_pair,
    seal_pair,
)
from medfed.privacy.shares import SHARE_BYTES, Draw, split
from medfed.privacy.signatures import public_hex

Remember = Callable[[str, tuple[str, ...]], tuple[str, ...]]
R = TypeVar("R", bound=Reply)
# What a site sends in each stage, as a refusal calls it.
_SENT = {
    "keys": "public keys",
    "shares": "sealed shares",
    "masked": "masked words",
    "survivors": "signature of the survivors",
    "unmasking": "shares to open the sum",
    "count": "signature of the count",
}


class SiteSide:
    """One site in one attempt. Raises PrivacyError for whatever it will not do, and then sends nothing.

    site, key: its name and long-term key. roster: from ``call_roster``, so that somebody whom the site trusts vouches
    for every key. table: an opaque word that changes when its study table does, never a bare hash of the rows.
    remember(key, set): record the survivor set that this site signs under a call's key, durably, unless one stands;
    returns the one that stands, or raises to refuse it. The site's ledger is the place; ``dict.setdefault`` in a test.
    draw: n -> n random bytes.
    """

    def __init__(
        self,
        site: str,
        key: Ed25519PrivateKey,
        context: Context,
        roster: Roster,
        *,
        remember: Remember,
        table: str = "",
        draw: Draw = os.urandom,
    ) -> None:
        if context.roster != roster.digest:
            raise PrivacyError("the sum is asked over another roster than the one whose keys were vouched for")
        if roster.key_of(site) != public_hex(key):
            raise PrivacyError(f"the roster has another key of site {site!r} than its own; nothing was sent", (site,))
        self.site, self.context, self.roster, self.table = site, context, roster, table
        self._key, self._remember, self._draw = key, remember, draw
        self._replies: dict[str, tuple[str, Reply]] = {}
        self._own = dict(zip(("channel", "mask", "seed"), (draw(32), draw(32), draw(32)), strict=True))
        self._listed: KeyList
        self._graph: Graph
        self._own_pair = b"", b""
        self._channels: dict[str, bytes] = {}
        self._held: dict[str, tuple[bytes, bytes]] = {}
        self._dealers: tuple[str, ...] = ()
        self._count: SignedCount | None = None

    @property
    def tables(self) -> Mapping[str, str]:
        """The table word of every site in this attempt's key list, each signed by its site; known once shares are dealt."""
        self._after("shares")
        return dict(zip(self._listed.sites, self._listed.tables, strict=True))

    # -- the stages ----------------------------------------------------------------------------------------------

    def answer(
        self, request: Request | None, values: IntArray | None = None, count: SignedCount | None = None
    ) -> Reply:
        """The reply to whatever the coordinator asks next; None asks for keys. values, count: for ``mask``."""
        match request:
            case None:
                return self.advertise()
            case KeyList():
                return self.share(request)
            case Delivery():
                if values is None:
                    raise PrivacyError("there is nothing to mask")
                return self.mask(request, values, count)
            case Survivors():
                return self.sign_survivors(request, count)
            case SignedSurvivors():
                return self.unmask(request)
            case Transcript():
                return self.sign_count(request)

    def advertise(self) -> Keys:
        """This attempt's public keys, signed."""
        return self._once("keys", "", self._make_keys)

    def share(self, listed: KeyList) -> Shares:
        """Deal shares of both secrets to the holders, encrypted, after every key in the list was checked."""
        self._after("keys")
        return self._once("shares", list_digest(listed), lambda: self._make_shares(listed))

    def mask(self, delivery: Delivery, values: IntArray, count: SignedCount | None = None) -> Masked:
        """The site's words under its masks. values: (m,) int64, left as they are.

        A sum without noise is masked only after a count of units over this roster, and of the tables as they are now, was
        signed.
        """
        self._after("shares")
        asked = digest(
            delivery.context, delivery.listed, *delivery.dealers, raw(delivery.ciphertexts), raw(delivery.commitments)
        )
        return self._once("masked", asked, lambda: self._make_masked(delivery, values, count))

    def sign_survivors(self, proposed: Survivors, count: SignedCount | None = None) -> SurvivorSignature:
        """Agree to one survivor set, for this attempt and every other one of the same call.

        count: the secure count over exactly these sites, if it is not the one that ``mask`` was given.
        """
        self._after("masked")
        asked = digest(proposed.context, *proposed.sites)
        return self._once("survivors", asked, lambda: self._sign(proposed, count))

    def unmask(self, agreed: SignedSurvivors) -> Unmasking:
        """A share for each dealer: of a survivor's self-mask seed, or of a dropped site's mask key; never of both.

        Done once, for a set that this site and a quorum of the whole roster have signed; then all secrets are dropped.
        """
        self._after("survivors")
        # Who signed may differ between two requests for the same set; the answer does not.
        return self._once("unmasking", digest(agreed.context, *agreed.sites), lambda: self._give(agreed))

    def sign_count(self, transcript: Transcript) -> CountSignature:
        """Add the count up from the sites' own signed messages, and sign what comes out."""
        self._after("unmasking")
        asked = digest(transcript.context, transcript.values.tobytes(), *sorted(transcript.shares))
        return self._once("count", asked, lambda: self._sign_count(transcript))

    # -- their work ----------------------------------------------------------------------------------------------

    def _make_keys(self) -> Keys:
        own = self._own
        unsigned = Keys(
            self.site,
            self.context.digest,
            as_bytes(public_bytes(private_key(own["channel"]))),
            as_bytes(public_bytes(private_key(own["mask"]))),
            as_bytes(commit_to_seed(self.context, self.site, own["seed"])),
            self.table,
            UNSIGNED,
        )
        return signed(unsigned, self._key)

    def _make_shares(self, listed: KeyList) -> Shares:
        check_list(listed, self.context, self.roster)
        if self.site not in listed.sites:
            raise PrivacyError(f"the key list leaves out site {self.site!r}, which sent its keys")
        own = cast(Keys, self._replies["keys"][1])
        at = listed.sites.index(self.site)
        if raw(listed.signatures[at]) != raw(own.signature):
            raise PrivacyError(f"the key list has other keys of site {self.site!r} than it sent in this attempt")
        named = list_digest(listed)
        graph = graph_of(len(self.roster.sites), listed.sites, named)
        holders = graph.holders(self.site)
        shared = [split(self._own[secret], len(holders), graph.threshold, self._draw) for secret in ("seed", "mask")]
        channel = private_key(self._own["channel"])
        publics = dict(zip(listed.sites, listed.channel_keys, strict=True))
        sealed, commitments, channels = [], bytearray(), {}
        for holder, of_seed, of_key in zip(holders, *shared, strict=True):
            for which, share in ((SELF_SEED, of_seed), (MASK_KEY, of_key)):
                commitments += commit_to_share(self.context, self.site, holder, which, share)
            if holder == self.site:
                self._own_pair = of_seed, of_key
                continue
            channels[holder] = shared_secret(channel, raw(publics[holder]), holder)
            pair = of_seed + of_key
            sealed.append(seal_pair(channels[holder], self.context, named, self.site, holder, pair))
        self._listed, self._graph, self._channels = listed, graph, channels
        unsigned = Shares(
            self.site, self.context.digest, named, rows(b"".join(sealed), SEALED_BYTES),
            as_bytes(bytes(commitments)).reshape(len(holders), 2, 32), UNSIGNED,
        )  # fmt: skip
        return signed(unsigned, self._key)

    def _make_masked(self, delivery: Delivery, values: IntArray, count: SignedCount | None) -> Masked:
        check_context(delivery, self.context)
        if delivery.listed != list_digest(self._listed):
            raise PrivacyError("the shares were dealt over another key list than this site saw")
        check_sites(delivery.dealers, self._listed.sites, self.roster, "the list of those who dealt shares")
        if self.site not in delivery.dealers:
            raise PrivacyError(f"the list of those who dealt shares leaves out site {self.site!r}, which did")
        if values.shape != (self.context.length,) or values.dtype != np.int64:
            raise PrivacyError(f"the sum has {self.context.length} words of 64 bits, {values.shape} are to be masked")
        self._check_count_before(count)
        held = self._open_shares(delivery)
        if len(held) < self._graph.threshold:
            raise PrivacyError(
                "too few neighbours dealt shares: the site's words would not be hidden among enough others"
            )
        masked = np.array(values)
        add_masks(masked, self._masks([peer for peer in held if peer != self.site]))
        self._held, self._dealers, self._count = held, tuple(delivery.dealers), count
        unsigned = Masked(
            self.site, self.context.digest, dealers_digest(delivery.listed, delivery.dealers),
            acknowledgement(delivery.commitments), masked, UNSIGNED,
        )  # fmt: skip
        return signed(unsigned, self._key)

    def _check_count_before(self, count: SignedCount | None) -> None:
        if self.context.purpose != "sum":
            return
        if count is None:
            raise PrivacyError("no secure count of units over this roster was shown; the site masks nothing before it")
        tables = check_count(count, self.roster, self.context.study)
        for site, table in zip(self._listed.sites, self._listed.tables, strict=True):
            if tables.get(site, table) != table:
                raise PrivacyError(
                    f"the study table of site {site!r} changed since its units were counted; count them again", (site,)
                )

    def _open_shares(self, delivery: Delivery) -> dict[str, tuple[bytes, bytes]]:
        """The share pairs of every dealer that is a neighbour, and the site's own; each fits what was committed to."""
        dealers = held_by(self._graph, self.site, delivery.dealers)
        expect_array(delivery.ciphertexts, (len(dealers) - 1, SEALED_BYTES), np.uint8, "the delivered shares", "")
        expect_array(delivery.commitments, (len(dealers), 2, 32), np.uint8, "the delivered commitments", "")
        held, sealed = {}, iter(delivery.ciphertexts)
        for dealer, committed in zip(dealers, delivery.commitments, strict=True):
            if dealer == self.site:
                pair = b"".join(self._own_pair)
            else:
                secret = self._channels[dealer]
                pair = open_pair(secret, self.context, delivery.listed, dealer, self.site, raw(next(sealed)))
            held[dealer] = pair[:SHARE_BYTES], pair[SHARE_BYTES:]
            for which, share in enumerate(held[dealer]):
                if raw(committed[which]) != commit_to_share(self.context, dealer, self.site, which, share):
                    raise PrivacyError(
                        f"a share that site {dealer!r} dealt to {self.site!r} is not the one it committed to", (dealer,)
                    )
        return held

    def _masks(self, peers: list[str]) -> list[tuple[bytes, int]]:
        own = private_key(self._own["mask"])
        publics = dict(zip(self._listed.sites, self._listed.mask_keys, strict=True))
        masks = [(self_mask_seed(self._own["seed"], self.context, self.site), 1)]
        for peer in peers:
            secret = shared_secret(own, raw(publics[peer]), peer)
            masks.append((mask_seed(secret, self.context, self.site, peer), pair_sign(self.site, peer)))
        return masks

    def _agree(self, sites: tuple[str, ...]) -> str:
        """Hold a survivor set to the rules and to what was signed before under this call; its digest."""
        check_sites(sites, self._dealers, self.roster, "the survivor set")
        if self.site not in sites:
            raise PrivacyError(f"the survivor set leaves out site {self.site!r}, which sent its masked words")
        if not self._graph.joins(sites):
            raise PrivacyError("the survivors do not hang together: a part of them could be opened by itself")
        if tuple(self._remember(self.context.key, sites)) != sites:
            raise PrivacyError(
                "this site has signed another survivor set for the same call; it opens a call over one set, once"
            )
        return survivors_digest(self._dealt(), sites)

    def _sign(self, proposed: Survivors, count: SignedCount | None) -> SurvivorSignature:
        check_context(proposed, self.context)
        sites = tuple(proposed.sites)
        if self.context.purpose == "sum":
            if count is not None:
                self._check_count_before(count)
            covering = count or self._count
            if covering is None or tuple(covering.sites) != sites:
                raise PrivacyError("the survivors are not the sites whose units were counted; count over them first")
        unsigned = SurvivorSignature(self.site, self.context.digest, self._agree(sites), UNSIGNED)
        return signed(unsigned, self._key)

    def _give(self, agreed: SignedSurvivors) -> Unmasking:
        check_context(agreed, self.context)
        sites = tuple(agreed.sites)
        own = cast(SurvivorSignature, self._replies["survivors"][1])
        named = survivors_digest(self._dealt(), sites)
        if named != own.survivors:
            raise PrivacyError(
                "these are not the survivors that this site has signed; it gives shares for one set only"
            )
        check_quorum(
            self.roster, agreed.signers, agreed.signatures, "the survivor set", "survivors", self.context.digest, named
        )
        alive = frozenset(sites)
        given = b"".join(pair[SELF_SEED if dealer in alive else MASK_KEY] for dealer, pair in self._held.items())
        unsigned = Unmasking(self.site, self.context.digest, named, rows(given, SHARE_BYTES), UNSIGNED)
        reply = signed(unsigned, self._key)
        self._own, self._held, self._channels, self._own_pair = {}, {}, {}, (b"", b"")
        return reply

    def _sign_count(self, transcript: Transcript) -> CountSignature:
        if self.context.purpose != "count":
            raise PrivacyError("only a count is added up and signed by the sites")
        own = cast(Unmasking, self._replies["unmasking"][1])
        dealt = self._dealt()
        named = survivors_digest(dealt, transcript.survivors)
        if named != own.survivors:
            raise PrivacyError("the count is over other survivors than this site has signed")
        total = counted(
            transcript, self.context, self.roster, self._listed, self._graph,
            dealers=self._dealers, dealt=dealt, agreed=named,
        )  # fmt: skip
        count = unsigned_count(self.context, self._listed, tuple(transcript.survivors), total)
        return signed(CountSignature(self.site, self.context.digest, count.digest, UNSIGNED), self._key)

    def _dealt(self) -> str:
        return dealers_digest(list_digest(self._listed), self._dealers)

    # -- once, and in order --------------------------------------------------------------------------------------

    def _after(self, stage: str) -> None:
        if stage not in self._replies:
            raise PrivacyError(f"the coordinator skipped a step: this site has not sent its {_SENT[stage]}")

    def _once(self, stage: str, asked: str, make: Callable[[], R]) -> R:
        if stage in self._replies:
            before, reply = self._replies[stage]
            if before != asked:
                raise PrivacyError(
                    f"this site has sent its {_SENT[stage]} already, for another request; it does so once"
                )
            return cast(R, reply)
        reply = make()
        self._replies[stage] = asked, reply
        return reply
