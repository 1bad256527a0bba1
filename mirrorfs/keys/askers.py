"""Which way a person is asked for a secret: by a terminal, by pinentry, or by systemd-ask-password.

MIRRORFS_ASK names one of them; without it the surroundings decide, never what worked: whoever learns to
expect prompts in one place must not be led to another by something that was made to fail.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from mirrorfs.errors import UsageError
from mirrorfs.keys.ask_pinentry import PinentryAsker
from mirrorfs.keys.ask_systemd import SystemdAsker
from mirrorfs.keys.ask_terminal import TerminalAsker, has_terminal
from mirrorfs.keys.question import Asker, Question, cannot_ask

ASK_VARIABLE: Final = "MIRRORFS_ASK"
_DISPLAYS: Final = ("DISPLAY", "WAYLAND_DISPLAY")
_OF_A_UNIT: Final = "INVOCATION_ID"
"""systemd sets it for what its units run. In a cron job nobody would ever see the question."""


def choose_asker(environment: Mapping[str, str], question: Question) -> Asker:
    """The one way to ask, here.

    Args:
        environment: os.environ.
    Raises: CannotAsk: there is none. UsageError: MIRRORFS_ASK names none.
    """
    match environment.get(ASK_VARIABLE, ""):
        case "terminal":
            return TerminalAsker()
        case "pinentry":
            return PinentryAsker(environment)
        case "systemd":
            return SystemdAsker()
        case "":
            return _by_surroundings(environment, question)
    raise UsageError(f"{ASK_VARIABLE} is terminal, pinentry or systemd; correct it, or unset it.")


def _by_surroundings(environment: Mapping[str, str], question: Question) -> Asker:
    if has_terminal():
        return TerminalAsker()
    if any(environment.get(name) for name in _DISPLAYS):
        return PinentryAsker(environment)
    if environment.get(_OF_A_UNIT):
        return SystemdAsker()
    raise cannot_ask(
        question,
        f"No terminal can be asked for the {question.kind.title}, nor is there a display or a systemd unit",
    )
