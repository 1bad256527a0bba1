"""The control socket's language: one JSON object per line, in both directions.

The client sends one request, {"protocol": 1, "command": ...}; the daemon answers with any number of
lines of type "progress" (and "prepared", for umount) and ends with one of type "done" or "error".
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirrorfs.cli.failures import RemoteError
from mirrorfs.errors import MirrorfsError, UsageError

PROTOCOL: Final = 1
LINE_SIZE_MAX_BYTES: Final = 256 * 1024
REQUEST_SIZE_MAX_BYTES: Final = 4 * 1024
PATH_SIZE_MAX_BYTES: Final = 107
"""sun_path of a Unix socket, without its final zero byte."""
STALL_S: Final = 90.0
"""After so long without progress and with an error, flush and umount stop waiting for a store."""

Message = dict[str, object]

_CREDENTIALS = struct.Struct("3i")
"""struct ucred: process, user, group."""


def encode_line(message: Message) -> bytes:
    """One message as it goes over the socket."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode_line(line: bytes) -> Message:
    """Raises: UsageError: not one JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise UsageError("The control socket got something that is no request.") from exc
    if not isinstance(message, dict):
        raise UsageError("The control socket got something that is no request.")
    return message


@contextmanager
def reachable_path(path: Path) -> Iterator[str]:
    """The path under which a socket can be bound or connected to within the block.

    A path longer than the kernel takes is shortened by working in its directory meanwhile: so the
    socket always lies beside the state, and no fallback place can be guessed wrongly.
    """
    if len(os.fsencode(path)) <= PATH_SIZE_MAX_BYTES:
        yield str(path)
        return
    before = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.chdir(path.parent)
        try:
            yield path.name
        finally:
            os.fchdir(before)
    finally:
        os.close(before)


# --- the client's side -----------------------------------------------------------------------


class NotMounted(MirrorfsError):
    """No process serves the volume on this machine."""


class NoAnswer(MirrorfsError):
    """The process that serves the volume says nothing."""


class ControlClient:
    """A connection to the daemon of a mounted volume; a context manager."""

    def __init__(self, path: Path, *, volume: str) -> None:
        """Raises: NotMounted: nobody listens. MirrorfsError: the socket is not ours to use."""
        self._volume = volume
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with reachable_path(path) as name:
                self._socket.connect(name)
        except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as exc:
            self._socket.close()
            raise NotMounted(f"Volume {volume} is not mounted; `mirrorfs mount` mounts it.") from exc
        except OSError as exc:
            self._socket.close()
            raise MirrorfsError(
                f"The process that serves volume {volume} cannot be asked; try as the user who mounted it."
            ) from exc
        self._lines = self._socket.makefile("rb")

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; what the daemon does for this client alone, it stops."""
        self._lines.close()
        self._socket.close()

    def be_impatient(self, silence_s: float) -> None:
        """From now on `answers` raises NoAnswer when nothing comes for so long."""
        self._socket.settimeout(silence_s)

    @property
    def pid(self) -> int:
        """The process that serves the volume."""
        data = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return int(_CREDENTIALS.unpack(data)[0])

    def send(self, command: str, **fields: object) -> None:
        """Send the request. Raises: MirrorfsError: the daemon is gone."""
        try:
            self._socket.sendall(encode_line({"protocol": PROTOCOL, "command": command, **fields}))
        except OSError as exc:
            raise self._gone() from exc

    def answers(self) -> Iterator[Message]:
        """The daemon's lines up to and with the last one.

        Raises: MirrorfsError: with the exit code and the sentence that the daemon sent; or the daemon ended.
            NoAnswer: see `be_impatient`.
        """
        while True:
            try:
                line = self._lines.readline(LINE_SIZE_MAX_BYTES)
            except TimeoutError as exc:
                raise NoAnswer(f"The process that serves volume {self._volume} does not answer.") from exc
            except OSError as exc:
                raise self._gone() from exc
            if not line.endswith(b"\n"):
                raise self._gone()
            message = decode_line(line)
            if message.get("type") == "error":
                raise RemoteError(
                    str(message.get("message", "The request failed.")), exit_code=message.get("exit_code")
                )
            yield message
            if message.get("type") == "done":
                return

    def _gone(self) -> MirrorfsError:
        return MirrorfsError(
            f"The process that serves volume {self._volume} ended before it was done; see its log in the"
            " state directory, and mount again: what was written is kept."
        )
