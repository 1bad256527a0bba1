"""Cutting what a crash left behind the last whole commit of the local log."""

from __future__ import annotations

from functools import partial

from mirrorfs.core.scan import ScannedSegment
from mirrorfs.engine.log import LogPosition
from mirrorfs.engine.replay import ReplayEnd, previous_of
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import DiskFull
from mirrorfs.format.ids import STREAM_PREFIX, Stream, segment_object_key
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.ports import Disk, Index, Offload

_DIRECTORY = LOCAL_PREFIX + STREAM_PREFIX[Stream.MAIN].rstrip("/")


async def cut_tail(disk: Disk, offload: Offload, index: Index, end: ReplayEnd) -> LogPosition:
    """Have the last segment end where replay did, durably. Returns where the log goes on; commits the index.

    Raises: DiskError, DiskFull.
    """
    last, tail = end.last, end.tail
    next_sequence = end.next_sequence
    if last is not None:
        path, size = LOCAL_PREFIX + segment_object_key(Stream.MAIN, last.segment), last.size
        if tail is None:
            # Sealed; but the process may have died between the trailer and its sync.
            await offload.sync(partial(_keep, disk, path, size=size))
        elif size <= HEADER_SIZE:
            # It holds no commit: it never was part of the log, and its number is free again.
            disk.remove(path)
            disk.sync_directory(_DIRECTORY)
            before = index.get_segment(last.segment.sequence - 1)
            last = previous_of(before) if before is not None else None
            next_sequence -= 1
        else:
            await offload.sync(partial(_keep, disk, path, size=size))
            index.put_segment(SegmentRow(*last.segment, size, 0, last.digest, *_times(tail, size=size)))
    index.commit()
    return LogPosition(next_sequence, last, end.journal_sequence, end.journal_hash)


def _keep(disk: Disk, path: str, *, size: int) -> None:
    """Make the last segment durable, cut to `size`; one that only a store has is.

    What was read may be in the page cache only, and if the sync that should have made it durable
    failed, the kernel may count its pages as clean: another sync would report success without effect.
    So the bytes are written anew, beside the old ones.
    """
    try:
        file = disk.open(path, writable=True)
    except FileNotFoundError:
        return
    try:
        try:
            disk.write_whole(path, file.read(offset=0, size_bytes=size))
        except DiskFull:
            # A full disk must not stop recovery; a sync that failed before is then not made good.
            if file.size() != size:
                file.truncate(size)
            file.sync()
    finally:
        file.close()
    disk.sync_directory(_DIRECTORY)


def _times(tail: ScannedSegment, *, size: int) -> tuple[int, int]:
    times = [found.journal.time_ns for found in tail.journals if found.end <= size]
    return (times[0], times[-1]) if times else (0, 0)
