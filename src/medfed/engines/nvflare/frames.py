"""Messages on a local stream: a JSON header and a blob, each with its length before it and a limit on it.

The pipes on one machine speak it: runner and dispatcher job, job and site service, service and step process. It knows
nothing of signatures (``envelope``) or of what a message means (``wire``).
"""

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from medfed.errors import FederationError

HEADER_AT_MOST = 256 * 1024
CHUNK = 4 * 2**20
BLOB_AT_MOST = CHUNK + 64 * 1024
DEPTH_AT_MOST = 16
# Threads that only pass messages on wait for one that computes no longer than this (Python's default is 5 ms).
SWITCH_SECONDS = 0.0005

_LENGTHS = struct.Struct("<II")


class BadMessage(FederationError):
    """A message that is not what medfed writes; whoever sent it is not answered with anything of ours."""


def send(connection: socket.socket, header: Mapping[str, Any], blob: bytes | memoryview = b"") -> None:
    """Write one message. OSError when the other side is gone."""
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    start = _LENGTHS.pack(len(text), len(blob)) + text
    if len(blob) < 65536:
        connection.sendall(start + bytes(blob))
    else:
        connection.sendall(start)
        connection.sendall(blob)


def receive(connection: socket.socket, *, blob_at_most: int = BLOB_AT_MOST) -> tuple[dict[str, Any], bytes]:
    """Read one message. EOFError at the end of the stream, BadMessage for what passes a limit or is no JSON object."""
    header_size, blob_size = _LENGTHS.unpack(_exactly(connection, _LENGTHS.size))
    if header_size > HEADER_AT_MOST or blob_size > blob_at_most:
        raise BadMessage("a message passes the size that is allowed")
    header = parse(_exactly(connection, header_size))
    return header, _exactly(connection, blob_size) if blob_size else b""


def parse(text: bytes | str) -> dict[str, Any]:
    """A header's JSON: an object, not nested deeper than medfed writes. BadMessage otherwise."""
    if len(text) > HEADER_AT_MOST:
        raise BadMessage("a message passes the size that is allowed")
    raw = text.encode() if isinstance(text, str) else text
    # Depth first, on the bytes: a JSON parser that recurses is not asked about a bomb.
    depth = most = 0
    quoted = escaped = False
    if raw.count(b"[") + raw.count(b"{") > DEPTH_AT_MOST:
        for byte in raw:
            if quoted:
                if escaped:
                    escaped = False
                elif byte == 0x5C:
                    escaped = True
                elif byte == 0x22:
                    quoted = False
            elif byte == 0x22:
                quoted = True
            elif byte in b"[{":
                depth += 1
                most = max(most, depth)
            elif byte in b"]}":
                depth -= 1
        if most > DEPTH_AT_MOST:
            raise BadMessage("a message is nested deeper than is allowed")
    try:
        value = json.loads(raw, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadMessage("a message is not JSON") from None
    if not isinstance(value, dict):
        raise BadMessage("a message is not a JSON object")
    return value


def _no_constant(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray(count)
    view, at = memoryview(data), 0
    while at < count:
        read = connection.recv_into(view[at:])
        if read == 0:
            raise EOFError("the other side closed the connection")
        at += read
    return bytes(data)


@contextlib.contextmanager
def _short_path(path: Path) -> Iterator[str]:
    """A name of ``path`` that fits a socket address (108 bytes), by way of the open folder."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def listen(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can use (folder 0700, socket 0600); a stale one is replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.chmod(path.parent, 0o700)
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        with _short_path(path) as name:
            server.bind(name)
    finally:
        os.umask(before)
    server.listen(64)
    return server


def connect(path: Path, timeout: float | None = None) -> socket.socket:
    """Connect to a unix socket. OSError when nobody listens there."""
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout)
    try:
        with _short_path(path) as name:
            client.connect(name)
    except BaseException:
        client.close()
        raise
    return client
