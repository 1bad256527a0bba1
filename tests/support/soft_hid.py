"""The packets of USB around a software security key (CTAP 2.1, "USB HID"), for one channel at a time.

`plug_into` replaces the two functions of python-fido2 that reach /dev/hidraw*: the list of descriptors, and
opening one. All else, framing, keep-alives and cancelling, is python-fido2's own code against this.
"""

from __future__ import annotations

import errno
import os
import queue
import struct
import threading
from collections.abc import Sequence

import pytest
from fido2 import hid
from fido2.hid.base import CtapHidConnection, HidDescriptor

from tests.support.soft_authenticator import SoftAuthenticator, settle_touch

PACKET_SIZE_BYTES = 64
READ_DEADLINE_S = 30.0
CHANNEL = 0x00C0FFEE
BROADCAST = 0xFFFFFFFF

INIT, CBOR, CANCEL, KEEPALIVE, ERROR = 0x06, 0x10, 0x11, 0x3B, 0x3F
PROCESSING, TOUCH_NEEDED = b"\x01", b"\x02"
INVALID_COMMAND, CHANNEL_BUSY = b"\x01", b"\x06"
CAPABLE_OF_CBOR_ONLY = 0x0C


class SoftHid(CtapHidConnection):
    """One end of the wire; the key answers from a thread, as one that waits for a touch must."""

    def __init__(self, key: SoftAuthenticator) -> None:
        self.key = key
        self.busy = False
        """Another program has the key on its own channel."""
        self.touch_needed = threading.Event()
        """Set when the key begins to blink."""
        self.cancels = 0
        self.closed = False
        self._packets: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self._message = b""
        self._command = 0
        self._size = 0

    def write_packet(self, data: bytes) -> None:
        self.key.check_plugged_in()
        assert len(data) == PACKET_SIZE_BYTES
        channel, first = struct.unpack_from(">IB", data)
        if first & 0x80:
            self._command, self._size = first & 0x7F, struct.unpack_from(">H", data, 5)[0]
            self._message = data[7:]
        else:
            self._message += data[5:]
        if len(self._message) >= self._size:
            self._received(channel, self._command, self._message[: self._size])

    def read_packet(self) -> bytes:
        packet = self._packets.get(timeout=READ_DEADLINE_S)
        if packet is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return packet

    def close(self) -> None:
        self.closed = True

    def hang_up(self) -> None:
        """Have whoever reads get an error: nothing more comes."""
        self._packets.put(None)

    def _received(self, channel: int, command: int, message: bytes) -> None:
        if command == INIT:
            said = message + struct.pack(">IBBBBB", CHANNEL, 2, 1, 0, 0, CAPABLE_OF_CBOR_ONLY)
            self._send(channel, INIT, said)
        elif command == CANCEL:
            self.cancels += 1
            self._cancelled.set()
        elif command != CBOR:
            self._send(channel, ERROR, INVALID_COMMAND)
        elif self.busy:
            self._send(channel, ERROR, CHANNEL_BUSY)
        else:
            self._cancelled.clear()
            threading.Thread(target=self._answer, args=(channel, message), daemon=True).start()

    def _answer(self, channel: int, message: bytes) -> None:
        def await_touch() -> None:
            self.touch_needed.set()
            settle_touch(self.key, self._cancelled, lambda: self._send(channel, KEEPALIVE, TOUCH_NEEDED))

        try:
            self._send(channel, KEEPALIVE, PROCESSING)
            said = self.key.answer(message, await_touch)
        except OSError:
            self._packets.put(None)
            return
        self._send(channel, CBOR, said)

    def _send(self, channel: int, command: int, message: bytes) -> None:
        head = struct.pack(">IBH", channel, 0x80 | command, len(message))
        packets = [head + message[: PACKET_SIZE_BYTES - len(head)]]
        rest = message[PACKET_SIZE_BYTES - len(head) :]
        size = PACKET_SIZE_BYTES - 5
        for sequence, start in enumerate(range(0, len(rest), size)):
            packets.append(struct.pack(">IB", channel, sequence) + rest[start : start + size])
        for packet in packets:
            self._packets.put(packet.ljust(PACKET_SIZE_BYTES, b"\0"))


def plug_into(monkeypatch: pytest.MonkeyPatch, wires: Sequence[SoftHid]) -> None:
    """Have python-fido2 find these on USB, those whose key is plugged in."""
    by_path = {f"/dev/hidraw{number}": wire for number, wire in enumerate(wires)}

    def descriptors() -> list[HidDescriptor]:
        return [
            HidDescriptor(path, 0x1050, 0x0407, PACKET_SIZE_BYTES, PACKET_SIZE_BYTES, wire.key.name, None)
            for path, wire in by_path.items()
            if wire.key.plugged_in
        ]

    monkeypatch.setattr(hid, "list_descriptors", descriptors)
    monkeypatch.setattr(hid, "open_connection", lambda descriptor: by_path[descriptor.path])
