"""An agent of systemd-ask-password, for tests: answers the real program over its files and sockets.

It does what systemd's "Password Agents" document says, without systemd: each question is a file ask.* in
/run/systemd/ask-password, and the answer a datagram to the socket it names, "+" and the secret, or "-".
Questions of others are left alone: only those with an expected Id are answered.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PLACE = Path("/run/systemd/ask-password")


class PasswordAgent:
    """Runs in a thread for the length of a `with` block."""

    def __init__(self) -> None:
        self.answered: list[dict[str, str]] = []
        """The questions that were answered, as their files say."""
        self._expected: list[tuple[str, bytes | None, Callable[[dict[str, str]], None] | None]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._failure: Exception | None = None

    def expect(
        self, identity: str, answer: bytes | None, before: Callable[[dict[str, str]], None] | None = None
    ) -> None:
        """Answer the next question with that Id.

        Args:
            answer: None cancels.
            before: called with the question before it is answered.
        """
        self._expected.append((identity, answer, before))

    def __enter__(self) -> PasswordAgent:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            while not self._stop.wait(0.05):
                for question in _questions():
                    self._consider(question)
        except (AssertionError, KeyError, OSError) as exc:
            self._failure = exc

    def _consider(self, question: dict[str, str]) -> None:
        # One that was answered stays until its program has ended.
        if not self._expected or question["Socket"] in [known["Socket"] for known in self.answered]:
            return
        identity, answer, before = self._expected[0]
        if question.get("Id") != identity:
            return
        del self._expected[0]
        if before is not None:
            before(question)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"-" if answer is None else b"+" + answer, question["Socket"])
        self.answered.append(question)


def _questions() -> list[dict[str, str]]:
    found = []
    for path in PLACE.glob("ask.*"):
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:
            continue
        fields = dict(line.split("=", 1) for line in lines if "=" in line)
        if "Socket" in fields:
            found.append(fields)
    return found
