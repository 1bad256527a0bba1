"""Applying the records of what is kept: moments, moved frames, segments that are in use no longer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import Stream
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
    row = MomentRow(r.position, r.sequence, r.epoch, r.writer, r.digest, r.time_ns, 0)
    index.put_moment(row)


def _retain(index: Index, r: Retain) -> None:
    dropped = set(unpack_numbers(r.dropped))
    moments = {row.position: row for row in index.list_moments()}
    if r.base not in moments or not dropped <= moments.keys():
        raise DamagedError("the log keeps or drops a moment that has no checkpoint.")
    for position in dropped:
        index.delete_moment(position)
    for row in moments.values():
        if row.base and row.position not in dropped:
            index.put_moment(row._replace(base=0))
    index.put_moment(moments[r.base]._replace(base=1))


def _relocated(index: Index, r: Relocated) -> None:
    index.put_relocated(RelocatedRow(r.sequence, r.epoch, r.writer, r.size, r.digest))
    for frame, ordinal, offset, size in unpack_places(r.frames):
        if index.get_frame(frame) is None:
            raise DamagedError(f"the log moves frame {frame}, which is in no segment.")
        index.put_relocation(RelocationRow(frame, Stream.RELOCATED, r.sequence, ordinal, offset, size))


def _collected(index: Index, r: Collected) -> None:
    for sequence in unpack_numbers(r.sequences):
        row: SegmentRow | RelocatedRow | None
        if r.stream == Stream.MAIN:
            row = index.get_segment(sequence)
            index.delete_segment(sequence)
        else:
            row = index.get_relocated(sequence)
            index.delete_relocated(sequence)
        if row is None:
            raise DamagedError(f"the log collects segment {sequence}, which is not in use.")
        for frame in index.frames_in(r.stream, sequence):
            if frame.live:
                raise DamagedError(f"the log collects frame {frame.frame}, which is alive.")
            index.delete_frame(frame.frame)
        index.put_condemned(CondemnedRow(r.stream, sequence, row.epoch, row.writer, r.time_ns))


def _deleted(index: Index, r: Deleted) -> None:
    for sequence in unpack_numbers(r.sequences):
        index.delete_condemned(r.stream, sequence)


RETENTION_HANDLERS: Final[Mapping[type[object], Callable[[Index, Any], None]]] = {
    Checkpointed: _checkpointed,
    Retain: _retain,
    Relocated: _relocated,
    Collected: _collected,
    Deleted: _deleted,
}
