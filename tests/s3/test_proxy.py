"""The proxy itself: each fault is what its name says, seen with plain sockets and HTTP, without boto3."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.faults import FAULTS, Always, Fault, Kind, Link, Mix, Request
from tests.support.faulty_proxy import FaultyProxy, faulty_proxy

BODY = bytes(range(256)) * 400
DEADLINE_S = 30.0


class Server(ThreadingHTTPServer):
    """Keeps what is PUT in `received`; GET answers BODY, in chunks under /chunked."""

    daemon_threads = True
    received: list[bytes]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_PUT(self) -> None:
        size = int(self.headers["Content-Length"])
        data = self.rfile.read(size)
        if len(data) == size:
            self.server.received.append(data)
            self._answer(b"")

    def do_GET(self) -> None:
        if self.path != "/chunked":
            self._answer(BODY)
            return
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in (BODY[:1], BODY[1:70_000], BODY[70_000:]):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
        self.wfile.write(b"0\r\n\r\n")

    def do_HEAD(self) -> None:
        self._answer(BODY)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:
            pass  # It is what the proxy is for.


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.received = []
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def proxy(server: Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(f"http://127.0.0.1:{server.server_address[1]}") as running:
        yield running


@pytest.fixture
def client(proxy: FaultyProxy) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
    yield connection
    connection.close()


def get(client: http.client.HTTPConnection, path: str = "/") -> bytes:
    client.request("GET", path)
    return client.getresponse().read()


def put(client: http.client.HTTPConnection, data: bytes) -> int:
    client.request("PUT", "/", body=data)
    answer = client.getresponse()
    answer.read()
    return answer.status


def test_without_faults(proxy: FaultyProxy, server: Server, client: http.client.HTTPConnection) -> None:
    for path in ("/", "/chunked", "/"):
        assert get(client, path) == BODY
    client.request("HEAD", "/")
    assert client.getresponse().read() == b""
    assert put(client, BODY) == 200
    assert server.received == [BODY]
    assert [exchange.request.method for exchange in proxy.exchanges] == ["GET", "GET", "GET", "HEAD", "PUT"]
    assert proxy.hits() == []


def test_busy(proxy: FaultyProxy, server: Server, client: http.client.HTTPConnection) -> None:
    proxy.rule = Always(Fault(Kind.BUSY), times=1)
    client.request("PUT", "/", body=BODY)
    answer = client.getresponse()
    assert (answer.status, b"<Code>SlowDown</Code>" in answer.read()) == (503, True)
    assert server.received == []
    assert put(client, BODY) == 200


@pytest.mark.parametrize("after_bytes", [0, 50_000, 10**9])
def test_cut_request(
    proxy: FaultyProxy, server: Server, client: http.client.HTTPConnection, after_bytes: int
) -> None:
    proxy.rule = Always(Fault(Kind.CUT_REQUEST, after_bytes))
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        put(client, BODY)
    (exchange,) = proxy.exchanges
    assert exchange.sent_bytes == min(after_bytes, len(BODY) - 1)
    assert not exchange.acted
    client.close()
    with pytest.raises(ConnectionResetError):
        get(client)
    assert server.received == []


def test_lost_answer(proxy: FaultyProxy, server: Server, client: http.client.HTTPConnection) -> None:
    proxy.rule = Always(Fault(Kind.LOSE_ANSWER))
    with pytest.raises(ConnectionResetError):
        put(client, BODY)
    assert server.received == [BODY]
    assert proxy.exchanges[0].acted


@pytest.mark.parametrize("path", ["/", "/chunked"])
@pytest.mark.parametrize(
    ("kind", "error"), [(Kind.CUT_ANSWER, ConnectionResetError), (Kind.TRUNCATE, http.client.IncompleteRead)]
)
def test_cut_answer(
    proxy: FaultyProxy,
    client: http.client.HTTPConnection,
    kind: Kind,
    error: type[Exception],
    path: str,
) -> None:
    proxy.rule = Always(Fault(kind, 60_000))
    with pytest.raises(error):
        get(client, path)
    assert proxy.exchanges[0].answered_bytes == 60_000


def test_cut_head(proxy: FaultyProxy) -> None:
    for number, after_bytes in enumerate((0, 17, 10**9)):
        proxy.rule = Always(Fault(Kind.TRUNCATE_HEAD, after_bytes))
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=DEADLINE_S) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b"".join(iter(lambda: plain.recv(4096), b""))
        whole = b"HTTP/1.1 200 OK\r\n"
        assert answer[: len(whole)] == whole[:after_bytes]
        assert b"\r\n\r\n" not in answer
        assert len(answer) == after_bytes or number == 2


@pytest.mark.parametrize("kind", [Kind.STALL_REQUEST, Kind.STALL_ANSWER])
def test_stall(proxy: FaultyProxy, server: Server, kind: Kind) -> None:
    proxy.rule = Always(Fault(kind, 10))
    impatient = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.5)
    with pytest.raises(TimeoutError):
        get(impatient)
    impatient.close()
    proxy.rule = Always(Fault(kind, 10, stall_s=0.2))
    patient = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=DEADLINE_S)
    started_s = time.monotonic()
    with pytest.raises(ConnectionResetError):
        get(patient)
    assert time.monotonic() - started_s >= 0.2
    patient.close()
    assert server.received == []


def test_closed_after_an_answer(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    proxy.rule = Always(Fault(Kind.CLOSE), times=1)
    assert get(client) == BODY
    assert client.sock is not None, "the server promised to keep it"
    assert client.sock.recv(1) == b""
    client.close()
    assert get(client) == BODY


def test_outage(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    assert get(client) == BODY
    port = proxy.port
    proxy.outage()
    assert client.sock is not None
    with pytest.raises(ConnectionResetError):
        client.sock.recv(1)
    client.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    proxy.outage()
    proxy.recover()
    proxy.recover()
    assert (get(client), proxy.port) == (BODY, port)


def test_slow_link(proxy: FaultyProxy, client: http.client.HTTPConnection) -> None:
    proxy.link = Link(latency_s=0.2)
    started_s = time.monotonic()
    get(client)
    assert time.monotonic() - started_s >= 0.2
    proxy.link = Link(bandwidth_bytes_s=200_000)
    started_s = time.monotonic()
    assert get(client) == BODY
    assert time.monotonic() - started_s >= len(BODY) / 200_000


def test_a_mix_is_replayed_by_its_seed() -> None:
    shares = {kind: 0.08 for kind in FAULTS}
    requests = [Request(number, "GET", "/") for number in range(1000)]
    first = [Mix(7, shares)(request) for request in requests]
    assert first == [Mix(7, shares)(request) for request in requests]
    assert first != [Mix(8, shares)(request) for request in requests]
    for kind in Kind:
        assert 40 < sum(fault.kind is kind for fault in first) < 300
    assert {fault.after_bytes.bit_length() for fault in first} >= set(range(16))
