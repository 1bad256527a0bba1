"""The control socket of a mounted volume: who may ask, and how requests are carried to the session.

0600 in a directory of 0700, and the kernel tells who connects: the same user, or root. It yields no key
and no file's contents.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

import trio

from mirrorfs.cli.control_protocol import (
    PROTOCOL,
    REQUEST_SIZE_MAX_BYTES,
    Message,
    decode_line,
    encode_line,
    reachable_path,
)
from mirrorfs.cli.failures import sentence_of, single_error
from mirrorfs.errors import MirrorfsError, UsageError

CONNECTIONS_MAX: Final = 16
REQUEST_DEADLINE_S: Final = 10.0
SEND_DEADLINE_S: Final = 10.0
DRAIN_DEADLINE_S: Final = 5.0

_CREDENTIALS = struct.Struct("3i")


class Connection:
    """One client, as a handler sees it."""

    def __init__(self, stream: trio.SocketStream, request: Message) -> None:
        self.request = request
        self._stream = stream

    async def send(self, message: Message) -> None:
        """Send one line. Raises: trio.BrokenResourceError: the client hung up, or does not read."""
        with trio.move_on_after(SEND_DEADLINE_S):
            await self._stream.send_all(encode_line(message))
            return
        raise trio.BrokenResourceError

    async def wait_closed(self) -> None:
        """Return when the client hung up; what it still sends is thrown away."""
        with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while await self._stream.receive_some(1024):
                pass


Handler = Callable[[Connection], Awaitable[Message]]
"""Carries out one command and returns the fields of the last line. Raises: MirrorfsError."""


class ControlServer:
    """Listens on a socket of its own and passes requests to handlers."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Bind the socket. The caller holds the volume's lock: a socket that is there is stale.

        Raises: MirrorfsError: it cannot be made.
        """
        self._path = path
        self._handlers = handlers
        self._active = 0
        self._idle = trio.Event()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with reachable_path(path) as name:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name)
                before = os.umask(0o177)
                try:
                    listener.bind(name)
                finally:
                    os.umask(before)
            listener.listen(CONNECTIONS_MAX)
        except OSError as exc:
            listener.close()
            raise MirrorfsError(
                "The control socket cannot be made in the state directory; check its file system."
            ) from exc
        self._listener = trio.socket.from_stdlib_socket(listener)

    async def serve(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer clients until cancelled; a client's trouble is its own."""
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                while True:
                    client, _ = await self._listener.accept()
                    if self._active >= CONNECTIONS_MAX:
                        client.close()
                        continue
                    self._active += 1
                    nursery.start_soon(self._answer, trio.SocketStream(client))
        finally:
            self._listener.close()
            with contextlib.suppress(OSError):
                self._path.unlink()

    async def drain(self) -> None:
        """Let the clients that are connected get their last line, for a few seconds."""
        with trio.move_on_after(DRAIN_DEADLINE_S):
            while self._active:
                self._idle = trio.Event()
                await self._idle.wait()

    async def _answer(self, stream: trio.SocketStream) -> None:
        try:
            async with stream:
                await self._answer_safely(stream)
        except trio.BrokenResourceError:
            # The client hung up: nobody is left to be told.
            pass
        finally:
            self._active -= 1
            if not self._active:
                self._idle.set()

    async def _answer_safely(self, stream: trio.SocketStream) -> None:
        if not _is_allowed(stream):
            return
        connection = Connection(stream, {})
        try:
            connection.request = await _read_request(stream)
            handler = self._handlers.get(str(connection.request.get("command")))
            if handler is None:
                raise UsageError("The process that serves the volume does not know this command.")
            fields = await handler(connection)
        except (MirrorfsError, ExceptionGroup) as error:
            leaf = single_error(error)
            if isinstance(leaf, trio.BrokenResourceError):
                return
            if not isinstance(leaf, MirrorfsError):
                raise
            sentence, exit_code = sentence_of(leaf)
            await connection.send({"type": "error", "message": sentence, "exit_code": exit_code})
        else:
            await connection.send({**fields, "type": "done"})


def _is_allowed(stream: trio.SocketStream) -> bool:
    """Whether the process at the other end runs as the same user, or as root."""
    data = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(data)
    return uid in (0, os.geteuid())


async def _read_request(stream: trio.SocketStream) -> Message:
    line = b""
    with trio.move_on_after(REQUEST_DEADLINE_S):
        while not line.endswith(b"\n") and len(line) <= REQUEST_SIZE_MAX_BYTES:
            part = await stream.receive_some(REQUEST_SIZE_MAX_BYTES)
            if not part:
                raise trio.BrokenResourceError
            line += part
    if not line.endswith(b"\n"):
        raise UsageError("The control socket got something that is no request.")
    request = decode_line(line)
    if request.get("protocol") != PROTOCOL:
        raise UsageError(
            "The volume is served by another version of MirrorFS; use that version to talk to it."
        )
    return request
