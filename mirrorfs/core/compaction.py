"""Which segments are worth rewriting, without what in them no kept moment needs (core/needed.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from mirrorfs.core.needed import Needed
from mirrorfs.format.ids import Stream, split_frame_id
from mirrorfs.format.rows import FrameRow, RelocationRow

Place = tuple[int, int]
"""(stream, sequence) of the segment in which a frame lies now."""

SHARE_MIN: Final = 0.8
"""A segment of which less is needed is rewritten: space settles at 1 / SHARE_MIN of what is needed."""


class Usage(NamedTuple):
    """What lies in one segment."""

    needed_bytes: int
    """Bytes of frames that some kept position needs, as they lie there."""
    unneeded_bytes: int


def survey(
    frames: Iterable[Sequence[int]], relocations: Iterable[Sequence[int]], needed: Needed
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
        found[0 if needed.is_needed(row) else 1] += row.size
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
    """Segments to do without, those of which least is needed first, then the oldest.

    Args:
        segments: (place, bytes) of those that may be taken: none from the base on.
        copy_bytes_max: for all together; one segment may always be taken.
        forced: whether one is taken however much of it is needed.
    """
    found = []
    for place, size in segments:
        used = usage.get(place)
        needed = used.needed_bytes if used is not None else 0
        if needed < share_min * size or forced(place):
            found.append(Victim(place, size, needed))
    found.sort(key=lambda one: (one.needed_bytes / one.size if one.size else 0.0, one.place))
    taken: list[Victim] = []
    for one in found:
        if taken and one.needed_bytes > copy_bytes_max:
            break
        taken.append(one)
        copy_bytes_max -= one.needed_bytes
    return taken
