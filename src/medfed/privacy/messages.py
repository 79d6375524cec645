"""What coordinator and sites say to each other in a secure sum: plain values, and their bytes.

In order: ``Keys`` -> ``KeyList`` -> ``Shares`` -> ``Delivery`` -> ``Masked`` -> ``Survivors`` -> ``SurvivorSignature`` ->
``SignedSurvivors`` -> ``Unmasking``; for a count also ``Transcript`` -> ``CountSignature`` -> ``SignedCount``.
Sites say the first of each pair. ``context`` is a context's digest, ``listed`` a key list's, ``survivors`` a set's.
n sites sent keys; h hold shares of a dealer; m words are summed. A signature is 64 bytes.
"""

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from medfed.canonical import digest, pack, unpack
from medfed.errors import LedgerError, PrivacyError

Bytes = NDArray[np.uint8]
Words = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Keys:
    """A site's two X25519 public keys for one attempt, and the commitment to its self-mask seed: 32 bytes each.

    channel_key: for shares. mask_key: for pairwise masks; the private half is shared out. table: an opaque word that
    changes when the site's study table does.
    """

    site: str
    context: str
    channel_key: Bytes
    mask_key: Bytes
    seed_commitment: Bytes
    table: str
    signature: Bytes


@dataclass(frozen=True, eq=False)
class KeyList:
    """The keys of all sites that sent them, in order of names: (n, 32) each, signatures (n, 64)."""

    context: str
    sites: tuple[str, ...]
    channel_keys: Bytes
    mask_keys: Bytes
    seed_commitments: Bytes
    tables: tuple[str, ...]
    signatures: Bytes


@dataclass(frozen=True, eq=False)
class Shares:
    """A dealer's shares. ciphertexts: (h - 1, 148), for its neighbours; commitments: (h, 2, 32), for all holders."""

    site: str
    context: str
    listed: str
    ciphertexts: Bytes
    commitments: Bytes
    signature: Bytes


@dataclass(frozen=True, eq=False)
class Delivery:
    """To one holder: the shares of its neighbours among the dealers, in order of names.

    dealers: all sites that dealt. ciphertexts: (d - 1, 148), without the holder's own; commitments: (d, 2, 32), of
    this holder's shares only.
    """

    context: str
    listed: str
    dealers: tuple[str, ...]
    ciphertexts: Bytes
    commitments: Bytes


@dataclass(frozen=True, eq=False)
class Masked:
    """A site's masked words (m,). dealers: digest of who dealt, as the site saw it. acknowledged: digest of the
    commitments that the shares it holds do match."""

    site: str
    context: str
    dealers: str
    acknowledged: str
    values: Words
    signature: Bytes


@dataclass(frozen=True, eq=False)
class Survivors:
    """The sites whose masked words the coordinator holds, in order of names."""

    context: str
    sites: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class SurvivorSignature:
    """A site's yes to a survivor set; it will give shares for this set and no other."""

    site: str
    context: str
    survivors: str
    signature: Bytes


@dataclass(frozen=True, eq=False)
class SignedSurvivors:
    """A survivor set with the signatures of a quorum of the whole roster: (q, 64)."""

    context: str
    sites: tuple[str, ...]
    signers: tuple[str, ...]
    signatures: Bytes


@dataclass(frozen=True, eq=False)
class Unmasking:
    """One share for each dealer that this site holds shares of, in order of names: (d, 66).

    Of a survivor it is the share of the self-mask seed, of a site that dropped that of the pairwise key: the set alone
    decides, so there is no way to ask for both.
    """

    site: str
    context: str
    survivors: str
    shares: Bytes
    signature: Bytes


@dataclass(frozen=True, eq=False)
class Transcript:
    """All that opens a count, so that every site can add it up itself. Rows follow the survivors: values (s, m),
    acknowledged, masked_signatures (s, 64). shares: {site: its Unmasking's}, with unmasking_signatures (u, 64) by name."""

    context: str
    survivors: tuple[str, ...]
    values: Words
    acknowledged: tuple[str, ...]
    masked_signatures: Bytes
    shares: Mapping[str, Bytes]
    unmasking_signatures: Bytes


@dataclass(frozen=True, eq=False)
class CountSignature:
    """A site's word that the count it added up itself is the one with this digest."""

    site: str
    context: str
    count: str
    signature: Bytes


@dataclass(frozen=True, eq=False)
class SignedCount:
    """Units counted over ``sites``, signed by a quorum of the roster. totals: (m,) as the study's count step lays out.

    study, question: what was asked. roster: digest of the call's roster. tables: each site's table word.
    """

    study: str
    question: str
    roster: str
    context: str
    sites: tuple[str, ...]
    tables: tuple[str, ...]
    totals: Words
    signers: tuple[str, ...]
    signatures: Bytes

    @property
    def digest(self) -> str:
        """What is signed: everything but the signatures."""
        return digest(
            self.study, self.question, self.roster, self.context, set_digest(self.sites), set_digest(self.tables),
            np.ascontiguousarray(self.totals, "<i8").tobytes(),
        )  # fmt: skip


Request = KeyList | Delivery | Survivors | SignedSurvivors | Transcript
Reply = Keys | Shares | Masked | SurvivorSignature | Unmasking | CountSignature
Message = Request | Reply | SignedCount

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        Keys, KeyList, Shares, Delivery, Masked, Survivors, SurvivorSignature, SignedSurvivors, Unmasking, Transcript,
        CountSignature, SignedCount,
    )
}  # fmt: skip


def set_digest(words: tuple[str, ...]) -> str:
    """Names an ordered list of sites or words."""
    return digest("medfed list", *words)


def list_digest(listed: KeyList) -> str:
    """Names a key list, signatures included."""
    return digest(
        "medfed keys", listed.context, set_digest(listed.sites), set_digest(listed.tables), raw(listed.channel_keys),
        raw(listed.mask_keys), raw(listed.seed_commitments), raw(listed.signatures),
    )  # fmt: skip


def raw(array: Bytes) -> bytes:
    """The bytes of an array, whatever its strides."""
    return array.tobytes()


def as_bytes(data: bytes) -> Bytes:
    """Bytes -> (n,) uint8."""
    return np.frombuffer(data, np.uint8)


def rows(data: bytes, width: int) -> Bytes:
    """Bytes -> (n, width) uint8; (0, width) for none."""
    return np.frombuffer(data, np.uint8).reshape(-1, width)


def stacked(arrays: Iterable[Bytes], width: int) -> Bytes:
    """Arrays of ``width`` bytes -> (n, width)."""
    return rows(b"".join(array.tobytes() for array in arrays), width)


def write_message(message: Message) -> bytes:
    """Canonical bytes: a tree of arrays and scalars with the message's kind."""
    return pack({"message": type(message).__name__} | {f.name: getattr(message, f.name) for f in fields(message)})


def read_message(data: bytes) -> Message:
    """The message again, its fields of the declared types. Shapes are judged by whoever knows the sum's size.

    Raises PrivacyError for bytes that are no message.
    """
    try:
        tree = unpack(data)
    except LedgerError:
        raise PrivacyError("what arrived in a secure sum is not a message: its bytes are damaged") from None
    kind = _KINDS.get(str(tree.pop("message", "")))
    if kind is None:
        raise PrivacyError("what arrived in a secure sum is not a message of it")
    hints = get_type_hints(kind)
    if tree.keys() != hints.keys() or not all(_fits(value, hints[name]) for name, value in tree.items()):
        raise PrivacyError(f"a message of kind {kind.__name__} does not have the fields that it should")
    message: Message = kind(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in tree.items()}
    )
    return message


def _fits(value: Any, hint: Any) -> bool:
    if hint is str:
        return isinstance(value, str)
    if get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(word, str) for word in value)
    if hint in (Bytes, Words):
        return isinstance(value, np.ndarray) and value.dtype == (np.uint8 if hint == Bytes else np.int64)
    return isinstance(value, dict | types.MappingProxyType) and all(_fits(inner, Bytes) for inner in value.values())


def expect_array(value: Any, shape: tuple[int, ...], kind: type[np.generic], what: str, site: str) -> None:
    """Hold one array of a message to its type and shape. Raises PrivacyError naming the site it came from."""
    if not isinstance(value, np.ndarray) or value.dtype != kind or value.shape != shape:
        found = value.shape if isinstance(value, np.ndarray) else type(value).__name__
        source = (site,) if site else ()
        raise PrivacyError(f"{what} of site {site!r} have shape {found}, {shape} is due" if site else
                           f"{what} have shape {found}, {shape} is due", source)  # fmt: skip
