"""Sealing anew, under the keys in use, what was sealed with keys that are out of use.

It is compaction that takes a segment for the keys it was sealed with. What belongs to the log that is kept
stays as it is, for the log is one signed chain: it is sealed anew when the retention policy has let go of its
part of the log. So it takes as long as every moment is kept, and goes on after every interruption. At last
the older moments that are kept get checkpoints of their own once more (engine/moments.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirrorfs.core.compaction import Place
from mirrorfs.format.ids import Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Disk, Index

RESEAL_PATH: Final = "reseal"
"""Local file: its being there is the request."""
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class ResealState:
    """How far it is."""

    left: int
    """Segments that are in use and sealed with keys that are out of use."""
    of: int
    """Segments in use."""
    last_ns: int
    """Commit time of the newest change among them: when every moment since then is let go, all is done."""


class Reseal:
    """The request of one mounted volume."""

    def __init__(self, disk: Disk, index: Index, keys: VolumeKeys) -> None:
        self._disk = disk
        self._index = index
        self._keys = keys
        self.is_wanted = self._is_there()

    def _is_there(self) -> bool:
        try:
            self._disk.open(RESEAL_PATH).close()
        except FileNotFoundError:
            return False
        return True

    def is_old(self, place: Place) -> bool:
        """Whether a segment in use was sealed with keys that are out of use."""
        stream, sequence = place
        if stream == Stream.MAIN:
            return sequence < self._keys.from_sequence
        row = self._index.get_relocated(sequence)
        return row is not None and row.epoch not in self._keys.epochs_of(self._keys.generation)

    def state(self) -> ResealState:
        """Looks at all segments."""
        left = of = last_ns = sequence = 0
        while rows := self._index.list_segments(from_sequence=sequence, limit=_PAGE):
            for row in rows:
                of += 1
                if self.is_old((Stream.MAIN, row.sequence)):
                    left, last_ns = left + 1, max(last_ns, row.last_ns)
            sequence = rows[-1].sequence + 1
        sequence = 0
        while relocated := self._index.list_relocated(from_sequence=sequence, limit=_PAGE):
            of += len(relocated)
            left += sum(self.is_old((Stream.RELOCATED, one.sequence)) for one in relocated)
            sequence = relocated[-1].sequence + 1
        return ResealState(left, of, last_ns)

    def check_done(self) -> None:
        """Forget the request if nothing is left of it. Raises: DiskError."""
        if self.is_wanted and self.state().left == 0:
            self._disk.remove(RESEAL_PATH)
            self.is_wanted = False


def request_reseal(disk: Disk) -> None:
    """Have the next mount begin, or go on. Raises: DiskError."""
    disk.write_whole(RESEAL_PATH, b"")
