"""What a token is to the rest of the program: something that enrols once and yields a secret later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mirrorfs.format.slot import TokenFields
from mirrorfs.ports import Entropy


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What enrolling a token gives: the public fields of its slot, and the secret it will yield."""

    fields: TokenFields
    secret: bytes = field(repr=False)
    """32 random bytes; the repr leaves them out."""


class AskPin(Protocol):
    """Asks a person, or a file, for the PIN of the token named, at the moment it is needed."""

    def __call__(self, label: str, *, final_try: bool) -> str:
        """Return the PIN.

        Args:
            label: the token's label, to be shown.
            final_try: the token says that one more wrong PIN locks it, which must be shown.
        """


class Token(Protocol):
    """One way to reach tokens of one kind. Methods block, and send a PIN at most once per call.

    Errors of all methods are UnlockError's subclasses, each saying what to do next; UsageError when
    what was asked for is ambiguous or cannot work.
    """

    def describe(self) -> str:
        """Which token is meant, for messages; without secrets."""

    def enrol(self, *, volume: bytes, entropy: Entropy) -> Enrolment:
        """Bind a key of the token to the volume, and have the token itself prove that it can undo it.

        Args:
            volume: the volume's UUID, 16 bytes.
        """

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """Find, without a PIN, the first of several slots' keys that a token present holds.

        Raises: TokenMissing: no token is present. WrongToken: none of them holds a key of these.
        """

    def secret_for(self, fields: TokenFields, *, volume: bytes) -> bytes:
        """Have the token yield the 32-byte secret of a slot.

        Whether it is the right one is checked against the slot (`slots.check_token_secret`).
        """
