"""A server on loopback that answers S3 requests as a test tells it to: wrongly, partly or never."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Exchange:
    """One request, and how to answer it."""

    def __init__(self, handler: BaseHTTPRequestHandler, released: threading.Event) -> None:
        self.method = handler.command
        self.path = handler.path
        self.headers = handler.headers
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self._handler = handler
        self._released = released

    def answer(
        self,
        status: int,
        body: bytes = b"",
        *,
        headers: dict[str, str] | None = None,
        claimed_bytes: int | None = None,
    ) -> None:
        """Send an answer; claimed_bytes is the Content-Length when it should not be the true one."""
        self._handler.send_response(status)
        for name, value in (headers or {}).items():
            self._handler.send_header(name, value)
        self._handler.send_header(
            "Content-Length", str(len(body) if claimed_bytes is None else claimed_bytes)
        )
        # Said aloud, or the client would send its next request into the closing connection.
        self._handler.send_header("Connection", "close")
        self._handler.end_headers()
        if self.method != "HEAD":
            self._handler.wfile.write(body)

    def fail(self, status: int, code: str) -> None:
        """Send an S3 error document."""
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>no</Message></Error>"
        self.answer(status, text.encode())

    def send_raw(self, data: bytes) -> None:
        """Send these bytes, whatever they are, and close the connection."""
        self._handler.wfile.write(data)
        self._handler.close_connection = True

    def close(self) -> None:
        """Send nothing and close the connection."""
        self._handler.close_connection = True

    def hang(self) -> None:
        """Send nothing until the server ends."""
        self._released.wait()
        self._handler.close_connection = True


class ScriptedServer:
    """Calls `script` for each request, in threads; `requests` counts them."""

    def __init__(self) -> None:
        self.script: Callable[[Exchange], None] = lambda exchange: exchange.fail(501, "NotImplemented")
        self.requests: list[str] = []
        released = threading.Event()

        def handle(handler: BaseHTTPRequestHandler) -> None:
            exchange = Exchange(handler, released)
            self.requests.append(f"{exchange.method} {exchange.path}")
            self.script(exchange)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            do_GET = do_PUT = do_HEAD = do_DELETE = lambda self: handle(self)

            def log_message(self, format: str, *args: object) -> None:
                """Stay silent: tests look at `requests`."""

        self._released = released
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Let go of all that hangs, and end."""
        self._released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextlib.contextmanager
def scripted_server() -> Iterator[ScriptedServer]:
    """A running server."""
    server = ScriptedServer()
    server.start()
    try:
        yield server
    finally:
        server.stop()
