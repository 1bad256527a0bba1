"""FIDO2 security keys through python-fido2: which are plugged in, the CTAP2 calls, and what errors mean.

Keys are open for the length of a block only, so one that was exchanged meanwhile is seen, and other programs
can have it. They are reached over USB HID. Readers (PC/SC) are left alone: to find a security key there, the
FIDO applet would have to be selected on every card, and a card of another use would lose its session by it.

python-fido2 is an extra, so this module is imported where a key is used and nowhere else (`fido2_token`).
"""

from __future__ import annotations

import logging
import secrets
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from fido2 import hid
from fido2.cose import ES256, CoseKey
from fido2.ctap import CtapDevice, CtapError
from fido2.ctap2.base import Ctap2
from fido2.ctap2.pin import ClientPin
from fido2.utils import sha256
from fido2.webauthn import AuthenticatorData

from mirrorfs.errors import (
    NotTouched,
    PinLocked,
    TokenFailed,
    TokenMissing,
    UnlockError,
    WrongPin,
    WrongToken,
)
from mirrorfs.format.slot_token import FIDO2_CREDENTIAL_SIZE_MAX_BYTES, FIDO2_RP

EXTENSION: Final = "hmac-secret"
OUTPUT_SIZE_BYTES = 32
TOUCH_DEADLINE_S = 60.0
"""Keys give up by themselves after 10 to 30 s; this is for those that do not."""
CALL_DEADLINE_S = 10.0
"""For what needs no touch: how long a key that another program uses is waited for."""

Devices = Callable[[], Iterable[CtapDevice]]
"""Opens all keys that are plugged in; whoever called it closes them."""

_ERR = CtapError.ERR
_SENTENCES: Final[Mapping[int, tuple[type[UnlockError], str]]] = {
    _ERR.NO_CREDENTIALS: (WrongToken, "does not hold the credential of this slot; insert the right one"),
    _ERR.INVALID_CREDENTIAL: (WrongToken, "does not hold the credential of this slot; insert the right one"),
    _ERR.PIN_INVALID: (WrongPin, "refused the PIN; check it and try again"),
    _ERR.PIN_BLOCKED: (
        PinLocked,
        "has its PIN locked for good, and the reset that frees it destroys what it holds for this volume; use"
        " another token",
    ),
    _ERR.PIN_AUTH_BLOCKED: (
        PinLocked,
        "takes no PIN for now, after three wrong ones; remove it, insert it again and make sure of the PIN",
    ),
    _ERR.PIN_NOT_SET: (PinLocked, "has no PIN; set one with its vendor's tool and try again"),
    _ERR.PUAT_REQUIRED: (PinLocked, "wants a PIN; set one with its vendor's tool and try again"),
    _ERR.PIN_POLICY_VIOLATION: (PinLocked, "wants a new PIN; change it with its vendor's tool and try again"),
    _ERR.USER_ACTION_TIMEOUT: (NotTouched, "was not touched in time; try again and touch it while it blinks"),
    _ERR.ACTION_TIMEOUT: (NotTouched, "was not touched in time; try again and touch it while it blinks"),
    _ERR.UP_REQUIRED: (NotTouched, "was not touched; try again and touch it while it blinks"),
    _ERR.KEEPALIVE_CANCEL: (
        NotTouched,
        "stopped waiting, for the touch was cancelled; try again and touch it while it blinks",
    ),
    _ERR.OPERATION_DENIED: (NotTouched, "was told no; try again and touch it while it blinks"),
    _ERR.CHANNEL_BUSY: (TokenFailed, "is in use by another program; end what it asks there and try again"),
}
# What keys answer when asked for a credential that cannot be theirs, some of them because of its length.
_NOT_HELD = (_ERR.NO_CREDENTIALS, _ERR.INVALID_CREDENTIAL, _ERR.LIMIT_EXCEEDED, _ERR.INVALID_LENGTH)
# What python-fido2 raises on an answer that does not follow CTAP2: some it checks, others it trips over.
_MALFORMED = (
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
    struct.error,
    hid.ConnectionFailure,
)

# Else Python prints its warnings, several a second from a key that is busy, for want of anyone who listens.
logging.getLogger("fido2").addHandler(logging.NullHandler())


def key_error(code: int, *, label: str) -> UnlockError:
    """Translate a CTAP2 status (CTAP 2.1, "Status codes") of the key with that label."""
    kind, sentence = _SENTENCES.get(code, (TokenFailed, ""))
    if not sentence:
        name = getattr(code, "name", "UNKNOWN_ERR")
        sentence = f"failed ({name}, 0x{code:02x}); remove it, insert it again and try again"
    return kind(f"The security key {label!r} {sentence}.")


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Translate what the block raises of python-fido2's errors and its devices'."""
    try:
        yield
    except CtapError as exc:
        raise key_error(exc.code, label=label) from exc
    except OSError as exc:
        raise TokenMissing(
            f"The security key {label!r} was removed while in use; insert it and try again."
        ) from exc
    except _MALFORMED:
        # Not `from`: those messages quote what the key answered.
        raise TokenFailed(
            f"The security key {label!r} answered what is not CTAP2; remove it, insert it and try again."
        ) from None


@contextmanager
def _expiring(deadline_s: float) -> Iterator[threading.Event]:
    """An event that is set, which cancels a call, when the block takes longer."""
    event = threading.Event()
    timer = threading.Timer(deadline_s, event.set)
    timer.daemon = True
    timer.start()
    try:
        yield event
    finally:
        timer.cancel()


class _BoundedCtap2(Ctap2):
    """Ctap2 whose calls end: as it comes it asks for ever while another program keeps the key busy."""

    def send_cbor(
        self,
        cmd: int,
        data: Mapping[int, Any] | None = None,
        *,
        event: threading.Event | None = None,
        on_keepalive: Callable[[int], None] | None = None,
    ) -> Mapping[int, Any]:
        if event is not None:
            return super().send_cbor(cmd, data, event=event, on_keepalive=on_keepalive)
        with _expiring(CALL_DEADLINE_S) as expiry:
            return super().send_cbor(cmd, data, event=expiry, on_keepalive=on_keepalive)


@dataclass(frozen=True, slots=True)
class NewCredential:
    """A credential just made, and the public key that its assertions verify under."""

    id: bytes
    public_key: CoseKey


class SecurityKey:
    """A key that can do hmac-secret and has a PIN or can be given one; open for the length of a block.

    Its methods raise UnlockError's subclasses (`key_error`). None asks a person for anything; those that
    wait for a touch say so.
    """

    def __init__(self, ctap: Ctap2, label: str) -> None:
        self._ctap = ctap
        self._client_pin = ClientPin(ctap)
        self.label = label
        """What the key says it is."""
        self.aaguid = bytes(ctap.info.aaguid)
        """16 bytes: its model."""

    def holds(self, credential: bytes) -> bool:
        """Whether the credential is the key's, asked without touch or PIN; nothing blinks."""
        size_max = self._ctap.info.max_cred_id_length
        if size_max and len(credential) > size_max:
            return False
        with translated(self.label):
            try:
                self._ctap.get_assertion(
                    FIDO2_RP, secrets.token_bytes(32), [_descriptor(credential)], options={"up": False}
                )
            except CtapError as exc:
                # A request that is too large for the key is refused before it is sent.
                if exc.code in _NOT_HELD or exc.code == _ERR.REQUEST_TOO_LARGE:
                    return False
                raise
        return True

    def pin_tries(self) -> int:
        """How many wrong PINs the key still takes, at least 1.

        Raises: PinLocked: none now, or there is no PIN, or it must be changed first.
        """
        if not self._ctap.info.options.get("clientPin"):
            raise key_error(_ERR.PIN_NOT_SET, label=self.label)
        if self._ctap.info.force_pin_change:
            raise key_error(_ERR.PIN_POLICY_VIOLATION, label=self.label)
        with translated(self.label):
            tries, must_be_replugged = self._client_pin.get_pin_retries()
            if tries < 1:
                raise key_error(_ERR.PIN_BLOCKED, label=self.label)
            if must_be_replugged:
                raise key_error(_ERR.PIN_AUTH_BLOCKED, label=self.label)
            return tries

    def permit_making(self, pin: str) -> bytes:
        """Send the PIN, for one `make_credential`. Raises: WrongPin, PinLocked."""
        return self._pin_token(pin, ClientPin.PERMISSION.MAKE_CREDENTIAL)

    def permit_secret(self, pin: str) -> bytes:
        """Send the PIN, for one `hmac_secret`. Raises: WrongPin, PinLocked."""
        return self._pin_token(pin, ClientPin.PERMISSION.GET_ASSERTION)

    def _pin_token(self, pin: str, permission: ClientPin.PERMISSION) -> bytes:
        with translated(self.label):
            try:
                return self._client_pin.get_pin_token(pin, permission, FIDO2_RP)
            except CtapError as exc:
                if exc.code != _ERR.PIN_INVALID:
                    raise
        tries = self.pin_tries()
        advice = (
            f"check it, for {tries} tries are left"
            if tries > 1
            else "make sure of it, for one more wrong one locks it"
        )
        raise WrongPin(f"The security key {self.label!r} refused the PIN; {advice}.")

    def make_credential(self, permit: bytes, *, user: bytes) -> NewCredential:
        """Make a credential with hmac-secret that the key does not store. Waits for a touch.

        Args:
            permit: of `permit_making`.
            user: 16 random bytes.
        Raises: NotTouched. TokenFailed: it was made without hmac-secret, touch or PIN.
        """
        challenge = secrets.token_bytes(32)
        protocol = self._client_pin.protocol
        with translated(self.label), _expiring(TOUCH_DEADLINE_S) as expiry:
            made = self._ctap.make_credential(
                challenge,
                {"id": FIDO2_RP, "name": "MirrorFS"},
                {"id": user, "name": "mirrorfs"},
                [{"type": "public-key", "alg": ES256.ALGORITHM}],
                extensions={EXTENSION: True},
                pin_uv_param=protocol.authenticate(permit, challenge),
                pin_uv_protocol=protocol.VERSION,
                event=expiry,
            )
        self._check(made.auth_data)
        data = made.auth_data.credential_data
        if data is None or not 1 <= len(data.credential_id) <= FIDO2_CREDENTIAL_SIZE_MAX_BYTES:
            raise TokenFailed(f"The security key {self.label!r} made no credential that fits; use another.")
        if (made.auth_data.extensions or {}).get(EXTENSION) is not True:
            raise TokenFailed(f"The security key {self.label!r} made no hmac-secret; use another.")
        return NewCredential(data.credential_id, data.public_key)

    def hmac_secret(
        self, permit: bytes, *, credential: bytes, salt: bytes, public_key: CoseKey | None = None
    ) -> bytes:
        """The 32 bytes that the key computes from a salt with a credential of its own. Waits for a touch.

        Args:
            permit: of `permit_secret`.
            salt: 32 bytes.
            public_key: the answer must be signed under it. Without it nothing vouches for the bytes here.
        Raises: NotTouched. WrongToken: the credential is not the key's. TokenFailed: the answer is not one.
        """
        challenge = secrets.token_bytes(32)
        protocol = self._client_pin.protocol
        with translated(self.label), _expiring(TOUCH_DEADLINE_S) as expiry:
            answer = self._ctap.client_pin(protocol.VERSION, ClientPin.CMD.GET_KEY_AGREEMENT)
            agreement, shared = protocol.encapsulate(answer[ClientPin.RESULT.KEY_AGREEMENT])
            sealed = protocol.encrypt(shared, salt)
            request: dict[int, Any] = {1: agreement, 2: sealed, 3: protocol.authenticate(shared, sealed)}
            if protocol.VERSION != 1:
                request[4] = protocol.VERSION  # keys of CTAP 2.0 do not know it
            assertion = self._ctap.get_assertion(
                FIDO2_RP,
                challenge,
                [_descriptor(credential)],
                extensions={EXTENSION: request},
                pin_uv_param=protocol.authenticate(permit, challenge),
                pin_uv_protocol=protocol.VERSION,
                event=expiry,
            )
            if public_key is not None:
                try:
                    assertion.verify(challenge, public_key)
                except InvalidSignature:
                    raise ValueError from None
            self._check(assertion.auth_data)
            output = protocol.decrypt(shared, (assertion.auth_data.extensions or {})[EXTENSION])
        if len(output) != OUTPUT_SIZE_BYTES or assertion.credential.get("id") != credential:
            raise TokenFailed(f"The security key {self.label!r} answered another question; try again.")
        return output

    def _check(self, data: AuthenticatorData) -> None:
        """Refuse an answer for someone else, or for which the key took neither touch nor PIN."""
        is_ours = data.rp_id_hash == sha256(FIDO2_RP.encode())
        if not (is_ours and data.is_user_present() and data.is_user_verified()):
            raise TokenFailed(
                f"The security key {self.label!r} did not take PIN and touch for MirrorFS; use another."
            )


def _descriptor(credential: bytes) -> Mapping[str, Any]:
    return {"type": "public-key", "id": credential}


# --- finding keys ----------------------------------------------------------------------------


@dataclass(slots=True)
class PluggedIn:
    """What was found: keys that can be used, the labels of those that cannot, and keys that failed."""

    keys: list[SecurityKey] = field(default_factory=list)
    unfit: list[str] = field(default_factory=list)
    failures: list[UnlockError] = field(default_factory=list)

    def labels(self) -> str:
        return ", ".join(map(repr, [*(key.label for key in self.keys), *self.unfit]))


def hid_devices() -> Iterator[CtapDevice]:
    """Security keys on USB, opened. One that this user may not open, or that just leaves, is passed over."""
    for descriptor in hid.list_descriptors():  # type: ignore[no-untyped-call]  # it has no types
        with ExitStack() as stack:
            try:
                connection = hid.open_connection(descriptor)  # type: ignore[no-untyped-call]  # neither
                stack.callback(connection.close)
                device = hid.CtapHidDevice(descriptor, connection)
            except (OSError, CtapError, *_MALFORMED):
                continue
            stack.pop_all()
        yield device


@contextmanager
def plugged_in(devices: Devices | None = None) -> Iterator[PluggedIn]:
    """All security keys that are plugged in, open for the length of the block.

    Args:
        devices: where they come from; `hid_devices` if not given.
    Raises: TokenMissing: there is none at all.
    """
    found = PluggedIn()
    with ExitStack() as stack:
        for device in (devices or hid_devices)():
            stack.callback(_close, device)
            label = str(getattr(device, "product_name", None) or "FIDO2")
            try:
                key = _opened(device, label)
            except UnlockError as exc:
                found.failures.append(exc)
                continue
            if key is None:
                found.unfit.append(label)
            else:
                found.keys.append(key)
        if not (found.keys or found.unfit or found.failures):
            raise TokenMissing(
                "No security key is found; insert it, and if it is, see that your user may open /dev/hidraw*."
            )
        yield found


def _opened(device: CtapDevice, label: str) -> SecurityKey | None:
    """None for a key that knows no CTAP2, no hmac-secret or no PIN."""
    with translated(label):
        if not device.capabilities & hid.CAPABILITY.CBOR:
            return None
        ctap = _BoundedCtap2(device)
        if EXTENSION not in ctap.info.extensions or "clientPin" not in ctap.info.options:
            return None
        return SecurityKey(ctap, label)


def _close(device: CtapDevice) -> None:
    # Fails when the key was removed, and then nothing is left to close.
    with suppress(OSError):
        device.close()
