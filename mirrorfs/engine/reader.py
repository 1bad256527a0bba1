"""Reading: dirty layers over decoded frames over sealed bytes, from the nearest good copy.

A frame that does not verify is a fault of that copy: it is named in the log (store, object, offset)
and the next copy is tried. Only when none is good does the caller get an error.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from copy import copy

import trio

from mirrorfs.core.extents import extents_within
from mirrorfs.engine.fetch import Ciphers, Fetcher
from mirrorfs.engine.log import Log
from mirrorfs.engine.objects import key_of
from mirrorfs.engine.range_files import RangeFiles
from mirrorfs.engine.read_ahead import Place, ReadAhead, runs
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.state import MIB, VolumeState
from mirrorfs.errors import DamagedError, DiskError, MirrorfsError, ReadFailed
from mirrorfs.format.frame import Body, unpack
from mirrorfs.format.ids import Stream, split_frame_id
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.rows import FrameRow
from mirrorfs.format.segment import HEADER_SIZE
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Offload, OpenFile, Store, Throttle

logger = logging.getLogger(__name__)

FRAMES_MAX_BYTES = 64 * MIB
FILES_MAX = 128
OFFLOAD_FROM = 64 * 1024


class FrameCache:
    """Decoded frames, least recently used first to go, bounded in bytes."""

    def __init__(self, limit_bytes: int = FRAMES_MAX_BYTES) -> None:
        self._frames: OrderedDict[int, bytes] = OrderedDict()
        self._limit = limit_bytes
        self.size_bytes = 0

    def get(self, frame: int) -> bytes | None:
        """The plaintext, if cached."""
        plain = self._frames.get(frame)
        if plain is not None:
            self._frames.move_to_end(frame)
        return plain

    def put(self, frame: int, plain: bytes) -> None:
        """Keep a plaintext, dropping the coldest ones."""
        if frame not in self._frames:
            self._frames[frame] = plain
            self.size_bytes += len(plain)
            while self.size_bytes > self._limit:
                _, old = self._frames.popitem(last=False)
                self.size_bytes -= len(old)


class Reader:
    """Reads files of one volume."""

    def __init__(
        self,
        state: VolumeState,
        disk: Disk,
        offload: Offload,
        keys: VolumeKeys,
        writer: WriterPublicKey,
        *,
        log: Callable[[], Log | None],
        stores: Callable[[], Iterable[Store]],
        nursery: trio.Nursery | None = None,
        ranges: RangeFiles | None = None,
        on_used: Callable[[str], None] = lambda path: None,
        on_bad_copy: Callable[[str | None, str], None] = lambda store, key: None,
        is_expected: Callable[[str, str], bool] = lambda store, key: True,
        throttle: Throttle | None = None,
    ) -> None:
        """
        Args:
            stores: those to ask now.
            nursery: where read-ahead runs; without one there is none.
            ranges: where what stores send is kept; without it nowhere.
            on_used: hears the path of each local file that is read.
            on_bad_copy: hears the store (None: the local disk) and the key of a copy that is bad or gone.
            is_expected: whether a store of that name should have an object by now.
            throttle: what the stores keep to.
        """
        self._state = state
        self._index = state.index
        """Knows the frames; `_state` the files."""
        self._disk = disk
        self._offload = offload
        self._log = log
        self._nursery = nursery
        self._on_used = on_used
        self._on_bad_copy = on_bad_copy
        self.cache = FrameCache()
        self._loading: dict[int, trio.Event] = {}
        self._files: OrderedDict[str, OpenFile] = OrderedDict()
        self._ciphers = Ciphers(keys, writer)
        self._fetcher = Fetcher(
            self._ciphers, offload, stores=stores, ranges=ranges, on_bad_copy=on_bad_copy,
            is_expected=is_expected, is_current=self._still_lie_there, throttle=throttle,
        )  # fmt: skip
        self._ahead = ReadAhead(state.index, is_wanted=self._is_wanted, start=self._start_loading)

    def beside(self, state: VolumeState) -> Reader:
        """Reads the files of another state of the same log, older than this one.

        Frames have their names for ever, so that this one finds them: what is read through either is kept
        once, and counts once.
        """
        other = copy(self)
        other._state = state
        other._ahead = ReadAhead(state.index, is_wanted=self._is_wanted, start=self._start_loading)
        return other

    def is_fetching(self, *, within_s: float) -> bool:
        """Whether a reader waits for a store, or did a moment ago."""
        return self._fetcher.is_busy(within_s=within_s)

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        """Bytes of a file, short at its end. Raises ReadFailed when no copy of a frame is good."""
        state = self._state
        row = state.index.get_inode(inode)
        if row is None:
            raise ReadFailed("the inode is gone")
        size = min(size, state.live_size(row) - offset)
        if size <= 0:
            return b""
        if inode not in state.dirty:
            whole = self._within_one_frame(inode, offset, size)
            if whole is not None:
                return whole
        # Frames first, with awaits; then one synchronous step builds the answer from a consistent view.
        # `held` keeps them from being pushed out of the cache in between; a request is 1 MiB at most.
        held: dict[int, bytes] = {}
        while True:
            spans = self._spans(inode, offset, size)
            missing = []
            for frame in dict.fromkeys(span[2] for span in spans):
                if frame not in held:
                    plain = self.cache.get(frame)
                    if plain is None:
                        missing.append(frame)
                    else:
                        held[frame] = plain
            if not missing:
                break
            for frame in missing:
                held[frame] = await self.load(frame)
        buffer = bytearray(size)
        for place, length, frame, frame_offset in spans:
            buffer[place : place + length] = held[frame][frame_offset : frame_offset + length]
        dirty = state.dirty.get(inode)
        if dirty is not None:
            dirty.read_into(buffer, offset)
        self._ahead.note(inode, offset, size)
        return bytes(buffer)

    def _within_one_frame(self, inode: int, offset: int, size: int) -> bytes | None:
        chunk, start = divmod(offset, CHUNK_SIZE)
        if start + size > CHUNK_SIZE:
            return None
        for extent in extents_within(self._state.index.get_extents(inode, chunk), start, start + size):
            if extent.start <= start and start + size <= extent.start + extent.length:
                plain = self.cache.get(extent.frame)
                if plain is None:
                    return None
                self._ahead.note(inode, offset, size)
                at = extent.frame_offset + start - extent.start
                return plain[at : at + size]
        return None

    def _spans(self, inode: int, offset: int, size: int) -> list[tuple[int, int, int, int]]:
        """(place in the answer, length, frame, frame offset) for all that extents map of a range."""
        spans = []
        end = offset + size
        for chunk in range(offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE + 1):
            base = chunk * CHUNK_SIZE
            packed = self._state.index.get_extents(inode, chunk)
            for start, length, frame, frame_offset in extents_within(packed, offset - base, end - base):
                low, high = max(base + start, offset), min(base + start + length, end)
                if low < high:
                    spans.append((low - offset, high - low, frame, frame_offset + low - base - start))
        return spans

    # --- read-ahead --------------------------------------------------------------------------

    def _is_wanted(self, frame: int) -> bool:
        return frame not in self._loading and self.cache.get(frame) is None

    def _start_loading(self, frames: Sequence[int]) -> None:
        if self._nursery is None:
            return
        rows = (self._index.get_frame(frame) for frame in frames)
        for run in runs(self._place(row) for row in rows if row is not None):
            # Marked before any await, so that nobody else loads them.
            for place in run:
                self._loading[place.frame] = trio.Event()
            self._nursery.start_soon(self._prefetch, run)

    async def _prefetch(self, run: Sequence[Place]) -> None:
        """Load frames that are marked as being loaded. Errors are for whoever reads them for real."""
        try:
            if self._held(run[0].frame) is None:
                for place, plain in zip(run, await self._sealed(run), strict=True):
                    self.cache.put(place.frame, plain)
        except MirrorfsError:
            return
        finally:
            for place in run:
                self._loaded(place.frame)

    def _loaded(self, frame: int) -> None:
        event = self._loading.pop(frame, None)
        if event is not None:
            event.set()

    # --- frames ------------------------------------------------------------------------------

    async def load(self, frame: int) -> bytes:
        """The plaintext of a frame. Raises ReadFailed."""
        while True:
            plain = self.cache.get(frame)
            if plain is not None:
                return plain
            event = self._loading.get(frame)
            if event is None:
                break
            await event.wait()
        self._loading[frame] = trio.Event()
        try:
            plain = await self._fetch(frame)
            self.cache.put(frame, plain)
            return plain
        finally:
            self._loaded(frame)

    def _place(self, row: FrameRow) -> Place:
        """Where a frame lies now."""
        moved = self._index.get_relocation(row.frame)
        if moved is not None:
            return Place._make(moved)
        sequence, ordinal = split_frame_id(row.frame)
        return Place(row.frame, Stream.MAIN, sequence, ordinal, row.offset, row.size)

    def _still_lie_there(self, run: Sequence[Place]) -> bool:
        rows = (self._state.index.get_frame(place.frame) for place in run)
        return all(
            row is not None and self._place(row) == place for row, place in zip(rows, run, strict=True)
        )

    def _held(self, frame: int) -> Body | None:
        log = self._log()
        return log.held(frame) if log is not None else None

    async def _fetch(self, frame: int) -> bytes:
        row = self._index.get_frame(frame)
        if row is None:
            raise ReadFailed("the index names a frame that is in no segment.")
        body = self._held(frame)
        if body is not None:
            return unpack(body)
        place = self._place(row)
        try:
            return (await self._sealed((place,)))[0]
        except ReadFailed:
            if self._still_lie_there((place,)):
                raise
        # It was moved meanwhile, and the segment that it lay in deleted.
        row = self._state.index.get_frame(frame)
        if row is None:
            raise ReadFailed("the bytes were removed while they were read.")
        return (await self._sealed((self._place(row),)))[0]

    async def _sealed(self, run: Sequence[Place]) -> list[bytes]:
        """Plaintexts of frames that lie next to one another, of the nearest good copy. Raises ReadFailed."""
        key, size_bytes = self._segment(run[0].stream, run[0].sequence)
        try:
            return await self._from_disk(key, run)
        except FileNotFoundError:
            pass
        except (DamagedError, DiskError) as exc:
            logger.warning("Local object %s, offset %d: %s Trying the stores.", key, run[0].offset, exc)
            self._on_bad_copy(None, key)
        return await self._fetcher.load(key, run, size_bytes=size_bytes)

    async def _from_disk(self, key: str, run: Sequence[Place]) -> list[bytes]:
        """The same from the whole segment on the local disk.

        Raises: FileNotFoundError: the segment is not here. DamagedError, DiskError.
        """
        file = self._local(key)
        if key not in self._ciphers:
            self._ciphers.learn(key, file.read(offset=0, size_bytes=HEADER_SIZE))
        start = run[0].offset
        size = run[-1].offset + run[-1].size - start

        def work() -> list[bytes]:
            return self._ciphers.open(key, run, file.read(offset=start, size_bytes=size), start)

        return work() if size < OFFLOAD_FROM else await self._offload.run(work)

    def _segment(self, stream: int, sequence: int) -> tuple[str, int]:
        """Key of a segment, and its size; 0 while it is open."""
        if stream != Stream.MAIN:
            return self._relocated(sequence)
        log = self._log()
        current = log.current if log is not None else None
        if current is not None and current.segment.sequence == sequence:
            return current.key, 0
        row = self._index.get_segment(sequence)
        if row is None:
            raise ReadFailed("the index names a segment that it does not know.")
        return key_of(Stream.MAIN, row), row.size

    def _relocated(self, sequence: int) -> tuple[str, int]:
        row = self._state.index.get_relocated(sequence)
        if row is None:
            raise ReadFailed("the index names a relocated segment that it does not know.")
        return key_of(Stream.RELOCATED, row), row.size

    def _local(self, key: str) -> OpenFile:
        self._on_used(LOCAL_PREFIX + key)
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = self._disk.open(LOCAL_PREFIX + key)
            if len(self._files) > FILES_MAX:
                # Not closed here: a thread may be reading it; it closes when the last user lets go.
                self._files.popitem(last=False)
        else:
            self._files.move_to_end(key)
        return file

    def let_go(self, path: str) -> None:
        """A local file is about to be removed: its space is free once nobody reads it any more."""
        self._files.pop(path.removeprefix(LOCAL_PREFIX), None)

    def close(self) -> None:
        """Let go of all descriptors."""
        self._files.clear()
