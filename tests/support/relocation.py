"""Moving the frames of segments into a relocated one, in one step and without waiting for anything.

The compactor's shape, not its rules: what it waits for before it moves anything is not waited for here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from mirrorfs.core.extents import unpack_extents
from mirrorfs.engine.objects import key_of
from mirrorfs.engine.segment_writer import SegmentWriter
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.frame import Body
from mirrorfs.format.ids import Stream, split_frame_id
from mirrorfs.format.limits import ORDINAL_BITS
from mirrorfs.format.retention import (
    Checkpointed,
    Collected,
    FramePlace,
    Relocated,
    Retain,
    pack_numbers,
    pack_places,
)
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Index
from tests.support.volumes import HEADER, KEYS


class Moved(NamedTuple):
    """A segment of the relocated stream, and what it was made of."""

    key: str
    old: list[str]
    """Keys of the segments that are collected."""


def segments_of(index: Index, inode: int) -> list[int]:
    """Sequence numbers of the main segments that the frames of a small file were born in."""
    packed = index.get_extents(inode, 0)
    return sorted({split_frame_id(extent.frame)[0] for extent in unpack_extents(packed)})


async def copy_frames(
    volume: MountedVolume, sequences: Sequence[int], *, number: int
) -> tuple[Relocated, str]:
    """Seal the living frames of main segments again, into a segment on the local disk that nobody knows yet.

    Returns the record that makes it known, and its key.
    """
    local, world = volume._local, volume._world
    made = SegmentWriter(
        world.disk, local.identity, world.entropy, stream=Stream.RELOCATED, sequence=number, previous=None
    )
    places = []
    for sequence in sequences:
        row = local.index.get_segment(sequence)
        assert row is not None
        data = await volume.mender._source.read(key_of(Stream.MAIN, row))
        _, cipher = decode_header(data, KEYS, load_public_key(HEADER.public_keys.writer))
        for frame in local.index.frames_in(Stream.MAIN, sequence):
            if frame.live:
                birth = split_frame_id(frame.frame)
                body: Body = cipher.open_body(data[frame.offset :], offset=frame.offset, ordinal=birth[1])[1]
                placed = made.append(body, birth=birth)
                places.append(FramePlace(frame.frame, placed.ordinal, placed.offset, placed.size))
    made.seal()
    made.sync()
    data = made.read(offset=0, size_bytes=made.size)
    made.close()
    record = Relocated(
        number, local.identity.epoch, len(data), local.identity.writer, hashlib.sha256(data).digest(),
        pack_places(places),
    )  # fmt: skip
    return record, made.key


async def relocate(
    volume: MountedVolume, sequences: Sequence[int], *, number: int = 0, send: bool = True
) -> Moved:
    """Move what is alive in main segments, and collect them.

    `send`: have the stores take the new segment before it is relied on.
    """
    index, state = volume._local.index, volume._local.state
    rows = [index.get_segment(sequence) for sequence in sequences]
    old = [key_of(Stream.MAIN, row) for row in rows if row is not None]
    record, key = await copy_frames(volume, sequences, number=number)
    volume._local.cache.closed(key, record.size)
    if send:
        volume._tasks_of_stores.offer(key, record.size, written_ns=state.clock.now_ns())
        await volume.flush()
    let_go(volume, sequences)
    state.record(record)
    state.record(Collected(Stream.MAIN, state.clock.now_ns(), pack_numbers(sequences)))
    await volume._local.committer.commit(None)
    return Moved(key, old)


def let_go(volume: MountedVolume, sequences: Sequence[int]) -> None:
    """Have the log begin behind segments: only then they may be collected."""
    state, base = volume._local.state, (max(sequences) + 2) << ORDINAL_BITS
    now_ns = state.clock.now_ns()
    state.record(Checkpointed(base, now_ns, 0, 1, bytes(8), bytes(32)))
    state.record(Retain(base, b""))


def forget_old(volume: MountedVolume, moved: Moved, *places: dict[str, bytes]) -> None:
    """Delete the collected segments from the local disk and from stores."""
    for key in moved.old:
        volume._world.disk.remove("objects/" + key)
        volume._local.cache.gone("objects/" + key)
        for objects in places:
            objects.pop(key, None)
