"""The youngest local segments that hold no commit: they never were part of the log."""

from __future__ import annotations

from functools import partial

from mirrorfs.core.scan import cut_of, scan_segment
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Offload

_DIRECTORY = LOCAL_PREFIX + STREAM_PREFIX[Stream.MAIN].rstrip("/")


async def drop_unborn(disk: Disk, offload: Offload, keys: VolumeKeys, writer: WriterPublicKey) -> None:
    """Remove the youngest segments as long as they hold no commit.

    What such a segment attests of the one before does not bind then. If that one was being mended,
    the commits behind its cut may be whole, and are kept.
    """
    for name in reversed(await offload.run(partial(disk.list, _DIRECTORY))):
        path = f"{_DIRECTORY}/{name}"
        if not await offload.run(partial(_is_unborn, disk, path, keys, writer)):
            return
        disk.remove(path)
        disk.sync_directory(_DIRECTORY)


def _is_unborn(disk: Disk, path: str, keys: VolumeKeys, writer: WriterPublicKey) -> bool:
    file = disk.open(path)
    try:
        data = file.read(offset=0, size_bytes=file.size())
    finally:
        file.close()
    if len(data) <= HEADER_SIZE:
        # The header is synced before the first frame is written: whatever the bytes are, it is empty.
        return True
    try:
        scan = scan_segment(data, keys.for_any_place(), writer)
    except DamagedError:
        return False  # damage, for replay to judge
    return scan.trailer is None and cut_of(scan) <= HEADER_SIZE and scan.known_durable <= HEADER_SIZE
