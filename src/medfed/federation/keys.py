"""A site's signing key (Ed25519): signs approvals and ledger heads. The primitives are the cryptography package's."""

import os
import stat
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medfed.canonical import write_atomically
from medfed.errors import PolicyViolation

SIGNING_KEY = "site_signing.pem"


def new_signing_key() -> Ed25519PrivateKey:
    """A fresh key from the system's generator."""
    return Ed25519PrivateKey.generate()


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hex digits: what the coordinator keeps to check signatures."""
    return key.public_key().public_bytes_raw().hex()


def write_signing_key(folder: Path) -> Ed25519PrivateKey:
    """Make a key in ``folder`` (0700), file 0600. An existing key is never overwritten."""
    path = folder / SIGNING_KEY
    if path.exists():
        raise PolicyViolation(f"{path} exists already; a site keeps its signing key, so nothing was changed")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(folder, 0o700)
    key = new_signing_key()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_atomically(path, pem, mode=0o600)
    return key


def load_signing_key(folder: Path) -> Ed25519PrivateKey:
    """Read the key; refused when it is missing, open to others, or not an Ed25519 key."""
    path = folder / SIGNING_KEY
    if not path.exists():
        raise PolicyViolation(f"{path} is missing; `medfed site init` makes the site's keys")
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise PolicyViolation(f"{path} can be read by other users of this machine; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError:
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise PolicyViolation(f"{path} is not a signing key made by `medfed site init`; restore it from a backup")
    return key


def is_signed_by(public: str, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made by the owner of ``public`` (hex)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True
