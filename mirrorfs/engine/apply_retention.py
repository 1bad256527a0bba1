"""Applying the records of what is kept: moments, moved frames, segments that are in use no longer.

Each record is checked as a whole before anything is changed: one that does not fit leaves the index as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mirrorfs.core.compaction import Kept
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import Stream
from mirrorfs.format.limits import MOMENTS_MAX
from mirrorfs.format.retention import (
    Checkpointed,
    Collected,
    Deleted,
    Relocated,
    Retain,
    unpack_numbers,
    unpack_places,
)
from mirrorfs.format.rows import CondemnedRow, MomentRow, RelocatedRow, RelocationRow, SegmentRow
from mirrorfs.ports import Index


def _checkpointed(index: Index, r: Checkpointed) -> None:
    known = index.get_moment(r.position)
    if known is None and index.count_moments() >= MOMENTS_MAX:
        raise DamagedError("the log has more moments than a volume can have.")
    # One that there was is written again where the first did not last; it may be the base.
    base = known.base if known is not None else 0
    index.put_moment(MomentRow(r.position, r.sequence, r.epoch, r.writer, r.digest, r.time_ns, base))


def _retain(index: Index, r: Retain) -> None:
    base, old = index.get_moment(r.base), index.base_moment()
    if base is None or (old is not None and old.position > r.base):
        raise DamagedError("the log begins at a moment that has no checkpoint, or is gone.")
    dropped = unpack_numbers(r.dropped) if r.dropped else []
    if any(index.get_moment(position) is None for position in dropped):
        raise DamagedError("the log drops a moment that has no checkpoint.")
    if old is not None:
        index.put_moment(old._replace(base=0))
    for position in dropped:
        index.delete_moment(position)
    index.put_moment(base._replace(base=1))


def _relocated(index: Index, r: Relocated) -> None:
    row = RelocatedRow(r.sequence, r.epoch, r.writer, r.size, r.digest)
    condemned = index.get_condemned(Stream.RELOCATED, r.sequence)
    if condemned is not None or index.get_relocated(r.sequence) not in (None, row):
        raise DamagedError(f"the log moves frames to segment {r.sequence}, which is another one.")
    places = unpack_places(r.frames)
    for place in places:
        if index.get_frame(place.frame) is None:
            raise DamagedError(f"the log moves frame {place.frame}, which is in no segment.")
    index.put_relocated(row)
    for frame, ordinal, offset, size in places:
        index.put_relocation(RelocationRow(frame, Stream.RELOCATED, r.sequence, ordinal, offset, size))


def _collected(index: Index, r: Collected) -> None:
    kept = Kept.of(index.list_moments())
    rows: list[SegmentRow | RelocatedRow] = []
    frames: list[int] = []
    is_main = r.stream == Stream.MAIN
    for sequence in unpack_numbers(r.sequences):
        row = index.get_segment(sequence) if is_main else index.get_relocated(sequence)
        if row is None:
            raise DamagedError(f"the log collects segment {sequence}, which is not in use.")
        if is_main and kept.is_log(sequence):
            raise DamagedError(f"the log collects segment {sequence}, which is a part of it.")
        for frame in index.frames_in(r.stream, sequence):
            if kept.needs(frame.frame, live=frame.live, death=frame.death):
                raise DamagedError(f"the log collects frame {frame.frame}, which is needed.")
            frames.append(frame.frame)
        rows.append(row)
    for frame_id in frames:
        index.delete_frame(frame_id)
    for row in rows:
        (index.delete_segment if is_main else index.delete_relocated)(row.sequence)
        index.put_condemned(CondemnedRow(r.stream, row.sequence, row.epoch, row.writer, r.time_ns))


def _deleted(index: Index, r: Deleted) -> None:
    sequences = unpack_numbers(r.sequences)
    for sequence in sequences:
        if index.get_condemned(r.stream, sequence) is None:
            raise DamagedError(f"the log deletes segment {sequence}, which is not condemned.")
    for sequence in sequences:
        index.delete_condemned(r.stream, sequence)


RETENTION_HANDLERS: Final[Mapping[type[object], Callable[[Index, Any], None]]] = {
    Checkpointed: _checkpointed,
    Retain: _retain,
    Relocated: _relocated,
    Collected: _collected,
    Deleted: _deleted,
}
