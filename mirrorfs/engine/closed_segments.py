"""The youngest segments of the local log, where something else than themselves says that they were closed.

Without its trailer a segment looks like one that a crash cut, and replay would end it at its last good
commit: right after a crash, and a loss where the bytes rotted. The index names the segments that were closed,
and the newest local head one of them, both with size and digest; a store that took it has it as it was.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from mirrorfs.core.genuine import check_object
from mirrorfs.engine.objects import LocalObjects, is_segment
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.versions import get_checked
from mirrorfs.errors import DamagedError, LimitError, StoreError
from mirrorfs.format.control import Head, open_head, parse_head_key
from mirrorfs.format.ids import STREAM_PREFIX, Stream, parse_segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import SegmentRow
from mirrorfs.ports import Disk, Index, ObjectKey, Offload, Store

logger = logging.getLogger(__name__)

_HEADS = "heads/"
_MAIN = STREAM_PREFIX[Stream.MAIN]


def newest_local_head(disk: Disk, *, keys: VolumeKeys, public_key: bytes) -> tuple[Head, bytes] | None:
    """The newest head on the local disk that verifies, and its bytes."""
    for name in reversed(disk.list(LOCAL_PREFIX + _HEADS.rstrip("/"))):
        key = _HEADS + name
        file = disk.open(LOCAL_PREFIX + key)
        try:
            data = file.read(offset=0, size_bytes=file.size())
        finally:
            file.close()
        try:
            parse_head_key(key)
            return open_head(data, key=key, keys=keys, public_key=public_key, with_past=True), data
        except DamagedError as exc:
            logger.warning("Local object %s: %s", key, exc)
    return None


async def mend_youngest(
    disk: Disk,
    offload: Offload,
    index: Index,
    head: Head | None,
    stores: Sequence[Store],
    *,
    keys: VolumeKeys,
    public_key: bytes,
) -> None:
    """Take from a store what is bad here of the youngest segment and of the one that a head names.

    What no store has stays as it is, for replay to judge: after a crash it may never have been closed.
    """
    local = LocalObjects(disk, index, offload)
    names = await offload.run(partial(disk.list, LOCAL_PREFIX + _MAIN.rstrip("/")))
    youngest = [_MAIN + name for name in names[-1:]]
    wanted = {key: local.row_of(key) for key in youngest if is_segment(key)}
    if head is not None and head.segment_key.removeprefix(_MAIN) in names:
        wanted[head.segment_key] = local.row_of(head.segment_key) or _row_of(head)
    for key, row in wanted.items():
        if row is None:
            continue
        check = partial(check_object, key, keys=keys, public_key=public_key, row=row)
        with suppress(DamagedError):
            await offload.run(partial(check, await local.read(key, size_bytes=row.size)))
            continue
        for store in stores:
            try:
                data = await get_checked(store, ObjectKey(key), partial(_checked, offload, check))
            except (StoreError, DamagedError, LimitError) as exc:
                logger.info("Store %s has no copy of %s to mend it with: %s", store.name, key, exc)
                continue
            logger.warning("Object %s is damaged on the local disk; taken from store %s.", key, store.name)
            await offload.sync(partial(disk.write_whole, LOCAL_PREFIX + key, data))
            break


async def _checked(offload: Offload, check: Callable[[bytes], None], data: bytes) -> bytes:
    await offload.run(partial(check, data))
    return data


def _row_of(head: Head) -> SegmentRow:
    segment = parse_segment_object_key(head.segment_key)[1]
    return SegmentRow(*segment, head.segment_size, 0, head.segment_digest, 0, 0)
