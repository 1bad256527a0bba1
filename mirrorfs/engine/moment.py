"""A moment of the log, as whoever looks back names it."""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.errors import UsageError
from mirrorfs.ports import Index


@dataclass(frozen=True, slots=True)
class Moment:
    """The last moment to restore; with no field, the newest state."""

    time_ns: int | None = None
    """Commits after this time are left out."""
    position: int | None = None
    """Commits behind this position are left out."""
    snapshot: bytes | None = None
    """Commits behind the one that this snapshot names are left out; `resolved` tells which that is."""
    is_exact: bool = False
    """A moment that is kept in its place will not do: `position` was named by a snapshot."""

    def resolved(self, index: Index) -> Moment:
        """The same without a snapshot's name, going by an index of the newest state. Raises: UsageError."""
        if self.snapshot is None:
            return self
        row = index.get_snapshot(self.snapshot)
        if row is None:
            raise UsageError(
                "The volume has no snapshot of that name; `mirrorfs snapshot list` shows them. A moment can"
                " also be written as '2026-03-01 14:05', 'yesterday 18:00', 2h or a position such as 17.203."
            )
        return Moment(position=row.position, is_exact=True)

    def has(self, *, position: int, time_ns: int) -> bool:
        """Whether a commit belongs to what is restored."""
        if self.position is not None and position > self.position:
            return False
        return self.time_ns is None or time_ns <= self.time_ns


NEWEST = Moment()
