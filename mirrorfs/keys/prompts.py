"""Asking for secrets (volume password, PIN of a token, recovery code) so that nobody confuses them.

A secret comes from a file that was named, or from a person (keys/askers.py), never from argv or the
environment: the environment may only name the file. What is typed into the wrong prompt may lock a card, so
each prompt says which of the two it wants, of what, and when it is the last try.
"""

from __future__ import annotations

import hmac
import os
import stat
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from mirrorfs.errors import UsageError
from mirrorfs.keys.askers import choose_asker
from mirrorfs.keys.question import SECRET_SIZE_MAX_BYTES, Question, SecretKind, checked, plain
from mirrorfs.keys.recovery_code import parse_code
from mirrorfs.keys.slots import check_new_password

NEW_PASSWORD_ATTEMPTS: Final = 3


def read_password(
    volume: str, *, path: str | None, environment: Mapping[str, str], confirm: bool = False
) -> bytes:
    """The volume password as UTF-8 in normalization form C.

    Args:
        volume: the volume's name, for the prompt.
        path: of --password-file; without it MIRRORFS_PASSWORD_FILE counts, then a person is asked.
        environment: os.environ.
        confirm: it is new: as `read_new_password`.
    Raises: UsageError: no source, an unsafe or unreadable file, an empty password. NotAnswered.
    """
    question = Question(
        kind=SecretKind.PASSWORD,
        text=f"Password of volume {plain(volume)}",
        label="Password",
        about=volume,
        notes=("This is the password of the volume, not the PIN of a token.",),
    )
    if confirm:
        return _read_new(question, path=path, environment=environment)
    return _normalised(_read(question, path=path, environment=environment))


def read_new_password(volume: str, *, path: str | None, environment: Mapping[str, str]) -> bytes:
    """A password that is to take another's place; in the form that `read_password` returns.

    A person enters it twice, and may try again after one that is weak or two that differ.
    Raises: UsageError: as `read_password`; it is weak (`check_new_password`), or the last two entries differ.
    """
    question = Question(
        kind=SecretKind.NEW_PASSWORD,
        text=f"NEW password of volume {plain(volume)}",
        label="New password",
        about=volume,
        notes=("It takes the place of the present one.",),
    )
    return _read_new(question, path=path, environment=environment)


def read_code(*, path: str | None, environment: Mapping[str, str], error: str = "") -> bytes:
    """The 32 bytes of a recovery code. At a terminal it is seen while it is typed, line by line, then erased.

    Args:
        path: of --code-file, with all of it on the first line; without it MIRRORFS_CODE_FILE counts.
        error: a sentence about the code that was entered before.
    Raises: UsageError: no source, or it is not a code. NotAnswered.
    """
    if named := _named_file(SecretKind.CODE, path, environment):
        return parse_code(read_secret_file(named, SecretKind.CODE))
    first, second = _code_question(1, error), _code_question(2)
    asker = choose_asker(environment, first)
    return parse_code(f"{asker.ask(first)} {asker.ask(second)}")


def check_code_askable(environment: Mapping[str, str]) -> None:
    """Raises: UsageError: nobody could be asked for a recovery code."""
    question = _code_question(1)
    choose_asker(environment, question).check(question)


def _code_question(line: int, error: str = "") -> Question:
    return Question(
        kind=SecretKind.CODE,
        text=f"Recovery code, line {line} of 2",
        label=f"Line {line}",
        about=str(line),
        notes=("It stands on the sheet of paper: seven groups of four on each line.",),
        error=error,
        seen=True,
    )


def read_pin(
    label: str,
    *,
    path: str | None,
    environment: Mapping[str, str],
    final_try: bool = False,
    tries_left: int | None = None,
    touch_follows: bool = False,
) -> str:
    """The PIN of the token with that label, exactly as it was typed.

    Args:
        path: of --pin-file; without it MIRRORFS_PIN_FILE counts, then a person is asked.
        environment: os.environ.
        final_try: one more wrong PIN locks the token. Then a file is not used: what refused
            before would refuse again, and a service that restarts would lock the card.
        tries_left: wrong PINs that the token still takes, to be shown; None where it does not say.
        touch_follows: the token will want to be touched, which who has no terminal is told here.
    Raises: UsageError: no source, an unsafe or unreadable file, an empty PIN, a file at the last try.
        NotAnswered.
    """
    named = _named_file(SecretKind.PIN, path, environment)
    if final_try and named:
        raise UsageError(
            f"The token {label!r} has one PIN try left, and no file is used for that; enter the PIN by hand."
        )
    tries = f"{tries_left} tries left, " if tries_left is not None else ""
    warning = "LAST TRY before it locks" if final_try else ""
    if final_try:
        tries = f"{warning}, "
    question = Question(
        kind=SecretKind.PIN,
        text=f"PIN of token {plain(label)} ({tries}not the volume password)",
        label="PIN",
        about=label,
        notes=("Then touch the token when it blinks.",) if touch_follows else (),
        warning=warning,
        by_hand=final_try,
    )
    return _read(question, path=path, environment=environment)


def _named_file(kind: SecretKind, path: str | None, environment: Mapping[str, str]) -> str | None:
    return path or environment.get(kind.variable) or None


def _read(question: Question, *, path: str | None, environment: Mapping[str, str]) -> str:
    if named := _named_file(question.kind, path, environment):
        return read_secret_file(named, question.kind)
    return checked(choose_asker(environment, question).ask(question), question.kind)


def _read_new(question: Question, *, path: str | None, environment: Mapping[str, str]) -> bytes:
    kind = question.kind
    if named := _named_file(kind, path, environment):
        text = read_secret_file(named, kind)
        return _strong(text, text, kind)
    asker = choose_asker(environment, question)
    for _ in range(NEW_PASSWORD_ATTEMPTS - 1):
        first, second = asker.ask_twice(question)
        try:
            return _strong(first, second, kind)
        except UsageError as exc:
            question = replace(question, error=str(exc))
    return _strong(*asker.ask_twice(question), kind)


def _strong(first: str, second: str, kind: SecretKind) -> bytes:
    """A new password that was entered twice. Raises: UsageError: the two differ, or it is weak."""
    password = _normalised(checked(first, kind))
    if not hmac.compare_digest(password, _normalised(checked(second, kind))):
        raise UsageError(f"The two entries of the {kind.title} differ; start again.")
    check_new_password(password)
    return password


def _normalised(password: str) -> bytes:
    return unicodedata.normalize("NFC", password).encode()


def read_secret_file(path: str, kind: SecretKind) -> str:
    """The first line of a file, a pipe or a descriptor under /dev/fd, without its line end.

    Raises: UsageError: it cannot be read, belongs to another user than root or the caller, can be
        written by its group or others, can be read by others, or its first line is empty, too long
        or not UTF-8.
    """
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno())
            if not (stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)):
                raise UsageError(f"The {kind.title} file is neither a file nor a pipe; name another.")
            if found.st_uid not in (0, os.geteuid()):
                raise UsageError(f"The {kind.title} file belongs to another user; take ownership of it.")
            if found.st_mode & 0o026:
                raise UsageError(f"The {kind.title} file is open to others; run 'chmod 600' on it.")
            line = file.readline(SECRET_SIZE_MAX_BYTES + 2)
    except OSError as exc:
        raise UsageError(f"The {kind.title} file cannot be read; check {kind.option}.") from exc
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = line.decode()
    except UnicodeDecodeError:
        raise UsageError(f"The first line of the {kind.title} file is not UTF-8 text; correct it.") from None
    return checked(text, kind)
