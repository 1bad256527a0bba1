"""The stores of a mounted volume: what belongs to each, and what the local half sees of all of them.

Which stores there are may change while the volume is mounted: whoever needs them asks the StoreSet each
time, and one step without an await changes it.

What counts as held, for the local cache, is what every store that does not rotate holds. One that is being
filled is left out of that while two others hold an object: a third store that is added must not fill the
local disk. Where there would be fewer, what it lacks stays here.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import trio

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine.deleting import Deletion, delete_objects
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.known_faults import KnownFaults
from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import VolumeSettings
from mirrorfs.engine.local import LocalVolume, Mirrors, World
from mirrorfs.engine.lock_keeper import LockKeeper, forget_locks
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.mirror_state import MirrorState, StateWord
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.scrub_state import LOCAL
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.errors import DamagedError, InUseError, ObjectNotFound, StoreError
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Index, Store

LEFT_ALONE = (
    "It got changes on another PC that the other stores do not have: nothing is sent to it until the volume"
    " is mounted anew with it. `mirrorfs restore --store` gives what it alone has."
)
EXCUSE_S = 0.5
"""How often whoever waits for a rotating store looks whether it is still there."""
ENOUGH = 2
"""So many stores that hold everything are as safe as a volume was meant to be."""


class AttachedStore:
    """One store of a mounted volume."""

    def __init__(
        self,
        store: Store,
        lease: LeaseKeeper,
        mirror: Mirror,
        locks: LockKeeper | None,
        *,
        instance: str,
        rotating: bool,
        filled: bool,
    ) -> None:
        """
        Args:
            locks: of a store that locks objects.
            instance: UUID (hex) of the store's instance.
            rotating: it may be away for long, and that is no fault.
            filled: it has held everything at some time.
        """
        self.store = store
        self.lease = lease
        self.mirror = mirror
        self.locks = locks
        self.instance = instance
        self.rotating = rotating
        self.filled = filled
        self.is_new = False
        """The last mount here did not know it."""
        self.seen_ns = 0
        """Of a rotating one: CLOCK_REALTIME when it was last known to be there."""
        self.offered_ns = 0
        """CLOCK_REALTIME when all there was had been offered to its mirror."""
        self.scope = trio.CancelScope()
        """Of its tasks."""
        self.offered = trio.Event()
        """All there is was offered to its mirror."""
        self.detached = trio.Event()
        """It is none of the volume's stores any more."""
        self.ended = trio.Event()
        """Its tasks have ended."""

    def snapshot(self) -> MirrorState:
        """The state of the store now: its mirror's, with what its lease knows better."""
        lease, state = self.lease.state(), self.mirror.snapshot()
        if state.state is not StateWord.CONFLICT and (lease.missing or not state.pending_count):
            # The mirror of a store that has everything asks it for nothing: the lease knows how it is.
            state = replace(
                state,
                state=lease.word or StateWord.UP_TO_DATE,
                last_error=lease.last_error if lease.word else None,
                failing_since_ns=lease.failing_since_ns if lease.word else None,
            )
        traits = self.store.traits if isinstance(self.store, GuardedStore) else None
        state = replace(
            state,
            weak_fencing=lease.weak_fencing,
            rotating=self.rotating,
            filling=not self.filled,
            can_delete=None if traits is None else traits.can_delete,
            lock=None if self.locks is None else self.locks.state(),
        )
        if not self.rotating:
            return state
        if lease.fenced is not None:
            return replace(state, state=StateWord.CONFLICT, last_error=LEFT_ALONE)
        if lease.unreachable or state.state in (StateWord.UNREACHABLE, StateWord.MISSING):
            return replace(state, state=StateWord.AWAY, away_since_ns=self.seen_ns)
        return state

    def has_caught_up(self) -> bool:
        """Whether it holds everything that there was when its mirror began."""
        oldest_ns = self.mirror.snapshot().oldest_pending_ns
        return self.offered.is_set() and (oldest_ns is None or oldest_ns > self.offered_ns)

    def is_away(self) -> bool:
        """Whether it rotates, and is not there."""
        return self.rotating and self.snapshot().state is StateWord.AWAY

    def is_left_alone(self) -> bool:
        """Whether it rotates, and got changes elsewhere that are not known here: nothing is sent to it."""
        return self.rotating and self.lease.state().fenced is not None

    async def delete(
        self, keys: Sequence[str], *, on_deleted: Callable[[int], None] = lambda count: None
    ) -> Deletion:
        """Delete objects that nothing refers to any more, and forget that it held them (engine/deleting.py).

        `on_deleted` hears how many are gone. Raises: as delete_objects.
        """
        return await delete_objects(self.mirror, keys, on_deleted=on_deleted)

    async def wait_held(self) -> None:
        """Return when it holds everything offered so far; at once if it is removed, away or left alone.

        Raises: as Mirror.wait_held.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._excuse, nursery.cancel_scope)
            await self.offered.wait()
            await self.mirror.wait_held()
            nursery.cancel_scope.cancel()

    async def _excuse(self, scope: trio.CancelScope) -> None:
        while not self.detached.is_set() and not self.is_away() and not self.is_left_alone():
            with trio.move_on_after(EXCUSE_S if self.rotating else float("inf")):
                await self.detached.wait()
        scope.cancel()


class StoreSet:
    """The stores that a mounted volume has now."""

    def __init__(self, append_only: frozenset[str] = frozenset()) -> None:
        """`append_only`: names of stores in which nothing is deleted from here."""
        self.append_only = append_only
        self.members: list[AttachedStore] = []
        self.other_fence: str | None = None
        """Why nothing may be written, where the lease of no member says so: of one that was removed, say."""
        self.on_held: Callable[[str], None] = lambda key: None
        """Hears the key of an object that a store turns out to hold, or not to hold after all."""
        self.faults: KnownFaults | None = None
        """Hears the same, first; a copy that it knows to be bad counts for nothing."""
        self.on_counted: Callable[[], None] = lambda: None
        """Is to be told when there are other members, or when one is filled, or begins or ends to rotate."""

    def stores(self) -> list[Store]:
        """Those to read from: the rotating ones that are away are of no use."""
        return [one.store for one in self.members if not one.is_away()] or [one.store for one in self.members]

    def mirrors(self) -> dict[str, Mirror]:
        """Mirrors by the names of their stores."""
        return {one.store.name: one.mirror for one in self.members}

    def find(self, name: str) -> AttachedStore | None:
        """The store of that name."""
        return next((one for one in self.members if one.store.name == name), None)

    def is_away(self, name: str) -> bool:
        """Whether a store rotates, and is not here."""
        one = self.find(name)
        return one is not None and one.is_away()

    def is_catching_up(self) -> bool:
        """Whether something is being sent, or could be."""
        return any(one.mirror.snapshot().state is StateWord.CATCHING_UP for one in self.members)

    def is_held(self, key: str) -> bool:
        """Whether so many stores are known to hold an object that it need not be kept here."""
        lasting = [one for one in self.members if not one.rotating]
        holders = sum(1 for one in lasting if self._has_good(one, key))
        if holders == len(lasting):
            return bool(lasting)
        filled = [one for one in lasting if one.filled]
        return len(filled) >= ENOUGH and all(self._has_good(one, key) for one in filled)

    def _has_good(self, one: AttachedStore, key: str) -> bool:
        is_bad = self.faults is not None and self.faults.is_bad(one.store.name, key)
        return one.mirror.is_held(key) and not is_bad

    def know(self, faults: KnownFaults) -> None:
        """Have what is known of the members' copies; of a store that is new here that was another one's."""
        lacking = {one.store.name: one.mirror for one in self.members if not one.is_new}
        faults.keep_only(
            {LOCAL, *(one.store.name for one in self.members if one.filled)},
            lacks=lambda name, key: name in lacking and not lacking[name].is_held(key),
        )
        self.faults = faults

    def is_known_bad(self, name: str, key: str) -> bool:
        """Whether what a store lists under a key was found to be damaged, whatever its size."""
        return self.faults is not None and self.faults.is_hidden(name, key)

    def held_changed(self, name: str, key: str, *, is_held: bool) -> None:
        """A store turned out to hold an object, or not to hold it after all."""
        if self.faults is not None:
            self.faults.held_changed(name, key, is_held=is_held)
        self.on_held(key)

    def is_expected(self, name: str, key: str) -> bool:
        """Whether a store should have an object: one that is being filled only what it is seen to hold."""
        one = self.find(name)
        return one is None or one.filled or one.mirror.is_held(key)

    def fenced(self) -> str | None:
        """Who took the volume over, if somebody did.

        A rotating store says nothing about that: one that was carried elsewhere, and written to there while
        the others were not in reach, holds another branch.
        """
        states = (one.lease.state().fenced for one in self.members if not one.rotating)
        return self.other_fence or next((fenced for fenced in states if fenced is not None), None)


@dataclass(frozen=True, slots=True)
class Attaching:
    """What every store of a mounted volume is attached with."""

    members: StoreSet
    objects: ObjectSource
    index: Index
    world: World
    pace: UploadPace
    random: Callable[[], float]
    suspect: Callable[[str | None, str], None]
    parallel: int
    """Uploads under way to each store."""

    def attach(
        self,
        store: Store,
        lease: LeaseKeeper,
        held: HeldKeys,
        *,
        instance: str,
        rotating: bool,
        filled: bool,
    ) -> AttachedStore:
        """A store with its lease and its mirror; no task runs yet, and it is not one of the members.

        `held`: what it is known to hold; the mirror's from now on.
        """
        name, index = store.name, self.index
        held.on_change = lambda key: self.members.held_changed(name, key, is_held=key in held)

        async def fresh() -> None:
            # A writer that one of them fenced sends nothing to the others either.
            if (fenced := self.members.fenced()) is not None:
                raise InUseError(fenced)
            await lease.fresh()

        mirror = Mirror(
            store,
            instance=instance,
            read_object=self._reader_for(name),
            lease_fresh=fresh,
            held=held,
            save_held=lambda key: index.put_held(instance, key),
            forget_held=lambda key: index.delete_held(instance, key),
            on_conflict=lambda key: self.suspect(name, key),
            is_known_bad=lambda key: self.members.is_known_bad(name, key),
            clock=self.world.clock,
            pace=self.pace,
            random=self.random,
            parallel=self.parallel,
            may_be_away=rotating,
            append_only=name in self.members.append_only,
        )
        return AttachedStore(
            store,
            lease,
            mirror,
            self._lock_keeper(store, mirror, instance),
            instance=instance,
            rotating=rotating,
            filled=filled,
        )

    def _lock_keeper(self, store: Store, mirror: Mirror, instance: str) -> LockKeeper | None:
        disk = self.world.disk
        if store.lock is None:
            forget_locks(disk, instance)
            return None
        objects = LocalObjects(disk, self.index, self.world.offload)
        return LockKeeper(
            store, store.lock, objects, disk, self.world.clock, instance=instance, is_held=mirror.is_held
        )

    def _reader_for(self, name: str) -> Callable[[str], Awaitable[bytes]]:
        async def read(key: str) -> bytes:
            try:
                # A store is asked last for what it is to be sent.
                return await self.objects.read(key, but=name)
            except (ObjectNotFound, DamagedError, StoreError):
                # It may have it all the same, and be the only one that has it whole.
                return await self.objects.read(key)

        return read


def upload_pace(world: World, settings: VolumeSettings, local: Callable[[], LocalVolume]) -> UploadPace:
    """The pace of uploads of a local half that is made later."""
    return UploadPace(
        world.clock, written_ns=lambda: local().state.written_ns, delay_s=settings.mirror_delay_s
    )


def object_source(
    world: World, index: Index, keys: VolumeKeys, header: VolumeHeader, stores: StoreSet
) -> ObjectSource:
    """Where the objects of a volume are read from, whole and verified."""
    local = LocalObjects(world.disk, index, world.offload)
    public = header.public_keys
    return ObjectSource(
        local, world.offload, keys, public.writer, stores=stores.stores, pruner_key=public.pruner
    )


def mirrors_of(stores: StoreSet, suspect: Callable[[str | None, str], None]) -> Mirrors:
    """What the local half of a volume needs of its stores."""
    return Mirrors(
        stores=stores.stores,
        is_held=stores.is_held,
        is_expected=stores.is_expected,
        on_bad_copy=suspect,
    )
