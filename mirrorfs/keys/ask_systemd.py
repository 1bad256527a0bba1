"""Asking by systemd-ask-password: whichever agent there is shows the question to a person.

At boot that is the console or Plymouth, afterwards the terminal in which `systemctl start` was typed, or
somebody who runs `systemd-tty-ask-password-agent`. Its kernel keyring and credentials are not used: a
secret is asked for each time.
"""

from __future__ import annotations

import re
import time
from typing import Final

from mirrorfs.keys.ask_program import check_program, running
from mirrorfs.keys.question import (
    ASK_TIMEOUT_S,
    SECRET_SIZE_MAX_BYTES,
    Question,
    cannot_ask,
    decoded,
    not_answered,
)

PROGRAM: Final = "systemd-ask-password"
GRACE_S: Final = 5.0
"""What it has more than its own time-out, to take its question back."""
_ENVIRONMENT: Final = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}


class SystemdAsker:
    """For a unit, which has neither a terminal nor a display."""

    def check(self, question: Question) -> None:
        """See `Asker.check`."""
        check_program(PROGRAM, question)

    def ask(self, question: Question) -> str:
        """See `Asker.ask`."""
        return _ask(question, " ".join(filter(None, (question.error, f"{question.text}.", *question.notes))))

    def ask_twice(self, question: Question) -> tuple[str, str]:
        """See `Asker.ask_twice`."""
        return self.ask(question), _ask(question, f"Again: {question.text}")


def _ask(question: Question, message: str) -> str:
    arguments = (
        "--no-tty",  # agents only: our standard input is no terminal, and means nothing
        f"--timeout={ASK_TIMEOUT_S:.0f}",
        f"--id=mirrorfs:{question.kind.name.lower()}:{re.sub('[^A-Za-z0-9._-]', '_', question.about)}",
        "--",
        f"{message.rstrip('.')}:",
    )
    started_s = time.monotonic()
    title = question.kind.title
    # It says on standard error what is the matter, which the journal keeps.
    with running(PROGRAM, arguments, environment=_ENVIRONMENT, question=question, show_errors=True) as helper:
        try:
            data = helper.read_to_end(
                deadline_s=started_s + ASK_TIMEOUT_S + GRACE_S, size_max=SECRET_SIZE_MAX_BYTES + 1
            )
        except TimeoutError as exc:
            raise not_answered(question) from exc
        exit_code = helper.wait()
    if exit_code:
        if time.monotonic() >= started_s + ASK_TIMEOUT_S:
            raise not_answered(question)
        raise cannot_ask(question, f"{PROGRAM} gave no {title}: it was cancelled, or may not ask here")
    if not data.endswith(b"\n"):
        raise cannot_ask(question, f"{PROGRAM} garbled its answer and gave no {title}")
    return decoded(data[:-1], question)
