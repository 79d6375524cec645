"""Shares on their way: encrypted from dealer to holder, and committed to, so that whoever changes one is found.

A commitment is SHA-256 over a share of at least 256 random bits; it hides the share and fixes it. The dealer signs its
commitments, the holder acknowledges them, so a wrong share given back later is the holder's.
"""

import hashlib

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from numpy.typing import NDArray

from medfed.errors import PrivacyError
from medfed.privacy.agreement import derive
from medfed.privacy.context import Context
from medfed.privacy.shares import SHARE_BYTES

Bytes = NDArray[np.uint8]

SEALED_BYTES = 2 * SHARE_BYTES + 16
SELF_SEED, MASK_KEY = 0, 1


def seal_pair(secret: bytes, context: Context, listed: str, dealer: str, holder: str, pair: bytes) -> bytes:
    """Encrypt both shares for one holder: 132 bytes -> 148.

    secret: what dealer and holder share. listed: digest of the keys that all sites see. Key and nonce are derived for
    this context and direction alone, so neither is used twice. RFC 8439.
    """
    key, nonce, bound = _channel(secret, context, listed, dealer, holder)
    return ChaCha20Poly1305(key).encrypt(nonce, pair, bound)


def open_pair(secret: bytes, context: Context, listed: str, dealer: str, holder: str, sealed: bytes) -> bytes:
    """The two shares again, 132 bytes. Raises PrivacyError when a bit, the context or an end of the pair differs."""
    key, nonce, bound = _channel(secret, context, listed, dealer, holder)
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, sealed, bound)
    except InvalidTag:
        raise PrivacyError(
            f"the shares from site {dealer!r} can't be opened at {holder!r}: they were changed on the way, "
            "or dealt for another sum",
            (dealer,),
        ) from None


def _channel(secret: bytes, context: Context, listed: str, dealer: str, holder: str) -> tuple[bytes, bytes, bytes]:
    material = derive(secret, "share channel", context, dealer, holder, size=44)
    return material[:32], material[32:], f"{context.digest}{listed}".encode()


def commit_to_share(context: Context, dealer: str, holder: str, which: int, share: bytes) -> bytes:
    """32 bytes that fix one share. which: SELF_SEED or MASK_KEY."""
    head = f"medfed share\x1f{context.digest}\x1f{dealer}\x1f{holder}\x1f{which}\x1f"
    return hashlib.sha256(head.encode() + share).digest()


def commit_to_seed(context: Context, site: str, seed: bytes) -> bytes:
    """32 bytes that fix a site's self-mask seed before anything is shared."""
    return hashlib.sha256(f"medfed self mask\x1f{context.digest}\x1f{site}\x1f".encode() + seed).digest()
