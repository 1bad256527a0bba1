"""Parts of segments that were fetched from a store, kept in sparse local files, still sealed.

A file has the bytes of its segment at their own offsets, and holes elsewhere. Nothing says which bytes are
there: a frame is there if it authenticates. So nothing is ever synced, and a crash can do no harm.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from mirrorfs.engine.space import SpaceGuard
from mirrorfs.errors import DiskError
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.ports import Disk, Offload, OpenFile

logger = logging.getLogger(__name__)

RANGES: Final = "ranges"
BLOCK_BYTES: Final = 256 * 1024
"""What is fetched begins and ends at multiples of this, so that a request brings what lies next to it."""


def range_path(key: str) -> str:
    """Where the parts of a segment lie; those of the main stream go by its name alone."""
    return f"{RANGES}/{key.removeprefix(STREAM_PREFIX[Stream.MAIN]).replace('/', '-')}"


class RangeFiles:
    """The sparse files of one volume."""

    def __init__(
        self,
        disk: Disk,
        offload: Offload,
        space: SpaceGuard,
        *,
        on_kept: Callable[[str, int], None],
        on_used: Callable[[str], None],
    ) -> None:
        """`on_kept(path, all bytes that the file takes)` and `on_used(path)` keep account of them."""
        self._disk = disk
        self._offload = offload
        self._space = space
        self._on_kept = on_kept
        self._on_used = on_used

    async def read(self, key: str, *, offset: int, size_bytes: int) -> bytes | None:
        """What is kept of a range, zeros where it is not; None when there is nothing of the segment."""
        path = range_path(key)

        def work() -> bytes:
            file = self._disk.open(path)
            try:
                return file.read(offset=offset, size_bytes=size_bytes)
            finally:
                file.close()

        try:
            data = await self._offload.run(work)
        except (FileNotFoundError, DiskError):
            return None
        self._on_used(path)
        return data

    async def keep(self, key: str, parts: Mapping[int, bytes]) -> None:
        """Keep parts of a segment, by offset, unless the disk is nearly full.

        What cannot be kept is fetched again: no error.
        """
        path = range_path(key)

        def work() -> int:
            try:
                self._write(path, parts)
            except DiskError as exc:
                # The file may have some of it, which counts.
                _say_not_kept(exc)
            return self._disk.allocated_bytes(path)

        try:
            if self._space.soft(extra_bytes=sum(map(len, parts.values()))):
                return
            size_bytes = await self._offload.run(work)
        except FileNotFoundError:
            return  # it could not be made, or was removed meanwhile
        except DiskError as exc:
            _say_not_kept(exc)
            return
        self._on_kept(path, size_bytes)

    def _write(self, path: str, parts: Mapping[int, bytes]) -> None:
        file = self._open(path)
        try:
            for offset, data in parts.items():
                file.write(data, offset=offset)
        finally:
            file.close()

    def _open(self, path: str) -> OpenFile:
        try:
            return self._disk.open(path, writable=True)
        except FileNotFoundError:
            return self._disk.create(path)


def _say_not_kept(exc: DiskError) -> None:
    logger.info("A fetched range is not kept: %s", exc)
