"""Asking on the controlling terminal of this process, whatever its standard streams are."""

from __future__ import annotations

import getpass
import os
import warnings
from typing import Final

from mirrorfs.errors import UsageError
from mirrorfs.keys.question import SECRET_SIZE_MAX_BYTES, Question, cannot_ask

_TERMINAL: Final = "/dev/tty"
_ERASE_LINE_ABOVE: Final = b"\x1b[A\x1b[2K\r"


def has_terminal() -> bool:
    """Whether this process has a controlling terminal that it may open."""
    try:
        os.close(os.open(_TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def terminal_name() -> str | None:
    """The name by which another process can open that terminal; None if no standard stream is it."""
    if not has_terminal():
        return None
    for descriptor in (0, 1, 2):
        try:
            return os.ttyname(descriptor)
        except OSError:
            continue
    return None


class TerminalAsker:
    """The first choice: whoever typed the command sits there."""

    def check(self, question: Question) -> None:
        """See `Asker.check`."""
        if not has_terminal():
            raise cannot_ask(question, f"No terminal can be asked for the {question.kind.title}")

    def ask(self, question: Question) -> str:
        """See `Asker.ask`."""
        self.check(question)
        before = f"mirrorfs: {question.error}\n" if question.error else ""
        prompt = f"{before}{question.text}: "
        return _ask_seen(question, prompt) if question.seen else _ask_hidden(question, prompt)

    def ask_twice(self, question: Question) -> tuple[str, str]:
        """See `Asker.ask_twice`."""
        return self.ask(question), _ask_hidden(question, "Again: ")


def _ask_hidden(question: Question, prompt: str) -> str:
    # getpass falls back to standard input, echoing, where there is no terminal: so `check` looked first,
    # and its warning about that is an error.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            return getpass.getpass(prompt)
    except UnicodeDecodeError:
        pass  # raised below: this error carries what was typed
    except (OSError, EOFError, getpass.GetPassWarning) as exc:
        raise cannot_ask(question, f"No terminal can be asked for the {question.kind.title}") from exc
    raise UsageError(f"The {question.kind.title} is not text in the terminal's encoding; enter it again.")


def _ask_seen(question: Question, prompt: str) -> str:
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
        raise cannot_ask(question, f"No terminal can be asked for the {question.kind.title}") from exc
    return line.decode(errors="replace").strip()
