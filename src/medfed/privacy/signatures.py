"""Signatures over what a message says, with the kind of message in front: one can't be passed off as another."""

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfed.canonical import digest


def _message(kind: str, parts: tuple[str | bytes, ...]) -> bytes:
    return digest("medfed secure sum", kind, *parts).encode()


def sign(key: Ed25519PrivateKey, kind: str, *parts: str | bytes) -> bytes:
    """64 bytes of Ed25519 over the kind and the parts, each with its length."""
    return key.sign(_message(kind, parts))


def is_signed(public: str, signature: bytes, kind: str, *parts: str | bytes) -> bool:
    """Whether the owner of ``public`` (hex) signed exactly this kind and these parts."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, _message(kind, parts))
    except (InvalidSignature, ValueError):
        return False
    return True


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half as a roster writes it."""
    return key.public_key().public_bytes_raw().hex()


def is_key(text: object) -> bool:
    """Whether this is 32 bytes in lower-case hex."""
    return isinstance(text, str) and len(text) == 64 and all(character in "0123456789abcdef" for character in text)
