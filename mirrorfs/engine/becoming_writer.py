"""Becoming the writer: the end of the log is settled only once the leases are ours.

What was read before is as old as the wait for the leases, in which the writer before us may have sent more:
its last changes before an unmount, or before a displaced one noticed. Both count as safe to its users. So
the stores are looked at again afterwards, and after a take-over not before the displaced writer has stopped:
its leases are fresh for less than one period. What lands later was under way then, and is an orphan.

What does not answer, or cannot be read, tells nothing: another store may have it whole. So a store that is
late is judged by all that it should show, and together with all others if something in it cannot be read. A
mount may be told to go on without stores that are away (--take-over), but not without those whose leases it
holds.

Rejected: holding the leases while the whole log is read. On a new machine that may take long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import trio

from mirrorfs.engine.heads import HEADS_PREFIX, FoundHead
from mirrorfs.engine.joining import missed
from mirrorfs.engine.key_watch import check_keys_are_in_use
from mirrorfs.engine.known_held import known_held
from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import LeaseTaker, VolumeSettings, give_back
from mirrorfs.engine.local import World
from mirrorfs.engine.publisher import Heads
from mirrorfs.engine.recovery import Recovered, Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.engine.standing import NOBODY, Known, Standing, first_unsent, known_by_lease
from mirrorfs.errors import InUseError, StoreUnavailable
from mirrorfs.format.control import Lease, parse_head_key
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import WriterPublicKey, load_public_key
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import Index, IndexFiles, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Writer:
    """A local state at the end of the log, and the leases that allow going on from there."""

    recovered: Recovered
    leases: list[LeaseKeeper]
    """One per store."""
    identity: WriterIdentity
    taker: LeaseTaker
    heads: Heads


async def open_as_writer(
    world: World,
    files: IndexFiles,
    key_set: KeySet,
    keys: VolumeKeys,
    header: VolumeHeader,
    stores: Sequence[Store],
    settings: VolumeSettings,
    *,
    on_progress: Callable[[int, int], None] | None,
    on_loaded: Callable[[int, int], None] | None = None,
    on_watch: Callable[[float], None] = lambda seconds: None,
) -> Writer:
    """Recover the local log and take the leases. The caller closes the index.

    `on_watch`: see LeaseTaker.

    Raises: InUseError: another writer has the volume. DamagedError: the local log cannot be used.
    """
    public_key = header.public_keys.writer
    # What a rotating store alone has was written where the others were out of reach: nobody was told that it
    # is safe, and it overrules nothing. It gets what it lacks when the volume is mounted.
    present = [store for store in stores if store.name not in settings.rotating] or list(stores)
    recovery = Recovery(
        world.disk,
        files,
        world.offload,
        keys,
        load_public_key(public_key),
        stores=present,
        takes_over=settings.take_over,
        instances=settings.instances.values(),
        on_progress=on_progress,
        on_loaded=on_loaded,
    )
    recovered = await recovery.run()
    heads = Heads(world.disk, world.offload, world.clock, keys=keys, public_key=public_key)
    try:
        await heads.load()
        taker = LeaseTaker(world, key_set, keys, header, stores, settings, on_watch=on_watch)
        judge = _Judge(
            recovery, recovered, heads, taker, present,
            lambda some: Segments(Stream.MAIN, disk=None, offload=world.offload, stores=some, keys=keys),
            keys, load_public_key(public_key),
        )  # fmt: skip
        recovered, leases, identity = await become_writer(judge, taker)
    except BaseException:
        recovered.index.close()
        raise
    return Writer(recovered, leases, identity, taker, heads)


class _Judge:
    """Whether this machine may write, as far as the stores show (engine/admission.py)."""

    def __init__(
        self,
        recovery: Recovery,
        recovered: Recovered,
        heads: Heads,
        taker: LeaseTaker,
        present: Sequence[Store],
        segments: Callable[[Sequence[Store]], Segments],
        keys: VolumeKeys,
        writer: WriterPublicKey,
    ) -> None:
        """`present` are those that are read, and do not rotate; `segments` makes a listing of some stores."""
        self.recovered = recovered
        self._recovery = recovery
        self._heads = heads
        self._taker = taker
        self._present = present
        self._segments = segments
        self._keys = keys
        self._writer = writer
        self._mounted = False
        self._held_heads: Mapping[str, int] = {}
        self._found: list[Lease] = []
        self._taken = NOBODY
        self._left: set[SegmentId] = set()
        """What a crash left, and was left behind before the mount."""
        self._settled: set[str] = set()
        """Keys of what cannot be read, in all stores, or in those without which we were told to go on."""

    async def __call__(self, leases: Mapping[str, Lease | None], silent: Collection[str]) -> None:
        """Raises: InUseError, ChainError, DamagedError: it may not. StoreError: of a late store, not now."""
        # Those that there are now: a store may have been replaced since the mount.
        stores = [place.store for name, place in self._taker.places.items() if name in leases]
        if not self._mounted:
            stores = list(self._present)
        elif doubted := [store for store in stores if leases[store.name] is None]:
            await check_keys_are_in_use(doubted, self._keys, self._writer.public_bytes_raw())
        heads: Mapping[str, FoundHead | None] = await self._heads.of_stores(stores)
        if self._mounted:
            self._require_heads([store.name for store in stores], heads)
        else:
            self.recovered = await self._recovery.go_on(self.recovered)
        found = [lease for lease in leases.values() if lease is not None]
        if not self._mounted:
            self._found = found
        lasting = [lease for name, lease in leases.items() if lease and name not in self._taker.rotating]
        known, heads = await self._stand(stores, heads, lasting)
        own = {*self._taker.own_writers, self._taker.writer}
        if self._mounted or not self._taker.takes_over:
            for lease in found:
                if lease.writer not in own and not known.has(lease):
                    raise InUseError(self._unknown(lease))
        # A rotating store is never waited for, so that what the log ends with lies on the others.
        missed = set(silent) - self._taker.rotating
        if not self._mounted and missed and not self._taker.takes_over:
            self._check_was_last(found, missed)
        await self._heads.compare(
            heads, self.recovered.index, known, held=self._held_heads,
            pinned=not self._mounted and not self._taker.takes_over,
        )  # fmt: skip

    async def again(self, taken: Known, needed: Collection[str]) -> None:
        """Once more, with the leases held: what a writer sent that was displaced. Then it is over.

        It counts as what was sent before it: it was told to its users that it is safe.
        Args:
            taken: this mount, if it was told to take over and holds a lease: what comes to light later from
                writers before it is left behind where it parts from our log, whether ours has reached a store
                yet or not. Without a lease it may not know of anybody, and stands as all others do.
            needed: stores that have to answer: those whose leases are held, where somebody was displaced.
        """
        heads: Mapping[str, FoundHead | None] = await self._heads.of_stores(self._present)
        self.recovered = await self._recovery.go_on(self.recovered)
        try:
            self._require_heads(needed, heads)
            known, heads = await self._stand(self._present, heads, self._found, needed)
        except StoreUnavailable as exc:
            raise StoreUnavailable(
                f"{exc} It may have what the machine that was displaced sent last: mount again."
            ) from exc
        await self._heads.compare(heads, self.recovered.index, known, held=self._held_heads)
        self._taken = taken
        self._mounted = True

    async def accept(self) -> None:
        """It is settled that this machine writes."""
        await self._recovery.accepted(self.recovered.index)

    async def _stand(
        self,
        stores: Sequence[Store],
        heads: Mapping[str, FoundHead | None],
        leases: Sequence[Lease],
        needed: Collection[str] = (),
    ) -> tuple[Known, Mapping[str, FoundHead | None]]:
        """Also the heads: those of all stores, if all had to be looked at. `needed`: see `again`."""
        index, places = self.recovered.index, self._taker.places
        if self._mounted:
            needed = [store.name for store in stores]
            if any(store.name not in places or places[store.name].store is not store for store in stores):
                raise StoreUnavailable("The stores were changed meanwhile; they are looked at again.")
        held = {name: await known_held(index, place.instance) for name, place in places.items()}
        self._held_heads = {name: keys.last(HEADS_PREFIX) for name, keys in held.items()}
        counts = {name: keys for name, keys in held.items() if name not in self._taker.rotating} or held
        first = await first_unsent(index, [held[store.name] for store in stores])
        if not any(store.name in counts for store in stores):
            first = min(first, max([await first_unsent(index, [keys]) for keys in counts.values()]))
        segments = self._segments(stores)
        silent = await segments.look(from_sequence=first)
        if missing := sorted(set(silent).intersection(needed)):
            raise StoreUnavailable(f"Store {missing[0]} cannot be listed now; nothing is sent.")
        standing = Standing(
            index, segments, self._keys, self._writer,
            first=first, held=counts, may_leave=None if self._may_leave_any(heads) else self._left,
        )  # fmt: skip
        known = await standing.known(leases, self._taker.settled_writers)
        known = max(known, self._taken)
        await standing.check(known)
        self._left |= standing.left
        unread = {segment_object_key(Stream.MAIN, one) for one in await standing.unread(known)}
        unread |= self._unread_heads(stores, heads, known)
        if missing := sorted(segments.unreached.intersection(needed)):
            raise StoreUnavailable(f"Store {missing[0]} cannot be read now; nothing is sent.")
        unread = {key for key in unread - self._settled if not any(key in one for one in held.values())}
        seen = {store.name for store in stores}.difference(silent)
        unseen = [name for name in counts if name not in seen]
        if unread and unseen and (self._mounted or not self._taker.takes_over):
            return await self._look_wider(stores, unseen, leases)
        self._settled |= unread
        return known, heads

    def _unread_heads(
        self, stores: Sequence[Store], heads: Mapping[str, FoundHead | None], known: Known
    ) -> set[str]:
        """Keys of heads that cannot be read, and may tell of a later state than what is known."""
        own = {*self._taker.own_writers, self._taker.writer}
        keys: set[str] = set()
        for store in stores:
            found = heads.get(store.name)
            keys.update(found.rejected if found else self._heads.unread.get(store.name, ()))
        parsed = {key: parse_head_key(key) for key in keys}
        return {key for key, (_, epoch, by) in parsed.items() if epoch >= known.epoch and by not in own}

    def _require_heads(self, names: Collection[str], heads: Mapping[str, FoundHead | None]) -> None:
        """Raises: StoreUnavailable: the heads of one of these stores were not to be had."""
        if missing := sorted(set(names) - heads.keys() - self._heads.unread.keys()):
            raise StoreUnavailable(f"The heads of store {missing[0]} cannot be read now; nothing is sent.")

    async def _look_wider(
        self, stores: Sequence[Store], unseen: Sequence[str], leases: Sequence[Lease]
    ) -> tuple[Known, Mapping[str, FoundHead | None]]:
        """What cannot be read in some stores may be another machine's changes, which others have whole.

        Of a store that is late all are looked at. Raises: InUseError: a mount with a store away.
        StoreUnavailable: a store that is needed is away now.
        """
        others = f"store {' and store '.join(unseen)}"
        if not self._mounted:
            raise InUseError(
                f"What cannot be read in the stores may be another machine's changes; {others} may have them"
                " whole and does not answer: make it reachable, or go on without them with --take-over."
            )
        wider = [*stores, *(place.store for name, place in self._taker.places.items() if name in unseen)]
        try:
            heads = await self._heads.of_stores(wider)
            self._require_heads([store.name for store in wider], heads)
            return await self._stand(wider, heads, leases)
        except StoreUnavailable as exc:
            raise StoreUnavailable(
                f"What cannot be read there may be another machine's changes; to tell, {others} is needed:"
                f" make it reachable, or mount again with --take-over to go on without it. {exc}"
            ) from exc

    def _may_leave_any(self, heads: Mapping[str, FoundHead | None]) -> bool:
        """Whether all heads are known that may say where something ends, or we were told to go on anyway.

        One store alone, which is late, does not show that: it may have lost a head that the others have.
        """
        if self._mounted:
            return False
        is_known = all(
            store.name in heads and not ((found := heads[store.name]) and found.rejected)
            for store in self._present
        )
        return is_known or self._taker.takes_over

    def _unknown(self, lease: Lease) -> str:
        who = self._taker.describe(lease)
        if self._mounted:
            return f"The volume was taken over meanwhile: {who}. Unmount here; mount it where it is written."
        return (
            f"Changes of another machine have not come to the stores: {who}. Mount the volume there and"
            " unmount it, or go on without them with --take-over."
        )

    def _check_was_last(self, found: Sequence[Lease], silent: Collection[str]) -> None:
        """With a store away, only the machine that wrote last knows where the log ends."""
        own, row = self._taker.own_writers, self.recovered.index.last_segment()
        is_ours = self._taker.has_created if row is None else row.writer in own
        if is_ours and all(lease.writer in own for lease in found):
            return
        why = "this machine has never written" if row is None else "another machine wrote last"
        raise missed(silent, why)


async def become_writer(
    judge: _Judge, taker: LeaseTaker
) -> tuple[Recovered, list[LeaseKeeper], WriterIdentity]:
    """Take the leases, and bring the index to where the log ended when nobody else wrote any more.

    The caller closes the index on an error; the leases are given back.
    Raises: InUseError: another writer has the volume, or came in between. ChainError, DamagedError: the
        stores hold what this machine cannot continue. StoreUnavailable: what a displaced writer sent last
        cannot be read just now.
    """
    leases, identity = await taker.take_leases(
        local_epoch=_epoch(judge.recovered.index), last=judge.recovered.index.last_segment(), judge=judge
    )
    try:
        await _outwait(leases, taker.notice_s)
        lasting = [one.state() for one in leases if one.state().store not in taker.rotating]
        fresh = [state.store for state in lasting if state.fresh]
        by_lease = known_by_lease(identity.epoch, identity.writer, identity.keys)
        await judge.again(
            by_lease if taker.takes_over and fresh else NOBODY, needed=fresh if taker.notice_s else ()
        )
        lasting = [one.state() for one in leases if one.state().store not in taker.rotating]
        fenced = next((state.fenced for state in lasting if state.fenced is not None), None)
        if fenced is not None:
            raise InUseError(fenced)
        if _epoch(judge.recovered.index) >= identity.epoch:
            raise InUseError("Another machine wrote meanwhile; unmount the volume there, and mount again.")
        await judge.accept()
        await taker.mounted(holds_one=any(state.fresh for state in lasting))
    except BaseException:
        with trio.CancelScope(shield=True):
            await give_back(leases)
        raise
    return judge.recovered, leases, identity


async def _outwait(leases: Sequence[LeaseKeeper], notice_s: float) -> None:
    """Let a displaced writer notice, while our leases are renewed."""
    if not notice_s:
        return
    logger.info("waiting %.0f s, until the writer that was displaced has noticed", notice_s)
    async with trio.open_nursery() as nursery:
        for one in leases:
            nursery.start_soon(one.run)
        await trio.sleep(notice_s)
        nursery.cancel_scope.cancel()


def _epoch(index: Index) -> int:
    known = index.get_meta("epoch")
    return known if isinstance(known, int) else 0
