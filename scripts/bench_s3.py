"""S3 servers on loopback that count: moto's, with every request seen on its way in."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

from tests.support.s3_servers import ACCESS_KEY, SECRET_KEY

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

PREFIX = "practice"
"""Where in the bucket the store begins."""


@dataclass(slots=True)
class Traffic:
    """What a server was asked for so far."""

    requests: Counter[str] = field(default_factory=Counter)
    """By method."""
    puts: Counter[str] = field(default_factory=Counter)
    """By kind of object: the first part of its key."""
    put_bytes: int = 0

    def copy(self) -> Traffic:
        """As it is now."""
        return Traffic(Counter(self.requests), Counter(self.puts), self.put_bytes)

    def since(self, earlier: Traffic) -> Traffic:
        """What came after an earlier copy."""
        return Traffic(
            self.requests - earlier.requests, self.puts - earlier.puts, self.put_bytes - earlier.put_bytes
        )


def kind_of(path: str) -> str:
    """The kind of object that a request's path /BUCKET/PREFIX/KIND... names."""
    parts = path.strip("/").split("/")
    return parts[2] if len(parts) > 2 else "bucket"


class CountingServer:
    """tests.support.s3_servers.S3Server that counts. It ignores who asks: credentials are for boto3 only."""

    access_key, secret_key = ACCESS_KEY, SECRET_KEY

    def __init__(self) -> None:
        self._application = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._traffic = Traffic()
        self._server: Any = None
        self.endpoint = ""

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Count one request and pass it on."""
        method, path = str(environ["REQUEST_METHOD"]), str(environ["PATH_INFO"])
        length = environ.get("HTTP_X_AMZ_DECODED_CONTENT_LENGTH") or environ.get("CONTENT_LENGTH") or 0
        with self._lock:
            self._traffic.requests[method] += 1
            if method == "PUT":
                self._traffic.puts[kind_of(path)] += 1
                self._traffic.put_bytes += int(length)
        answer: Iterable[bytes] = self._application(environ, start_response)
        return answer

    def traffic(self) -> Traffic:
        """What it was asked for so far."""
        with self._lock:
            return self._traffic.copy()

    def start(self) -> None:
        """Listen on a port of the system's choice."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it reports every request
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def counting_server() -> Iterator[CountingServer]:
    """One that runs for the length of the block. All of a process share their buckets."""
    server = CountingServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
