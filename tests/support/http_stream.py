"""HTTP/1.1 messages read from a byte stream as they come: just enough of RFC 9112 for a proxy between S3
clients and servers. Heads are passed on as they are, bodies in the pieces in which they arrive.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass

import trio

HEAD_SIZE_MAX = 64 * 1024
PIECE_BYTES = 16 * 1024
_NO_BODY = frozenset({204, 304})


class Broken(Exception):
    """The peer went away in the middle of a message, or sends something that is none."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a request or an answer."""

    raw: bytes
    """With the empty line behind it."""
    start: tuple[str, ...]
    """The three parts of the first line."""
    fields: dict[str, str]
    """By name in lower case."""

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.start[1])

    @property
    def keeps_alive(self) -> bool:
        """Whether the connection is to be used again."""
        version = self.start[2] if self.start[2].startswith("HTTP/") else self.start[0]
        said = self.fields.get("connection", "").lower()
        return said == "keep-alive" or (version == "HTTP/1.1" and said != "close")

    def body_size(self, *, answers: str | None = None) -> int | None:
        """Bytes of the body as announced; None where its end shows only when it comes.

        Args:
            answers: the method of the request that this head is the answer to; None for a request.
        """
        if answers is not None and (answers == "HEAD" or self.status in _NO_BODY):
            return 0
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            return None
        if "content-length" in self.fields:
            return int(self.fields["content-length"])
        return 0 if self.start[2].startswith("HTTP/") else None


class Incoming:
    """One direction of a connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""

    async def head(self) -> Head | None:
        """The next head; None at a clean end of the stream. Raises: Broken."""
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_SIZE_MAX:
                raise Broken("a head without end")
            data = await self._receive()
            if not data:
                if self._buffer:
                    raise Broken("half a head")
                return None
            self._buffer += data
        raw, self._buffer = self._buffer[: end + 4], self._buffer[end + 4 :]
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        start = tuple(first.split(" ", 2))
        if len(start) != 3:
            raise Broken("no HTTP")
        pairs = (line.partition(":") for line in lines)
        return Head(raw, start, {name.strip().lower(): value.strip() for name, _, value in pairs})

    async def body(self, head: Head, *, answers: str | None = None) -> AsyncIterator[bytes]:
        """The pieces of a body, framing included; `answers` as for `Head.body_size`. Raises: Broken."""
        size = head.body_size(answers=answers)
        if size is not None:
            while size > 0:
                piece = await self._piece(size)
                size -= len(piece)
                yield piece
        elif "transfer-encoding" in head.fields:
            async with aclosing(self._chunks()) as chunks:
                async for piece in chunks:
                    yield piece
        else:
            while piece := self._buffer or await self._receive():
                self._buffer = b""
                yield piece

    async def _chunks(self) -> AsyncIterator[bytes]:
        while True:
            line = await self._line()
            yield line
            size = int(line.split(b";")[0], 16)
            if size == 0:
                break
            size += 2
            while size > 0:
                piece = await self._piece(size)
                size -= len(piece)
                yield piece
        while (line := await self._line()) != b"\r\n":
            yield line
        yield line

    async def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            self._buffer += await self._more()
        line, self._buffer = self._buffer[: end + 2], self._buffer[end + 2 :]
        return line

    async def _piece(self, size_max: int) -> bytes:
        if not self._buffer:
            self._buffer = await self._more()
        piece, self._buffer = self._buffer[:size_max], self._buffer[size_max:]
        return piece

    async def _more(self) -> bytes:
        data = await self._receive()
        if not data:
            raise Broken("half a body")
        return data

    async def _receive(self) -> bytes:
        return bytes(await self._stream.receive_some(PIECE_BYTES))
