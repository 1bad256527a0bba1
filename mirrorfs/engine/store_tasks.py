"""What runs for the stores of a mounted volume, leases and mirrors; and changing which stores there are.

A change is one step without an await: who leaves is no member any more, who comes is one, the new header is
offered to all of them, and all that is written from then on names its generation. So no object of that
generation can be offered to a store before the header, which its queue sends first (docs/FORMAT.md). All else
comes after it and is repeated by the next mount if the process dies: a new store is offered all there is,
also what only other stores have any more; one that left ends its tasks, gives its lease back, and is closed.

A store that is added takes its lease with the epoch and the writer id of the session. One where a later epoch
wrote is refused beforehand: it would count as a take-over.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Final

import trio

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine.attached import AttachedStore, Attaching, StoreSet
from mirrorfs.engine.guarded_store import verify_place
from mirrorfs.engine.known_held import known_held
from mirrorfs.engine.lasting import lasting
from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import RELEASE_S, STORE_LOOK_S, LeaseTaker, Place, VolumeSettings
from mirrorfs.engine.objects import PAGE, SMALL_PREFIXES, LocalObjects
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.store_records import StoreRecords
from mirrorfs.errors import (
    ChainError,
    DamagedError,
    DiskError,
    InUseError,
    LimitError,
    MirrorfsError,
    StoreError,
)
from mirrorfs.format.header import StoreEntry, VolumeHeader, header_key
from mirrorfs.ports import Clock, Store

logger = logging.getLogger(__name__)

REMEMBER_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class StoreChange:
    """Which stores a volume is to have from now on."""

    header: VolumeHeader
    """Verified, and newer than the session's; its stores are the ones meant."""
    header_bytes: bytes
    """Lying on the local disk under its key."""
    rotating: Collection[str]
    """Names of those that may be away for long."""
    open_store: Callable[[StoreEntry], Store]
    """Makes a store that is not attached yet."""


class StoreTasks:
    """The stores of one mounted volume at work."""

    def __init__(
        self,
        members: StoreSet,
        attaching: Attaching,
        objects: LocalObjects,
        records: StoreRecords,
        taker: LeaseTaker,
        clock: Clock,
        identity: WriterIdentity,
        *,
        settle_index: Callable[[], Awaitable[int]],
        on_fenced: Callable[[], Awaitable[None]],
        on_unforeseen: Callable[[Exception], None],
        on_left: Callable[[str], None],
        adopt: Callable[[WriterIdentity], None],
    ) -> None:
        """
        Args:
            identity: of the session, whose newest header may become another one.
            settle_index: makes what was noted in the index durable.
            on_fenced: awaited when another writer has taken the volume over; again, if it raised.
            on_unforeseen: as in `lasting`.
            on_left: hears the name of a store that was removed or replaced. Errors: DiskError.
            adopt: has all that is written from now on name another header.
        """
        self.members = members
        self._attaching = attaching
        self._objects = objects
        self._records = records
        self._taker = taker
        self._clock = clock
        self._settle_index = settle_index
        self._on_fenced = on_fenced
        self._lasting = partial(lasting, on_unforeseen=on_unforeseen)
        self._on_left = on_left
        self._identity = identity
        self._adopt = adopt
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()

    async def start_with(
        self, stores: Sequence[Store], leases: Sequence[LeaseKeeper], settings: VolumeSettings
    ) -> None:
        """Attach the stores of the mount, whose leases were taken."""
        for store, lease in zip(stores, leases, strict=True):
            instance = settings.instances[store.name]
            record, is_new = self._records.meet(instance)
            if is_new:
                self._attaching.index.clear_held(instance)
            one = self._attaching.attach(
                store,
                lease,
                await known_held(self._attaching.index, instance),
                instance=instance,
                rotating=store.name in settings.rotating,
                filled=record.filled,
            )
            one.seen_ns, one.is_new = record.seen_ns, is_new
            self.members.members.append(one)
        self._records.keep_only(one.instance for one in self.members.members)

    # --- offering ----------------------------------------------------------------------------

    def offer(self, key: str, size_bytes: int, *, written_ns: int, after: int | None = None) -> None:
        """Queue an object that has become immutable here for every store."""
        for one in self.members.members:
            one.mirror.offer(key, size_bytes, written_ns=written_ns, after_sequence=after)

    async def offer_all(self, to: Sequence[AttachedStore]) -> None:
        """Queue all there is; what is closed meanwhile is offered by whoever closes it."""
        # These hold no change of their own: what is in the segments decides what is safe.
        now_ns = self._clock.now_ns()
        for prefix in SMALL_PREFIXES:
            keys = await self._objects.keys(prefix)
            for at in range(0, len(keys), PAGE):
                page = keys[at : at + PAGE]
                # Only what some store lacks is measured.
                lacking = [key for key in page if not all(one.mirror.is_held(key) for one in to)]
                for key, size_bytes in (await self._objects.sizes_of(lacking)).items():
                    for one in to:
                        one.mirror.offer(key, size_bytes, written_ns=now_ns)
        for count, found in enumerate(chain(self._objects.segments(), self._objects.relocated()), 1):
            for one in to:
                one.mirror.offer(found.key, found.size, written_ns=found.written_ns)
            if count % PAGE == 0:
                await trio.lowlevel.checkpoint()
        for one in to:
            one.offered_ns = self._clock.now_ns()
            one.offered.set()

    # --- tasks -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep leases and mirror until cancelled; what fails is begun again by itself."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for one in self.members.members:
                    nursery.start_soon(self._run_store, one)
                await self._lasting(self._remember_now_and_then, "what is known of stores")
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def _run_store(self, one: AttachedStore) -> None:
        try:
            with one.scope:
                await self._lasting(partial(self._begin, one), "a new store")
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._lasting, partial(self._keep_lease, one), "a lease")
                    nursery.start_soon(self._lasting, partial(self._mirror, one), "a mirror")
                    if one.locks is not None:
                        nursery.start_soon(self._lasting, one.locks.run, "the locks of a store")
        finally:
            one.ended.set()

    async def _begin(self, one: AttachedStore) -> None:
        if not one.offered.is_set():
            # It was added just now.
            await self.offer_all([one])
            await self._taker.acquire_late(one.lease, self._identity, rotating=one.rotating)

    async def _keep_lease(self, one: AttachedStore) -> None:
        await one.lease.run()
        if one.lease.state().fenced is None:
            return
        if one.rotating:
            logger.warning("Store %s is left alone: %s", one.store.name, one.lease.state().fenced)
            return
        await self._on_fenced()
        # Nothing is sent any more: who took over need not watch the leases of the other stores.
        for other in self.members.members:
            if other is not one and not other.is_away():
                await self.release(other)

    async def _mirror(self, one: AttachedStore) -> None:
        try:
            await one.mirror.reconcile()
        except StoreError as exc:
            level = logging.INFO if one.rotating else logging.WARNING
            logger.log(level, "Store %s cannot be listed: %s", one.store.name, exc)
        await one.mirror.run()

    def fence(self, sentence: str) -> None:
        """Write nothing any more, anywhere, for a reason that a store shows otherwise than by its lease."""
        if self.members.fenced() is None:
            logger.critical("%s", sentence)
            self.members.other_fence = sentence
            if self._nursery is not None:
                self._nursery.start_soon(self._on_fenced)

    # --- what is remembered ------------------------------------------------------------------

    async def _remember_now_and_then(self) -> None:
        while True:
            await self.remember()
            await trio.sleep(REMEMBER_S)

    async def remember(self, *, at_once: bool = False) -> None:
        """Note which stores are there, and which have been filled; `at_once` spares no writing."""
        for one in self.members.members:
            if not one.filled and one.has_caught_up():
                one.filled = True
                self.members.on_counted()
            is_present = not one.is_away()
            if is_present:
                one.seen_ns = self._clock.now_ns()
            self._records.note(one.instance, present=is_present, filled=one.filled)
        rotates = any(one.rotating for one in self.members.members)
        if not self._records.is_due() and not (at_once and rotates):
            return
        newcomers = set(self._records.newcomers)
        if newcomers:
            try:
                await self._settle_index()
            except MirrorfsError as exc:
                logger.info("what is known of new stores is not settled: %s", exc)
                return
            self._records.newcomers -= newcomers
        await self._records.save()

    # --- changing ----------------------------------------------------------------------------

    async def change(self, wanted: StoreChange) -> None:
        """Have these stores from now on. Carried out twice it is the same as once.

        Raises: InUseError: the volume, or a store that is added, was taken by another writer. ChainError: the
            header is older than the session's. MirrorfsError: the volume is being unmounted. Nothing was
            changed then.
        """
        async with self._changing:
            known = {one.instance: one for one in self.members.members}
            opened: list[Store] = []
            added: list[tuple[StoreEntry, Store, LeaseKeeper]] = []
            try:
                for entry in wanted.header.stores:
                    if entry.instance.hex() in known:
                        continue
                    store = wanted.open_store(entry)
                    opened.append(store)
                    keeper = await self._taker.keeper(store, rotating=entry.name in wanted.rotating)
                    await self._check_lease(keeper)
                    added.append((entry, store, keeper))
                self._check_open(wanted)
            except BaseException:
                with trio.move_on_after(1.0, shield=True):
                    for store in opened:
                        await store.aclose()
                raise
            # From here to the end nothing awaits: see the module.
            self._switch(wanted, added, known)
            key = header_key(wanted.header.generation, wanted.header_bytes)
            self.offer(key, len(wanted.header_bytes), written_ns=self._clock.now_ns())
            self._identity = replace(
                self._identity,
                header_generation=wanted.header.generation,
                header_bytes=wanted.header_bytes,
            )
            self._adopt(self._identity)

    def _check_open(self, wanted: StoreChange) -> None:
        if wanted.header.generation < self._identity.header_generation:
            raise ChainError("The volume's header is older than the one in use; the stores stay as they are.")
        if (fenced := self.members.fenced()) is not None:
            raise InUseError(fenced)
        if self._nursery is None:
            raise MirrorfsError("The volume is just being unmounted; the change counts from the next mount.")

    def _switch(
        self,
        wanted: StoreChange,
        comers: Sequence[tuple[StoreEntry, Store, LeaseKeeper]],
        known: dict[str, AttachedStore],
    ) -> None:
        assert self._nursery is not None
        added: dict[str, AttachedStore] = {}
        for entry, store, keeper in comers:
            instance = entry.instance.hex()
            # What it was known to hold, if it was one of the volume's before, counts for nothing.
            self._attaching.index.clear_held(instance)
            record = self._records.welcome(instance)
            one = self._attaching.attach(
                store,
                keeper,
                HeldKeys(),
                instance=instance,
                rotating=entry.name in wanted.rotating,
                filled=False,
            )
            one.seen_ns = record.seen_ns
            added[instance] = one
        instances = [entry.instance.hex() for entry in wanted.header.stores]
        gone = [one for instance, one in known.items() if instance not in instances]
        members = [known.get(instance) or added[instance] for instance in instances]
        # In place: others have this very list.
        self.members.members[:] = members
        self._taker.rotating = frozenset(wanted.rotating)
        self._taker.places = {one.store.name: Place(one.store, one.instance) for one in members}
        self._records.keep_only(instances)
        for one in members:
            one.rotating = one.store.name in wanted.rotating
        self.members.on_counted()
        for one in gone:
            logger.info("store %s is left", one.store.name)
            self._nursery.start_soon(self._retire, one)
        for one in added.values():
            logger.info("store %s is added", one.store.name)
            self._nursery.start_soon(self._run_store, one)

    async def _check_lease(self, keeper: LeaseKeeper) -> None:
        lease = None
        with trio.move_on_after(STORE_LOOK_S):
            try:
                lease = await keeper.look()
            except (StoreError, DamagedError, LimitError) as exc:
                logger.info("the lease of store %s cannot be read: %s", keeper.state().store, exc)
        own = self._identity
        if lease is not None and lease.epoch >= own.epoch and lease.writer != own.writer:
            raise InUseError(
                f"Store {keeper.state().store} was written to after this mount began: unmount the volume and"
                " mount it again, which looks at what is there."
            )

    async def _retire(self, one: AttachedStore) -> None:
        one.detached.set()
        one.scope.cancel()
        # The lease is given back when nothing is sent any more. The volume may be closing, too.
        with trio.CancelScope(shield=True):
            await one.ended.wait()
            if await self._is_in_place(one):
                await self.release(one)
            with trio.move_on_after(1.0):
                await one.store.aclose()
        try:
            self._on_left(one.store.name)
        except DiskError as exc:
            logger.info("what is remembered of store %s could not be forgotten: %s", one.store.name, exc)
        fenced = one.lease.state().fenced
        if fenced is not None and not one.rotating:
            self.members.other_fence = fenced
            await self._lasting(self._on_fenced, "a lease")

    async def _is_in_place(self, one: AttachedStore) -> bool:
        """Whether the place of a store that left still is that store.

        After `store replace` with the same place the lease there is the new store's, and ours: to the keeper
        of the old one it looks like a take-over, which would end all writing.
        """
        with trio.move_on_after(RELEASE_S):
            try:
                await verify_place(one.store)
            except StoreError as exc:
                logger.info("the lease of store %s is not given back: %s", one.store.name, exc)
                return False
            return True
        return False

    async def release(self, one: AttachedStore, limit_s: float = RELEASE_S) -> None:
        """Give one lease back, for at most so long; one that stays expires."""
        with trio.move_on_after(limit_s):
            try:
                await one.lease.release()
            except MirrorfsError as exc:
                # A rotating one may have been pulled out a moment ago: that is no fault.
                level = logging.INFO if one.rotating or one.detached.is_set() else logging.WARNING
                logger.log(level, "A lease could not be given back: %s", exc)
