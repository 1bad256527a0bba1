"""Which chunks of files lie in so many small pieces that they are worth writing anew.

A database that is changed page by page leaves each page in the frame of the commit that wrote it: to read a
chunk (1 MiB) of it hundreds of frames are opened, and the index has an extent for each. What is older than
the horizon is taken; what is younger stays where it is, in between. Nothing is taken for less than GAIN_MIN
extents, and each write makes two more at most: so a chunk is written anew once for so many writes to it, and
never twice for the same ones.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from mirrorfs.core.extents import EXTENT_SIZE, Extent, unpack_extents
from mirrorfs.format.rows import ExtentRow

GAIN_MIN: Final = 64
"""Extents that a chunk has less of afterwards."""


class Run(NamedTuple):
    """Bytes of a chunk that lie next to one another, older than the horizon and in more than one piece."""

    start: int
    length: int
    parts: tuple[Extent, ...]
    """What maps them now."""


class Fragmented(NamedTuple):
    """A chunk of a file that is worth it."""

    inode: int
    chunk: int
    packed: bytes
    """Its extents when it was looked at: as long as it has these its bytes are the same, for frames are."""
    size: int
    """Bytes that would be written."""


def old_runs(
    packed: bytes, horizon: int, *, is_shared: Callable[[int], bool] = lambda frame: False
) -> list[Run]:
    """What of a chunk would be written anew, in its order.

    Args:
        horizon: position; frames of before are old.
        is_shared: whether other bytes of files refer to a frame's as well, which would be stored twice.
    """
    runs: list[Run] = []
    parts: list[Extent] = []
    for extent in unpack_extents(packed):
        is_old = extent.frame < horizon and not is_shared(extent.frame)
        if parts and not (is_old and parts[-1].start + parts[-1].length == extent.start):
            _end(parts, runs)
        if is_old:
            parts.append(extent)
    _end(parts, runs)
    return runs


def _end(parts: list[Extent], runs: list[Run]) -> None:
    if len(parts) > 1:
        runs.append(Run(parts[0].start, sum(part.length for part in parts), tuple(parts)))
    parts.clear()


def gain_of(runs: Iterable[Run]) -> int:
    """Extents that a chunk has less of when each run is one piece."""
    return sum(len(run.parts) - 1 for run in runs)


def fragmented(
    rows: Iterable[Sequence[object]], horizon: int, *, bytes_max: int, gain_min: int = GAIN_MIN
) -> list[Fragmented]:
    """The chunks that are worth it, of those with the most extents to save so many as may be; in order.

    Args:
        rows: fields of all ExtentRows. horizon: as of `old_runs`.
        bytes_max: of all together; one chunk may always be taken.
    """
    found: list[tuple[int, Fragmented]] = []
    size = 0
    for fields in rows:
        inode, chunk, packed = ExtentRow._make(fields)
        if len(packed) <= gain_min * EXTENT_SIZE:
            continue  # nearly all of them
        runs = old_runs(packed, horizon)
        gain = gain_of(runs)
        if gain < max(gain_min, 1):
            continue
        one = Fragmented(inode, chunk, packed, sum(run.length for run in runs))
        heapq.heappush(found, (gain, one))
        size += one.size
        while size > bytes_max and len(found) > 1:
            size -= heapq.heappop(found)[1].size
    return sorted(one for _, one in found)
