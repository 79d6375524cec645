"""What both sides hold a message to before they believe any of it: context, sender, shape, signature."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import digest
from medfed.errors import PrivacyError
from medfed.privacy.agreement import KEY_BYTES, is_small_order
from medfed.privacy.context import Context
from medfed.privacy.messages import (
    Bytes,
    CountSignature,
    KeyList,
    Keys,
    Masked,
    Message,
    Shares,
    SignedCount,
    SurvivorSignature,
    Unmasking,
    as_bytes,
    expect_array,
    raw,
    set_digest,
)
from medfed.privacy.roster import Roster
from medfed.privacy.sealing import SEALED_BYTES
from medfed.privacy.shares import SHARE_BYTES
from medfed.privacy.signatures import is_signed, sign

SIGNATURE_BYTES = 64
UNSIGNED = np.zeros(SIGNATURE_BYTES, np.uint8)
Signed = Keys | Shares | Masked | SurvivorSignature | Unmasking | CountSignature
S = TypeVar("S", Keys, Shares, Masked, SurvivorSignature, Unmasking, CountSignature)


# What a site signs, as a refusal calls it.
_IN_WORDS = {
    "keys": "public keys",
    "shares": "sealed shares",
    "masked words": "masked words",
    "survivors": "signatures of the survivors",
    "shares given back": "shares given back",
    "count": "signatures of the count",
}


def words_of(message: Signed) -> tuple[str, tuple[str | bytes, ...]]:
    """Kind and content that a site's signature covers; the context's digest is always among them."""
    match message:
        case Keys():
            keys = raw(message.channel_key), raw(message.mask_key), raw(message.seed_commitment)
            return "keys", (message.context, message.site, *keys, message.table)
        case Shares():
            dealt = raw(message.ciphertexts), raw(message.commitments)
            return "shares", (message.context, message.site, message.listed, *dealt)
        case Masked():
            values = np.ascontiguousarray(message.values, "<i8").tobytes()
            return "masked words", (message.context, message.site, message.dealers, message.acknowledged, values)
        case SurvivorSignature():
            return "survivors", (message.context, message.survivors)
        case Unmasking():
            return "shares given back", (message.context, message.site, message.survivors, raw(message.shares))
        case CountSignature():
            return "count", (message.context, message.count)


def signed(message: S, key: Ed25519PrivateKey) -> S:
    """The message with its site's signature in place of whatever stood there."""
    kind, parts = words_of(message)
    return replace(message, signature=as_bytes(sign(key, kind, *parts)))


def check_signature(message: Signed, context: Context, roster: Roster) -> None:
    """Raises PrivacyError, naming the site, unless its own key signed this message for this context."""
    site = message.site
    public = roster.key_of(site)
    check_context(message, context, site)
    expect_array(message.signature, (SIGNATURE_BYTES,), np.uint8, "the signature", site)
    kind, parts = words_of(message)
    if not is_signed(public, raw(message.signature), kind, *parts):
        raise PrivacyError(
            f"{_IN_WORDS[kind]} under the name of site {site!r} are not signed by its key: forged, or changed on the way",
            (site,),
        )


def check_context(message: Message, context: Context, site: str = "") -> None:
    """Raises PrivacyError for a message of another sum, round or attempt, such as one that is replayed; or of another roster."""
    if getattr(message, "context", None) != context.digest:
        of = f" of site {site!r}" if site else ""
        source = (site,) if site else ()
        raise PrivacyError(
            f"a message{of} belongs to another sum, round or attempt, or to a roster of other names or keys; it was not used. If "
            "it comes again, the rosters of the sites and the coordinator differ: compare their names and keys",
            source,
        )


def check_keys(keys: Keys, context: Context, roster: Roster) -> None:
    """One site's keys: shapes, signature, no point of small order. Raises PrivacyError naming the site."""
    expect_array(keys.channel_key, (KEY_BYTES,), np.uint8, "the bytes of the channel key", keys.site)
    expect_array(keys.mask_key, (KEY_BYTES,), np.uint8, "the bytes of the mask key", keys.site)
    expect_array(keys.seed_commitment, (KEY_BYTES,), np.uint8, "the bytes of the seed commitment", keys.site)
    check_signature(keys, context, roster)
    if is_small_order(raw(keys.channel_key)) or is_small_order(raw(keys.mask_key)):
        raise PrivacyError(
            f"a key of site {keys.site!r} is a point of small order: its secrets would be no secrets", (keys.site,)
        )


def check_list(listed: KeyList, context: Context, roster: Roster) -> None:
    """A key list as a site gets it: each site once, at least a quorum, every entry its site's own."""
    check_context(listed, context)
    count = check_sites(listed.sites, roster.sites, roster, "the key list")
    for array in (listed.channel_keys, listed.mask_keys, listed.seed_commitments):
        expect_array(array, (count, KEY_BYTES), np.uint8, "the keys of a list", "")
    expect_array(listed.signatures, (count, SIGNATURE_BYTES), np.uint8, "the signatures of a key list", "")
    if len(listed.tables) != count:
        raise PrivacyError("the key list does not have one table word a site")
    for keys in rows_of(listed):
        check_keys(keys, context, roster)


def rows_of(listed: KeyList) -> Iterator[Keys]:
    """The list's entries, one a site."""
    for at, site in enumerate(listed.sites):
        yield Keys(
            site, listed.context, listed.channel_keys[at], listed.mask_keys[at], listed.seed_commitments[at],
            listed.tables[at], listed.signatures[at],
        )  # fmt: skip


def check_sites(sites: Sequence[str], among: Sequence[str], roster: Roster, what: str) -> int:
    """Hold a list of sites to: in order, each once, all of ``among``, at least the roster's quorum. How many."""
    twice = (
        tuple(sorted({site for site in sites if list(sites).count(site) > 1})) if len(set(sites)) < len(sites) else ()
    )
    if twice:
        raise PrivacyError(f"{what} names {', '.join(map(repr, twice))} twice", twice)
    if list(sites) != sorted(sites):
        raise PrivacyError(f"{what} is not in order of names")
    if strangers := tuple(sorted(set(sites) - set(among))):
        raise PrivacyError(f"{what} names {', '.join(map(repr, strangers))}, who can't be in it", strangers)
    if len(sites) < roster.quorum:
        raise PrivacyError(
            f"{what} has {len(sites)} of {len(roster.sites)} sites, at least {roster.quorum} are needed: "
            "fewer could be made to open one site's terms"
        )
    return len(sites)


def dealers_digest(listed: str, dealers: Sequence[str]) -> str:
    """Names who dealt shares over one key list; all sites must have seen the same."""
    return digest("medfed dealers", listed, set_digest(tuple(dealers)))


def survivors_digest(dealers: str, survivors: Sequence[str]) -> str:
    """Names a survivor set, with the dealers and keys it belongs to."""
    return digest("medfed survivors", dealers, set_digest(tuple(survivors)))


def acknowledgement(commitments: Bytes) -> str:
    """What a holder says it has checked: the commitments (d, 2, 32) of its own shares."""
    return digest("medfed commitments", raw(commitments))


def check_quorum(roster: Roster, signers: Sequence[str], signatures: Bytes, what: str, kind: str, *words: str) -> None:
    """Raises PrivacyError unless a quorum of the whole roster, each site once, signed these words."""
    expect_array(signatures, (len(signers), SIGNATURE_BYTES), np.uint8, f"the signatures of {what}", "")
    check_sites(signers, roster.sites, roster, f"the list of those who signed {what}")
    for signer, signature in zip(signers, signatures, strict=True):
        if not is_signed(roster.key_of(signer), raw(signature), kind, *words):
            raise PrivacyError(f"{what}: the signature of site {signer!r} is not over this", (signer,))


def check_shapes(message: Shares | Masked | Unmasking, *, holders: int = 0, held: int = 0, words: int = 0) -> None:
    """Shapes that only a participant knows. holders: of this dealer; held: dealers whose shares the site holds."""
    match message:
        case Shares(site=site):
            expect_array(message.ciphertexts, (holders - 1, SEALED_BYTES), np.uint8, "the encrypted shares", site)
            expect_array(message.commitments, (holders, 2, 32), np.uint8, "the commitments", site)
        case Masked(site=site):
            expect_array(message.values, (words,), np.int64, "the masked words", site)
        case Unmasking(site=site):
            expect_array(message.shares, (held, SHARE_BYTES), np.uint8, "the shares", site)


def check_count(count: SignedCount, roster: Roster, study: str) -> Mapping[str, str]:
    """The table word of every site that was counted, once a quorum of this roster has signed the count.

    Raises PrivacyError for a count of another study or roster, or one that too few signed. Whether the totals are large
    enough, and of the right rows, is the caller's to judge.
    """
    if (count.study, count.roster) != (study, roster.digest):
        raise PrivacyError("the secure count is of another study or roster; count the units of this one first")
    check_sites(count.sites, roster.sites, roster, "the secure count")
    if len(count.tables) != len(count.sites):
        raise PrivacyError("the secure count does not have one table word a site")
    check_quorum(roster, count.signers, count.signatures, "the secure count", "count", count.context, count.digest)
    return dict(zip(count.sites, count.tables, strict=True))
