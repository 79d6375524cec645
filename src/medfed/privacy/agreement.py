"""Secrets that two sites share and nobody else has: X25519, then HKDF-SHA256 bound to context and identities."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.errors import PrivacyError
from medfed.privacy.context import Context

KEY_BYTES = 32
_P = 2**255 - 19
# The points of order 1, 2, 4 and 8 of Curve25519 and its twist, reduced: a secret with any of them is known to all.
_SMALL_ORDER = frozenset(
    {
        0,
        1,
        _P - 1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
    }
)


def private_key(seed: bytes) -> X25519PrivateKey:
    """A private key from 32 random bytes."""
    return X25519PrivateKey.from_private_bytes(seed)


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The public half, 32 bytes."""
    return key.public_key().public_bytes_raw()


def is_small_order(public: bytes) -> bool:
    """Whether a public key (32 bytes, top bit ignored as X25519 does) makes every shared secret the same."""
    return (int.from_bytes(public, "little") & (2**255 - 1)) % _P in _SMALL_ORDER


def shared_secret(own: X25519PrivateKey, public: bytes, peer: str) -> bytes:
    """The 32 bytes that both ends of a pair compute. Raises PrivacyError for a point of small order (RFC 7748, 6.1)."""
    if len(public) != KEY_BYTES or is_small_order(public):
        raise PrivacyError(
            f"the key of site {peer!r} is a point of small order: its secrets would be no secrets", (peer,)
        )
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise PrivacyError(f"the key of site {peer!r} gives an all-zero secret", (peer,)) from None


def derive(secret: bytes, use: str, context: Context, first: str, second: str, *, size: int = KEY_BYTES) -> bytes:
    """``size`` bytes of HKDF-SHA256 (RFC 5869) for one use, one context and two identities in this order.

    The context's digest covers study, run, round, step, ordinal, question, roster, length, purpose and attempt.
    """
    parts = (f"medfed {use}", context.digest, first, second)
    info = b"".join(len(part.encode()).to_bytes(4, "big") + part.encode() for part in parts)
    return HKDF(algorithm=SHA256(), length=size, salt=None, info=info).derive(secret)


def mask_seed(secret: bytes, context: Context, one: str, other: str) -> bytes:
    """The seed of the mask that two sites share; the same for both ends."""
    return derive(secret, "pairwise mask", context, *sorted((one, other)))


def self_mask_seed(seed: bytes, context: Context, site: str) -> bytes:
    """The seed of a site's own mask, from the 32 bytes whose shares the others hold."""
    return derive(seed, "self mask", context, site, site)
