"""Signatures over what a message says, with the kind of message in front: one can't be passed off as another."""

import hmac
from functools import lru_cache

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medfed.canonical import digest


def _message(kind: str, parts: tuple[str | bytes, ...]) -> bytes:
    return digest("medfed secure sum", kind, *parts).encode()


def sign(key: Ed25519PrivateKey, kind: str, *parts: str | bytes) -> bytes:
    """64 bytes of Ed25519 over the kind and the parts, each with its length."""
    return key.sign(_message(kind, parts))


def is_signed(public: str, signature: bytes, kind: str, *parts: str | bytes) -> bool:
    """Whether the owner of ``public`` (hex) signed exactly this kind and these parts."""
    return _is_signed(public, signature, _message(kind, parts))


# Sites that live in one process check the same signatures, and a check always ends the same way.
@lru_cache(maxsize=4096)
def _is_signed(public: str, signature: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def forget_checks() -> None:
    """Check every signature anew from here on: for measuring what one site alone would compute."""
    _is_signed.cache_clear()


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half as a roster writes it."""
    return key.public_key().public_bytes_raw().hex()


def table_word(key: Ed25519PrivateKey, version: str) -> str:
    """A word that changes when a table's version does and tells nothing else: 64 hex digits.

    The version is a hash of rows; of a few patients' rows it could be guessed, so others see it only under a key.
    """
    secret = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"medfed table word").derive(key.private_bytes_raw())
    return hmac.digest(secret, version.encode(), "sha256").hex()


def is_key(text: object) -> bool:
    """Whether this is 32 bytes in lower-case hex."""
    return isinstance(text, str) and len(text) == 64 and all(character in "0123456789abcdef" for character in text)
