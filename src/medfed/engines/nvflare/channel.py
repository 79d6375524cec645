"""The coordinator's line to one site: by the dispatcher job's socket, through NVFLARE, to the site's service and back."""

import contextlib
import hashlib
import json
import mmap
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from medfed.engines.nvflare.envelope import COORDINATOR, Message, Sealer
from medfed.engines.nvflare.frames import CHUNK, BadMessage, connect, parse, receive, send
from medfed.engines.nvflare.parts import Incoming, part_count
from medfed.errors import FederationError
from medfed.federation.keys import load_signing_key

Why = Literal["no dispatcher", "not in the dispatcher", "gone", "silent", "not verified", "refused"]
IN_FLIGHT = 2
COORDINATOR_KEY = "site_signing.pem"


class Unanswered(FederationError):
    """Nothing usable came back. why: how it failed, one of a few words."""

    def __init__(self, why: Why) -> None:
        super().__init__(why)
        self.why = why


class Channel:
    """One line to one site, used by one thread at a time. public_key: the site's, as the roster has it."""

    def __init__(self, relay: Path, sealer: Sealer, site: str, public_key: str) -> None:
        self.relay = relay
        self.sealer = sealer
        self.site = site
        self.public_key = public_key
        self._connection: socket.socket | None = None

    def ask(self, message: Message, *, timeout: float) -> Message:
        """The site's verified answer. Raises Unanswered; the question may be asked again."""
        header = self.sealer.write(message, self.site)
        try:
            connection = self._connected(timeout + 5.0)
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False)
            send(connection, {"to": self.site, "timeout": timeout, "message": text}, message.blob)
            reply, blob = receive(connection)
        except TimeoutError:
            self.close()
            raise Unanswered("silent") from None
        except (OSError, EOFError):
            self.close()
            raise Unanswered("no dispatcher") from None
        except BadMessage:
            self.close()
            raise Unanswered("not verified") from None
        if error := reply.get("error"):
            raise Unanswered({"absent": "not in the dispatcher", "silent": "silent"}.get(str(error), "gone"))  # type: ignore[arg-type]
        try:
            answer = parse(str(reply.get("message", "")))
            if answer.get("refused"):
                raise Unanswered("refused")
            found = self.sealer.read(answer, blob, sender=self.site, public=self.public_key, nonce=header["nonce"])
        except BadMessage:
            raise Unanswered("not verified") from None
        if found.kind != message.kind:
            raise Unanswered("not verified")
        return found

    def _connected(self, timeout: float) -> socket.socket:
        if self._connection is None:
            self._connection = connect(self.relay, timeout=timeout)
        self._connection.settimeout(timeout)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def sibling(self) -> "Channel":
        """Another line to the same site, for another thread."""
        return Channel(self.relay, self.sealer, self.site, self.public_key)

    # -- more than one chunk -----------------------------------------------------------------------------------------

    def put(self, data: bytes | memoryview | mmap.mmap, whole: str, *, timeout: float) -> None:
        """Send large inputs in parts, only those that the site lacks."""
        size = len(data)
        here = set(self.ask(Message("have", {"whole": whole, "size": size}), timeout=timeout).content.get("parts", []))

        def one(line: Channel, index: int) -> None:
            blob = bytes(data[index * CHUNK : (index + 1) * CHUNK])
            line.ask(Message("part", {"whole": whole, "size": size, "index": index}, blob), timeout=timeout)

        self._each([index for index in range(part_count(size)) if index not in here], one)

    def fetch(self, payload: str, size: int, incoming: Incoming, *, timeout: float) -> mmap.mmap:
        """A large answer, in parts, only those that are not here yet; mapped, so that it takes no memory."""
        here = set(incoming.parts(payload, size))

        def one(line: Channel, index: int) -> None:
            part = line.ask(Message("fetch", {"payload": payload, "index": index}), timeout=timeout)
            incoming.write(payload, size, index, part.blob)

        try:
            self._each([index for index in range(part_count(size)) if index not in here], one)
            path = incoming.finished(payload)
        except BadMessage:
            raise Unanswered("not verified") from None
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        incoming.drop(payload)  # the mapping keeps it as long as it is used
        return data

    def _each(self, indices: list[int], one: Any) -> None:
        """Do ``one`` for every part, a few at a time. The first failure ends it; what went well is kept."""
        lines = [self.sibling() for _ in range(min(IN_FLIGHT, len(indices)))]
        if not lines:
            return
        try:
            with ThreadPoolExecutor(len(lines)) as pool:
                shares = [indices[start :: len(lines)] for start in range(len(lines))]

                def work(line: Channel, share: list[int]) -> None:
                    for index in share:
                        one(line, index)

                for future in [pool.submit(work, line, share) for line, share in zip(lines, shares, strict=True)]:
                    future.result()
        finally:
            for line in lines:
                line.close()


def coordinator_sealer(keys: Path, consortium: str) -> Sealer:
    """The coordinator's end of the conversations, with its key from ``keys``."""
    return Sealer(consortium, COORDINATOR, load_signing_key(keys))


@contextlib.contextmanager
def line_to(relay: Path, sealer: Sealer, site: str, public_key: str) -> Iterator[Channel]:
    """A channel that is closed at the end."""
    channel = Channel(relay, sealer, site, public_key)
    try:
        yield channel
    finally:
        channel.close()


def sites_in_dispatcher(relay: Path, timeout: float = 2.0) -> tuple[set[str], int] | None:
    """Which sites the running dispatcher job has, and its process number; None when none runs or it does not answer."""
    try:
        with connect(relay, timeout=timeout) as connection:
            send(connection, {"list": True})
            reply, _ = receive(connection)
    except (OSError, EOFError, BadMessage):
        return None
    sites = reply.get("sites", [])
    return {str(site) for site in sites}, int(reply.get("pid", 0))


def payload_of(content: Mapping[str, Any]) -> tuple[str, int]:
    """Hash and size that an answer states."""
    payload, size = content.get("payload"), content.get("size")
    if not isinstance(payload, str) or len(payload) != 64 or not isinstance(size, int) or size < 0:
        raise Unanswered("not verified")
    return payload, size


def hash_of(data: bytes | mmap.mmap) -> str:
    return hashlib.sha256(data).hexdigest()
