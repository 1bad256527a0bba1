"""The client's half of the Assuan protocol, as far as pinentry speaks it.

Lines of at most 1000 bytes; one command is answered by any number of `D` (data), `S` (status) and `#` lines,
and then by OK or ERR. In data and arguments a percent sign and two hexadecimal digits stand for a byte.
Source: the Assuan manual of the GnuPG project, "Client requests" and "Server responses". What does not fit
is refused: an answer that is only half understood must not be taken for a secret.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from typing import Final

from mirrorfs.keys.ask_program import Helper

LINE_SIZE_MAX: Final = 1000
LINES_MAX: Final = 100
"""Of one reply."""
DATA_SIZE_MAX: Final = 4096
_ESCAPED: Final = re.compile(rb"%([0-9A-Fa-f]{2})")
_CODE_MASK: Final = 0xFFFF
"""The upper half of an error's number says which program it comes from."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command was answered."""

    error: int | None
    """Number of the error as libgpg-error counts them; None for OK."""
    data: bytes = field(repr=False, default=b"")
    statuses: tuple[str, ...] = ()
    """Keywords of status lines."""


def escape(text: str) -> bytes:
    """An argument as it goes into a line."""
    return re.sub(rb"[%\r\n]", lambda match: b"%%%02X" % match[0][0], text.encode())


def unescape(data: bytes) -> bytes | None:
    """What a data line stands for; None if it is malformed."""
    if data.count(b"%") != len(_ESCAPED.findall(data)):
        return None
    return _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)


class Assuan:
    """A conversation with a program that was started for it."""

    def __init__(self, helper: Helper, *, timeout_s: float) -> None:
        """`timeout_s` holds for each reply that needs no person."""
        self._helper = helper
        self._timeout_s = timeout_s

    def greeting(self) -> None:
        """Wait for the first line. Raises: CannotAsk."""
        if self._prompt_reply().error is not None:
            raise self._helper.failed("refused to begin")

    def request(self, command: str, argument: str = "", *, timeout_s: float | None = None) -> Reply:
        """Send a command, and return its reply, an ERR too.

        Args:
            timeout_s: for a reply that needs a person; TimeoutError then, instead of CannotAsk.
        Raises: CannotAsk: the program ended, hangs or talks nonsense. TimeoutError.
        """
        line = command.encode() + (b" " + escape(argument) if argument else b"")
        assert len(line) < LINE_SIZE_MAX
        self._helper.send(line)
        return self._prompt_reply() if timeout_s is None else self._reply(timeout_s)

    def _prompt_reply(self) -> Reply:
        try:
            return self._reply(self._timeout_s)
        except TimeoutError as exc:
            raise self._helper.failed("does not answer") from exc

    def _reply(self, timeout_s: float) -> Reply:
        deadline_s = time.monotonic() + timeout_s
        data = b""
        statuses: list[str] = []
        for _ in range(LINES_MAX):
            line = self._helper.read_line(deadline_s=deadline_s, size_max=LINE_SIZE_MAX)
            kind, _, rest = line.partition(b" ")
            if kind == b"OK":
                return Reply(None, data, tuple(statuses))
            if kind == b"ERR":
                return Reply(self._number(rest))
            if kind == b"D":
                part = unescape(rest)
                if part is None:
                    raise self._helper.failed("garbled its answer")
                data += part
            elif kind == b"S":
                statuses.append(rest.partition(b" ")[0].decode(errors="replace"))
            elif not line.startswith(b"#"):
                # INQUIRE among them: nothing was sent that lets the program ask back.
                raise self._helper.failed("garbled its answer")
            if len(data) > DATA_SIZE_MAX:
                break
        raise self._helper.failed("said more than it may")

    def _number(self, rest: bytes) -> int:
        digits = rest.partition(b" ")[0]
        if not re.fullmatch(rb"[0-9]{1,10}", digits):
            raise self._helper.failed("garbled its answer")
        return int(digits) & _CODE_MASK
