"""Checkpoint segments that a crash left half written: nobody can read them, and no store has them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from mirrorfs.engine.objects import LocalObjects
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.format.segment import FOOTER, read_footer
from mirrorfs.ports import Disk, Offload

logger = logging.getLogger(__name__)


async def remove_torn(
    objects: LocalObjects, disk: Disk, offload: Offload, *, is_held: Callable[[str], bool]
) -> None:
    """Remove those that have no end, and that no store ever took. Raises: DiskError."""
    keys = await objects.keys(STREAM_PREFIX[Stream.CHECKPOINT])
    unsent = [key for key in keys if not is_held(key)]
    removed = await offload.run(lambda: _remove(disk, unsent))
    if removed:
        logger.info("%d segments of a checkpoint that a crash broke off were removed", removed)


def _remove(disk: Disk, keys: Sequence[str]) -> int:
    torn = []
    for key in keys:
        file = disk.open(LOCAL_PREFIX + key)
        try:
            size = file.size()
            end = file.read(offset=max(size - FOOTER.size, 0), size_bytes=FOOTER.size)
            if read_footer(end) is None:
                torn.append(key)
        finally:
            file.close()
    for key in torn:
        disk.remove(LOCAL_PREFIX + key)
    return len(torn)
