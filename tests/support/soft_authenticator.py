"""A FIDO2 security key in software: as much of CTAP 2.1 as hmac-secret needs, and all that goes wrong.

Written from the specification (Client to Authenticator Protocol, 2.1), not from what MirrorFS sends: PIN/UV
auth protocols one and two, tries that run out, three wrong PINs until it is replugged, permits that one touch
uses up, two secrets per credential of which one needs user verification.

`SoftAuthenticator` is the key, `SoftDevice` is the same as python-fido2 sees a device, and `soft_hid` puts it
behind the packets of USB. Faults:

- the person touches late (`touch_after_s`), refuses, or does nothing (`touch`); `blinks` counts the waits
- the plug: `plugged_in`; `leaves_at` names the command during which it is pulled out
- the answer: `alter` may change any, after it was computed and before it is encoded
- the model: `legacy` is a key of CTAP 2.0; `takes_pin`, `protocols`, `extensions`, `credential_size_bytes`
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import os
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag
from threading import Event
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fido2 import cbor
from fido2.ctap import STATUS, CtapDevice
from fido2.hid import CAPABILITY, CTAPHID

TRIES_MAX = 8
TRIES_PER_POWER_CYCLE = 3
MESSAGE_SIZE_MAX_BYTES = 2048
LEGACY_MESSAGE_SIZE_MAX_BYTES = 1024
CREDENTIALS_PER_LIST_MAX = 8
ES256 = -7
KEEPALIVE_S = 0.02


class Command(IntEnum):
    """The first byte of a request."""

    MAKE_CREDENTIAL = 0x01
    GET_ASSERTION = 0x02
    GET_INFO = 0x04
    CLIENT_PIN = 0x06


class Pin(IntEnum):
    """Subcommands of CLIENT_PIN."""

    GET_RETRIES = 0x01
    GET_KEY_AGREEMENT = 0x02
    SET = 0x03
    GET_TOKEN = 0x05
    GET_TOKEN_WITH_PERMISSIONS = 0x09


class Status(IntEnum):
    """The first byte of an answer."""

    INVALID_COMMAND = 0x01
    INVALID_PARAMETER = 0x02
    INVALID_LENGTH = 0x03
    MISSING_PARAMETER = 0x14
    LIMIT_EXCEEDED = 0x15
    UNSUPPORTED_ALGORITHM = 0x26
    OPERATION_DENIED = 0x27
    UNSUPPORTED_OPTION = 0x2B
    KEEPALIVE_CANCEL = 0x2D
    NO_CREDENTIALS = 0x2E
    USER_ACTION_TIMEOUT = 0x2F
    PIN_INVALID = 0x31
    PIN_BLOCKED = 0x32
    PIN_AUTH_INVALID = 0x33
    PIN_AUTH_BLOCKED = 0x34
    PIN_NOT_SET = 0x35
    PUAT_REQUIRED = 0x36
    PIN_POLICY_VIOLATION = 0x37
    INVALID_SUBCOMMAND = 0x3E


class Flag(IntFlag):
    """Of authenticator data."""

    PRESENT = 0x01
    VERIFIED = 0x04
    ATTESTED = 0x40
    EXTENDED = 0x80


class Permission(IntFlag):
    """What a PIN/UV auth token is good for."""

    MAKE_CREDENTIAL = 0x01
    GET_ASSERTION = 0x02


class Touch(Enum):
    """What the person does when the key blinks."""

    GIVEN = "touches it"
    REFUSED = "says no, where a key has a button for that"
    NEVER = "does nothing, until the key gives up"


class RefusedError(Exception):
    """A request ends with a status other than success."""

    def __init__(self, status: Status) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True)
class Credential:
    rp: str
    private: ec.EllipticCurvePrivateKey
    secret_with_verification: bytes | None
    """None: made without hmac-secret."""
    secret_without_verification: bytes | None


Message = Mapping[Any, Any]
AwaitTouch = Callable[[], None]


class SoftAuthenticator:
    """The key itself; a request goes in, an answer comes out, and it takes no longer than the touch."""

    def __init__(
        self,
        *,
        pin: str | None = None,
        name: str = "Soft Key",
        takes_pin: bool = True,
        legacy: bool = False,
        protocols: tuple[int, ...] = (2, 1),
        extensions: tuple[str, ...] = ("hmac-secret",),
        credential_size_bytes: int = 64,
    ) -> None:
        self.name = name
        self.aaguid = bytes(range(16, 32))
        self.touch = Touch.GIVEN
        self.touch_after_s = 0.0
        self.blinks = 0
        self.plugged_in = True
        self.leaves_at: tuple[Command, Pin | None] | None = None
        self.alter: Callable[[Command, dict[Any, Any]], None] = lambda command, answer: None
        self.force_pin_change = False
        self.pins_seen = 0
        """PINs that were sent to it, right or wrong."""
        self._takes_pin = takes_pin
        self._legacy = legacy
        self._protocols = (1,) if legacy else protocols
        self._extensions = extensions
        self._credential_size_bytes = credential_size_bytes
        self._pin_hash = _sha256(pin.encode())[:16] if pin is not None else None
        self._tries = TRIES_MAX
        self._credentials: dict[bytes, Credential] = {}
        self._counter = 0
        self.power_cycle()

    def power_cycle(self) -> None:
        """What pulling it out and plugging it in again does."""
        self._wrong_in_a_row = 0
        self._renew()

    def unplug(self) -> None:
        self.plugged_in = False

    def plug_in(self) -> None:
        self.plugged_in = True
        self.leaves_at = None
        self.power_cycle()

    def set_tries_left(self, count: int, *, wrong_in_a_row: int = 0) -> None:
        """As if the others had been used up, so many of them since it was plugged in."""
        self._tries = count
        self._wrong_in_a_row = wrong_in_a_row

    def credential(self, identity: bytes) -> Credential:
        """What it keeps of a credential, for a test that computes by itself what it answers."""
        return self._credentials[identity]

    def _renew(self) -> None:
        self._agreement = ec.generate_private_key(ec.SECP256R1())
        self._token = os.urandom(32)
        self._permissions = Permission(0)
        self._token_rp: str | None = None

    # --- requests ------------------------------------------------------------------------

    def answer(self, request: bytes, await_touch: AwaitTouch) -> bytes:
        """Status and answer to one request.

        Args:
            await_touch: blinks and returns when it was touched, or raises RefusedError.
        Raises: OSError: it was pulled out.
        """
        if len(request) > (LEGACY_MESSAGE_SIZE_MAX_BYTES if self._legacy else MESSAGE_SIZE_MAX_BYTES):
            return bytes([Status.INVALID_LENGTH])
        message = cbor.decode(request[1:]) if request[1:] else {}
        assert isinstance(message, dict)
        try:
            command = Command(request[0])
        except ValueError:
            return bytes([Status.INVALID_COMMAND])
        if self.leaves_at == (command, message.get(2) if command is Command.CLIENT_PIN else None):
            self.unplug()
        self.check_plugged_in()
        try:
            found = self._dispatch(command, message, await_touch)
        except RefusedError as refused:
            return bytes([refused.status])
        self.alter(command, found)
        return b"\0" + (cbor.encode(found) if found else b"")

    def check_plugged_in(self) -> None:
        """Raises: OSError, as Linux has it."""
        if not self.plugged_in:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    def _dispatch(self, command: Command, message: Message, await_touch: AwaitTouch) -> dict[Any, Any]:
        if command is Command.GET_INFO:
            return self._info()
        if command is Command.CLIENT_PIN:
            return self._client_pin(message)
        if command is Command.MAKE_CREDENTIAL:
            return self._make_credential(message, await_touch)
        return self._get_assertion(message, await_touch)

    def _info(self) -> dict[Any, Any]:
        options = {"rk": False, "up": True}
        if self._takes_pin:
            options["clientPin"] = self._pin_hash is not None
        info: dict[Any, Any] = {
            0x01: ["FIDO_2_0"] if self._legacy else ["FIDO_2_0", "FIDO_2_1"],
            0x02: list(self._extensions),
            0x03: self.aaguid,
            0x04: options,
            0x06: list(self._protocols),
        }
        if not self._legacy:
            options["pinUvAuthToken"] = True
            info |= {
                0x05: MESSAGE_SIZE_MAX_BYTES,
                0x07: CREDENTIALS_PER_LIST_MAX,
                0x08: self._credential_size_bytes,
                0x09: ["usb"],
                0x0A: [{"alg": ES256, "type": "public-key"}],
                0x0C: self.force_pin_change,
            }
        return info

    # --- PIN -----------------------------------------------------------------------------

    def _client_pin(self, message: Message) -> dict[Any, Any]:
        what = message[2]
        if what == Pin.GET_RETRIES:
            found = {0x03: self._tries}
            return found if self._legacy else found | {0x04: self._wrong_in_a_row >= TRIES_PER_POWER_CYCLE}
        if message.get(1) not in self._protocols:
            raise RefusedError(Status.MISSING_PARAMETER)
        protocol: int = message[1]
        if what == Pin.GET_KEY_AGREEMENT:
            return {0x01: _cose(self._agreement.public_key(), algorithm=-25)}
        shared = self._shared(protocol, message[3])
        if what == Pin.SET:
            if self._pin_hash is not None:
                raise RefusedError(Status.PIN_AUTH_INVALID)
            self._check_mac(protocol, shared, message[5], message[4])
            pin = _decrypted(protocol, shared, message[5]).rstrip(b"\0")
            if not 4 <= len(pin) <= 63:
                raise RefusedError(Status.PIN_POLICY_VIOLATION)
            self._pin_hash = _sha256(pin)[:16]
            return {}
        if what == Pin.GET_TOKEN:
            granted = Permission.MAKE_CREDENTIAL | Permission.GET_ASSERTION
            return self._new_token(protocol, shared, message[6], granted, None)
        if what == Pin.GET_TOKEN_WITH_PERMISSIONS and not self._legacy:
            return self._new_token(protocol, shared, message[6], Permission(message[9]), message.get(10))
        raise RefusedError(Status.INVALID_SUBCOMMAND)

    def _new_token(
        self, protocol: int, shared: bytes, sealed_hash: bytes, granted: Permission, rp: str | None
    ) -> dict[Any, Any]:
        if self._pin_hash is None:
            raise RefusedError(Status.PIN_NOT_SET)
        if self._tries == 0:
            raise RefusedError(Status.PIN_BLOCKED)
        if self._wrong_in_a_row >= TRIES_PER_POWER_CYCLE:
            raise RefusedError(Status.PIN_AUTH_BLOCKED)
        # Counted before it is compared: pulling the plug in between gains nobody a try.
        self._tries -= 1
        self.pins_seen += 1
        if not hmac.compare_digest(_decrypted(protocol, shared, sealed_hash), self._pin_hash):
            self._wrong_in_a_row += 1
            self._renew()
            if self._tries == 0:
                raise RefusedError(Status.PIN_BLOCKED)
            if self._wrong_in_a_row >= TRIES_PER_POWER_CYCLE:
                raise RefusedError(Status.PIN_AUTH_BLOCKED)
            raise RefusedError(Status.PIN_INVALID)
        self._tries, self._wrong_in_a_row = TRIES_MAX, 0
        if self.force_pin_change:
            raise RefusedError(Status.PIN_POLICY_VIOLATION)
        self._token, self._permissions, self._token_rp = os.urandom(32), granted, rp
        return {0x02: _encrypted(protocol, shared, self._token)}

    def _shared(self, protocol: int, peer: Message) -> bytes:
        numbers = ec.EllipticCurvePublicNumbers(
            int.from_bytes(peer[-2], "big"), int.from_bytes(peer[-3], "big"), ec.SECP256R1()
        )
        z = self._agreement.exchange(ec.ECDH(), numbers.public_key())
        if protocol == 1:
            return _sha256(z)
        return b"".join(
            HKDF(hashes.SHA256(), 32, bytes(32), info).derive(z)
            for info in (b"CTAP2 HMAC key", b"CTAP2 AES key")
        )

    def _check_mac(self, protocol: int, key: bytes, message: bytes, found: bytes) -> None:
        expected = hmac.digest(key[:32], message, "sha256")
        if not hmac.compare_digest(expected[:16] if protocol == 1 else expected, found):
            raise RefusedError(Status.PIN_AUTH_INVALID)

    def _is_verified(
        self, rp: str, message: bytes, needed: Permission, *, parameter: object, protocol: object
    ) -> bool:
        """Whether the request bears the token's MAC; False without one."""
        if parameter is None:
            return False
        if protocol not in self._protocols:
            raise RefusedError(Status.MISSING_PARAMETER)
        assert isinstance(parameter, bytes) and isinstance(protocol, int)
        self._check_mac(protocol, self._token, message, parameter)
        if needed not in self._permissions or self._token_rp not in (None, rp):
            raise RefusedError(Status.PIN_AUTH_INVALID)
        self._token_rp = rp
        return True

    # --- credentials ---------------------------------------------------------------------

    def _make_credential(self, message: Message, await_touch: AwaitTouch) -> dict[Any, Any]:
        client_data_hash, rp = message[1], message[2]["id"]
        if not any(choice["alg"] == ES256 for choice in message[4]):
            raise RefusedError(Status.UNSUPPORTED_ALGORITHM)
        if message.get(7, {}).get("rk"):
            raise RefusedError(Status.UNSUPPORTED_OPTION)
        verified = self._is_verified(
            rp,
            client_data_hash,
            Permission.MAKE_CREDENTIAL,
            parameter=message.get(8),
            protocol=message.get(9),
        )
        if self._pin_hash is not None and not verified:
            raise RefusedError(Status.PUAT_REQUIRED)
        self._touched(await_touch)
        wanted = "hmac-secret" in self._extensions and message.get(6, {}).get("hmac-secret") is True
        credential = Credential(
            rp,
            ec.generate_private_key(ec.SECP256R1()),
            os.urandom(32) if wanted else None,
            os.urandom(32) if wanted else None,
        )
        identity = os.urandom(self._credential_size_bytes)
        self._credentials[identity] = credential
        attested = self.aaguid + struct.pack(">H", len(identity)) + identity
        attested += cbor.encode(_cose(credential.private.public_key(), algorithm=ES256))
        data = self._data(
            rp,
            Flag.PRESENT | Flag.ATTESTED | (Flag.VERIFIED if verified else Flag(0)),
            attested=attested,
            extensions={"hmac-secret": True} if wanted else None,
        )
        return {
            0x01: "packed",
            0x02: data,
            0x03: {"alg": ES256, "sig": _signed(credential, data + client_data_hash)},
        }

    def _get_assertion(self, message: Message, await_touch: AwaitTouch) -> dict[Any, Any]:
        rp, client_data_hash = message[1], message[2]
        verified = self._is_verified(
            rp,
            client_data_hash,
            Permission.GET_ASSERTION,
            parameter=message.get(6),
            protocol=message.get(7),
        )
        allowed = [item["id"] for item in message.get(3, ())]
        if not self._legacy and len(allowed) > CREDENTIALS_PER_LIST_MAX:
            raise RefusedError(Status.LIMIT_EXCEEDED)
        # It said so (0x08); what a key does with longer ones is its own affair, and this one is strict.
        if not self._legacy and any(len(name) > self._credential_size_bytes for name in allowed):
            raise RefusedError(Status.INVALID_PARAMETER)
        found = [name for name in allowed if name in self._credentials and self._credentials[name].rp == rp]
        if not found:
            raise RefusedError(Status.NO_CREDENTIALS)
        identity, credential = found[0], self._credentials[found[0]]
        wants_touch = message.get(5, {}).get("up", True)
        question = message.get(4, {}).get("hmac-secret")
        if question is not None and not wants_touch:
            raise RefusedError(Status.UNSUPPORTED_OPTION)
        if wants_touch:
            self._touched(await_touch)
        extensions = None
        if question is not None and credential.secret_with_verification is not None:
            extensions = {"hmac-secret": self._computed(credential, question, verified=verified)}
        data = self._data(
            rp,
            (Flag.PRESENT if wants_touch else Flag(0)) | (Flag.VERIFIED if verified else Flag(0)),
            extensions=extensions,
        )
        return {
            0x01: {"id": identity, "type": "public-key"},
            0x02: data,
            0x03: _signed(credential, data + client_data_hash),
        }

    def _computed(self, credential: Credential, question: Message, *, verified: bool) -> bytes:
        protocol = question.get(4, 1)
        if protocol not in self._protocols:
            raise RefusedError(Status.MISSING_PARAMETER)
        shared = self._shared(protocol, question[1])
        self._check_mac(protocol, shared, question[2], question[3])
        salts = _decrypted(protocol, shared, question[2])
        if len(salts) not in (32, 64):
            raise RefusedError(Status.INVALID_LENGTH)
        secret = credential.secret_with_verification if verified else credential.secret_without_verification
        assert secret is not None
        output = b"".join(
            hmac.digest(secret, salts[start : start + 32], "sha256") for start in range(0, len(salts), 32)
        )
        return _encrypted(protocol, shared, output)

    def _touched(self, await_touch: AwaitTouch) -> None:
        self.blinks += 1
        await_touch()
        # "Except lbw": a touch uses up what the PIN permitted. Keys of CTAP 2.0 are more generous.
        if not self._legacy:
            self._permissions = Permission(0)

    def _data(
        self, rp: str, flags: Flag, *, attested: bytes = b"", extensions: Mapping[str, Any] | None = None
    ) -> bytes:
        self._counter += 1
        flags |= Flag.EXTENDED if extensions else Flag(0)
        head = _sha256(rp.encode()) + struct.pack(">BI", flags, self._counter)
        return head + attested + (cbor.encode(extensions) if extensions else b"")


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _signed(credential: Credential, data: bytes) -> bytes:
    return credential.private.sign(data, ec.ECDSA(hashes.SHA256()))


def _cose(public: ec.EllipticCurvePublicKey, *, algorithm: int) -> dict[int, Any]:
    numbers = public.public_numbers()
    x, y = numbers.x.to_bytes(32, "big"), numbers.y.to_bytes(32, "big")
    return {1: 2, 3: algorithm, -1: 1, -2: x, -3: y}


def _finished(context: CipherContext, data: bytes) -> bytes:
    return context.update(data) + context.finalize()


def _encrypted(protocol: int, shared: bytes, data: bytes) -> bytes:
    if protocol == 1:
        return _finished(Cipher(algorithms.AES(shared), modes.CBC(bytes(16))).encryptor(), data)
    start = os.urandom(16)
    return start + _finished(Cipher(algorithms.AES(shared[32:]), modes.CBC(start)).encryptor(), data)


def _decrypted(protocol: int, shared: bytes, data: bytes) -> bytes:
    if protocol == 1:
        return _finished(Cipher(algorithms.AES(shared), modes.CBC(bytes(16))).decryptor(), data)
    return _finished(Cipher(algorithms.AES(shared[32:]), modes.CBC(data[:16])).decryptor(), data[16:])


class SoftDevice(CtapDevice):
    """The key as a device of python-fido2, without wires: what `CtapHidDevice.call` does, done directly."""

    def __init__(self, key: SoftAuthenticator) -> None:
        self.key = key
        self.closed = False
        self.product_name = key.name

    @property
    def capabilities(self) -> int:
        return CAPABILITY.CBOR | CAPABILITY.NMSG

    def call(
        self,
        cmd: int,
        data: bytes = b"",
        event: Event | None = None,
        on_keepalive: Callable[[STATUS], None] | None = None,
    ) -> bytes:
        assert cmd == CTAPHID.CBOR and not self.closed

        def keep_alive() -> None:
            if on_keepalive is not None:
                on_keepalive(STATUS.UPNEEDED)

        def await_touch() -> None:
            settle_touch(self.key, event or Event(), keep_alive)

        return self.key.answer(bytes(data), await_touch)

    def close(self) -> None:
        self.closed = True

    @classmethod
    def list_devices(cls) -> Iterator[CtapDevice]:
        return iter(())


def settle_touch(key: SoftAuthenticator, cancelled: Event, keep_alive: Callable[[], None]) -> None:
    """Wait as the key blinks. Raises: RefusedError. OSError: it was pulled out meanwhile."""
    ends_s = time.monotonic() + key.touch_after_s
    left_s = key.touch_after_s
    while left_s >= 0:
        keep_alive()
        if cancelled.wait(min(left_s, KEEPALIVE_S)):
            raise RefusedError(Status.KEEPALIVE_CANCEL)
        key.check_plugged_in()
        left_s = ends_s - time.monotonic()
    if key.touch is Touch.REFUSED:
        raise RefusedError(Status.OPERATION_DENIED)
    if key.touch is Touch.NEVER:
        raise RefusedError(Status.USER_ACTION_TIMEOUT)
