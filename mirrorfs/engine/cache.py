"""The local cache: closed segments and fetched parts of segments on the local disk, bounded.

Invariants:
- A whole segment is removed only while every store is known to hold it, and one of the main stream only
  when it lies before the position up to which the index stands in its own file: after any crash the index and
  the segments that are still here give the volume without a store. All others are pinned, whatever the limit
  says.
- Fetched parts are copies of what a store holds: they may go at any time, and after a crash may hold
  anything; a frame of them counts only when it authenticates.
- Least recently used goes first; what was used when is forgotten with the process.

A reader that has a file open goes on reading it after its removal; one that comes later asks the stores.

No question asked here, and no step, takes longer the more files there are: what may go is known
before it is asked for. A file is judged anew when it comes or is replaced (`_set`), when a store turns out to
hold it or not (`judge`), when other stores count (`judge_all`), and when the index is settled further
(`_settle`); nothing else changes the answer. All of them, and what is loaded, are judged in steps.
Memory is about 400 bytes for each file.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
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
PAGE: Final = 500
"""Files that are looked at in one step."""

_FOLDERS: Final = tuple(LOCAL_PREFIX + STREAM_PREFIX[stream] for stream in (Stream.MAIN, Stream.RELOCATED))
_FETCHED: Final = -1
_RELOCATED: Final = -2
_SLACK: Final = 1000


@dataclass(slots=True)
class _File:
    size_bytes: int
    used: int
    """Greater than that of all files used before it."""
    sequence: int
    """_FETCHED of what is no whole segment: it may always go; _RELOCATED of one that no recovery reads."""
    may_go: bool = False
    """Counted as removable, and in the heap of those."""


class SegmentCache:
    """What of the segments with data lies on the local disk, and the task that keeps it within its bounds."""

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
        self._files: dict[str, _File] = {}
        self._uses = 0
        self._unasked = 0
        """Less than any use: that of what was fetched ahead last."""
        self._oldest: list[tuple[int, str]] = []
        """A heap of what may go, by a use that may not have been the last; some of it may have gone."""
        self._unsettled: dict[str, None] = {}
        """What all stores hold, and only the index pins."""
        self._settled_sequence = 0
        self._others_count = False
        self._wake = trio.Event()
        self._removable_bytes = 0
        self.size_bytes = 0
        """Bytes of everything counted."""
        self.evicted_count = 0
        """Files that had to go in this mount."""
        self.on_changed: Callable[[str], None] = lambda path: None
        """Hears the path of a file that is new, another one now, or to be removed."""
        self.ranges = RangeFiles(disk, offload, space, on_kept=self._kept, on_used=self.used)

    async def load(self) -> None:
        """Take stock of the disk: oldest segments first, what was fetched last. Raises: DiskError."""
        for folder in (*(folder.rstrip("/") for folder in _FOLDERS), RANGES):
            names = await self._offload.run(partial(self._disk.list, folder))
            for at in range(0, len(names), PAGE):
                paths = [f"{folder}/{name}" for name in names[at : at + PAGE]]
                for path, size_bytes in await self._offload.run(partial(self._measure, paths)):
                    # One that came meanwhile is known better.
                    if path not in self._files:
                        self._set(path, size_bytes)

    def _measure(self, paths: Sequence[str]) -> list[tuple[str, int]]:
        found = []
        for path in paths:
            try:
                found.append((path, self._disk.allocated_bytes(path)))
            except FileNotFoundError:
                continue
        return found

    def closed(self, key: str, size_bytes: int) -> None:
        """A segment of the main or the relocated stream became immutable."""
        self._set(LOCAL_PREFIX + key, size_bytes)
        self._wake.set()

    def replaced(self, path: str, size_bytes: int) -> None:
        """A file is new, or another one now: who has the old one open lets go of it."""
        self._on_removed(path)
        self.on_changed(path)
        if path.startswith(_FOLDERS):
            self._set(path, size_bytes)
            self._wake.set()

    def used(self, path: str) -> None:
        """A file was read."""
        if path in self._files:
            self._uses += 1
            self._files[path].used = self._uses

    def gone(self, path: str) -> None:
        """A file was removed by someone else."""
        self.on_changed(path)
        file = self._files.pop(path, None)
        if file is not None:
            self._unsettled.pop(path, None)
            self.size_bytes -= file.size_bytes
            self._removable_bytes -= file.size_bytes if file.may_go else 0

    async def remove(self, keys: Sequence[str]) -> None:
        """Remove what is here of segments that nobody will ask for, whoever holds them. Raises: DiskError."""
        for at in range(0, len(keys), BATCH):
            paths = [path for key in keys[at : at + BATCH] for path in (LOCAL_PREFIX + key, range_path(key))]
            for path in paths:
                self._on_removed(path)
                self.gone(path)
            await self._offload.run(partial(self._remove, paths))
        self._space.look_again()

    def judge(self, key: str) -> None:
        """A store was found to hold an object, or not to hold it after all."""
        path = LOCAL_PREFIX + key
        file = self._files.get(path)
        if file is not None:
            self._judge(path, file)

    def judge_all(self) -> None:
        """Other stores count now than before: all is judged anew, in steps, before any more is removed."""
        self._others_count = True
        self._wake.set()

    # --- fetched ahead -----------------------------------------------------------------------

    def has_whole(self, key: str, size_bytes: int) -> bool:
        """Whether all of a segment lies here, as far as its size can tell."""
        fetched = self._files.get(range_path(key))
        return LOCAL_PREFIX + key in self._files or (fetched is not None and fetched.size_bytes >= size_bytes)

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
        was_here = path in self._files
        await self.ranges.keep(key, {0: data})
        if (file := self._files.get(path)) is not None and not was_here:
            self._unasked -= 1
            file.used = self._unasked
            heapq.heappush(self._oldest, (file.used, path))
        return self.has_whole(key, len(data))

    def removable_bytes(self) -> int:
        """Bytes that would be freed for new data."""
        return self._removable_bytes

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
        if self._others_count:
            self._others_count = False
            await self._judge_in_steps(list(self._files))
        while (excess := self._excess_bytes()) > 0:
            # Nothing is awaited before readers let go: who comes later finds it gone, and asks a store.
            victims = self._take_victims(excess)
            if not victims and self._oldest:
                await trio.lowlevel.checkpoint()  # those looked at had been used, or are pinned
                continue
            if not victims and not settled:
                settled = True
                if self._unsettled:
                    await self._settle()
                    continue
            if not victims:
                return
            for path in victims:
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

    def _take_victims(self, excess_bytes: int) -> list[str]:
        """Files to remove, least recently used first; they do not count any more.

        None of PAGE that were looked at may be one, while there are more.
        """
        found: list[str] = []
        for _ in range(PAGE):
            if not self._oldest or excess_bytes <= 0 or len(found) >= BATCH:
                break
            used, path = heapq.heappop(self._oldest)
            file = self._files.get(path)
            if file is None:
                continue
            self._judge(path, file)  # once more: it is the last copy but those of the stores
            if not file.may_go:
                continue
            if file.used != used:
                heapq.heappush(self._oldest, (file.used, path))
                continue
            self.gone(path)
            found.append(path)
            excess_bytes -= file.size_bytes
        return found

    async def _settle(self) -> None:
        """Let the index pin no more than it must."""
        self._settled_sequence = await self._settle_index() >> 20
        await self._judge_in_steps(list(self._unsettled))

    async def _judge_in_steps(self, paths: Sequence[str]) -> None:
        for count, path in enumerate(paths, 1):
            # It may have gone, or been judged, while others ran.
            if (file := self._files.get(path)) is not None:
                self._judge(path, file)
            if count % PAGE == 0:
                await trio.lowlevel.checkpoint()

    # --- counting ----------------------------------------------------------------------------

    def _kept(self, path: str, size_bytes: int) -> None:
        """A file of fetched parts takes so many bytes now."""
        self._set(path, size_bytes)
        self._wake.set()

    def _set(self, path: str, size_bytes: int) -> None:
        self._uses += 1
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(0, self._uses, _sequence(path))
        grown_bytes = size_bytes - file.size_bytes
        file.size_bytes, file.used = size_bytes, self._uses
        self.size_bytes += grown_bytes
        self._removable_bytes += grown_bytes if file.may_go else 0
        self._judge(path, file)

    def _judge(self, path: str, file: _File) -> None:
        """Find out whether anything pins a file that is counted."""
        held = file.sequence == _FETCHED or self._is_held(path.removeprefix(LOCAL_PREFIX))
        settled = file.sequence < self._settled_sequence
        if held and not settled:
            self._unsettled[path] = None
        else:
            self._unsettled.pop(path, None)
        may_go = held and settled
        if may_go is file.may_go:
            return
        file.may_go = may_go
        if may_go:
            self._removable_bytes += file.size_bytes
            if len(self._oldest) > 2 * len(self._files) + _SLACK:
                # What was pinned and is no longer is in it once more each time.
                self._oldest = [(one.used, path) for path, one in self._files.items() if one.may_go]
                heapq.heapify(self._oldest)
            else:
                heapq.heappush(self._oldest, (file.used, path))
        else:
            self._removable_bytes -= file.size_bytes


def _sequence(path: str) -> int:
    """Of a whole segment; one whose name is not one is never old enough to go."""
    if not path.startswith(LOCAL_PREFIX):
        return _FETCHED
    try:
        stream, segment = parse_segment_object_key(path.removeprefix(LOCAL_PREFIX))
    except FormatError:
        return 1 << 62
    return segment.sequence if stream is Stream.MAIN else _RELOCATED
