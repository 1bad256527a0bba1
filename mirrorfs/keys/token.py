"""What a token is to the rest of the program: something that enrols once and yields a secret later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

from mirrorfs.format.slot_token import SlotKind, TokenFields
from mirrorfs.ports import Entropy


@dataclass(frozen=True, slots=True)
class Enrolment:
    """What enrolling a token gives: the public fields of its slot, and the secret it will yield."""

    fields: TokenFields
    secret: bytes = field(repr=False)
    """32 random bytes; the repr leaves them out."""


Authorise = Callable[[], bytes]
"""Asks for the volume password, unless that was done, and returns 32 bytes that follow from it
(`slots.token_authorisation`); for tokens that want to be told the password as well."""


class AskPin(Protocol):
    """Asks a person, or a file, for the PIN of the token named, at the moment it is needed."""

    def __call__(self, label: str, *, final_try: bool, tries_left: int | None = None) -> str:
        """Return the PIN.

        Args:
            label: the token's label, to be shown.
            final_try: the token says that one more wrong PIN locks it, which must be shown.
            tries_left: wrong PINs that it still takes, where it says so.
        """


Tell = Callable[[str], None]
"""Shows a sentence to the person who unlocks, such as that a key waits to be touched. It may reach nobody
where there is no terminal."""


class Token(Protocol):
    """One way to reach tokens of one kind.

    Methods block, ask for a PIN at most once per call, and never send one again that was not accepted.
    Errors of all methods are UnlockError's subclasses, each saying what to do next; UsageError when
    what was asked for is ambiguous or cannot work.
    """

    kind: ClassVar[SlotKind]

    def describe(self) -> str:
        """Which token is meant, for messages; without secrets."""

    def enrol(self, *, volume: bytes, entropy: Entropy, authorise: Authorise) -> Enrolment:
        """Bind a key of the token to the volume, and have the token itself prove that it can undo it.

        Args:
            volume: the volume's UUID, 16 bytes.
            authorise: what `secret_for` will be given; for the password that the new slot is to have.
        """

    def choose(self, candidates: Sequence[TokenFields]) -> TokenFields:
        """Find, without a PIN or a touch, the first of several slots' tokens that is present.

        Args:
            candidates: of any kinds; those of other kinds are left out.
        Raises: TokenMissing: no token is present. WrongToken: none of them holds a key of these.
        """

    def secret_for(self, fields: TokenFields, *, volume: bytes, authorise: Authorise) -> bytes:
        """Have the token yield the 32-byte secret of a slot.

        Whether it is the right one is checked against the slot (`slots.check_token_secret`).
        """

    def is_present(self, fields: TokenFields) -> bool:
        """Whether the token of a slot is there now: without a PIN, a touch or a prompt, again and again.

        Raises: UnlockError: it cannot be told, which is not the same as absent.
        """
