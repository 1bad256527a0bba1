"""Asking for secrets (volume password, PIN of a token, recovery code) so that nobody confuses them.

A secret comes from a file that was named, or from the terminal, never from argv or the environment:
the environment may only name the file. What is typed into the wrong prompt may lock a card, so each
prompt says which of the two it wants, of what, and when it is the last try.
"""

from __future__ import annotations

import getpass
import hmac
import os
import stat
import unicodedata
import warnings
from collections.abc import Mapping
from enum import Enum

from mirrorfs.errors import UsageError
from mirrorfs.keys.recovery_code import parse_code

SECRET_SIZE_MAX_BYTES = 1024
_TERMINAL = "/dev/tty"
_ERASE_LINE_ABOVE = b"\x1b[A\x1b[2K\r"


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


def read_password(
    volume: str, *, path: str | None, environment: Mapping[str, str], confirm: bool = False
) -> bytes:
    """The volume password as UTF-8 in normalization form C.

    Args:
        volume: the volume's name, for the prompt.
        path: of --password-file; without it MIRRORFS_PASSWORD_FILE counts, then the terminal.
        environment: os.environ.
        confirm: ask twice on a terminal, for a password that is new.
    Raises: UsageError: no source, an unsafe or unreadable file, an empty password, two that differ.
    """
    prompt = f"Password of volume {volume}: "
    text = _read(SecretKind.PASSWORD, prompt, path=path, environment=environment, confirm=confirm)
    return unicodedata.normalize("NFC", text).encode()


def read_new_password(volume: str, *, path: str | None, environment: Mapping[str, str]) -> bytes:
    """A password that is to take another's place; as `read_password`, asked for twice."""
    prompt = f"NEW password of volume {volume}: "
    text = _read(SecretKind.NEW_PASSWORD, prompt, path=path, environment=environment, confirm=True)
    return unicodedata.normalize("NFC", text).encode()


def read_code(*, path: str | None, environment: Mapping[str, str]) -> bytes:
    """The 32 bytes of a recovery code. At a terminal it is seen while it is typed, line by line, then erased.

    Args:
        path: of --code-file, with all of it on the first line; without it MIRRORFS_CODE_FILE counts.
    Raises: UsageError: no source, or it is not a code.
    """
    named = path or environment.get(SecretKind.CODE.variable)
    if named:
        return parse_code(read_secret_file(named, SecretKind.CODE))
    return parse_code(" ".join(_ask_seen(f"Recovery code, line {line} of 2: ") for line in (1, 2)))


def read_pin(
    label: str,
    *,
    path: str | None,
    environment: Mapping[str, str],
    final_try: bool = False,
    tries_left: int | None = None,
) -> str:
    """The PIN of the token with that label, exactly as it was typed.

    Args:
        path: of --pin-file; without it MIRRORFS_PIN_FILE counts, then the terminal.
        environment: os.environ.
        final_try: one more wrong PIN locks the token. Then a file is not used: what refused
            before would refuse again, and a service that restarts would lock the card.
        tries_left: wrong PINs that the token still takes, to be shown; None where it does not say.
    Raises: UsageError: no source, an unsafe or unreadable file, an empty PIN, a file at the last try.
    """
    if final_try and (path or environment.get(SecretKind.PIN.variable)):
        raise UsageError(
            f"The token {label!r} has one PIN try left, and no file is used for that; enter the PIN by hand."
        )
    tries = f"{tries_left} tries left, " if tries_left is not None else ""
    tries = "LAST TRY before it locks, " if final_try else tries
    prompt = f"PIN of token {label} ({tries}not the volume password): "
    return _read(SecretKind.PIN, prompt, path=path, environment=environment, confirm=False)


def _read(
    kind: SecretKind, prompt: str, *, path: str | None, environment: Mapping[str, str], confirm: bool
) -> str:
    named = path or environment.get(kind.variable)
    if named:
        return read_secret_file(named, kind)
    first = _ask(kind, prompt)
    if confirm and not hmac.compare_digest(first.encode(), _ask(kind, "Again: ").encode()):
        raise UsageError(f"The two entries of the {kind.title} differ; start again.")
    return first


def check_terminal(kind: SecretKind) -> None:
    """Raises: UsageError: there is no terminal on which a secret could be asked for."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError as exc:
        raise _no_terminal(kind) from exc


def _ask_seen(prompt: str) -> str:
    try:
        with open(_TERMINAL, "r+b", buffering=0) as terminal:
            terminal.write(prompt.encode())
            line = b""
            while not line.endswith(b"\n") and len(line) < SECRET_SIZE_MAX_BYTES:
                byte = terminal.read(1)
                if not byte:
                    break
                line += byte
            terminal.write(_ERASE_LINE_ABOVE)
    except OSError as exc:
        raise _no_terminal(SecretKind.CODE) from exc
    return line.decode(errors="replace").strip()


def _no_terminal(kind: SecretKind) -> UsageError:
    return UsageError(
        f"No terminal can be asked for the {kind.title}; use {kind.option} or set {kind.variable}."
    )


def _ask(kind: SecretKind, prompt: str) -> str:
    # getpass falls back to standard input, echoing, where there is no terminal: so look first, and
    # make its warning about that an error.
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            text = getpass.getpass(prompt)
    except UnicodeDecodeError:
        # Not `from`: that error carries what was typed.
        raise UsageError(
            f"The {kind.title} is not text in the terminal's encoding; enter it again."
        ) from None
    except (OSError, EOFError, getpass.GetPassWarning) as exc:
        raise _no_terminal(kind) from exc
    return _checked(text, kind)


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
    return _checked(text, kind)


def _checked(text: str, kind: SecretKind) -> str:
    if not text:
        raise UsageError(f"The {kind.title} is empty; enter it again.")
    try:
        size_bytes = len(text.encode())
    except UnicodeEncodeError:
        raise UsageError(f"The {kind.title} is not UTF-8 text; enter it again.") from None
    if size_bytes > SECRET_SIZE_MAX_BYTES:
        raise UsageError(f"The {kind.title} is too long; it has at most {SECRET_SIZE_MAX_BYTES} bytes.")
    return text
