"""The recovery code in place of a token that is lost.

It needs the volume password as every token does. What it may be used for is not the format's to say, for it
wraps the same keys: the command line restores with it and enrols a new token, and does not mount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from mirrorfs.errors import WrongToken
from mirrorfs.format.kdf import hkdf
from mirrorfs.format.slot_token import RecoveryFields, SlotKind, TokenFields
from mirrorfs.keys.recovery_code import CODE_SIZE_BYTES
from mirrorfs.keys.token import Authorise, Enrolment
from mirrorfs.ports import Entropy


class RecoveryToken:
    """Implements `token.Token`.

    Args:
        ask_code: asks for the code on the sheet, 32 bytes.
        confirm: shows a new code, and returns once a person has proved to have it.
    """

    kind: ClassVar[SlotKind] = SlotKind.RECOVERY

    def __init__(self, *, ask_code: Callable[[], bytes], confirm: Callable[[bytes], None]) -> None:
        self._ask_code = ask_code
        self._confirm = confirm

    def describe(self) -> str:
        """See `token.Token`."""
        return "the recovery code"

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """See `token.Token`. Raises what `confirm` raises."""
        code = entropy(CODE_SIZE_BYTES)
        self._confirm(code)
        return Enrolment(fields=RecoveryFields(), secret=_secret(code, volume=volume))

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """See `token.Token`. Which of several sheets it is, only the code tells: the newest is taken."""
        ours = [fields for fields in candidates if isinstance(fields, RecoveryFields)]
        if not ours:
            raise WrongToken("The volume has no recovery code; use a token.")
        return ours[-1]

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """See `token.Token`."""
        if not isinstance(fields, RecoveryFields):
            raise WrongToken("That slot is not one of a recovery code; use its token.")
        return _secret(self._ask_code(), volume=volume)

    def is_present(self, fields: TokenFields) -> bool:
        """See `token.Token`. Paper cannot be looked for: it never counts as present."""
        return False


def _secret(code: bytes, *, volume: bytes) -> bytes:
    return hkdf(code, salt=volume, info=b"mirrorfs v1 token recovery")
