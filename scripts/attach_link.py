"""A TCP relay before an S3 server: counts requests and bytes, and adds the latency of a long line."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

PIECE_BYTES = 256 * 1024
REQUEST_END = b" HTTP/1.1\r\n"


@dataclass(frozen=True, slots=True)
class Seen:
    """What went through so far."""

    requests: int
    answered_bytes: int


class Relay:
    """Listens on loopback and passes everything on, each request after a pause."""

    def __init__(self, port: int, *, latency_s: float) -> None:
        self._target = ("127.0.0.1", port)
        self._latency_s = latency_s
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._requests = self._bytes = 0
        self.endpoint = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def seen(self) -> Seen:
        """The counts now."""
        with self._lock:
            return Seen(self._requests, self._bytes)

    def run(self) -> None:
        """Serve until the listener is closed."""
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for one in (client, server):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target, asks in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass_on, args=(source, target, asks), daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _pass_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE_BYTES):
                if asks:
                    # A connection carries one request at a time, so that a pause here is the line's.
                    time.sleep(self._latency_s)
                with self._lock:
                    if asks:
                        self._requests += data.count(REQUEST_END)
                    else:
                        self._bytes += len(data)
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay(endpoint: str, *, latency_s: float) -> Iterator[Relay]:
    """One before an endpoint of this machine for the length of the block."""
    found = Relay(int(endpoint.rpartition(":")[2]), latency_s=latency_s)
    threading.Thread(target=found.run, daemon=True).start()
    try:
        yield found
    finally:
        found.close()
