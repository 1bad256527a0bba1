"""FIDO2 security keys (YubiKey, Nitrokey, Solo, ...) by their hmac-secret extension.

A key computes 32 bytes from a salt with a secret that never leaves it; the slot keeps the salt and the
credential's id. PIN and touch are required always: without the PIN a key computes other bytes, and a secret
that any program could have without a touch would be none.

The key that holds a credential is found first, by a question that needs neither PIN nor touch; the PIN goes
to no other. Which key is meant is said by which is plugged in, not by a URI: most have no serial number, and
the name of a device file changes.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from mirrorfs.errors import ModuleMissing, TokenMissing, UnlockError, UsageError, WrongToken
from mirrorfs.format.kdf import hkdf
from mirrorfs.format.slot_token import (
    FIDO2_RP,
    FIDO2_SALT_SIZE_BYTES,
    Fido2Fields,
    SlotKind,
    TokenFields,
    token_hint,
)
from mirrorfs.keys.token import AskPin, Authorise, Enrolment, Tell
from mirrorfs.ports import Entropy

if TYPE_CHECKING:
    from fido2.ctap import CtapDevice

    from mirrorfs.keys.fido2_device import PluggedIn, SecurityKey

USER_SIZE_BYTES = 16
PIN_SIZE_MIN = 4
"""In characters."""
PIN_SIZE_MAX_BYTES = 63


class Fido2Token:
    """The security keys that are plugged in; implements `token.Token`.

    Args:
        uri: "fido2:".
        ask_pin: called at most once per method call, when the key is known.
        tell: called when a key waits to be touched.
        devices: opens the keys that are plugged in; those on USB if not given.
    Raises: UsageError: another URI.
    """

    def __init__(
        self,
        uri: str,
        *,
        ask_pin: AskPin,
        tell: Tell,
        devices: Callable[[], Iterable[CtapDevice]] | None = None,
    ) -> None:
        _check_uri(uri)
        self._ask_pin = ask_pin
        self._tell = tell
        self._devices = devices

    kind: ClassVar[SlotKind] = SlotKind.FIDO2

    def describe(self) -> str:
        return "a security key (fido2:)"

    def check_enrollable(self) -> None:
        """See that `enrol` would find one key, with a PIN; without asking for it.

        Raises: UsageError, UnlockError: as `enrol`.
        """
        with self._only_key() as key:
            key.pin_tries()

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """See `token.Token`. UsageError when several keys are plugged in, or none that has hmac-secret.

        Two touches. The PIN is asked for once; once it was accepted it is sent again for the second, since
        a touch uses up what the first sending permitted.
        """
        with self._only_key() as key:
            pin = self._pin(key)
            permit = key.permit_making(pin)
            self._tell(f"Touch the security key {key.label!r} now; it blinks. It will want a second touch.")
            made = key.make_credential(permit, user=entropy(USER_SIZE_BYTES))
            fields = Fido2Fields(
                rp=FIDO2_RP,
                credential=made.id,
                salt=entropy(FIDO2_SALT_SIZE_BYTES),
                aaguid=key.aaguid,
                label=token_hint(key.label),
            )
            permit = key.permit_secret(pin)
            self._tell(f"Touch the security key {key.label!r} once more; it blinks again.")
            # Signed, so that a bit that falls over on the way now is not missed later.
            output = key.hmac_secret(
                permit, credential=fields.credential, salt=fields.salt, public_key=made.public_key
            )
        return Enrolment(fields=fields, secret=_secret(output, fields, volume=volume))

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """See `token.Token`."""
        with self._holder([fields for fields in candidates if isinstance(fields, Fido2Fields)]) as (_, found):
            return found

    def is_present(self, fields: TokenFields) -> bool:
        """See `token.Token`. Nothing blinks."""
        if not isinstance(fields, Fido2Fields):
            return False
        try:
            with self._holder([fields]):
                return True
        except (TokenMissing, WrongToken):
            return False

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """See `token.Token`. One touch."""
        if not isinstance(fields, Fido2Fields):
            raise WrongToken("That slot is not one of a security key; name another token.")
        with self._holder([fields]) as (key, _):
            permit = key.permit_secret(self._pin(key))
            self._tell(f"Touch the security key {key.label!r} now; it blinks.")
            output = key.hmac_secret(permit, credential=fields.credential, salt=fields.salt)
        return _secret(output, fields, volume=volume)

    # --- finding the key -----------------------------------------------------------------

    @contextmanager
    def _plugged_in(self) -> Iterator[PluggedIn]:
        try:
            from mirrorfs.keys.fido2_device import plugged_in
        except ImportError as exc:
            raise ModuleMissing(
                "Security keys need python-fido2 from 2.0 on; install it with: pip install 'mirrorfs[fido2]'."
            ) from exc
        with plugged_in(self._devices) as found:
            yield found

    @contextmanager
    def _only_key(self) -> Iterator[SecurityKey]:
        with self._plugged_in() as found:
            if found.failures:
                raise found.failures[0]
            if len(found.keys) > 1:
                raise UsageError(
                    f"Several security keys are plugged in: {found.labels()}; leave only the one to enrol."
                )
            if not found.keys:
                raise UsageError(
                    f"No security key that is plugged in ({found.labels()}) can do hmac-secret with a PIN;"
                    " use another one."
                )
            yield found.keys[0]

    @contextmanager
    def _holder(self, candidates: Sequence[Fido2Fields]) -> Iterator[tuple[SecurityKey, Fido2Fields]]:
        """The key that holds one of these credentials, found without a PIN or a touch."""
        with self._plugged_in() as found:
            # A header names the relying party before it can be authenticated. It is not to reach, under our
            # name, for the credentials that the same key holds for other uses.
            ours = [fields for fields in candidates if fields.rp == FIDO2_RP]
            pair = _find_holder(found, ours)
            if pair is not None:
                yield pair
                return
            if found.failures:
                raise found.failures[0]
            raise WrongToken(
                f"No slot that was asked for names a credential of the security key {found.labels()}; insert"
                " the right one."
            )

    def _pin(self, key: SecurityKey) -> str:
        tries = key.pin_tries()
        pin = unicodedata.normalize("NFC", self._ask_pin(key.label, final_try=tries == 1, tries_left=tries))
        # What no key's PIN can be is not sent: it would cost a try.
        if len(pin) < PIN_SIZE_MIN or len(pin.encode()) > PIN_SIZE_MAX_BYTES:
            raise UsageError(
                f"The PIN of a security key has {PIN_SIZE_MIN} to {PIN_SIZE_MAX_BYTES} characters; this one"
                " was not sent, so enter it again."
            )
        return pin


def _check_uri(uri: str) -> None:
    scheme, colon, rest = uri.partition(":")
    if scheme.lower() != "fido2" or not colon:
        raise UsageError("A security key is named by the URI 'fido2:'.")
    if rest:
        # The message does not repeat it: a mistyped URI may well hold the PIN.
        raise UsageError(
            "A security key is named 'fido2:' and nothing more; leave out the rest and plug in the one meant."
        )


def _find_holder(
    found: PluggedIn, candidates: Sequence[Fido2Fields]
) -> tuple[SecurityKey, Fido2Fields] | None:
    """The first candidate that a key holds; keys that fail are put aside, with their failure."""
    for fields in candidates:
        for key in list(found.keys):
            try:
                if key.holds(fields.credential):
                    return key, fields
            except UnlockError as exc:
                found.keys.remove(key)
                found.failures.append(exc)
    return None


def _secret(output: bytes, fields: Fido2Fields, *, volume: bytes) -> bytes:
    return hkdf(output, salt=volume, info=b"mirrorfs v1 token fido2" + fields.salt + fields.credential)
