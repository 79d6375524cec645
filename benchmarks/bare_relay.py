"""Bare NVFLARE for the deployment benchmark: per-site proxies that are called with bytes and give them back. No medfed."""

import json
import os
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from nvflare.collab import collab

SIZE = struct.Struct("<I")


def read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        block = connection.recv(count - len(data))
        if not block:
            raise EOFError
        data += block
    return data


def ask(path: Path, size: int) -> float:
    """Seconds of one parallel call of all sites with ``size`` bytes each way, measured where the proxies are."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        connection.sendall(SIZE.pack(size))
        return float(json.loads(read(connection, SIZE.unpack(read(connection, SIZE.size))[0])))


class BareServer:
    """Server side."""

    def __init__(self, at: str) -> None:
        self.at = at

    @collab.main
    def main(self) -> None:
        proxies = {client.name: client for client in collab.clients}
        where = os.path.join(os.environ["MEDFED_RUN"], self.at)
        with suppress(FileNotFoundError):
            os.unlink(where)
        server = socket.socket(socket.AF_UNIX)
        server.bind(where)
        server.listen(4)
        server.settimeout(0.5)
        self.pool = ThreadPoolExecutor(len(proxies))
        while not collab.is_aborted:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                continue
            threading.Thread(target=self.serve, args=(connection, proxies), daemon=True).start()

    def serve(self, connection: socket.socket, proxies: dict[str, Any]) -> None:
        connection.settimeout(None)
        with suppress(EOFError, OSError), connection:
            while True:
                blob = os.urandom(SIZE.unpack(read(connection, SIZE.size))[0])
                start = time.perf_counter()
                list(self.pool.map(lambda proxy: proxy(timeout=120).call("{}", blob), proxies.values()))
                text = json.dumps(time.perf_counter() - start).encode()
                connection.sendall(SIZE.pack(len(text)) + text)


class BareSite:
    """Site side."""

    @collab.publish
    def call(self, header: str, blob: bytes) -> bytes:
        return blob
