"""Putting messages to a site's service in this process, as NVFLARE's relay would."""

import json
from typing import Any

from medfed.canonical import canonical_json, pack
from medfed.engines.nvflare.envelope import Message, Sealer
from medfed.engines.nvflare.site_service import SiteService

NOW = 1_800_000_000.0


class Clock:
    """Stands still, unless a test moves it."""

    now = NOW

    def __call__(self) -> float:
        return self.now


def put(service: SiteService, sealer: Sealer, message: Message, to: str = "north", **changes: Any) -> Message:
    """One message, handled; the verified reply. changes: of the header, signed again with the right key."""
    header = sealer.write(message, to)
    if changes:
        header |= changes
        del header["signature"]
        header["signature"] = sealer.key.sign(b"medfed message\n" + canonical_json(header).encode()).hex()
    text, blob = service.handle(canonical_json(header), message.blob)
    reply = Sealer(sealer.consortium, "coordinator", sealer.key)
    return reply.read(json.loads(text), blob, sender="north", public=public_of(service), nonce=header["nonce"])


def public_of(service: SiteService) -> str:
    return service.sealer.key.public_key().public_bytes_raw().hex()


def is_refused(reply: Message) -> bool:
    return reply.content.get("state") == "failure" and not reply.blob


def call_of(study: str, **changes: Any) -> Message:
    content: dict[str, Any] = dict(
        study=study, run="main", round=1, step="medfed:medfed.methods.standardise.moments", ordinal=0, part="train",
        roster=["north", "south"], variant=None, protection="plain", phase="answer", kept=None, settled=None, wait=0.1,
    )  # fmt: skip
    return Message("call", content | changes, pack({"inputs": {}, "each": {}}))
