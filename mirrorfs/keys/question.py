"""What a person is asked for, and what every way of asking has in common (keys/askers.py chooses one)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final, Protocol

from mirrorfs.errors import CannotAsk, NotAnswered, UsageError

SECRET_SIZE_MAX_BYTES: Final = 1024
ASK_TIMEOUT_S: Final = 300.0
"""How long a program of another's waits for a person; a terminal waits for ever."""
TEXT_SIZE_MAX: Final = 100
"""Characters of a name that are shown."""


class SecretKind(Enum):
    """Which secret is wanted; the values are its name, its option and its environment variable."""

    PASSWORD = ("volume password", "--password-file", "MIRRORFS_PASSWORD_FILE")
    NEW_PASSWORD = ("new volume password", "--new-password-file", "MIRRORFS_NEW_PASSWORD_FILE")
    PIN = ("PIN", "--pin-file", "MIRRORFS_PIN_FILE")
    CODE = ("recovery code", "--code-file", "MIRRORFS_CODE_FILE")

    def __init__(self, title: str, option: str, variable: str) -> None:
        self.title = title
        self.option = option
        self.variable = variable


@dataclass(frozen=True, slots=True)
class Question:
    """One secret that is wanted. Nothing in it is secret, so that it may stand in argv and in logs."""

    kind: SecretKind
    text: str
    """Which secret, of what, and how many tries are left: one line without a colon at its end."""
    label: str
    """What stands before the field, where the text stands elsewhere: "PIN"."""
    about: str
    """The volume or the token, for programs that tell questions apart by a name."""
    notes: tuple[str, ...] = ()
    """Sentences for dialogues that come without a terminal, where nothing else is seen."""
    warning: str = ""
    """To be shown in red, if there is red."""
    error: str = ""
    """What was wrong with the answer before this one: a sentence."""
    seen: bool = False
    """A terminal shows what is typed until it is complete."""
    by_hand: bool = False
    """No file is used for this one."""

    @property
    def way_out(self) -> str:
        """What to do where nobody can be asked; the end of a sentence."""
        if self.by_hand:
            return "enter it at a terminal"
        return f"use {self.kind.option} or set {self.kind.variable}"


class Asker(Protocol):
    """One way to ask. Methods block; each raises CannotAsk with a sentence, and never tries another way."""

    def check(self, question: Question) -> None:
        """Look, without asking, whether a question could be asked. Raises: CannotAsk."""

    def ask(self, question: Question) -> str:
        """What was entered, maybe nothing.

        Raises: CannotAsk. NotAnswered: cancelled, or not answered in time. UsageError: no text.
        """

    def ask_twice(self, question: Question) -> tuple[str, str]:
        """For a secret that is new; the two may differ. Raises: as `ask`."""


def cannot_ask(question: Question, why: str) -> CannotAsk:
    """The error with a whole sentence.

    Args:
        why: the beginning of it.
    """
    return CannotAsk(f"{why}; {question.way_out}.")


def not_answered(question: Question) -> NotAnswered:
    """The error after ASK_TIMEOUT_S."""
    return NotAnswered(f"Nobody entered the {question.kind.title} in time; run the command again.")


def plain(text: str) -> str:
    """A name as it may be shown: one line, without control characters, and not too long."""
    return "".join(character if character.isprintable() else " " for character in text[:TEXT_SIZE_MAX])


def decoded(data: bytes, question: Question) -> str:
    """The text of a program's answer. Raises: UsageError: it is not UTF-8, or has a NUL or a line end."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = "\0"  # raised below: the error at hand carries what was entered
    if any(character in text for character in "\0\r\n"):
        raise UsageError(
            f"The {question.kind.title} that was entered is not one line of text; enter it again."
        )
    return text


def checked(text: str, kind: SecretKind) -> str:
    """A secret that has a size. Raises: UsageError."""
    if not text:
        raise UsageError(f"The {kind.title} is empty; enter it again.")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        size_bytes = -1  # raised below, as in `decoded`
    if size_bytes < 0:
        raise UsageError(f"The {kind.title} is not UTF-8 text; enter it again.")
    if size_bytes > SECRET_SIZE_MAX_BYTES:
        raise UsageError(f"The {kind.title} is too long; it has at most {SECRET_SIZE_MAX_BYTES} bytes.")
    return text
