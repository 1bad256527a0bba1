"""Mending: what is bad in one place is written anew from a good copy in another (`mirrorfs repair`).

Order at a store, each step of which may be the last before a crash:
1. the store counts as not holding the object, so that the cache keeps what is here of it;
2. a verified copy lies on the local disk, else nothing is removed: two stores may be mended at once, and
   neither may count on the other;
3. step 1 is durable; then damaged bytes are deleted, under the lease. In a store that keeps versions the good
   ones are put on top of them instead, for which no right to delete is needed;
4. the mirror sends the object like any other: lease, back-off, confirmation.
After a crash from 3 on the object is one of those that the store lacks, and is sent by the next mount; if
damaged bytes are still in the way then, that is a conflict, which status shows.
On the local disk a file is replaced in one step.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

import trio

from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.scrub import LOCAL, BadObject, Fault, Scrubber
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.standing import WHAT_NEXT
from mirrorfs.errors import MirrorfsError, StoreDenied, StoreError, StoreMismatch
from mirrorfs.format.rows import SegmentRow
from mirrorfs.ports import Clock, Disk, ObjectKey, Offload, Sealed

logger = logging.getLogger(__name__)

QUEUE_MAX: Final = 256
"""Copies that readers found bad and that wait to be mended; later ones are left to the next scrub."""
GATHER_S: Final = 5.0
AGAIN_S: Final = 30.0
"""After so long what is still in the way of an upload is tried again."""


class Mender:
    """Mends copies of one mounted volume, one batch at a time."""

    def __init__(
        self,
        objects: LocalObjects,
        source: ObjectSource,
        scrubber: Scrubber,
        mirrors: Callable[[], Mapping[str, Mirror]],
        disk: Disk,
        offload: Offload,
        clock: Clock,
        *,
        settle_index: Callable[[], Awaitable[int]],
        on_replaced: Callable[[str, int], None],
        on_fork: Callable[[str], None],
    ) -> None:
        """
        Args:
            mirrors: returns those of the stores that the volume has now, by name.
            settle_index: makes what was noted in the index durable.
            on_replaced: hears path and size of a local file that is new, or another one now.
            on_fork: hears, in a sentence, that a store has a state of this very log that is not ours. Nothing
                is removed then, and nothing may be written any more.
        """
        self._objects = objects
        self._source = source
        self._scrubber = scrubber
        self._mirrors = mirrors
        self._disk = disk
        self._offload = offload
        self._clock = clock
        self._settle_index = settle_index
        self._on_replaced = on_replaced
        self._on_fork = on_fork
        self._lock = trio.Lock()
        self._suspects: dict[tuple[str, str], None] = {}
        self._wake = trio.Event()

    def suspect(self, store: str | None, key: str) -> None:
        """A reader found a copy bad or gone: it is examined, and mended, soon."""
        place = LOCAL if store is None else store
        if not self._objects.is_in_use(key):
            return  # it is to go, or has gone
        if len(self._suspects) < QUEUE_MAX and (place == LOCAL or self._may_mend(place, key)):
            self._suspects[place, key] = None
            self._wake.set()

    def _may_mend(self, place: str, key: str) -> bool:
        # What is on its way there is none of our business, and a reader may be faster than it.
        mirror = self._mirrors().get(place)
        return mirror is not None and (mirror.is_held(key) or key in mirror.in_conflict())

    async def run(self) -> None:
        """Mend what readers found, until cancelled."""
        while True:
            with trio.move_on_after(AGAIN_S) as scope:
                await self._wake.wait()
            if scope.cancelled_caught:
                # What was in an object's way could not be removed then: a store may allow it by now.
                for name, mirror in self._mirrors().items():
                    for key in mirror.in_conflict():
                        self.suspect(name, key)
                continue
            await trio.sleep(GATHER_S)
            self._wake = trio.Event()
            suspects, self._suspects = list(self._suspects), {}
            bad: list[BadObject] = []
            for place, key in suspects:
                try:
                    found = await self._scrubber.examine(place, key)
                except MirrorfsError as exc:
                    logger.info("object %s of %s could not be examined: %s", key, place, exc)
                    continue
                if found is not None:
                    bad.append(found)
            for one, why in (await self.mend(bad)).items():
                if why is None:
                    logger.warning("Object %s of %s was %s and is mended.", one.key, one.place, one.fault)
                else:
                    logger.error("Object %s of %s is %s: %s", one.key, one.place, one.fault, why)

    async def reclaim_stores(self) -> dict[str, str | None]:
        """Give stores back the instance documents that rotted or are gone.

        Returns for each store that lacked its own why it could not be written; None: it was.
        """
        results: dict[str, str | None] = {}
        for name, mirror in self._mirrors().items():
            if not isinstance(mirror.store, GuardedStore):
                continue
            try:
                if await mirror.store.reclaim(is_held=mirror.is_held, check=self._source.check):
                    results[name] = None
            except StoreMismatch as exc:
                results[name] = str(exc)
            except StoreError as exc:
                logger.info("store %s cannot be asked whose it is: %s", name, exc)
        return results

    async def mend(self, bad: Sequence[BadObject]) -> dict[BadObject, str | None]:
        """Mend copies. Returns for each why it could not be mended; None: it is, is on its way, or is to go.

        A store that does not answer now takes the object when it is back.
        """
        results: dict[BadObject, str | None] = {}
        async with self._lock:
            # A store may be removed or replaced meanwhile: its mirror then takes no harm and does none.
            mirrors = dict(self._mirrors())
            forgotten: set[BadObject] = set()
            try:
                await self._mend(bad, mirrors, results, forgotten)
            finally:
                # Broken off or not: what a store was found to lack is sent there, or nobody would miss it.
                for one in forgotten:
                    self._offer_again(one, mirrors[one.place])
                for one in bad:
                    if one.place in mirrors:
                        mirrors[one.place].resume(one.key)
        return results

    def _offer_again(self, one: BadObject, mirror: Mirror) -> None:
        try:
            size_bytes = self._objects.stored_size(one.key)
        except (MirrorfsError, FileNotFoundError) as exc:
            logger.info("object %s of %s cannot be sent again: %s", one.key, one.place, exc)
        else:
            self._offer(one.key, mirror, size_bytes, self._clock.now_ns())

    def _offer(self, key: str, mirror: Mirror, size_bytes: int, written_ns: int) -> None:
        # What was collected meanwhile is not to come back.
        if self._objects.is_in_use(key):
            mirror.offer(key, size_bytes, written_ns=written_ns)

    async def _mend(
        self,
        bad: Sequence[BadObject],
        mirrors: Mapping[str, Mirror],
        results: dict[BadObject, str | None],
        forgotten: set[BadObject],
    ) -> None:
        """`forgotten`: what is to be offered in the end, whatever happens."""
        to_send: list[tuple[BadObject, Mirror, int]] = []
        for one in bad:
            if not self._objects.is_in_use(one.key):
                results[one] = None
                continue
            mirror = mirrors.get(one.place)
            try:
                # What was found may be old: nothing good is ever removed.
                found = await self._scrubber.examine(one.place, one.key)
                if found is None:
                    results[one] = None
                    if mirror is not None and one.key in mirror.in_conflict():
                        mirror.forget(one.key)  # sent again, and found to be there
                    continue
                if found.fault is Fault.FORK:
                    results[one] = found.detail
                    self._on_fork(f"Store {one.place} has a later state of this machine's log; {WHAT_NEXT}")
                    continue
            except MirrorfsError as exc:
                results[one] = str(exc)
                continue
            if mirror is not None:
                mirror.forget(one.key)
                forgotten.add(one)
            try:
                size_bytes = await self._keep_here(one.key)
            except MirrorfsError as exc:
                results[one] = f"no good copy could be had: {exc}"
                forgotten.discard(one)
                row = self._objects.row_of(one.key)
                if mirror is not None and row is not None:
                    # The store lacks the object; where there is a good copy later, the mirror finds it.
                    since_ns = row.first_ns if isinstance(row, SegmentRow) else self._objects.oldest_ns()
                    self._offer(one.key, mirror, row.size, since_ns)
            else:
                results[one] = None
                if mirror is not None:
                    to_send.append((one, mirror, size_bytes))
        await self._send_again(to_send, results)

    async def _keep_here(self, key: str) -> int:
        """Have a good copy on the local disk. Returns its size. Raises: MirrorfsError: there is none."""
        if await self._scrubber.examine(LOCAL, key) is None:
            return self._objects.stored_size(key)
        data = await self._source.read(key)
        path = LOCAL_PREFIX + key
        await self._offload.sync(lambda: self._disk.write_whole(path, data))
        self._on_replaced(path, len(data))
        return len(data)

    async def _send_again(
        self, items: Sequence[tuple[BadObject, Mirror, int]], results: dict[BadObject, str | None]
    ) -> None:
        if not items:
            return
        try:
            await self._settle_index()
        except MirrorfsError as exc:
            results.update((one, str(exc)) for one, _, _ in items)
            return
        now_ns = self._clock.now_ns()
        for one, mirror, size_bytes in items:
            results[one] = None
            # In what was examined, and nowhere else: in the place of a store there may be another by now.
            if one.fault is not Fault.MISSING and self._mirrors().get(one.place) is mirror:
                try:
                    await mirror.lease_fresh()
                    await self._clear(ObjectKey(one.key), mirror)
                except MirrorfsError as exc:
                    results[one] = f"what is there could not be removed: {exc}"
            # In any case: what is still in the way is a conflict, and shown.
            self._offer(one.key, mirror, size_bytes, now_ns)

    async def _clear(self, key: ObjectKey, mirror: Mirror) -> None:
        """Have the way free for a good copy, or put it there. Raises: MirrorfsError."""
        data = await self._objects.read(key)
        if not await mirror.store.put_over(key, Sealed(data)):
            if mirror.append_only:
                raise StoreDenied(
                    f"store {mirror.store.name} is append-only, and keeps no versions: its owner removes it."
                )
            await mirror.store.delete(key)
