"""Signed messages between coordinator and site: who wrote it, to whom, when, and that nothing was changed.

Every message is signed with the long-term Ed25519 key of its sender, over and above TLS: NVFLARE's processes carry it and
can't write one. A question has a fresh nonce, and an answer repeats it, so a recorded answer answers nothing.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from medfed.canonical import canonical_json
from medfed.engines.nvflare.frames import BadMessage
from medfed.federation.keys import is_signed_by

VERSION = 1
COORDINATOR = "coordinator"
CLOCKS_APART_SECONDS = 600.0

_FIELDS: dict[str, Any] = {
    "v": int, "consortium": str, "kind": str, "from": str, "to": str, "nonce": str, "at": (int, float), "blob": str,
    "size": int, "content": dict, "signature": str,
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """What was said. kind: ping | call | part | ...; content: JSON values; blob: at most one chunk.

    blob_hash: SHA-256 of the blob (hex) where it is known: hashing is most of what a large message costs.
    """

    kind: str
    content: Mapping[str, Any]
    blob: bytes = b""
    nonce: str = ""
    blob_hash: str = ""


@dataclass(frozen=True)
class Sealer:
    """One end of the conversations of a consortium: its name, its key, and how it reads the clock."""

    consortium: str
    name: str
    key: Ed25519PrivateKey = field(repr=False)
    clock: Callable[[], float] = time.time

    def write(self, message: Message, to: str) -> dict[str, Any]:
        """The header that goes before ``message.blob``; a question without a nonce gets a fresh one."""
        header: dict[str, Any] = {
            "v": VERSION,
            "consortium": self.consortium,
            "kind": message.kind,
            "from": self.name,
            "to": to,
            "nonce": message.nonce or secrets.token_hex(16),
            "at": round(self.clock(), 3),
            "blob": message.blob_hash or (hashlib.sha256(message.blob).hexdigest() if message.blob else ""),
            "size": len(message.blob),
            "content": dict(message.content),
        }
        header["signature"] = self.key.sign(_signed_bytes(header)).hex()
        return header

    def read(self, header: Mapping[str, Any], blob: bytes, *, sender: str, public: str, nonce: str = "") -> Message:
        """Check a message from ``sender``, whose key is ``public`` (hex); ``nonce``: the question it answers.

        Raises BadMessage, which says what is wrong without repeating anything of the message.
        """
        for name, kind in _FIELDS.items():
            if not isinstance(header.get(name), kind) or isinstance(header.get(name), bool):
                raise BadMessage(f"a message lacks its {name}")
        if set(header) != set(_FIELDS) or header["v"] != VERSION:
            raise BadMessage("a message is of another version of medfed; bring both sides to the same one")
        if header["consortium"] != self.consortium:
            raise BadMessage("a message belongs to another consortium")
        if header["from"] != sender or header["to"] != self.name:
            raise BadMessage("a message is from or to somebody else than its carrier says")
        try:
            signature, signed = bytes.fromhex(header["signature"]), _signed_bytes(header)
        except ValueError:
            raise BadMessage("a message's signature can't be read") from None
        if not is_signed_by(public, signed, signature):
            raise BadMessage("a message is not signed with the key of the one it names")
        if header["size"] != len(blob) or header["blob"] != (hashlib.sha256(blob).hexdigest() if blob else ""):
            raise BadMessage("a message was changed or cut on its way")
        if nonce and header["nonce"] != nonce:
            raise BadMessage("an answer is not to the question that was asked")
        return Message(header["kind"], header["content"], blob, header["nonce"], header["blob"])


def _signed_bytes(header: Mapping[str, Any]) -> bytes:
    return b"medfed message\n" + canonical_json({k: v for k, v in header.items() if k != "signature"}).encode()


@dataclass
class Fresh:
    """Refuses a question that was heard before, or that is older than clocks may differ. State of one process."""

    clock: Callable[[], float] = time.time
    seen: dict[str, float] = field(default_factory=dict)

    def check(self, header: Mapping[str, Any]) -> None:
        """Raises BadMessage. Call it only for a header whose signature holds."""
        now, at, nonce = self.clock(), float(header["at"]), str(header["nonce"])
        if abs(now - at) > CLOCKS_APART_SECONDS:
            raise BadMessage("a message is more than ten minutes old, or the clocks of coordinator and site differ")
        if len(nonce) != 32 or nonce in self.seen:
            raise BadMessage("a message was heard before")
        if len(self.seen) > 20_000:
            self.seen = {name: when for name, when in self.seen.items() if now - when <= 2 * CLOCKS_APART_SECONDS}
        self.seen[nonce] = now
