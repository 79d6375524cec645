"""The file that a site is handed to join: sealed with a code that is said on the phone, with a fingerprint to compare."""

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from medfed.errors import FederationError

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
KIT_AT_MOST = 256 * 1024


@dataclass(frozen=True)
class Kit:
    """All that a site needs to join: where the coordinator is, whom to trust, its first certificate, a secret to enrol."""

    consortium: str
    name: str
    site: str
    host: str
    port: int
    scheme: str
    coordinator_key: str
    root: str
    certificate: str
    key: str
    enrolment: str


def new_code() -> str:
    """A code to be said aloud: four groups of four letters and digits (79 bits), none that are mistaken for others."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(4))


def seal_kit(kit: Kit, code: str) -> bytes:
    """The kit's file. scrypt (n 2^15, r 8, p 1) of the code, then ChaCha20-Poly1305."""
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    public = {"medfed_kit": 1, "consortium": kit.name, "site": kit.site}
    box = ChaCha20Poly1305(_key(code, salt)).encrypt(nonce, json.dumps(asdict(kit)).encode(), _bound(public))
    return json.dumps(public | {"salt": _text(salt), "nonce": _text(nonce), "sealed": _text(box)}, indent=1).encode()


def fingerprint_of(data: bytes) -> str:
    """What is read out on the phone: 16 hex digits of the file's SHA-256, in fours."""
    text = hashlib.sha256(data).hexdigest()[:16]
    return " ".join(text[i : i + 4] for i in range(0, 16, 4))


def open_kit(path: Path, code: str) -> Kit:
    """Open a kit's file. FederationError when it is no kit, was changed, or the code is another one."""
    try:
        if path.stat().st_size > KIT_AT_MOST:
            raise FederationError(f"{path} is not a kit made by `medfed consortium invite`; it is too large")
        outer: Mapping[str, Any] = json.loads(path.read_bytes())
        public = {name: outer[name] for name in ("medfed_kit", "consortium", "site")}
        salt, nonce, box = (base64.b64decode(outer[name], validate=True) for name in ("salt", "nonce", "sealed"))
    except FileNotFoundError:
        raise FederationError(f"{path} does not exist; ask the coordinator for the kit") from None
    except (ValueError, KeyError, TypeError):
        raise FederationError(f"{path} is not a kit made by `medfed consortium invite`; ask for it again") from None
    if public["medfed_kit"] != 1:
        raise FederationError(f"{path} was made by another version of medfed; bring both sides to the same one")
    try:
        inner = ChaCha20Poly1305(_key(code, salt)).decrypt(nonce, box, _bound(public))
        return Kit(**json.loads(inner))
    except (InvalidTag, ValueError, TypeError):
        raise FederationError(
            f"{path}: the code does not open this kit. Ask the coordinator for the code again, and compare the "
            f"fingerprint {fingerprint_of(path.read_bytes())}"
        ) from None


def _key(code: str, salt: bytes) -> bytes:
    plain = "".join(character for character in code.lower() if character.isalnum())
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(plain.encode())


def _bound(public: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(public), sort_keys=True).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
