"""Showing how long work gets on: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TextIO

LINE_INTERVAL_S: Final = 2.0
BAR_INTERVAL_S: Final = 0.1
BAR_CELLS: Final = 20

_UNITS: Final = ("KiB", "MiB", "GiB", "TiB", "PiB")


def format_bytes(count: int) -> str:
    """A number of bytes for people: "0 B", "1.5 MiB"."""
    if count < 1024:
        return f"{count} B"
    value = float(count)
    for unit in _UNITS:
        value /= 1024
        if value < 1024 or unit == _UNITS[-1]:
            break
    return f"{value:.1f} {unit}"


@dataclass(frozen=True, slots=True)
class ProgressItem:
    """How far one part of the work is."""

    name: str
    done_bytes: int
    total_bytes: int
    """0: nothing was to be done."""
    note: str = ""
    """Said after the numbers, such as "3 objects to go"."""
    shows_bytes: bool = True
    """Whether done and total are bytes, to be said; else the note alone says what they count."""
    has_total: bool = True
    """Whether it is known how much there is; else the note alone is said."""

    @property
    def fraction(self) -> float:
        """From 0 to 1."""
        if self.total_bytes <= 0:
            return 1.0
        return min(1.0, max(0.0, self.done_bytes / self.total_bytes))


class Progress:
    """Says how far the work is, as often as is bearable; to be ended with `end`.

    On a terminal one line is rewritten, at most every BAR_INTERVAL_S; elsewhere a line is added at most
    every LINE_INTERVAL_S. The first state is shown at once.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        now_s: Callable[[], float] = time.monotonic,
        columns: int | None = None,
    ) -> None:
        """
        Args:
            now_s: a monotonic clock.
            columns: width of the terminal; None asks it.
        """
        self._stream = stream
        self._now_s = now_s
        self._columns = columns
        self._is_tty = stream.isatty()
        self._shown_s: float | None = None
        self._width = 0
        self._last = ""

    def show(self, items: Sequence[ProgressItem]) -> None:
        """Show a state, unless one was shown just now."""
        interval_s = BAR_INTERVAL_S if self._is_tty else LINE_INTERVAL_S
        now_s = self._now_s()
        if self._shown_s is not None and now_s - self._shown_s < interval_s:
            return
        text = " | ".join(self._bar(item) for item in items) if self._is_tty else _line(items)
        if text == self._last:
            return
        self._shown_s = now_s
        self._last = text
        if self._is_tty:
            self._rewrite(text)
        else:
            self._write(text + "\n")

    def end(self) -> None:
        """Leave the terminal's line clean for what is said next."""
        if self._is_tty and self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _rewrite(self, text: str) -> None:
        columns = self._columns if self._columns is not None else shutil.get_terminal_size().columns
        text = text[: max(1, columns - 1)]
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()

    @staticmethod
    def _bar(item: ProgressItem) -> str:
        if not item.has_total:
            return _line([item])
        filled = int(item.fraction * BAR_CELLS)
        bar = "#" * filled + "." * (BAR_CELLS - filled)
        return f"{item.name} [{bar}] {int(item.fraction * 100):3d}% {_rest(item)}"


def _rest(item: ProgressItem) -> str:
    if not item.shows_bytes:
        return item.note
    left = format_bytes(max(0, item.total_bytes - item.done_bytes)) + " to go"
    return f"{left}, {item.note}" if item.note else left


def _line(items: Sequence[ProgressItem]) -> str:
    return "; ".join(f"{item.name}: {_done(item)}{_rest(item)}" for item in items)


def _done(item: ProgressItem) -> str:
    return f"{int(item.fraction * 100)}% done, " if item.has_total else ""
