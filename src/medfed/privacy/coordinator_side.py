"""The coordinator's side of one attempt at a secure sum. No files, sockets or clocks: messages in, messages out.

    side = CoordinatorSide(context, roster)
    while not side.is_done:
        for site, request in side.requests().items():    # carried to the sites by whatever carries
            side.receive(site, reply)                     # raises for a bad reply, which is then not counted
        side.advance()                                    # raises when too few sites are left
    side.total

A site that says nothing in a stage, or something bad, has dropped; the sum goes on without it while a quorum is left.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace

import numpy as np

from medfed.errors import PrivacyError
from medfed.privacy.checks import (
    acknowledgement,
    check_keys,
    check_shapes,
    check_signature,
    dealers_digest,
    survivors_digest,
)
from medfed.privacy.context import Context
from medfed.privacy.counting import unsigned_count
from medfed.privacy.masks import IntArray
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
    Survivors,
    SurvivorSignature,
    Unmasking,
    list_digest,
    raw,
    stacked,
)
from medfed.privacy.neighbours import Graph, graph_of
from medfed.privacy.reveal import held_by, take_masks_off
from medfed.privacy.roster import Roster
from medfed.privacy.routing import deliveries, key_list, signed_survivors, transcript
from medfed.privacy.sealing import MASK_KEY, SELF_SEED, commit_to_share

# What is waited for in each stage, in order, and what it is called when it is missing.
_STAGES: dict[type[Reply], str] = {
    Keys: "keys",
    Shares: "shares",
    Masked: "masked words",
    SurvivorSignature: "a signature of the survivors",
    Unmasking: "shares to open the sum",
    CountSignature: "a signature of the count",
}
_IN_WORDS = {"keys": "public keys", "shares": "sealed shares"}
_NOTHING = np.empty(0, np.int64)


class CoordinatorSide:
    """One attempt, seen from the coordinator. asked: the sites to ask now; the whole roster unless said otherwise.

    A later attempt asks the survivors that were signed in an earlier one, since sites sign no other set.
    """

    def __init__(self, context: Context, roster: Roster, *, asked: Sequence[str] | None = None) -> None:
        if context.roster != roster.digest:
            raise PrivacyError("the context names another roster than the one that is asked")
        self.context, self.roster = context, roster
        self._asked: tuple[str, ...] = roster.sites if asked is None else tuple(sorted(set(asked)))
        for site in self._asked:
            roster.key_of(site)
        self._waits: type[Reply] | None = Keys
        self._keys: dict[str, Keys] = {}
        self._shares: dict[str, Shares] = {}
        self._masked: dict[str, Masked] = {}
        self._signatures: dict[str, SurvivorSignature] = {}
        self._unmaskings: dict[str, Unmasking] = {}
        self._counts: dict[str, CountSignature] = {}
        self._listed: KeyList
        self._graph: Graph
        self._deliveries: dict[str, Delivery] = {}
        self._dealt = ""
        self._survivors: tuple[str, ...] = ()
        self._agreed = ""
        self._total: IntArray = np.zeros(context.length, np.int64)
        self._count: SignedCount | None = None

    # -- what the caller sees ------------------------------------------------------------------------------------

    @property
    def is_done(self) -> bool:
        return self._waits is None

    @property
    def stage(self) -> str:
        """What is waited for now, in words."""
        return "nothing" if self._waits is None else _STAGES[self._waits]

    @property
    def tables(self) -> Mapping[str, str]:
        """The table word of every site that sent keys; {} before all of them are in."""
        return {} if self._waits is Keys else dict(zip(self._listed.sites, self._listed.tables, strict=True))

    @property
    def survivors(self) -> tuple[str, ...]:
        """The sites that the total counts; known once masked words are in."""
        return self._survivors

    @property
    def total(self) -> IntArray:
        """The sum of the survivors' words, modulo 2**64: (m,) int64. Raises PrivacyError before it is opened."""
        if self._waits not in (None, CountSignature):
            raise PrivacyError(f"the sum is not open yet: the coordinator waits for {_in_words(self.stage)}")
        return self._total

    @property
    def count(self) -> SignedCount:
        """The count with the sites' signatures. Raises PrivacyError unless this was a count and is done."""
        if self._count is None or not self.is_done:
            raise PrivacyError("there is no signed count: this was a sum, or is not done")
        signers = tuple(sorted(self._counts))
        signatures = stacked((self._counts[site].signature for site in signers), 64)
        return replace(self._count, signers=signers, signatures=signatures)

    def requests(self) -> dict[str, Request | None]:
        """What each site is asked in this stage; None asks for its keys."""
        context = self.context.digest
        if self._waits is Keys:
            return dict.fromkeys(self._asked)
        if self._waits is Shares:
            return dict.fromkeys(self._keys, self._listed)
        if self._waits is Masked:
            return dict(self._deliveries)
        if self._waits is SurvivorSignature:
            return dict.fromkeys(self._survivors, Survivors(context, self._survivors))
        if self._waits is Unmasking:
            return dict.fromkeys(self._signatures, signed_survivors(context, self._survivors, self._signatures))
        if self._waits is CountSignature:
            return dict.fromkeys(self._unmaskings, transcript(context, self._masked, self._unmaskings))
        return {}

    def receive(self, sender: str, reply: Reply) -> None:
        """Take one reply. sender: the site that the carrier heard, which need not be who the message says.

        Raises PrivacyError naming the culprit, and counts nothing of the reply, when it is not what was asked for.
        """
        if type(reply) is not self._waits:
            sent = _in_words(_STAGES.get(type(reply), "another message"))
            raise PrivacyError(f"site {sender!r} sent {sent} while {_in_words(self.stage)} were asked for", (sender,))
        if reply.site != sender:
            raise PrivacyError(f"site {sender!r} sent a message under the name of {reply.site!r}", (sender,))
        match reply:
            case Keys():
                self._may_send(sender, self._asked, self._keys)
                check_keys(reply, self.context, self.roster)
                self._keys[sender] = reply
            case Shares():
                self._may_send(sender, self._keys, self._shares)
                self._check_shares(reply)
                self._shares[sender] = reply
            case Masked():
                self._may_send(sender, self._shares, self._masked)
                self._check_masked(reply)
                self._add(reply)
            case SurvivorSignature():
                self._may_send(sender, self._survivors, self._signatures)
                self._check_named(reply, reply.survivors, self._agreed, "another survivor set")
                self._signatures[sender] = reply
            case Unmasking():
                self._may_send(sender, self._signatures, self._unmaskings)
                self._check_unmasking(reply)
                self._unmaskings[sender] = reply
            case CountSignature():
                assert self._count is not None
                self._may_send(sender, self._unmaskings, self._counts)
                self._check_named(reply, reply.count, self._count.digest, "another count")
                self._counts[sender] = reply

    def advance(self) -> None:
        """Close the stage and go on with those who answered. Raises PrivacyError when fewer than a quorum did.

        After the shares are back it opens the sum; shares that don't fit together then name their dealer.
        """
        if self._waits is Keys:
            self._enough(self._keys)
            self._listed = key_list(self.context.digest, self._keys)
            self._graph = graph_of(len(self.roster.sites), self._listed.sites, list_digest(self._listed))
            self._waits = Shares
        elif self._waits is Shares:
            self._enough(self._shares)
            self._dealt = dealers_digest(list_digest(self._listed), sorted(self._shares))
            self._deliveries = deliveries(self._listed, self._graph, self._shares)
            self._waits = Masked
        elif self._waits is Masked:
            self._enough(self._masked)
            self._survivors = tuple(sorted(self._masked))
            self._agreed = survivors_digest(self._dealt, self._survivors)
            self._waits = SurvivorSignature
        elif self._waits is SurvivorSignature:
            self._enough(self._signatures)
            self._waits = Unmasking
        elif self._waits is Unmasking:
            self._enough(self._unmaskings)
            self._open()
            self._waits = CountSignature if self._count else None
        elif self._waits is CountSignature:
            self._enough(self._counts)
            self._waits = None

    # -- what it holds a reply to --------------------------------------------------------------------------------

    def _may_send(self, sender: str, among: Container[str], sent: Container[str]) -> None:
        if sender not in among:
            raise PrivacyError(f"site {sender!r} was not asked for {_in_words(self.stage)}", (sender,))
        if sender in sent:
            raise PrivacyError(f"site {sender!r} sent {_in_words(self.stage)} twice; the first stands", (sender,))

    def _enough(self, replies: Mapping[str, Reply]) -> None:
        if len(replies) < self.roster.quorum:
            missing = ", ".join(site for site in self._asked if site not in replies)
            raise PrivacyError(
                f"{len(replies)} of {len(self.roster.sites)} sites sent {_in_words(self.stage)}, the secure sum needs "
                f"{self.roster.quorum}; missing: {missing}"
            )

    def _check_shares(self, reply: Shares) -> None:
        check_shapes(reply, holders=len(self._graph.holders(reply.site)))
        check_signature(reply, self.context, self.roster)
        if reply.listed != list_digest(self._listed):
            raise PrivacyError(f"site {reply.site!r} dealt shares over another key list", (reply.site,))

    def _check_masked(self, reply: Masked) -> None:
        check_shapes(reply, words=self.context.length)
        check_signature(reply, self.context, self.roster)
        if reply.dealers != self._dealt:
            raise PrivacyError(f"site {reply.site!r} masked with other neighbours than those who dealt", (reply.site,))
        if reply.acknowledged != acknowledgement(self._deliveries[reply.site].commitments):
            raise PrivacyError(f"site {reply.site!r} acknowledges other shares than were dealt to it", (reply.site,))

    def _check_named(self, reply: SurvivorSignature | CountSignature, named: str, due: str, what: str) -> None:
        check_signature(reply, self.context, self.roster)
        if named != due:
            raise PrivacyError(f"site {reply.site!r} has signed {what}", (reply.site,))

    def _check_unmasking(self, reply: Unmasking) -> None:
        site, alive = reply.site, frozenset(self._survivors)
        held = held_by(self._graph, site, sorted(self._shares))
        check_shapes(reply, held=len(held))
        check_signature(reply, self.context, self.roster)
        if reply.survivors != self._agreed:
            raise PrivacyError(f"site {site!r} gave shares for another survivor set", (site,))
        for dealer, share, committed in zip(held, reply.shares, self._deliveries[site].commitments, strict=True):
            which = SELF_SEED if dealer in alive else MASK_KEY
            if commit_to_share(self.context, dealer, site, which, raw(share)) != raw(committed[which]):
                raise PrivacyError(
                    f"site {site!r} gave back a share of {dealer!r} that is not the one it acknowledged", (site,)
                )

    def _add(self, reply: Masked) -> None:
        # Unsigned, so that the sum wraps round as the masks do.
        np.add(self._total.view(np.uint64), reply.values.view(np.uint64), out=self._total.view(np.uint64))
        # A count is added up again by the sites; of a sum the words are needed no more.
        self._masked[reply.site] = reply if self.context.purpose == "count" else replace(reply, values=_NOTHING)

    def _open(self) -> None:
        shares = {site: given.shares for site, given in self._unmaskings.items()}
        take_masks_off(
            self._total, self.context, self._graph, self._listed,
            dealers=sorted(self._shares), survivors=self._survivors, shares=shares,
        )  # fmt: skip
        if self.context.purpose == "count":
            self._count = unsigned_count(self.context, self._listed, self._survivors, self._total)


def _in_words(stage: str) -> str:
    """What is waited for in a stage, as a refusal calls it."""
    return _IN_WORDS.get(stage, stage)
