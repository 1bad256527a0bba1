"""Which moments of a volume can be returned to: all from a base on, and single ones before it.

The log begins with the base. Segments before it may lie in the stores still, for the contents that are in
them; nothing is replayed from them. A moment before the base is a checkpoint by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.engine.moment import Moment
from mirrorfs.format.ids import SegmentId
from mirrorfs.format.rows import MomentRow
from mirrorfs.ports import Index


@dataclass(frozen=True, slots=True)
class Kept:
    """The moments that have a checkpoint."""

    moments: tuple[MomentRow, ...] = ()
    """In the order of their positions."""

    @property
    def base(self) -> MomentRow | None:
        """Where the log begins; None: with the first segment."""
        return next((row for row in self.moments if row.base), None)

    @property
    def position(self) -> int:
        """Of the base; 0 without one."""
        base = self.base
        return 0 if base is None else base.position

    @property
    def single(self) -> tuple[MomentRow, ...]:
        """The base and those before it: of what was between them only contents can be there still."""
        return tuple(row for row in self.moments if row.position <= self.position)

    def at(self, moment: Moment) -> MomentRow | None:
        """The newest that belongs to a moment."""
        belonging = (row for row in reversed(self.moments) if has_row(moment, row))
        return next(belonging, None)

    def after(self, row: MomentRow) -> MomentRow | None:
        """The next one."""
        return next((one for one in self.moments if one.position > row.position), None)

    def is_before_base(self, moment: Moment) -> bool:
        """Whether the log does not reach back to a moment."""
        base = self.base
        return base is not None and not has_row(moment, base)


def kept_of(index: Index) -> Kept:
    """What an index says."""
    return Kept(tuple(index.list_moments()))


def has_row(moment: Moment, row: MomentRow) -> bool:
    """Whether a kept moment belongs to what is restored."""
    return moment.has(position=row.position, time_ns=row.time_ns)


def root_segment(row: MomentRow) -> SegmentId:
    """The checkpoint segment that holds its root."""
    return SegmentId(row.sequence, row.epoch, row.writer)
