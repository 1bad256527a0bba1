"""A moment of the log, as whoever looks back names it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Moment:
    """The last moment to restore; with neither field, the newest state."""

    time_ns: int | None = None
    """Commits after this time are left out."""
    position: int | None = None
    """Commits behind this position are left out."""

    def has(self, *, position: int, time_ns: int) -> bool:
        """Whether a commit belongs to what is restored."""
        if self.position is not None and position > self.position:
            return False
        return self.time_ns is None or time_ns <= self.time_ns


NEWEST = Moment()
