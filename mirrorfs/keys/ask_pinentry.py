"""Asking by pinentry, the program of GnuPG that shows a window for a secret (its manual: "Protocol").

Nothing is remembered: pinentry is offered no cache and no key by which it could find one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from mirrorfs.errors import NotAnswered
from mirrorfs.keys.ask_program import check_program, running
from mirrorfs.keys.ask_terminal import terminal_name
from mirrorfs.keys.assuan import Assuan, Reply
from mirrorfs.keys.question import ASK_TIMEOUT_S, Question, cannot_ask, decoded, not_answered

PROGRAM: Final = "pinentry"
REPLY_TIMEOUT_S: Final = 30.0
GRACE_S: Final = 5.0
"""What pinentry has more than its own time-out, to close its window by itself."""

_NEEDED: Final = (
    "DISPLAY", "WAYLAND_DISPLAY", "XAUTHORITY", "HOME", "XDG_RUNTIME_DIR", "XDG_SESSION_TYPE",
    "XDG_CURRENT_DESKTOP", "DBUS_SESSION_BUS_ADDRESS",
)  # fmt: skip
"""What a window needs of our environment; and no more, for variables can make libraries load code."""
_PATH: Final = "/usr/bin:/bin"
_PLAIN_VALUE: Final = re.compile(r"[A-Za-z0-9_.@-]{1,64}")
# <gpg-error.h>
_TIMEOUT: Final = 62
_CANCELLED: Final = (99, 198)
_REPEATED: Final = "PIN_REPEATED"


class PinentryAsker:
    """A window, where there is a display and no terminal; or, when wanted, a form on the terminal."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def check(self, question: Question) -> None:
        """See `Asker.check`."""
        check_program(PROGRAM, question)

    def ask(self, question: Question) -> str:
        """See `Asker.ask`."""
        return self._dialogue(question, repeat=False)[0]

    def ask_twice(self, question: Question) -> tuple[str, str]:
        """See `Asker.ask_twice`. A pinentry that knows of repeating compares by itself."""
        first, was_repeated = self._dialogue(question, repeat=True)
        return first, first if was_repeated else self._dialogue(question, repeat=False)[0]

    def _dialogue(self, question: Question, *, repeat: bool) -> tuple[str, bool]:
        """What was entered, and whether it was entered twice."""
        environment = {name: value for name in _NEEDED if (value := self._environment.get(name))}
        environment |= {"PATH": _PATH, "LANG": "C.UTF-8"}
        with running(PROGRAM, (), environment=environment, question=question) as helper:
            assuan = Assuan(helper, timeout_s=REPLY_TIMEOUT_S)
            assuan.greeting()
            self._choose_place(assuan, question)
            self._describe(assuan, question, repeat=repeat)
            try:
                reply = assuan.request("GETPIN", timeout_s=ASK_TIMEOUT_S + GRACE_S)
            except TimeoutError as exc:
                raise not_answered(question) from exc
            _check_entered(reply, question)
            helper.send(b"BYE")
        return decoded(reply.data, question), _REPEATED in reply.statuses

    def _choose_place(self, assuan: Assuan, question: Question) -> None:
        terminal = terminal_name()
        flavor = assuan.request("GETINFO", "flavor").data
        if terminal is None and flavor.startswith((b"curses", b"tty")):
            raise cannot_ask(
                question,
                "The pinentry of this machine is for terminals only (install pinentry-gnome3, pinentry-gtk2"
                " or pinentry-qt)",
            )
        locale = next((self._plain(name) for name in ("LC_ALL", "LC_CTYPE", "LANG") if self._plain(name)), "")
        options = {
            "ttyname": terminal or "",
            "ttytype": self._plain("TERM") if terminal else "",
            "lc-ctype": locale if "utf" in locale.lower() else "C.UTF-8",  # what comes back is UTF-8
            "lc-messages": self._plain("LC_ALL") or self._plain("LC_MESSAGES") or self._plain("LANG"),
        }
        for name, value in options.items():
            if value:
                assuan.request("OPTION", f"{name}={value}")  # some know fewer, and do without

    def _describe(self, assuan: Assuan, question: Question, *, repeat: bool) -> None:
        assuan.request("SETTITLE", "MirrorFS")
        assuan.request("SETTIMEOUT", f"{ASK_TIMEOUT_S:.0f}")
        needed = {
            "SETDESC": "\n".join([question.text, *question.notes]),
            "SETPROMPT": f"{question.label}:",
        }
        if error := " ".join(filter(None, (question.error, question.warning))):
            needed["SETERROR"] = error
        for command, argument in needed.items():
            # Nobody is asked without being told what for.
            if (number := assuan.request(command, argument).error) is not None:
                raise cannot_ask(question, f"pinentry does not take {command} (error {number})")
        if repeat and assuan.request("SETREPEAT", "Again:").error is None:
            assuan.request("SETREPEATERROR", "The two entries differ; enter them again.")

    def _plain(self, name: str) -> str:
        value = self._environment.get(name, "")
        return value if _PLAIN_VALUE.fullmatch(value) else ""


def _check_entered(reply: Reply, question: Question) -> None:
    if reply.error == _TIMEOUT:
        raise not_answered(question)
    if reply.error in _CANCELLED:
        raise NotAnswered(f"Entering the {question.kind.title} was cancelled; run the command again.")
    if reply.error is not None:
        raise cannot_ask(
            question, f"pinentry cannot ask for the {question.kind.title} here (error {reply.error})"
        )
