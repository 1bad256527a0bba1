"""Mending: what is bad in one place is written anew from a good copy in another (`mirrorfs repair`).

Order at a store, each step of which may be the last before a crash:
1. the store counts as not holding the object, so that the cache keeps what is here of it; in the same step it
   is pending there, as old as its changes are. A segment that the store does not have at all is sent then, by
   way of the memory: nothing is removed for it, and it need not lie here;
2. of anything else a verified copy lies on the local disk, else nothing is removed: two stores may be mended
   at once, and neither may count on the other;
3. step 1 is durable; then damaged bytes are deleted, under the lease. In a store that keeps versions the good
   ones are put on top of them instead, for which no right to delete is needed;
4. the mirror sends the object like any other: lease, back-off, confirmation.
After a crash from 3 on the object is one of those that the store lacks, and is sent by the next mount; if
damaged bytes are still in the way then, that is a conflict, which status shows. Before 1 they come on the
list of bad copies (engine/known_faults.py), so that they do not count as the object because they are listed.
Where the index does not say how long an object is (heads, say), it is pending only from step 2 on, and one
without any good copy is not.
On the local disk a file is replaced in one step.

Copies that lie here only until a store has them again: engine/mend_room.py. What finds no room waits, is
pending meanwhile, and is mended when there is some. When all else is tried again: engine/mend_turns.py.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.known_faults import SEEN_BY_SIZE
from mirrorfs.engine.look import size_at
from mirrorfs.engine.mend_room import CopyRoom
from mirrorfs.engine.mend_turns import AGAIN_S, Turns
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.scrub import LOCAL, BadObject, Fault, Scrubber
from mirrorfs.engine.segment_writer import LOCAL_PREFIX
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.standing import WHAT_NEXT
from mirrorfs.errors import DiskError, MirrorfsError, StoreDenied, StoreError, StoreMismatch
from mirrorfs.format.rows import RelocatedRow, SegmentRow
from mirrorfs.ports import Clock, Disk, ObjectKey, Offload, Sealed

logger = logging.getLogger(__name__)

QUEUE_MAX: Final = 256
"""Copies that readers found bad and that wait to be mended; later ones are left to the next scrub."""
GATHER_S: Final = 5.0
BATCH_MAX: Final = 64
"""Objects mended in one go: what readers find bad gets its turn in between."""
NO_ROOM: Final = "the local disk has no room for a copy of it now; it is mended when there is some."
"""Why something is not mended yet."""


class _NoRoom(Exception):
    """A copy finds no room on the local disk; of so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.size_bytes = size_bytes


class Mender:
    """Mends copies of one mounted volume, one batch at a time."""

    def __init__(
        self,
        objects: LocalObjects,
        source: ObjectSource,
        scrubber: Scrubber,
        mirrors: Callable[[], Mapping[str, Mirror]],
        disk: Disk,
        space: SpaceGuard,
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
        self._space = space
        self._offload = offload
        self._clock = clock
        self._settle_index = settle_index
        self._on_replaced = on_replaced
        self._on_fork = on_fork
        self._lock = trio.Lock()
        self._suspects: dict[tuple[str, str], None] = {}
        self._wake = trio.Event()
        self._room = CopyRoom(objects, mirrors, space)
        self._turns = Turns(self._is_held)
        self._without_room: dict[tuple[str, str], tuple[BadObject, int]] = {}
        """What is withheld until there is room for a copy of so many bytes."""

    def suspect(self, store: str | None, key: str) -> None:
        """A reader found a copy bad or gone: it is examined, and mended, soon, or when its turn is again."""
        place = LOCAL if store is None else store
        if not self._objects.is_in_use(key):
            return  # it is to go, or has gone
        if not self._turns.is_due((place, key)):
            return
        if len(self._suspects) < QUEUE_MAX and (place == LOCAL or self._may_mend(place, key)):
            self._suspects[place, key] = None
            self._wake.set()

    def _may_mend(self, place: str, key: str) -> bool:
        # What is on its way there is none of our business, and a reader may be faster than it.
        mirror = self._mirrors().get(place)
        return mirror is not None and (mirror.is_held(key) or key in mirror.in_conflict())

    def _is_held(self, place: str, key: str) -> bool:
        mirror = self._mirrors().get(place)
        return mirror is None or mirror.is_held(key)

    async def run(self) -> None:
        """Mend what readers found, until cancelled."""
        again_s = trio.current_time() + AGAIN_S
        while True:
            with trio.move_on_at(again_s):
                await self._wake.wait()
            if trio.current_time() >= again_s:
                again_s = trio.current_time() + AGAIN_S
                self._try_again()
            if not self._wake.is_set():
                continue
            await trio.sleep(GATHER_S)
            self._wake = trio.Event()
            suspects, self._suspects = list(self._suspects), {}
            bad: list[BadObject] = []
            for place, key in suspects:
                if (waiting := self._without_room.get((place, key))) is not None:
                    bad.append(waiting[0])
                    continue
                try:
                    found = await self._scrubber.examine(place, key)
                except MirrorfsError as exc:
                    logger.info("object %s of %s could not be examined: %s", key, place, exc)
                    continue
                if found is not None:
                    bad.append(found)
                else:
                    self._found_whole(place, key)
            for one, why in (await self.mend(bad)).items():
                if why is None:
                    logger.warning("Object %s of %s was %s and is mended.", one.key, one.place, one.fault)
                else:
                    logger.error("Object %s of %s is %s: %s", one.key, one.place, one.fault, why)

    def _found_whole(self, place: str, key: str) -> None:
        """What was in the way of an upload is the object: it is sent again, and found to be there."""
        mirror = self._mirrors().get(place)
        if mirror is not None and key in mirror.in_conflict():
            self._turns.tried((place, key), is_sent=True)
            mirror.forget(key)
            mirror.resume(key)

    def try_now(self) -> None:
        """Somebody waits: what could not be mended is tried now, however often that was in vain."""
        self._turns.clear()
        self._try_again()

    def _try_again(self) -> None:
        self._turns.forget_held()
        # What was in an object's way could not be removed then: a store may allow it by now.
        for name, mirror in self._mirrors().items():
            for key in mirror.in_conflict():
                self.suspect(name, key)
        for where, (_, size_bytes) in self._without_room.items():
            if len(self._suspects) >= QUEUE_MAX or not self._room.has(size_bytes):
                break
            self._suspects[where] = None
            self._wake.set()

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
        # What needs no room goes first.
        waiting = sorted(bad, key=lambda one: one.fault is not Fault.MISSING)
        while waiting:
            async with self._lock:
                done = await self._mend_batch(waiting[:BATCH_MAX], results)
            for one in waiting[:done]:
                self._note_outcome((one.place, one.key), is_done=results[one] is None)
            del waiting[:done]
            if waiting and (stuck := self._without_room.get((waiting[0].place, waiting[0].key))) is not None:
                await self._room.wait_for(stuck[1])
        return results

    def _note_outcome(self, where: tuple[str, str], *, is_done: bool) -> None:
        if where in self._without_room or (is_done and self._is_held(*where)):
            self._turns.forget(where)
        else:
            self._turns.tried(where, is_sent=is_done)

    async def _mend_batch(self, batch: Sequence[BadObject], results: dict[BadObject, str | None]) -> int:
        """Returns how many are done with: all, or those before the first that is to wait for room."""
        # A store may be removed or replaced meanwhile: its mirror then takes no harm and does none.
        mirrors = dict(self._mirrors())
        to_clear: list[tuple[BadObject, Mirror]] = []
        done = 0
        unlisted = self._list_hidden([one for one in batch if one.place in mirrors])
        try:
            for one in batch:
                mirror = mirrors.get(one.place)
                self._without_room.pop((one.place, one.key), None)
                try:
                    if unlisted is not None and one.place in mirrors and one.fault not in SEEN_BY_SIZE:
                        raise unlisted
                    results[one] = await self._prepare(one, mirror, to_clear)
                except _NoRoom as exc:
                    self._without_room[one.place, one.key] = one, exc.size_bytes
                    results[one] = NO_ROOM
                    if not self._room.is_stuck:
                        break
                except MirrorfsError as exc:
                    results[one] = str(exc)
                done += 1
            if any(one.place in mirrors for one in batch[:done]):
                await self._clear_all(to_clear, results)
        finally:
            # Broken off or not: what a store was found to lack is sent there. What is still in the way is a
            # conflict, and shown.
            for one in batch:
                if one.place in mirrors and (one.place, one.key) not in self._without_room:
                    mirrors[one.place].resume(one.key)
        return done

    def _list_hidden(self, bad: Sequence[BadObject]) -> DiskError | None:
        """Have on the list, and on the disk, what no listing shows. Returns why that could not be written.

        After a crash nobody takes damaged bytes of the right size for the object.
        """
        faults = self._scrubber.faults
        for one in bad:
            if one.fault not in SEEN_BY_SIZE and self._objects.is_in_use(one.key):
                faults.found(one)
        try:
            faults.settle()
        except DiskError as exc:
            return exc
        return None

    async def _prepare(
        self, one: BadObject, mirror: Mirror | None, to_clear: list[tuple[BadObject, Mirror]]
    ) -> str | None:
        """Have what a store lacks pending, and a good copy here of what is not simply to be sent.

        `to_clear` gets what is in the way at the store. Returns why the object cannot be mended.
        Raises: _NoRoom. StoreError, DiskError: it cannot be told what is wrong.
        """
        # What was found may be old: nothing good is ever removed.
        found = await self._scrubber.examine(one.place, one.key) if self._objects.is_in_use(one.key) else None
        if found is None or not self._objects.is_in_use(one.key):
            if mirror is not None and one.key in mirror.in_conflict():
                mirror.forget(one.key)  # sent again, and found to be there
            return None
        if found.fault is Fault.FORK:
            self._on_fork(f"Store {one.place} has a later state of this machine's log; {WHAT_NEXT}")
            return found.detail
        row = self._objects.row_of(one.key)
        if mirror is not None:
            self._scrubber.faults.found(found)
        if mirror is not None and row is not None:
            mirror.forget(one.key)
            mirror.offer(one.key, row.size, written_ns=self._objects.since_ns(row), withheld=True)
            if found.fault is Fault.MISSING:
                mirror.resume(one.key)
                return await self._why_lost(one, row.size)
        try:
            size_bytes = await self._keep_here(one, row)
        except MirrorfsError as exc:
            if mirror is not None:
                mirror.forget(one.key)
            return f"no good copy could be had: {exc}"
        if mirror is not None:
            if row is None:
                mirror.forget(one.key)
                mirror.offer(one.key, size_bytes, written_ns=self._clock.now_ns(), withheld=True)
            if found.fault is not Fault.MISSING:
                to_clear.append((one, mirror))
        return None

    async def _why_lost(self, one: BadObject, size_bytes: int) -> str | None:
        """Why a segment that a store lost cannot be sent there; None: another place seems to have it whole.

        That is only seen by its size, for it would be fetched twice; the mirror says so if it is not good.
        """
        is_bad = self._scrubber.faults.is_bad
        if not is_bad(LOCAL, one.key):
            here = await self._objects.sizes_of([one.key])
            if here.get(one.key, 0) >= size_bytes:
                return None
        for name, mirror in list(self._mirrors().items()):
            if name == one.place or is_bad(name, one.key):
                continue
            with suppress(StoreError):
                if await size_at(mirror.store, one.key) == size_bytes:
                    return None
        try:
            await self._source.read(one.key)
        except MirrorfsError as exc:
            return f"no good copy could be had: {exc}"
        return None

    async def _keep_here(self, one: BadObject, row: SegmentRow | RelocatedRow | None) -> int:
        """Have a good copy on the local disk. Returns its size.

        Raises: MirrorfsError: there is none. _NoRoom: there is no room for it.
        """
        if await self._scrubber.examine(LOCAL, one.key) is None:
            return self._objects.stored_size(one.key)
        if row is not None and not self._room.has(row.size):
            raise _NoRoom(row.size)
        data = await self._source.read(one.key)
        if not self._room.has(len(data)):
            raise _NoRoom(len(data))
        path = LOCAL_PREFIX + one.key
        await self._offload.sync(lambda: self._disk.write_whole(path, data))
        self._space.look_again()
        self._on_replaced(path, len(data))
        if one.place != LOCAL and row is not None:
            self._room.take(one.place, one.key, len(data))
        return len(data)

    async def _clear_all(
        self, items: Sequence[tuple[BadObject, Mirror]], results: dict[BadObject, str | None]
    ) -> None:
        """Make durable what was forgotten, and remove what is in the way of good copies."""
        try:
            await self._settle_index()
        except MirrorfsError as exc:
            logger.info("what stores were found to lack is not settled: %s", exc)
            results.update((one, str(exc)) for one, _ in items)
            return
        for one, mirror in items:
            # In what was examined, and nowhere else: in the place of a store there may be another by now.
            # What was collected meanwhile is not to come back.
            if self._mirrors().get(one.place) is not mirror or not self._objects.is_in_use(one.key):
                continue
            try:
                await mirror.lease_fresh()
                await self._clear(ObjectKey(one.key), mirror)
            except MirrorfsError as exc:
                results[one] = f"what is there could not be removed: {exc}"

    async def _clear(self, key: ObjectKey, mirror: Mirror) -> None:
        """Have the way free for a good copy, or put it there. Raises: MirrorfsError."""
        data = await self._objects.read(key)
        if not await mirror.store.put_over(key, Sealed(data)):
            if mirror.append_only:
                raise StoreDenied(
                    f"store {mirror.store.name} is append-only, and keeps no versions: its owner removes it."
                )
            await mirror.store.delete(key)
