"""Frames of a segment that is not on the local disk: from its kept ranges, else from the healthiest store.

One request brings whole blocks, so that what lies next to a frame comes along; they are kept locally, still
sealed. Where nothing is kept, it brings the frames and no more. Every frame is authenticated before it
counts, wherever it came from.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

import trio

from mirrorfs.engine.hedge import HEDGE_S, first_good
from mirrorfs.engine.range_files import BLOCK_BYTES, RangeFiles
from mirrorfs.engine.read_ahead import Place
from mirrorfs.engine.versions import NOT_GOOD
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    MirrorfsError,
    ObjectNotFound,
    ReadFailed,
    StoreError,
    StoreUnavailable,
)
from mirrorfs.format.frame import FrameCipher, unpack
from mirrorfs.format.ids import frame_id, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import HEADER_SIZE, decode_header
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import ObjectKey, ObjectVersion, Offload, Store, Throttle

logger = logging.getLogger(__name__)

CIPHERS_MAX: Final = 4096
SLOWEST_BYTES_PER_S: Final = 512 * 1024
"""A store this slow is not yet one to be passed over."""
FAILED_FOR_S: Final = 30.0
"""So long after a failure a store is asked last; twice as long if the next try is in vain, too, and so on."""
FAILED_FOR_LONGEST_S: Final = 300.0
PATIENCE_S: Final = 30.0
"""How long a read waits for stores none of which answers."""
AGAIN_S: Final = 1.0
BAD_MAX: Final = 1024
LATENCY_STEP_S: Final = 0.1
LATENCY_WEIGHT: Final = 0.2
_MOVED: Final = "these bytes were moved while they were asked for; read them again."


class Ciphers:
    """Keys of segments whose headers were seen, least recently made first to go."""

    def __init__(self, keys: VolumeKeys, writer: WriterPublicKey) -> None:
        self._keys = keys
        self._writer = writer
        self._ciphers: OrderedDict[str, tuple[FrameCipher, bytes]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._ciphers

    def learn(self, key: str, data: bytes) -> None:
        """Take the key of a segment from its first bytes. Raises DamagedError."""
        header, cipher = decode_header(data, self._keys, self._writer)
        if segment_object_key(header.stream, header.segment) != key:
            raise DamagedError("the object holds another segment.")
        self._ciphers[key] = cipher, data[:HEADER_SIZE]
        if len(self._ciphers) > CIPHERS_MAX:
            self._ciphers.popitem(last=False)

    def header(self, key: str) -> bytes:
        """The sealed header that was seen."""
        return self._ciphers[key][1]

    def open(self, key: str, run: Sequence[Place], data: bytes, start: int) -> list[bytes]:
        """Plaintexts of frames, of bytes that begin at offset `start` of the segment. Raises DamagedError."""
        cipher, view = self._ciphers[key][0], memoryview(data)
        plains = []
        for place in run:
            frame = view[place.offset - start : place.offset - start + place.size]
            header, body = cipher.open_body(frame, offset=place.offset, ordinal=place.ordinal)
            if frame_id(header.birth_sequence, header.birth_ordinal) != place.frame:
                raise DamagedError("another frame lies there.")
            plains.append(unpack(body))
        return plains


class _Health:
    """How one store has answered lately."""

    def __init__(self) -> None:
        self.failed_at_s = float("-inf")
        self.failed_for_s = 0.0
        self.latency_s = 0.0

    def failed(self) -> None:
        """It failed, or was waited for in vain."""
        now_s = trio.current_time()
        if now_s - self.failed_at_s >= self.failed_for_s:
            # It was tried as if it were well. What fails meanwhile, as in a break of the line, is no news.
            self.failed_for_s = min(max(FAILED_FOR_S, 2 * self.failed_for_s), FAILED_FOR_LONGEST_S)
        self.failed_at_s = now_s

    def answered(self, took_s: float) -> None:
        """It sent what was asked for."""
        self.failed_at_s, self.failed_for_s = float("-inf"), 0.0
        self.latency_s += LATENCY_WEIGHT * (took_s - self.latency_s)

    def rank(self) -> tuple[bool, int]:
        """Equal for stores that hardly differ: then the order of the configuration decides."""
        failed_lately = trio.current_time() - self.failed_at_s < self.failed_for_s
        return failed_lately, round(self.latency_s / LATENCY_STEP_S)


class Fetcher:
    """Brings frames of one volume's segments from afar."""

    def __init__(
        self,
        ciphers: Ciphers,
        offload: Offload,
        *,
        stores: Callable[[], Iterable[Store]],
        ranges: RangeFiles | None,
        on_bad_copy: Callable[[str | None, str], None],
        is_expected: Callable[[str, str], bool] = lambda store, key: True,
        is_current: Callable[[Sequence[Place]], bool] = lambda run: True,
        throttle: Throttle | None = None,
    ) -> None:
        """
        Args:
            stores: those to ask now.
            ranges: where fetched parts are kept; None: nowhere.
            on_bad_copy: hears the name of a store and the key of an object there that does not verify.
            is_expected: whether a store of that name should have an object by now.
            is_current: whether frames still lie where they were looked up: the segment that they were moved
                out of may be gone, and that is no fault.
            throttle: what the stores keep to; what it holds up is no reason to ask another one.
        """
        self._ciphers = ciphers
        self._offload = offload
        self._stores = stores
        self._ranges = ranges
        self._on_bad_copy = on_bad_copy
        self._is_expected = is_expected
        self._is_current = is_current
        self._throttle = throttle
        self._health: dict[str, _Health] = {}
        self._under_way = 0
        self._asked_s = float("-inf")
        self._bad: OrderedDict[tuple[str, str], ObjectVersion | None] = OrderedDict()
        """(store, key) of copies found bad or gone: said once, and asked for last; what was good there."""

    async def load(self, key: str, run: Sequence[Place], *, size_bytes: int) -> list[bytes]:
        """Plaintexts of frames that lie next to one another.

        Args:
            size_bytes: of the whole segment; 0: not known.
        Raises: ReadFailed: no copy is good, or they lie elsewhere by now.
        """
        plains = await self._from_ranges(key, run)
        if plains is not None:
            return plains
        self._under_way += 1
        try:
            return await self._patiently(key, run, size_bytes)
        finally:
            self._under_way -= 1
            self._asked_s = trio.current_time()

    def is_busy(self, *, within_s: float) -> bool:
        """Whether somebody waits for a store, or did a moment ago."""
        return self._under_way > 0 or trio.current_time() - self._asked_s < within_s

    async def _patiently(self, key: str, run: Sequence[Place], size_bytes: int) -> list[bytes]:
        started_s = trio.current_time()
        while True:
            try:
                return await self._from_stores(key, run, size_bytes)
            except StoreUnavailable as exc:
                if not self._is_current(run):
                    raise ReadFailed(_MOVED) from exc
                # Both stores are often behind one line: a program is not to fail for a short break of it.
                if trio.current_time() - started_s > PATIENCE_S:
                    logger.error("No store answers that may have object %s, offset %d.", key, run[0].offset)
                    raise ReadFailed(
                        "no store that may have these bytes answers; run mirrorfs status to see which."
                    ) from exc
            except MirrorfsError as exc:
                raise self._failed(key, run) from exc
            await trio.sleep(AGAIN_S)

    async def _from_stores(self, key: str, run: Sequence[Place], size_bytes: int) -> list[bytes]:
        stores = sorted(
            self._stores(),
            key=lambda store: (
                (store.name, key) in self._bad,
                not self._is_expected(store.name, key),
                *self._health_of(store).rank(),
            ),
        )
        if not stores:
            raise ObjectNotFound("There is no store to read from.")
        wanted_bytes = run[-1].offset + run[-1].size - run[0].offset
        hedge_s = HEDGE_S + wanted_bytes / SLOWEST_BYTES_PER_S
        if self._throttle is not None:
            start, end = self._bounds(run, size_bytes)
            hedge_s += self._throttle.download_s(end - start)
        return await first_good(
            [partial(self._noting_silence, hedge_s, store, key, run, size_bytes) for store in stores],
            hedge_s=hedge_s,
        )

    async def _noting_silence(
        self, patience_s: float, store: Store, key: str, run: Sequence[Place], size_bytes: int
    ) -> list[bytes]:
        """As `_from_store`; given up after so long, because another one was quicker, the store has failed."""
        started_s = trio.current_time()
        try:
            return await self._from_store(store, key, run, size_bytes)
        except MirrorfsError:
            raise
        except BaseException:  # trio.Cancelled, which a nursery may have wrapped
            if trio.current_time() - started_s >= patience_s:
                self._health_of(store).failed()
            raise

    def _failed(self, key: str, run: Sequence[Place]) -> ReadFailed:
        if not self._is_current(run):
            return ReadFailed(_MOVED)
        logger.error("No good copy of object %s, offset %d.", key, run[0].offset)
        return ReadFailed("no copy of these bytes is good; run mirrorfs verify to see what is damaged where.")

    def _health_of(self, store: Store) -> _Health:
        return self._health.setdefault(store.name, _Health())

    async def _from_ranges(self, key: str, run: Sequence[Place]) -> list[bytes] | None:
        ranges = self._ranges
        if ranges is None:
            return None
        try:
            if key not in self._ciphers:
                header = await ranges.read(key, offset=0, size_bytes=HEADER_SIZE)
                if header is None:
                    return None
                self._ciphers.learn(key, header)
            start = run[0].offset
            data = await ranges.read(key, offset=start, size_bytes=run[-1].offset + run[-1].size - start)
            if data is None:
                return None
            return await self._offload.run(partial(self._ciphers.open, key, run, data, start))
        except (DamagedError, LimitError):
            return None  # not all of it is there

    async def _from_store(self, store: Store, key: str, run: Sequence[Place], size_bytes: int) -> list[bytes]:
        started_s = trio.current_time()
        start, end = self._bounds(run, size_bytes)
        version = self._bad.get((store.name, key))
        try:
            try:
                plains, parts = await self._open(store, key, run, start, end, version)
            except NOT_GOOD as exc:
                if isinstance(exc, ObjectNotFound) and not (
                    self._is_expected(store.name, key) and self._is_current(run)
                ):
                    raise
                self._note_bad(store.name, key, run[0].offset, exc)
                plains, parts = await self._from_earlier(store, key, run, start, end, exc)
        except NOT_GOOD:
            raise
        except StoreError as exc:
            logger.warning("Store %s, object %s, offset %d: %s", store.name, key, run[0].offset, exc)
            self._health_of(store).failed()
            raise
        self._health_of(store).answered(trio.current_time() - started_s)
        if self._ranges is not None:
            # With its header, or the next mount could not tell what the rest is.
            await self._ranges.keep(key, {0: self._ciphers.header(key)} | parts)
        return plains

    async def _from_earlier(
        self, store: Store, key: str, run: Sequence[Place], start: int, end: int, newest: MirrorfsError
    ) -> tuple[list[bytes], dict[int, bytes]]:
        """As `_open`, from a version beneath the newest. Raises: StoreError; `newest`: none is good."""
        for version in await store.versions(ObjectKey(key)):
            with suppress(*NOT_GOOD):
                opened = await self._open(store, key, run, start, end, version)
                self._bad[store.name, key] = version
                return opened
        raise newest

    def _note_bad(self, store: str, key: str, offset: int, exc: MirrorfsError) -> None:
        if (store, key) not in self._bad:
            logger.warning("Store %s, object %s, offset %d: %s", store, key, offset, exc)
        self._bad[store, key] = None
        if len(self._bad) > BAD_MAX:
            self._bad.popitem(last=False)
        self._on_bad_copy(store, key)

    async def _open(
        self,
        store: Store,
        key: str,
        run: Sequence[Place],
        start: int,
        end: int,
        version: ObjectVersion | None,
    ) -> tuple[list[bytes], dict[int, bytes]]:
        """Plaintexts of frames, and what was fetched by its offset. Raises: NOT_GOOD, StoreError."""
        parts: dict[int, bytes] = {}
        await self._get(store, key, parts, start, end, version)
        if key not in self._ciphers:
            self._ciphers.learn(key, parts[0][:HEADER_SIZE])
        return await self._offload.run(partial(self._ciphers.open, key, run, parts[start], start)), parts

    async def _get(
        self,
        store: Store,
        key: str,
        parts: dict[int, bytes],
        start: int,
        end: int,
        version: ObjectVersion | None,
    ) -> None:
        """The range, and the header beside it where that is needed: two requests at the same time."""

        async def get(offset: int, size_bytes: int) -> None:
            parts[offset] = await store.get_range(
                ObjectKey(key), offset=offset, size_bytes=size_bytes, version=version
            )

        if start == 0 or key in self._ciphers:
            await get(start, end - start)
            return
        failures: list[StoreError] = []

        async def get_noting(offset: int, size_bytes: int) -> None:
            # Not raised through the nursery, which would wrap it.
            try:
                await get(offset, size_bytes)
            except StoreError as exc:
                failures.append(exc)
                nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(get_noting, 0, HEADER_SIZE)
            nursery.start_soon(get_noting, start, end - start)
        if failures:
            raise failures[0]

    def _bounds(self, run: Sequence[Place], size_bytes: int) -> tuple[int, int]:
        """Offsets (from, to) of what is asked for, within a segment of that size (0: not known)."""
        start, end = run[0].offset, run[-1].offset + run[-1].size
        if self._ranges is None:
            return start, end
        rounded = -(-end // BLOCK_BYTES) * BLOCK_BYTES
        return start // BLOCK_BYTES * BLOCK_BYTES, min(rounded, size_bytes) if size_bytes else rounded
