"""A TCP proxy in front of a real S3 server that puts a bad network, and a bad server, between it and boto3.

The fault model. A fault belongs to one exchange: a request and its answer. `FaultyProxy.rule` decides, in the
order in which requests arrive, and may be changed at any time:

- PASS          nothing happens to it.
- BUSY          503 SlowDown as S3 answers it, by the proxy alone; the server hears nothing.
- CUT_REQUEST   after some bytes of the request's body both connections are reset. The last byte never gets
                to the server, so that it has not the whole; a request without body does not get there at all.
- STALL_REQUEST the same, but instead of the reset there is silence.
- LOSE_ANSWER   the server acts on the whole request; its answer is swallowed, then the client gets a reset.
- CUT_ANSWER    reset after some bytes of the answer's body (without body: after half of its head).
- TRUNCATE      the same with a clean end of the stream instead of a reset.
- STALL_ANSWER  the same with silence instead.
- TRUNCATE_HEAD a clean end of the stream after some bytes of the answer's head.
- CLOSE         the whole answer arrives, then the connection that was promised to stay is closed.

Silence lasts until the client goes away, or for `stall_s`, then comes a reset. A reset is a TCP RST.

Of the whole link: `link` adds latency to each request and a bandwidth per connection and direction; `outage`
closes the listening port (connections are refused) and resets what is open; `recover` ends it.

Not modelled: changed bytes (TCP and TLS see to these; a server that rots is another matter), lost and
reordered packets (TCP turns them into latency), and what TLS would add.

What a `Mix` does to the n-th request depends on its seed and n alone: a run with the same order of requests
is repeated exactly. With several clients at once the order is the scheduler's; then the sequence of faults is
the same, not who meets which.

The proxy runs trio in a thread of its own: tests on any loop or none, and daemons in other processes, use it
alike.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import urlsplit

import trio

from tests.support.faults import Exchange, Fault, Kind, Link, Request, Rule, passes
from tests.support.http_stream import PIECE_BYTES, Broken, Head, Incoming

START_TIMEOUT_S = 30.0
DRAIN_S = 1.0
"""How long the rest of a request may take to get to a server that has answered it already."""
_GONE = (trio.BrokenResourceError, trio.ClosedResourceError, OSError, Broken)
_CUTS_REQUEST = frozenset({Kind.CUT_REQUEST, Kind.STALL_REQUEST})
_CUTS_ANSWER = frozenset({Kind.CUT_ANSWER, Kind.TRUNCATE, Kind.STALL_ANSWER, Kind.TRUNCATE_HEAD})
_BUSY_BODY = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message>"
    b"<RequestId>4442587FB7D0A2F9</RequestId><HostId>proxy</HostId></Error>"
)


@dataclass(slots=True)
class FaultyProxy:
    """A running proxy. `faulty_proxy` makes it; every method may be called from any thread but its own."""

    upstream: tuple[str, int]
    rule: Rule = passes
    link: Link = field(default_factory=Link)
    exchanges: list[Exchange] = field(default_factory=list)
    port: int = 0
    _token: trio.lowlevel.TrioToken | None = None
    _nursery: trio.Nursery | None = None
    _listening: trio.CancelScope | None = None
    _open: set[trio.SocketStream] = field(default_factory=set)

    @property
    def endpoint(self) -> str:
        """URL for clients."""
        return f"http://127.0.0.1:{self.port}"

    def clear(self) -> None:
        """No more faults, an even link, and a listening port."""
        self.rule, self.link = passes, Link()
        self.recover()

    def outage(self) -> None:
        """Refuse connections and reset those that are open; returns when it is so."""
        self._call(self._stop_listening)

    def recover(self) -> None:
        """Listen again, if it does not."""
        self._call(self._listen)

    def hits(self) -> list[Exchange]:
        """Exchanges to which something was to happen."""
        return [exchange for exchange in self.exchanges if exchange.fault.kind is not Kind.PASS]

    def _call(self, work: Callable[[], trio.Event]) -> None:
        """Run something on the proxy's thread and wait until the event that it returns is set."""
        assert self._token is not None and self._nursery is not None
        done = threading.Event()

        async def carry_out() -> None:
            await work().wait()
            done.set()

        self._token.run_sync_soon(self._nursery.start_soon, carry_out)
        assert done.wait(START_TIMEOUT_S), "the proxy does not answer"

    # --- on the proxy's own thread ---------------------------------------------------------------

    async def run(self, started: threading.Event) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
            await self._listen().wait()
            started.set()
            await trio.sleep_forever()

    def stop(self) -> None:
        """Make `run` end."""
        assert self._token is not None and self._nursery is not None
        self._token.run_sync_soon(self._nursery.cancel_scope.cancel)

    def _listen(self) -> trio.Event:
        assert self._nursery is not None
        ready = trio.Event()
        if self._listening is not None:
            ready.set()
            return ready
        self._listening = trio.CancelScope()
        self._nursery.start_soon(self._accept, self._listening, ready)
        return ready

    async def _accept(self, scope: trio.CancelScope, ready: trio.Event) -> None:
        assert self._nursery is not None
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        ready.set()
        with scope:
            await trio.serve_listeners(self._serve, listeners, handler_nursery=self._nursery)

    def _stop_listening(self) -> trio.Event:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        for stream in tuple(self._open):
            _reset(stream)
        assert self._nursery is not None
        closed = trio.Event()
        # The listeners are closed by the next turn of the loop that their task gets.
        self._nursery.start_soon(self._closed, closed)
        return closed

    async def _closed(self, closed: trio.Event) -> None:
        while True:
            try:
                await (await trio.open_tcp_stream("127.0.0.1", self.port)).aclose()
            except OSError:
                closed.set()
                return
            await trio.sleep(0.001)

    async def _serve(self, client: trio.SocketStream) -> None:
        self._open.add(client)
        try:
            with contextlib.suppress(*_GONE):
                await _Connection(self, client).run()
        finally:
            self._open.discard(client)

    def begin(self, head: Head) -> Exchange:
        """Number a request and decide what happens to it."""
        request = Request(len(self.exchanges), head.start[0], head.start[1])
        exchange = Exchange(request, self.rule(request))
        self.exchanges.append(exchange)
        return exchange


class _Reset(Exception):
    """Both connections end with a reset."""


class _End(Exception):
    """Both connections end, in order."""


class _Connection:
    """One client, and the connection to the server that belongs to it."""

    def __init__(self, proxy: FaultyProxy, client: trio.SocketStream) -> None:
        self._proxy = proxy
        self._client = client
        self._from_client = Incoming(client)

    async def run(self) -> None:
        server: trio.SocketStream | None = None
        try:
            server = await trio.open_tcp_stream(*self._proxy.upstream)
            from_server = Incoming(server)
            while (head := await self._from_client.head()) is not None:
                await trio.sleep(self._proxy.link.latency_s)
                await self._exchange(head, server, from_server, self._proxy.begin(head))
        except _End:
            pass
        except (_Reset, *_GONE):
            for stream in (self._client, server):
                if stream is not None:
                    _reset(stream)
        finally:
            with trio.CancelScope(shield=True):
                for stream in (self._client, server):
                    if stream is not None:
                        await stream.aclose()

    async def _exchange(
        self, head: Head, server: trio.SocketStream, from_server: Incoming, exchange: Exchange
    ) -> None:
        if exchange.fault.kind is Kind.BUSY:
            await self._answer_busy(head)
        try:
            async with trio.open_nursery() as nursery:
                sent = trio.Event()
                nursery.start_soon(self._send_request, head, server, exchange, sent)
                again = await self._pass_answer(head, from_server, exchange)
                # A server may answer without having read the whole request; what is left of that is dropped
                # with the connection.
                with trio.move_on_after(DRAIN_S):
                    await sent.wait()
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            # Both sides may have ended at once: one reason is enough.
            known, others = group.split((_End, _Reset, *_GONE))
            raise _first(known) if others is None and known is not None else group from None
        if not (again and head.keeps_alive and sent.is_set()) or exchange.fault.kind is Kind.CLOSE:
            raise _End

    async def _answer_busy(self, head: Head) -> None:
        if "expect" not in head.fields:
            async with contextlib.aclosing(self._from_client.body(head)) as pieces:
                async for _ in pieces:
                    pass
        body = b"" if head.start[0] == "HEAD" else _BUSY_BODY
        await self._client.send_all(
            b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        raise _End

    async def _send_request(
        self, head: Head, server: trio.SocketStream, exchange: Exchange, sent: trio.Event
    ) -> None:
        fault = exchange.fault
        allowed = None
        if fault.kind in _CUTS_REQUEST:
            size = head.body_size()
            allowed = fault.after_bytes if size is None else min(fault.after_bytes, size - 1)
            if allowed < 0:
                await self._interrupt(fault)
        await server.send_all(head.raw)
        async with contextlib.aclosing(self._from_client.body(head)) as pieces:
            async for piece in pieces:
                await self._pace(piece)
                part = piece if allowed is None else piece[: allowed - exchange.sent_bytes]
                await server.send_all(part)
                exchange.sent_bytes += len(part)
                if exchange.sent_bytes == allowed:
                    await self._interrupt(fault)
        sent.set()

    async def _pass_answer(self, request: Head, from_server: Incoming, exchange: Exchange) -> bool:
        """Returns whether the connection to the server may be used again."""
        fault = exchange.fault
        while True:
            head = await from_server.head()
            if head is None:
                raise _Reset
            if head.status >= 200:
                break
            await self._client.send_all(head.raw)
        exchange.acted = fault.kind not in _CUTS_REQUEST
        body = from_server.body(head, answers=request.start[0])
        async with contextlib.aclosing(body) as pieces:
            if fault.kind is Kind.LOSE_ANSWER:
                async for _ in pieces:
                    pass
                raise _Reset
            if fault.kind in _CUTS_ANSWER:
                await self._cut_answer(head, pieces, exchange, is_head=request.start[0] == "HEAD")
            await self._client.send_all(head.raw)
            async for piece in pieces:
                await self._pace(piece)
                await self._client.send_all(piece)
                exchange.answered_bytes += len(piece)
        has_end = head.body_size(answers=request.start[0]) is not None or "transfer-encoding" in head.fields
        return has_end and head.keeps_alive

    async def _cut_answer(
        self, head: Head, pieces: AsyncIterator[bytes], exchange: Exchange, *, is_head: bool
    ) -> None:
        fault = exchange.fault
        body = b"".join([piece async for piece in pieces])
        if fault.kind is Kind.TRUNCATE_HEAD:
            await self._client.send_all(head.raw[: min(fault.after_bytes, len(head.raw) - 1)])
        elif is_head or not body:
            await self._client.send_all(head.raw[: len(head.raw) // 2])
        else:
            part = body[: min(fault.after_bytes, len(body) - 1)]
            await self._client.send_all(head.raw + part)
            exchange.answered_bytes = len(part)
        await self._interrupt(fault)

    async def _pace(self, piece: bytes) -> None:
        await trio.sleep(len(piece) / self._proxy.link.bandwidth_bytes_s)

    async def _interrupt(self, fault: Fault) -> None:
        """The fault itself, when its moment has come."""
        if fault.kind in {Kind.TRUNCATE, Kind.TRUNCATE_HEAD}:
            raise _End
        if fault.kind in {Kind.STALL_REQUEST, Kind.STALL_ANSWER}:
            with trio.move_on_after(fault.stall_s):
                # Whatever still comes is not read to any end: an end of the stream is what counts.
                while await self._client.receive_some(PIECE_BYTES):
                    pass
        raise _Reset


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def _reset(stream: trio.SocketStream) -> None:
    # Closed without lingering, a socket sends RST instead of FIN.
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@contextlib.contextmanager
def faulty_proxy(server_endpoint: str) -> Iterator[FaultyProxy]:
    """A proxy in front of the server with that URL, without faults to begin with."""
    parts = urlsplit(server_endpoint)
    assert parts.hostname is not None and parts.port is not None
    proxy = FaultyProxy((parts.hostname, parts.port))
    started = threading.Event()
    thread = threading.Thread(target=partial(trio.run, proxy.run, started), name="faulty-proxy", daemon=True)
    thread.start()
    assert started.wait(START_TIMEOUT_S), "the proxy does not start"
    try:
        yield proxy
    finally:
        proxy.stop()
        thread.join(START_TIMEOUT_S)
        assert not thread.is_alive(), "the proxy does not end"
