"""Which frames some kept moment needs, and which segments are worth rewriting without the others.

The state at a position refers to a frame that was born before it and had not died by then. What is kept is
every position from a base on, and some before it; so a frame that is alive, or that died after the base, is
needed, and else it is if a kept position lies within its life. A frame without a life yet, that no commit
has named, is left alone.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from mirrorfs.format.ids import Stream, split_frame_id
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.rows import FrameRow, MomentRow, RelocationRow

Place = tuple[int, int]
"""(stream, sequence) of the segment in which a frame lies now."""

SHARE_MIN: Final = 0.8
"""A segment of which less is needed is rewritten: space settles at 1 / SHARE_MIN of what is needed."""
GAIN_MIN: Final = 64 * 1024
"""Bytes. To rewrite what was rewritten already for less than this is not worth the while: a small segment is
mostly header and trailer, however often it is written."""


SMALL_MAX: Final = SEGMENT_SIZE_MAX // 4
"""Bytes. Segments below this are joined, whole as they are."""
JOINED_MIN: Final = 16
"""So many of one size, up to a factor of SIZES, are joined: each byte is copied once for each factor."""
SIZES_BITS: Final = 4
JOINED_MAX: Final = 2000
"""Segments that one run joins of each size: each is read by itself."""


class Kept(NamedTuple):
    """The positions that must stay readable."""

    base: int
    """Every position from here on."""
    moments: Sequence[int]
    """Those before it, rising."""

    @classmethod
    def of(cls, moments: Iterable[MomentRow]) -> Kept:
        """What rows of all moments say; `base` is 0 where none is the base, and all of the log is kept."""
        rows = list(moments)
        base = next((row.position for row in rows if row.base), 0)
        return cls(base, [row.position for row in rows if row.position < base])

    def is_log(self, sequence: int) -> bool:
        """Whether a segment of the main stream is a part of the log, and not a mere container of frames.

        The one before the base's is: who begins at the base finds by its row which segment continues the
        chain.
        """
        return sequence + 1 >= self.base >> 20

    def needs(self, frame: int, *, live: int, death: int) -> bool:
        """Whether some kept position refers to a frame (fields as of FrameRow).

        Replay asks again, of what the log says is needed no longer: both must come to the same answer.
        """
        if live or not death or death > self.base:
            return True
        at = bisect_right(self.moments, frame)
        return at < len(self.moments) and self.moments[at] < death


class Usage(NamedTuple):
    """What lies in one segment."""

    needed_bytes: int
    """Bytes of frames that some kept position needs, as they lie there."""
    unneeded_bytes: int


def survey(
    frames: Iterable[Sequence[int]], relocations: Iterable[Sequence[int]], kept: Kept
) -> dict[Place, Usage]:
    """How much of each segment is needed.

    Args:
        frames: fields of all FrameRows, in order of their frames; relocations: of all RelocationRows, too.
    """
    totals: dict[Place, list[int]] = {}
    for place, row, _ in placed(frames, relocations):
        found = totals.get(place)
        if found is None:
            found = totals[place] = [0, 0]
        needed = kept.needs(row.frame, live=row.live, death=row.death)
        found[0 if needed else 1] += row.size
    return {place: Usage(*found) for place, found in totals.items()}


def placed(
    frames: Iterable[Sequence[int]], relocations: Iterable[Sequence[int]]
) -> Iterator[tuple[Place, FrameRow, RelocationRow | None]]:
    """Every frame with the segment that it lies in; arguments as of `survey`. Frames keep their order."""
    moved = iter(relocations)
    move = next(moved, None)
    for fields in frames:
        row = FrameRow._make(fields)
        while move is not None and move[0] < row.frame:
            move = next(moved, None)
        if move is not None and move[0] == row.frame:
            where = RelocationRow._make(move)
            yield (where.stream, where.sequence), row._replace(size=where.size), where
        else:
            yield (Stream.MAIN, split_frame_id(row.frame)[0]), row, None


class Victim(NamedTuple):
    """A segment to do without."""

    place: Place
    size: int
    """Bytes of its object."""
    needed_bytes: int
    """Bytes of frames to copy first."""


def victims(
    segments: Iterable[tuple[Place, int]],
    usage: Mapping[Place, Usage],
    *,
    share_min: float = SHARE_MIN,
    copy_bytes_max: int,
    forced: Callable[[Place], bool] = lambda place: False,
) -> list[Victim]:
    """Segments to do without: those of which least is needed first, then the oldest; then small ones to join.

    Args:
        segments: (place, bytes) of those that may be taken: none from the base on.
        copy_bytes_max: for all together; one segment may always be taken.
        forced: whether one is taken however much of it is needed.
    """
    found: list[Victim] = []
    full: list[Victim] = []
    for place, size in segments:
        used = usage.get(place)
        needed = used.needed_bytes if used is not None else 0
        (found if needed < share_min * size or forced(place) else full).append(Victim(place, size, needed))
    again = [
        one for one in found if one.place[0] != Stream.MAIN and one.needed_bytes and not forced(one.place)
    ]
    if len(again) == len(found) and sum(one.size - one.needed_bytes for one in again) < GAIN_MIN:
        found = []
    found.sort(key=lambda one: (one.needed_bytes / one.size if one.size else 0.0, one.place))
    taken: list[Victim] = []
    for one in found:
        if taken and one.needed_bytes > copy_bytes_max:
            return taken
        taken.append(one)
        copy_bytes_max -= one.needed_bytes
    return taken + joined(full, copy_bytes_max=copy_bytes_max)


def joined(segments: Iterable[Victim], *, copy_bytes_max: int) -> list[Victim]:
    """Small segments to write together, of which all is needed: oldest first, the smallest ones before.

    Of each size as many as may be copied, or none: JOINED_MIN together are at least of the next size, so that
    what was joined is joined again only with its like.
    """
    sizes: dict[int, list[Victim]] = {}
    for one in segments:
        if one.size < SMALL_MAX:
            sizes.setdefault(one.size.bit_length() // SIZES_BITS, []).append(one)
    taken: list[Victim] = []
    for _, of_size in sorted(sizes.items()):
        group: list[Victim] = []
        left = copy_bytes_max
        for one in sorted(of_size)[:JOINED_MAX]:
            if one.needed_bytes > left:
                break
            group.append(one)
            left -= one.needed_bytes
        if len(group) >= JOINED_MIN:
            taken += group
            copy_bytes_max = left
    return taken
