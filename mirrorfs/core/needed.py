"""Which data frames something that can be returned to still refers to (docs/FORMAT.md, "What is kept").

Compaction asks before it lets a frame go, and replay asks again when the log says that it went: both must
come to the same answer, so it is worked out here alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from mirrorfs.format.rows import FrameRow, MomentRow


class Needed:
    """What the kept moments refer to."""

    def __init__(self, moments: Iterable[MomentRow]) -> None:
        """`moments`: all of them, in the order of their positions."""
        rows = list(moments)
        self._positions = [row.position for row in rows]
        self.base = next((row.position for row in rows if row.base), 0)
        """Every commit from here on can be returned to; 0: all of the log."""

    def is_needed(self, frame: FrameRow) -> bool:
        """Whether a frame has to be kept: it is alive, or was at a moment that can be returned to.

        One that nothing refers to, and of which no commit has said yet that it is dead, is kept: the next
        commit may name it.
        """
        if frame.live or not frame.death or frame.death > self.base:
            return True
        after = bisect_right(self._positions, frame.frame)
        return after < len(self._positions) and self._positions[after] < frame.death

    def is_log(self, sequence: int) -> bool:
        """Whether a segment of the main stream is a part of the log, and not a mere container of frames.

        The one before the base's is: who begins at the base finds by it which segment continues the chain.
        """
        return sequence + 1 >= self.base >> 20
