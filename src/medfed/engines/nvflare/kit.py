"""The file that a site is handed to join: sealed with a code that is said on the phone, with a fingerprint to compare."""

import base64
import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from medfed.engines.nvflare.wire import is_hash, is_site_name
from medfed.errors import FederationError

_LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
KIT_AT_MOST = 256 * 1024

_HOST = re.compile(r"[A-Za-z0-9.-]{1,63}")


@dataclass(frozen=True)
class Kit:
    """All that a site needs to join: where the coordinator is, whom to trust, its first certificate, a secret to enrol.

    authority: the public key that vouches for the keys of the consortium's sites.
    """

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
    authority: str = ""


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
        if not path.is_file() and path.exists():
            raise FederationError(f"{path} is no file; name the kit that the coordinator handed over")
        if path.stat().st_size > KIT_AT_MOST:
            raise FederationError(f"{path} is not a kit made by `medfed consortium invite`; it is too large")
        data = path.read_bytes()
        outer: Mapping[str, Any] = json.loads(data)
        public = {name: outer[name] for name in ("medfed_kit", "consortium", "site")}
        salt, nonce, box = (base64.b64decode(outer[name], validate=True) for name in ("salt", "nonce", "sealed"))
    except FileNotFoundError:
        raise FederationError(f"{path} does not exist; ask the coordinator for the kit") from None
    except OSError as problem:
        raise FederationError(f"{path} can't be read ({problem.strerror}); check the file's owner") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FederationError(f"{path} is not a kit made by `medfed consortium invite`; ask for it again") from None
    if public["medfed_kit"] != 1:
        raise FederationError(f"{path} was made by another version of medfed; bring both sides to the same one")
    try:
        inner = ChaCha20Poly1305(_key(code, salt)).decrypt(nonce, box, _bound(public))
        kit = Kit(**json.loads(inner))
    except (InvalidTag, ValueError, TypeError, RecursionError):
        raise FederationError(
            f"{path}: the code does not open this kit. Ask the coordinator for the code again, and compare the "
            f"fingerprint {fingerprint_of(data)}"
        ) from None
    if not _is_sound(kit):
        raise FederationError(f"{path} holds something that no site can join with; ask for a new kit")
    return kit


def _is_sound(kit: Kit) -> bool:
    """Whether every part of a kit is what it says; it was sealed by the coordinator, but paths and settings follow from it."""
    texts = [value for name, value in asdict(kit).items() if name != "port"]
    if not all(isinstance(value, str) and value.isascii() and len(value) <= 20_000 for value in texts):
        return False
    port = isinstance(kit.port, int) and not isinstance(kit.port, bool) and 0 < kit.port < 65536
    names = is_site_name(kit.site) and is_site_name(kit.name) and _HOST.fullmatch(kit.host) is not None
    keys = is_hash(kit.coordinator_key) and is_hash(kit.enrolment) and kit.consortium.isalnum()
    keys = keys and (is_hash(kit.authority) or not kit.authority)
    return port and names and keys and kit.scheme in ("tcp", "grpc", "http")


def _key(code: str, salt: bytes) -> bytes:
    plain = "".join(character for character in code.lower() if character.isalnum())
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(plain.encode())


def _bound(public: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(public), sort_keys=True).encode()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
