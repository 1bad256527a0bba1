"""Filling the local cache of a new machine in the background, newest data first.

After `attach` everything is in the stores alone. What was written last is most likely what is opened next, so
segments are brought from the newest to the oldest, once per mount, whole and verified. They are kept as
fetched parts are (engine/range_files.py): nothing counts on them, and they are the first to go.

It gives way. Segments come in pieces, each only while no reader waits for a store, nothing is written and no
store is behind; it ends for this mount when the cache has its share, when the disk runs short, or when the
cache had to remove anything: what had to go is not brought again.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import trio

from mirrorfs.engine.cache import SegmentCache
from mirrorfs.engine.objects import PAGE, ObjectSource, key_of
from mirrorfs.errors import DamagedError, MirrorfsError, ObjectNotFound, StoreError
from mirrorfs.format.ids import Stream
from mirrorfs.format.rows import RelocatedRow, SegmentRow
from mirrorfs.ports import Index, ObjectKey, Store

logger = logging.getLogger(__name__)

START_S: Final = 5.0
"""After so long the first readers have had their turn."""
PIECE_BYTES: Final = 2 * 1024 * 1024
"""Of one request: a reader that comes waits for no more than this on a slow line."""
LOOK_S: Final = 0.5
AWAY_S: Final = 30.0
"""So long a store that did not answer is not asked."""


class Prefetcher:
    """Brings the segments of one mounted volume that the local disk lacks."""

    def __init__(
        self,
        index: Index,
        cache: SegmentCache,
        source: ObjectSource,
        *,
        stores: Callable[[], Iterable[Store]],
        is_busy: Callable[[], bool],
        on_bad_copy: Callable[[str | None, str], None],
    ) -> None:
        """
        Args:
            stores: those to read from now.
            is_busy: whether somebody else wants the disk or the line.
            on_bad_copy: hears the name of a store and the key of an object there that does not verify.
        """
        self._index = index
        self._cache = cache
        self._source = source
        self._stores = stores
        self._is_busy = is_busy
        self._on_bad_copy = on_bad_copy
        self._away: dict[str, float] = {}
        self._evicted = cache.evicted_count
        self.brought_bytes = 0
        """Of whole segments, so far."""

    async def run(self) -> None:
        """Fill the cache, then return. Whatever goes wrong ends it, and harms nobody."""
        await trio.sleep(START_S)
        try:
            await self._walk()
        except MirrorfsError as exc:
            logger.info("the cache is filled no further: %s", exc)
        logger.info("%d bytes were fetched ahead", self.brought_bytes)

    async def _walk(self) -> None:
        for stream, row in self._newest_first():
            await trio.lowlevel.checkpoint()
            if row is None:
                continue
            key = key_of(stream, row)
            while not self._cache.has_whole(key, row.size):
                if self._cache.evicted_count != self._evicted or not self._cache.has_room(row.size):
                    return
                data = await self._from_stores(key, row.size)
                if data is not None:
                    if not await self._cache.keep_whole(key, data):
                        return  # the disk takes no more
                    self.brought_bytes += len(data)
                    break
                if (back_s := self._next_back_s()) is None:
                    break  # no store has a good copy: whoever needs it will say so
                await trio.sleep_until(back_s)

    def _newest_first(self) -> Iterator[tuple[Stream, SegmentRow | RelocatedRow | None]]:
        """Segments of the log, from its end on, then those that frames were moved to; None: not in use."""
        newest = self._index.last_segment()
        for sequence in range(newest.sequence if newest is not None else -1, -1, -1):
            yield Stream.MAIN, self._index.get_segment(sequence)
        relocated = array("Q")
        while rows := self._index.list_relocated(
            from_sequence=relocated[-1] + 1 if relocated else 0, limit=PAGE
        ):
            relocated.extend(row.sequence for row in rows)
        for sequence in reversed(relocated):
            yield Stream.RELOCATED, self._index.get_relocated(sequence)

    def _next_back_s(self) -> float | None:
        """When one of the stores that did not answer is asked again; None: all of them answered."""
        names = {store.name for store in self._stores()}
        return min((until_s for name, until_s in self._away.items() if name in names), default=None)

    async def _from_stores(self, key: str, size_bytes: int) -> bytes | None:
        """The bytes of a segment, verified; None: no store that is to be asked now has them."""
        for store in self._stores():
            if trio.current_time() < self._away.get(store.name, 0.0):
                continue
            self._away.pop(store.name, None)
            try:
                data = await self._in_pieces(store, key, size_bytes)
                await self._source.check(key, data)
            except ObjectNotFound:
                continue
            except StoreError as exc:
                logger.info("store %s is not asked for a while: %s", store.name, exc)
                self._away[store.name] = trio.current_time() + AWAY_S
            except DamagedError as exc:
                logger.info("object %s of store %s: %s", key, store.name, exc)
                self._on_bad_copy(store.name, key)
            else:
                return data
        return None

    async def _in_pieces(self, store: Store, key: str, size_bytes: int) -> bytes:
        parts = []
        for offset in range(0, size_bytes, PIECE_BYTES):
            while self._is_busy():  # noqa: ASYNC110 - what makes it busy is on the hot path and wakes nobody
                await trio.sleep(LOOK_S)
            size = min(PIECE_BYTES, size_bytes - offset)
            parts.append(await store.get_range(ObjectKey(key), offset=offset, size_bytes=size))
        return b"".join(parts)
