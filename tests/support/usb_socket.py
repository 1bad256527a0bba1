"""Security keys in software that programs in other processes find on USB, as a whole mount needs it.

`plugged_into` serves each key on a Unix socket: packets of USB (`soft_hid`), one connection per program that
opened the key, and first of all the key's name. Programs started with PYTHONPATH of the folder it yields list
and open these instead of /dev/hidraw*: Python imports a `sitecustomize` there, which calls `find_keys`. The
program itself knows nothing of it.
"""

from __future__ import annotations

import errno
import os
import queue
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from fido2 import hid
from fido2.hid.base import CtapHidConnection, HidDescriptor

if TYPE_CHECKING:
    from tests.support.soft_authenticator import SoftAuthenticator
    from tests.support.soft_hid import SoftHid

_PACKET_SIZE_BYTES = 64
_NAME_SIZE_MAX_BYTES = 256
_END_DEADLINE_S = 30.0
_FINDS_KEYS = """\
from tests.support.usb_socket import find_keys
find_keys({folder!r})
"""


# --- in the process of the test ---------------------------------------------------------------


@contextmanager
def plugged_into(keys: Sequence[SoftAuthenticator]) -> Iterator[Path]:
    """A folder for the PYTHONPATH of programs that are to find these keys, those that are plugged in."""
    # Paths of Unix sockets are short, those of pytest's directories are not.
    folder = Path(tempfile.mkdtemp(prefix="usb-"))
    sockets = folder / "sockets"
    sockets.mkdir(mode=0o700)
    (folder / "sitecustomize.py").write_text(_FINDS_KEYS.format(folder=str(sockets)))
    ports = [_Port(key, sockets / f"hidraw{number}") for number, key in enumerate(keys)]
    try:
        yield folder
    finally:
        for port in ports:
            port.close()
        shutil.rmtree(folder)


def _shut_down(end: socket.socket) -> None:
    """Wake whoever waits in it, here and on the other side."""
    with suppress(OSError):  # the other side was faster
        end.shutdown(socket.SHUT_RDWR)


class _Port:
    """Where one key is plugged in, or could be."""

    def __init__(self, key: SoftAuthenticator, path: Path) -> None:
        self._key = key
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(str(path))
        self._listener.listen()
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        _shut_down(self._listener)
        self._threads[0].join(_END_DEADLINE_S)  # the one that accepts: no other comes then
        for connection in self._connections:
            _shut_down(connection)
        for thread in self._threads:
            thread.join(_END_DEADLINE_S)
        assert not any(thread.is_alive() for thread in self._threads)
        for each in (self._listener, *self._connections):
            each.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        from tests.support.soft_hid import SoftHid

        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            if not self._key.plugged_in:
                connection.close()
                continue
            self._connections.append(connection)
            wire = SoftHid(self._key)
            connection.send(self._key.name.encode())
            self._start(self._hear, connection, wire)
            self._start(self._say, connection, wire)

    def _hear(self, connection: socket.socket, wire: SoftHid) -> None:
        """Packets of the program, until it closes or the key is pulled out."""
        with suppress(OSError):
            while packet := connection.recv(_PACKET_SIZE_BYTES):
                wire.write_packet(packet)
        wire.hang_up()

    def _say(self, connection: socket.socket, wire: SoftHid) -> None:
        """Packets of the key."""
        try:
            while True:
                try:
                    connection.send(wire.read_packet())
                except queue.Empty:
                    continue  # nobody asks it anything
        except OSError:
            _shut_down(connection)


# --- in the programs --------------------------------------------------------------------------


class _SocketConnection(CtapHidConnection):
    """A key behind its socket, as python-fido2 wants it."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.connect(path)
        self.name = self._socket.recv(_NAME_SIZE_MAX_BYTES).decode()
        """Nothing when the key is not plugged in."""

    def write_packet(self, data: bytes) -> None:
        self._socket.send(data)

    def read_packet(self) -> bytes:
        packet = self._socket.recv(_PACKET_SIZE_BYTES)
        if not packet:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return packet

    def close(self) -> None:
        self._socket.close()


def find_keys(folder: str) -> None:
    """Have python-fido2 list and open what is served in a folder, and nothing else."""

    def descriptors() -> list[HidDescriptor]:
        found = []
        for path in sorted(Path(folder).iterdir()):
            connection = _SocketConnection(str(path))
            connection.close()
            if connection.name:
                size = _PACKET_SIZE_BYTES
                found.append(HidDescriptor(str(path), 0x1050, 0x0407, size, size, connection.name, None))
        return found

    hid.list_descriptors = descriptors
    hid.open_connection = lambda descriptor: _SocketConnection(descriptor.path)
