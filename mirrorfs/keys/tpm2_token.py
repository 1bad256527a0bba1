"""The TPM 2.0 of a machine as a token: it cannot be taken out, and what it sealed opens on that machine only.

It seals 32 random bytes under its storage key (`tpm2_device`). The object's authValue follows from the
volume password, so that the TPM takes the part a PIN has elsewhere: it checks the password itself, counts
wrong ones, and refuses all for a while after a few. That count is the TPM's, for all that it guards; so the
right TPM and a whole object are made sure of before the password is asked for.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

from mirrorfs.errors import TokenFailed, TokenMissing, WrongToken
from mirrorfs.format.slot import TOKEN_SECRET_SIZE_BYTES
from mirrorfs.format.slot_token import SlotKind, TokenFields, Tpm2Fields
from mirrorfs.keys.token import Authorise, Enrolment, Tell
from mirrorfs.keys.tpm2_device import OpenTpm, Tries, is_denied, locked, opened_tpm
from mirrorfs.keys.tpm2_uri import Tpm2Uri
from mirrorfs.ports import Entropy

_EMULATED = "SW TPM"


class Tpm2Token:
    """The TPM that a `tpm2:` URI names; implements `token.Token`.

    Args:
        uri: where it is reached.
        tell: told, before the password is asked for, that the TPM takes one wrong one only.
    """

    def __init__(self, uri: Tpm2Uri, *, tell: Tell) -> None:
        self._uri = uri
        self._tell = tell

    kind: ClassVar[SlotKind] = SlotKind.TPM2

    def describe(self) -> str:
        return self._uri.describe()

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """See `token.Token`. The TPM keeps nothing of it: the sealed object lies in the slot."""
        with opened_tpm(self._uri) as tpm:
            tries = tpm.tries()
        self._check_tries(tries)
        authorisation = authorise()
        secret = entropy(TOKEN_SECRET_SIZE_BYTES)
        with opened_tpm(self._uri) as tpm:
            public, private = tpm.seal(secret, authorisation=authorisation)
            # The TPM must undo now, from the very bytes of the slot, what it shall undo later.
            loaded = tpm.load(public=public, private=private)
            if not hmac.compare_digest(tpm.unseal(loaded, authorisation=authorisation), secret):
                raise TokenFailed(
                    f"What was sealed cannot be undone by {self.describe()}; use another token."
                )
            fields = Tpm2Fields(
                public=public, private=private, srk_name=tpm.storage_key_name, label=tpm.maker()
            )
        return Enrolment(fields=fields, secret=secret)

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """See `token.Token`."""
        with opened_tpm(self._uri) as tpm:
            for fields in candidates:
                if isinstance(fields, Tpm2Fields) and fields.srk_name == tpm.storage_key_name:
                    return fields
        raise self._another_machine()

    def is_present(self, fields: TokenFields) -> bool:
        """See `token.Token`. The TPM makes its storage key for it: 6 ms in swtpm, longer in hardware."""
        if not isinstance(fields, Tpm2Fields):
            return False
        try:
            with opened_tpm(self._uri) as tpm:
                return fields.srk_name == tpm.storage_key_name
        except TokenMissing:
            if is_denied(self._uri):
                raise
            return False

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """See `token.Token`. The password is tried once, and wrong ones count; nothing is open while it is
        asked for.

        Raises: WrongPassword: it says how many tries are left. PinLocked: it says when to try again.
        """
        if not isinstance(fields, Tpm2Fields):
            raise WrongToken("That slot is not one of a TPM; name another token.")
        with self._loaded(fields) as (tpm, _):
            tries = tpm.tries()
        self._check_tries(tries)
        authorisation = authorise()
        with self._loaded(fields) as (tpm, loaded):
            secret = tpm.unseal(loaded, authorisation=authorisation)
        if len(secret) != TOKEN_SECRET_SIZE_BYTES:
            raise WrongToken(f"What {self.describe()} yields is not what a slot seals; use another slot.")
        return secret

    def is_emulated(self) -> bool:
        """Whether it is a program, whose files anyone can copy. Raises: UnlockError: it does not answer."""
        with opened_tpm(self._uri) as tpm:
            return _EMULATED in tpm.maker()

    @contextmanager
    def _loaded(self, fields: Tpm2Fields) -> Iterator[tuple[OpenTpm, Any]]:
        """The TPM, open, with a slot's object in it. Raises: WrongToken: it is another, or the object is."""
        with opened_tpm(self._uri) as tpm:
            if fields.srk_name != tpm.storage_key_name:
                raise self._another_machine()
            yield tpm, tpm.load(public=fields.public, private=fields.private)

    def _check_tries(self, tries: Tries | None) -> None:
        """Before the password is asked for: it would be typed in vain, or it is the last try."""
        if tries is None:
            return
        if tries.left == 0:
            raise locked(self.describe(), tries)
        if tries.left == 1:
            self._tell(
                f"LAST TRY: after one more wrong password, {self.describe()} refuses all of them for a while."
            )

    def _another_machine(self) -> WrongToken:
        return WrongToken(
            f"The slot was made on another machine, or {self.describe()} was cleared since; use another"
            " token."
        )
