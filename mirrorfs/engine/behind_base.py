"""A machine that was away for so long that the stores' log begins after the end of its own.

What lies between is not kept any more, so its log cannot be followed from there. It starts anew from the
stores' newest state, as a new machine does, provided that all it wrote is a part of that log.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from mirrorfs.engine.checkpoint_reader import CheckpointReader
from mirrorfs.engine.known_held import known_held
from mirrorfs.engine.replay import previous_of
from mirrorfs.engine.restore_kept import KeptMoments
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.standing import WHAT_NEXT
from mirrorfs.errors import ChainError, DamagedError
from mirrorfs.format.checkpoint import Fields, Root, Table
from mirrorfs.format.ids import STREAM_PREFIX, Previous, SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import CondemnedRow
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Index, Offload, Store

BEHIND_PATH: Final = "behind"
"""Local file: the name of the youngest local segment when a BehindBase was found. Only the index can tell,
and it is removed before there is a new one."""
MAY_BE_UNSENT: Final = (
    "This machine was away for longer than every moment is kept, and what it wrote last may be in no store;"
    f" {WHAT_NEXT}"
)


class BehindBase(DamagedError):
    """The local log ends before the stores' begins, and has nothing that is not in theirs."""


def note_behind(disk: Disk) -> None:
    """Note durably that the index may be made from the stores alone, as long as nothing is written here."""
    disk.write_whole(BEHIND_PATH, _youngest(disk))


def was_behind(disk: Disk) -> bool:
    """Whether that was noted, and nothing was written since."""
    try:
        file = disk.open(BEHIND_PATH)
    except FileNotFoundError:
        return False
    try:
        return file.read(offset=0, size_bytes=file.size()) == _youngest(disk)
    finally:
        file.close()


def _youngest(disk: Disk) -> bytes:
    return max(disk.list(LOCAL_PREFIX + STREAM_PREFIX[Stream.MAIN].rstrip("/")), default="").encode()


async def check_not_behind(
    index: Index,
    last: Previous | None,
    next_sequence: int,
    main: Segments,
    stores: Sequence[Store],
    offload: Offload,
    keys: VolumeKeys,
    writer: WriterPublicKey,
    *,
    instances: Collection[str],
) -> None:
    """Tell where the stores' log begins, when it cannot be followed.

    Args:
        index: the local one, at the end of the local log.
        last: the last segment of the local log.
        next_sequence: the number of the segment that was looked for.
        main: the stores' main stream, looked at from there on.
        instances: of the stores that may have been sent something, in hexadecimal.
    Raises: BehindBase. ChainError: it may have what nobody else has.
    """
    checkpoints = Segments(Stream.CHECKPOINT, disk=None, offload=offload, stores=stores)
    await checkpoints.look()
    reader = CheckpointReader(checkpoints, keys, writer)
    known = KeptMoments(reader, main, keys, writer)
    await known.learn()
    if known.newest is None or next_sequence >= known.kept.position >> 20:
        return
    if (
        last is None
        or await is_in(reader, known.newest[0], last.segment, last)
        or await _was_sent(index, last, instances)
    ):
        raise BehindBase("The stores keep no log any more that goes on from this machine's.")
    raise ChainError(MAY_BE_UNSENT)


async def is_in(
    reader: CheckpointReader, root: Root, segment: SegmentId, end: Previous | None = None
) -> bool:
    """Whether a segment, with that `end`, is of the log that a checkpoint is of, or was let go of."""
    row = await reader.segment_row(root, segment.sequence)
    if row is not None and row.sequence == segment.sequence:
        return previous_of(row).segment == segment and end in (None, previous_of(row))
    condemned: set[SegmentId] = set()

    def take(table: Table, rows: list[Fields]) -> None:
        found = (CondemnedRow(*fields) for fields in rows)  # type: ignore[arg-type]
        condemned.update(SegmentId(*one[1:4]) for one in found if one.stream == Stream.MAIN)

    await reader.read(root, ["condemned"], take)
    return segment in condemned


async def _was_sent(index: Index, last: Previous, instances: Collection[str]) -> bool:
    """Whether a store took a segment, and has it no longer: who keeps the log deletes only what is of it."""
    key = segment_object_key(Stream.MAIN, last.segment)
    return any([key in await known_held(index, instance) for instance in instances])
