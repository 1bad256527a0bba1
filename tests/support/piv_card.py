"""A virtual PIV card in a process of its own: a small applet that speaks APDUs through vpcd's socket.

`python -m tests.support.piv_card` is the card; it is told what to do, and tells what it saw, in lines of
JSON on its standard input and output (`VirtualCard` answers them, tests/support/pcsc.py sends them). What
it does follows NIST SP 800-73-4, with the two commands of a YubiKey that ykcs11 asks for beside it. It
has no more than the tests use: no writing of objects, no key generation, no secure messaging.

Invariants:
- The PIN counts as verified only until the card loses power, is reset, or refuses a PIN.
- A PIN that arrives is counted before it is looked at. A VERIFY without data asks only, and is not a PIN.
- Every command meets a powered card: one that was told to vanish at an instruction never answers it.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

PIN = "123456"
TRIES_MAX = 3
AUTHENTICATION, SIGNATURE, KEY_MANAGEMENT = 0x9A, 0x9C, 0x9D
INS_VERIFY, INS_SELECT, INS_AUTHENTICATE = 0x20, 0xA4, 0x87
INS_GET_DATA, INS_GET_RESPONSE = 0xCB, 0xC0
INS_YUBICO_VERSION, INS_YUBICO_SERIAL = 0xFD, 0xF8

# A YubiKey 5 before firmware 5.3, whose PIV applet knows no GET METADATA either.
ATR = bytes.fromhex("3bfd1300008131fe158073c021c057597562694b657940")
FIRMWARE = bytes((5, 2, 7))
AID = bytes.fromhex("a000000308000010000100")
AID_SHORT = AID[:9]  # without the version

_CERTIFICATES = {AUTHENTICATION: "5fc105", SIGNATURE: "5fc10a", KEY_MANAGEMENT: "5fc10b"}
_CHUID, _CAPABILITIES = "5fc102", "5fc107"
_FASC_N = bytes.fromhex("d4e739da739ced39ce739d836858210842108421c84210c3eb")
_CHUNK_SIZE_BYTES = 256
_CHAINED = 0x10

_POWER_OFF, _POWER_ON, _RESET, _GET_ATR = 0, 1, 2, 4  # vpcd's messages of one byte
_CONNECT_DEADLINE_S = 10.0
_AWAY_S = 0.42
"""Somewhat longer than the time between two of pcscd's looks at a reader."""

OK: Final = 0x9000
NOT_FOUND, NO_INSTRUCTION = 0x6A82, 0x6D00
BAD_DATA, NO_REFERENCE = 0x6A80, 0x6A88
NOT_ALLOWED, BLOCKED = 0x6982, 0x6983
TRIES_LEFT = 0x63C0

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Vanished(Exception):
    """The card left the reader in the middle of a command."""


def _tlv(tag: str, value: bytes) -> bytes:
    size = len(value)
    if size < 0x80:
        length = bytes((size,))
    elif size < 0x100:
        length = bytes((0x81, size))
    else:
        length = b"\x82" + size.to_bytes(2, "big")
    return bytes.fromhex(tag) + length + value


def _fields(data: bytes) -> dict[str, bytes]:
    """The BER-TLV fields of a command, by tag; all tags that PIV sends have one byte."""
    found = {}
    while data:
        tag, size, start = data[:1].hex(), data[1], 2
        if size > 0x80:
            start += size & 0x7F
            size = int.from_bytes(data[2:start], "big")
        found[tag], data = data[start : start + size], data[start + size :]
    return found


def _certificate(slot: int, key: Key) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"slot {slot:02x}")])
    start = datetime.datetime(2024, 1, 1)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(slot)
    builder = builder.public_key(key.public_key()).not_valid_before(start)
    signed = builder.not_valid_after(start + datetime.timedelta(days=9000)).sign(key, hashes.SHA256())
    return _tlv("70", signed.public_bytes(Encoding.DER)) + _tlv("71", b"\0") + _tlv("fe", b"")


class PivApplet:
    """What is on the chip: keys, objects, and a PIN with its tries."""

    def __init__(self, keys: Mapping[int, Key], *, serial: int) -> None:
        self.tries_left = TRIES_MAX
        self.pins_received = 0
        self.commands = 0
        self.vanish_at: int | None = None
        self.vanish_after: int | None = None
        self._keys = keys
        self._serial = serial
        identity = _tlv("30", _FASC_N) + _tlv("34", os.urandom(16)) + _tlv("35", b"20400101")
        capabilities = _tlv("f0", bytes.fromhex("a000000116ff02") + os.urandom(14))
        capabilities += _tlv("f1", b"\x21") + _tlv("f2", b"\x21") + _tlv("f3", b"") + _tlv("f4", b"\0")
        capabilities += _tlv("f5", b"\x10")
        for tag in ("f6", "f7", "fa", "fb", "fc", "fd", "fe"):
            capabilities += _tlv(tag, b"")
        self._objects = {
            _CHUID: identity + _tlv("3e", b"") + _tlv("fe", b""),
            _CAPABILITIES: capabilities,
            **{_CERTIFICATES[slot]: _certificate(slot, key) for slot, key in keys.items()},
        }
        self.reset()

    def reset(self) -> None:
        """Lose power: nothing is selected, nobody is logged in, nothing waits to be fetched."""
        self._selected = self._verified = False
        self._chained = self._waiting = b""

    def answer(self, command: bytes) -> bytes:
        """Answer one APDU, in pieces of 256 bytes. Raises: Vanished."""
        instruction = command[1]
        if instruction == self.vanish_at or self.vanish_after == 0:
            self.vanish_at = self.vanish_after = None
            raise Vanished
        if self.vanish_after is not None:
            self.vanish_after -= 1
        self.commands += 1
        if instruction == INS_GET_RESPONSE:
            return self._next_chunk(OK)
        self._chained += _body(command)
        if command[0] & _CHAINED:
            return OK.to_bytes(2, "big")
        data, self._chained = self._chained, b""
        status, self._waiting = self._execute(instruction, command[2], command[3], data)
        return self._next_chunk(status)

    def _next_chunk(self, status: int) -> bytes:
        chunk, self._waiting = self._waiting[:_CHUNK_SIZE_BYTES], self._waiting[_CHUNK_SIZE_BYTES:]
        if self._waiting:
            status = 0x6100 | (min(len(self._waiting), _CHUNK_SIZE_BYTES) & 0xFF)
        return chunk + status.to_bytes(2, "big")

    def _execute(self, instruction: int, p1: int, p2: int, data: bytes) -> tuple[int, bytes]:
        if instruction == INS_SELECT and p1 == 4:
            return self._select(data)
        if not self._selected:
            return NO_INSTRUCTION, b""
        if instruction == INS_VERIFY:
            return self._verify(p1, p2, data), b""
        if instruction == INS_GET_DATA:
            value = self._objects.get(_fields(data).get("5c", b"").hex())
            return (NOT_FOUND, b"") if value is None else (OK, _tlv("53", value))
        if instruction == INS_AUTHENTICATE:
            return self._use_key(p2, data)
        if instruction == INS_YUBICO_VERSION:
            return OK, FIRMWARE
        if instruction == INS_YUBICO_SERIAL:
            return OK, struct.pack(">I", self._serial)
        return NO_INSTRUCTION, b""

    def _select(self, name: bytes) -> tuple[int, bytes]:
        # A name that fails leaves the applet selected that was; selecting PIV again keeps the log-in.
        if len(name) < 5 or not AID.startswith(name):
            return NOT_FOUND, b""
        self._selected = True
        return OK, _tlv("61", _tlv("4f", AID[5:]) + _tlv("79", _tlv("4f", AID[:5])))

    def _verify(self, p1: int, p2: int, data: bytes) -> int:
        if p2 != 0x80:
            return NO_REFERENCE
        if p1 == 0xFF:  # log out
            self._verified = False
            return OK
        if not data:
            if self._verified:
                return OK
            return TRIES_LEFT | self.tries_left if self.tries_left else BLOCKED
        self.pins_received += 1
        if not self.tries_left:
            return BLOCKED
        self._verified = data == PIN.encode().ljust(8, b"\xff")
        self.tries_left = TRIES_MAX if self._verified else self.tries_left - 1
        return OK if self._verified else TRIES_LEFT | self.tries_left

    def _use_key(self, slot: int, data: bytes) -> tuple[int, bytes]:
        key = self._keys.get(slot)
        if key is None:
            return NO_REFERENCE, b""
        if not self._verified:
            return NOT_ALLOWED, b""
        asked = _fields(_fields(data).get("7c", b""))
        if isinstance(key, ec.EllipticCurvePrivateKey) and "85" in asked:
            point = ec.EllipticCurvePublicKey.from_encoded_point(key.curve, asked["85"])
            result = key.exchange(ec.ECDH(), point)
        elif isinstance(key, rsa.RSAPrivateKey) and "81" in asked:
            # The raw operation: removing the padding is the host's.
            numbers = key.private_numbers()
            value = pow(int.from_bytes(asked["81"], "big"), numbers.d, numbers.public_numbers.n)
            result = value.to_bytes(key.key_size // 8, "big")
        else:
            return BAD_DATA, b""
        return OK, _tlv("7c", _tlv("82", result))


def _body(command: bytes) -> bytes:
    """The data field of a command, short or extended."""
    rest = command[4:]
    if len(rest) > 3 and rest[0] == 0:
        return rest[3 : 3 + int.from_bytes(rest[1:3], "big")]
    return rest[1 : 1 + rest[0]] if len(rest) > 1 else b""


# --- the card in its reader ------------------------------------------------------------------


class VirtualCard:
    """Puts an applet into a vpcd reader and takes it out; answers orders.

    The reader's thread and the one that takes orders share the applet without a lock: the tests give
    orders only while no call on the card runs, but for taking it out, which is one call on the socket.
    """

    def __init__(self, applet: PivApplet) -> None:
        self._applet = applet
        self._socket: socket.socket | None = None
        self._left_s = -_AWAY_S

    def obey(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the order says, and answer with what the card saw so far."""
        match order["do"]:
            case "insert":
                self._insert(order["port"])
            case "remove":
                self._remove()
            case "set":
                self._applet.tries_left = order.get("tries_left", self._applet.tries_left)
                self._applet.vanish_at = order.get("at")
                self._applet.vanish_after = order.get("after")
            case "look":
                pass
            case other:
                raise ValueError(f"no such order: {other}")
        return {
            "pins_received": self._applet.pins_received,
            "tries_left": self._applet.tries_left,
            "is_inserted": self._socket is not None,
            "commands": self._applet.commands,
        }

    def _insert(self, port: int) -> None:
        time.sleep(max(0.0, self._left_s + _AWAY_S - time.monotonic()))
        deadline_s = time.monotonic() + _CONNECT_DEADLINE_S
        while self._socket is None:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port))
            except ConnectionRefusedError:
                # The reader listens only once pcscd looks for a card, some time after it started.
                if time.monotonic() > deadline_s:
                    raise
                time.sleep(0.02)
        threading.Thread(target=self._serve, args=(self._socket,), daemon=True).start()

    def _remove(self) -> None:
        taken, self._socket = self._socket, None
        if taken is not None:
            self._left_s = time.monotonic()
            taken.shutdown(socket.SHUT_RDWR)
            taken.close()

    def _serve(self, reader: socket.socket) -> None:
        try:
            while True:
                message = _receive(reader, int.from_bytes(_receive(reader, 2), "big"))
                if message == bytes((_GET_ATR,)):
                    answer = ATR
                elif len(message) == 1:
                    self._applet.reset()
                    continue
                else:
                    answer = self._applet.answer(message)
                reader.sendall(len(answer).to_bytes(2, "big") + answer)
        except Vanished:
            self._remove()
        except (EOFError, OSError):
            return  # taken out by an order, or the reader is gone


def _receive(reader: socket.socket, size_bytes: int) -> bytes:
    data = b""
    while len(data) < size_bytes:
        # vpcd writes a length and its data one by one. Unless the first is acknowledged at once, its
        # kernel holds the second back, for 40 ms at every command. Linux forgets the option as it goes.
        reader.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        piece = reader.recv(size_bytes - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _make_key(kind: str) -> Key:
    return ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)


def main() -> None:
    """The first line of input is {"keys": {slot: "ec" | "rsa"}, "serial": ...}."""
    made = json.loads(sys.stdin.readline())
    keys = {int(slot, 16): _make_key(kind) for slot, kind in made["keys"].items()}
    card = VirtualCard(PivApplet(keys, serial=made["serial"]))
    for line in sys.stdin:
        print(json.dumps(card.obey(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
