"""The local cache: closed segments and fetched parts of segments on the local disk, bounded.

Invariants:
- A whole segment is removed only while every store is known to hold it, and only when it lies before the
  position up to which the index stands in its own file: after any crash the index and the segments that
  are still here give the volume without a store. All others are pinned, whatever the limit says.
- Fetched parts are copies of what a store holds: they may go at any time, and after a crash may hold
  anything; a frame of them counts only when it authenticates.
- Least recently used goes first; what was used when is forgotten with the process.

A reader that has a file open goes on reading it after its removal; one that comes later asks the stores.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.range_files import RANGES, RangeFiles, range_path
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import MIB
from mirrorfs.errors import DiskError, FormatError
from mirrorfs.format.ids import STREAM_PREFIX, Stream, parse_segment_object_key
from mirrorfs.ports import Disk, Offload

logger = logging.getLogger(__name__)

CACHE_SIZE: Final = 50 * 1024 * MIB
CACHE_SIZE_MIN: Final = 64 * MIB
FILL_SHARE: Final = 4
"""What is fetched ahead leaves one part in so many of the cache to what is read and written."""
HEADROOM_SHARE: Final = 2
"""The cache gives way when less than the soft reserve and one part in so many of it is free."""
LOOK_EVERY_S: Final = 10.0
BATCH: Final = 16
"""Files removed in one go, in a thread."""
SUM_EVERY_S: Final = 2.0

_SEGMENTS: Final = STREAM_PREFIX[Stream.MAIN]


class SegmentCache:
    """What of the main stream lies on the local disk, and the task that keeps it within its bounds."""

    def __init__(
        self,
        disk: Disk,
        space: SpaceGuard,
        offload: Offload,
        *,
        limit_bytes: int,
        is_held: Callable[[str], bool],
        settle_index: Callable[[], Awaitable[int]],
        on_removed: Callable[[str], None],
    ) -> None:
        """
        Args:
            limit_bytes: of all closed segments and fetched parts together.
            is_held: whether every store is known to hold an object.
            settle_index: brings the index's file up to date and returns the position it stands at.
            on_removed: hears the path of a file before it is removed, to let go of it.
        """
        self._disk = disk
        self._space = space
        self._offload = offload
        self._limit_bytes = limit_bytes
        self._is_held = is_held
        self._settle_index = settle_index
        self._on_removed = on_removed
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._settled_sequence = 0
        self._wake = trio.Event()
        self._sum = (float("-inf"), 0)
        self.size_bytes = 0
        """Bytes of everything counted."""
        self.evicted_count = 0
        """Files that had to go in this mount."""
        self.ranges = RangeFiles(disk, offload, space, on_kept=self._kept, on_used=self.used)

    def load(self) -> None:
        """Take stock of the disk: oldest segments first, what was fetched last. Raises: DiskError."""
        for name in self._disk.list(LOCAL_PREFIX + _SEGMENTS.rstrip("/")):
            self._count(LOCAL_PREFIX + _SEGMENTS + name)
        for name in self._disk.list(RANGES):
            self._count(f"{RANGES}/{name}")

    def closed(self, key: str, size_bytes: int) -> None:
        """A segment of the main stream became immutable."""
        self._set(LOCAL_PREFIX + key, size_bytes)
        self._wake.set()

    def replaced(self, path: str, size_bytes: int) -> None:
        """A file is new, or another one now: who has the old one open lets go of it."""
        self._on_removed(path)
        if path.startswith(LOCAL_PREFIX + _SEGMENTS):
            self._set(path, size_bytes)
            self._wake.set()

    def used(self, path: str) -> None:
        """A file was read."""
        if path in self._sizes:
            self._sizes.move_to_end(path)

    def gone(self, path: str) -> None:
        """A file was removed by someone else."""
        self.size_bytes -= self._sizes.pop(path, 0)

    # --- fetched ahead -----------------------------------------------------------------------

    def has_whole(self, key: str, size_bytes: int) -> bool:
        """Whether all of a segment lies here, as far as its size can tell."""
        return LOCAL_PREFIX + key in self._sizes or self._sizes.get(range_path(key), 0) >= size_bytes

    def has_room(self, size_bytes: int) -> bool:
        """Whether so much may be fetched ahead: within its share, far from what makes the cache shrink."""
        free_bytes = self._space.free_bytes() - self._space.soft_bytes
        return (
            self.size_bytes + size_bytes <= self._limit_bytes - self._limit_bytes // FILL_SHARE
            and free_bytes - size_bytes >= self._kept_free_bytes()
        )

    async def keep_whole(self, key: str, data: bytes) -> bool:
        """Keep a segment that nobody asked for: it goes before all that is here, unless parts of it were."""
        path = range_path(key)
        was_here = path in self._sizes
        await self.ranges.keep(key, {0: data})
        if path in self._sizes and not was_here:
            self._sizes.move_to_end(path, last=False)
        return self.has_whole(key, len(data))

    def removable_bytes(self) -> int:
        """Bytes that would be freed for new data, as of at most SUM_EVERY_S ago."""
        now_s = trio.current_time()
        if now_s - self._sum[0] >= SUM_EVERY_S:
            self._sum = now_s, sum(size for path, size in self._sizes.items() if self._may_go(path, now=True))
        return self._sum[1]

    # --- the task ----------------------------------------------------------------------------

    async def run(self) -> None:
        """Remove what is too much, until cancelled."""
        while True:
            with trio.move_on_after(LOOK_EVERY_S):
                await self._wake.wait()
            self._wake = trio.Event()
            try:
                await self.shrink()
            except DiskError as exc:
                logger.warning("The cache could not be made smaller: %s", exc)
                await trio.sleep(LOOK_EVERY_S)

    async def shrink(self) -> None:
        """Remove files until the cache is within its bounds, or nothing is left that may go.

        Raises: DiskError; whatever `settle_index` raises but for that, as of a volume that stopped writing.
        """
        settled = False
        while (excess := self._excess_bytes()) > 0:
            victims = self._victims(excess)
            if not victims and not settled:
                settled = True
                if any(self._may_go(path, now=False) for path in self._sizes):
                    self._settled_sequence = await self._settle_index() >> 20
                    continue
            if not victims:
                return
            for path in victims:
                # Before the await: who comes now finds it gone, and asks a store.
                self.gone(path)
                self._on_removed(path)
            self.evicted_count += len(victims)
            await self._offload.run(partial(self._remove, victims))
            self._space.look_again()

    def _remove(self, paths: list[str]) -> None:
        for path in paths:
            self._disk.remove(path)

    def _excess_bytes(self) -> int:
        return max(self.size_bytes - self._limit_bytes, self._kept_free_bytes() - self._space.free_bytes())

    def _kept_free_bytes(self) -> int:
        return self._space.soft_bytes + self._space.soft_bytes // HEADROOM_SHARE

    def _victims(self, excess_bytes: int) -> list[str]:
        found: list[str] = []
        for path, size in self._sizes.items():
            if excess_bytes <= 0 or len(found) >= BATCH:
                break
            if self._may_go(path, now=True):
                found.append(path)
                excess_bytes -= size
        return found

    def _may_go(self, path: str, *, now: bool) -> bool:
        """Whether nothing pins a file: now, or once the index is settled."""
        if not path.startswith(LOCAL_PREFIX):
            return True
        key = path.removeprefix(LOCAL_PREFIX)
        if now and _sequence(key) >= self._settled_sequence:
            return False
        return self._is_held(key)

    # --- counting ----------------------------------------------------------------------------

    def _kept(self, path: str, size_bytes: int) -> None:
        """A file of fetched parts takes so many bytes now."""
        self._set(path, size_bytes)
        self._wake.set()

    def _count(self, path: str) -> None:
        try:
            self._set(path, self._disk.allocated_bytes(path))
        except FileNotFoundError:
            return

    def _set(self, path: str, size_bytes: int) -> None:
        self.size_bytes += size_bytes - self._sizes.get(path, 0)
        self._sizes[path] = size_bytes
        self._sizes.move_to_end(path)


def _sequence(key: str) -> int:
    """Of a segment; one whose name is not one is never old enough to go."""
    try:
        return parse_segment_object_key(key)[1].sequence
    except FormatError:
        return 1 << 62
