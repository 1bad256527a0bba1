"""Which frames a sequential reader will want next, in runs that are worth a thread.

A reader is sequential when a read begins where the one before it ended. What it will want is loaded a
window ahead, and the next window is begun when half of this one is read: so that the disk, the
decryption and the reader work at the same time, and a thread is asked once per run, not per frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from mirrorfs.core.extents import unpack_extents
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.ports import Index

FIRST_WINDOW: Final = 2 * CHUNK_SIZE
WINDOW: Final = 8 * CHUNK_SIZE
RUN_BYTES_MAX: Final = 4 * CHUNK_SIZE
GAP_MAX: Final = 64 * 1024
"""Bytes between two frames, of journal for the most part, that are read along rather than skipped."""
READERS_MAX: Final = 128


class Place(NamedTuple):
    """Where a frame lies."""

    frame: int
    stream: int
    sequence: int
    ordinal: int
    offset: int
    size: int


class _Reader(NamedTuple):
    expected: int
    """Where the next read begins if it is sequential."""
    ahead: int
    """Up to here frames were asked for."""
    window: int


class ReadAhead:
    """Follows the readers of one volume's files.

    Args:
        start: loads frames; it is given those that `is_wanted`, in the order of the file.
    """

    def __init__(
        self, index: Index, *, is_wanted: Callable[[int], bool], start: Callable[[Sequence[int]], None]
    ) -> None:
        self._index = index
        self._is_wanted = is_wanted
        self._start = start
        self._readers: dict[int, _Reader] = {}

    def note(self, inode: int, offset: int, size: int) -> None:
        """A read of a file's bytes was asked for."""
        end = offset + size
        reader = self._readers.get(inode)
        if reader is None or reader.expected != offset:
            if len(self._readers) >= READERS_MAX:
                self._readers.clear()
            self._readers[inode] = _Reader(end, end, FIRST_WINDOW)
            return
        ahead, window = max(reader.ahead, end), reader.window
        if ahead - end <= window // 2:
            frames = self._frames(inode, ahead, end + window)
            ahead, window = end + window, WINDOW
            if frames:
                self._start(frames)
        self._readers[inode] = _Reader(end, ahead, window)

    def _frames(self, inode: int, low: int, high: int) -> list[int]:
        frames: dict[int, None] = {}
        for chunk in range(low // CHUNK_SIZE, (high - 1) // CHUNK_SIZE + 1):
            for extent in unpack_extents(self._index.get_extents(inode, chunk)):
                if self._is_wanted(extent.frame):
                    frames[extent.frame] = None
        return list(frames)


def runs(places: Iterable[Place]) -> list[list[Place]]:
    """Split places, in the order of the file, into runs that lie next to one another in one segment."""
    found: list[list[Place]] = []
    for place in places:
        last = found[-1][-1] if found else None
        if (
            last is not None
            and (last.stream, last.sequence) == (place.stream, place.sequence)
            and 0 <= place.offset - (last.offset + last.size) <= GAP_MAX
            and place.offset + place.size - found[-1][0].offset <= RUN_BYTES_MAX
        ):
            found[-1].append(place)
        else:
            found.append([place])
    return found
