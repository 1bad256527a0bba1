"""Taking the leases of all stores for one mount, and with them a new epoch and writer id."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import trio

from mirrorfs.core.retention import Policy
from mirrorfs.core.sense import LIMIT
from mirrorfs.engine.admission import Admission, Judge
from mirrorfs.engine.cache import CACHE_SIZE
from mirrorfs.engine.lease import LEASE_PERIOD_S, LeaseKeeper
from mirrorfs.engine.lease_documents import LeaseDocuments, next_epoch
from mirrorfs.engine.lease_watch import WATCH_POLL_S, watch_s
from mirrorfs.engine.local import World
from mirrorfs.engine.mirror import UPLOADS_PARALLEL
from mirrorfs.engine.own_writers import (
    WRITER_SIZE,
    OwnWriter,
    boot_tag,
    has_created,
    read_own_writers,
    write_own_writers,
)
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.errors import DamagedError, InUseError, LimitError, MirrorfsError, StoreDenied, StoreError
from mirrorfs.format.control import Lease
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import load_signer
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import IndexFiles, Store

logger = logging.getLogger(__name__)

STORE_LOOK_S = 20.0
LOST_S = 1.5 * LEASE_PERIOD_S
"""A writer that finds its lease lost has put it back by then (engine/lease_doubt.py)."""
ROTATING_S = 4.0
"""So long a mount waits for the lease of a rotating store."""
RELEASE_S = 10.0


@dataclass(frozen=True, slots=True)
class VolumeSettings:
    """What the engine needs to know of a volume's configuration."""

    instances: dict[str, str]
    """Store name -> instance UUID (hex)."""
    header_bytes: bytes
    """The newest volume header, as it is stored."""
    host: str
    owner: tuple[int, int]
    """(uid, gid) of the root directory of a new volume."""
    mirror_delay_s: float = 10.0
    cache_bytes: int = CACHE_SIZE
    """Bound of the local cache."""
    prefetch: bool = False
    """Whether the cache is filled in the background, newest data first."""
    level: int = 1
    parallel: int = UPLOADS_PARALLEL
    """Uploads under way to each store."""
    take_over: bool = False
    rotating: frozenset[str] = frozenset()
    """Names of stores that may be away for long."""
    append_only: frozenset[str] = frozenset()
    """Names of stores in which nothing is deleted from here: another machine prunes them."""
    encrypted_max: int = LIMIT
    """So many files replaced by what looks encrypted are a burst; 0: nobody looks."""
    retention: Policy | None = None
    """Which moments are kept; None: all."""
    scratch: Callable[[], IndexFiles] | None = None
    """Makes the files of an empty index that is thrown away; None: the past cannot be looked at here."""
    deduplicate: bool = False
    """Whether bytes that all stores have are referred to when they are written again."""
    boot_id: str = ""
    """Another one after each boot of the machine."""


class Place(NamedTuple):
    """One of the volume's stores."""

    store: Store
    instance: str
    """UUID (hex)."""


class Seen(NamedTuple):
    """One look at all the stores' leases."""

    good: dict[str, Lease | None]
    """By store; None where there is none."""
    lost: set[str]
    """Stores that have segments, and no lease, or one that does not verify."""

    def is_doubtful(self, lasting: Collection[str], *, epoch: int) -> bool:
        """Whether a store has lost its lease, or all show older ones than that epoch."""
        if not self.lost.isdisjoint(lasting):
            return True
        shown = [lease for name in lasting if (lease := self.good.get(name)) is not None]
        return bool(shown) and max(lease.epoch for lease in shown) < epoch


class LeaseTaker:
    """Takes the leases of all stores for one mount."""

    def __init__(
        self, world: World, key_set: KeySet, keys: VolumeKeys, header: VolumeHeader, stores: Sequence[Store],
        settings: VolumeSettings, *, on_watch: Callable[[float], None] = lambda seconds: None,
    ) -> None:  # fmt: skip
        """`on_watch` hears for how many seconds leases that were not given back are watched."""
        self._on_watch = on_watch
        self._world = world
        self._keys = keys
        self._header = header
        self._stores = stores
        self._settings = settings
        self._key_set = key_set
        self.rotating = settings.rotating
        """As `places`: what there is now."""
        self._before: list[OwnWriter] = []
        self._ours: OwnWriter | None = None
        self._admission: Admission | None = None
        self.places = {store.name: Place(store, settings.instances[store.name]) for store in stores}
        """By name, the stores that there are now; it is set anew when they change under the mount."""
        self._documents = LeaseDocuments(
            "", keys=keys, seed=key_set.writer, public_key=header.public_keys.writer,
            entropy=world.entropy, host=settings.host,
        )  # fmt: skip
        self.writer = b""
        """Of this mount."""
        self.notice_s = 0.0
        """After `take_leases`: how long a writer that was displaced may go on before it has noticed."""

    async def take_leases(
        self, *, local_epoch: int, last: SegmentRow | None, judge: Judge
    ) -> tuple[list[LeaseKeeper], WriterIdentity]:
        """Take every reachable store's lease, if `judge` allows it when all were looked at.

        `last`: the end of the log, as far as it is known.
        Raises: MirrorfsError: what `judge` raised. InUseError: a lease is another's. No lease was taken then.
        """
        self._before = read_own_writers(self._world)
        self.writer = writer = self._world.entropy(WRITER_SIZE)
        # Written before any lease is: after a crash in between, the lease is still known as ours.
        self._ours = OwnWriter(writer, boot_tag(self._settings.boot_id), settled=False)
        await write_own_writers(self._world, [*self._before, self._ours])
        keepers = [await self.keeper(store, rotating=store.name in self.rotating) for store in self._stores]
        lasting = [store.name for store in self._stores if store.name not in self.rotating]
        theirs = 0 if last is None or last.writer in self.own_writers else last.epoch
        seen = await self._see(keepers, lasting, epoch=theirs)
        is_blind = self._settings.take_over and not all(seen.good.get(name) for name in lasting)
        epoch = next_epoch(seen.good.values(), local=local_epoch, is_blind=is_blind)
        if self._settings.take_over:
            self.notice_s = _notice_s(
                [seen.good.get(keeper.state().store) for keeper in keepers], own=self._gone
            )
        else:
            self._say_what_is_watched([lease for name in lasting if (lease := seen.good.get(name))])
        self._admission = admission = Admission(lasting, judge, self._late_notice_s)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(admission.run)
                for keeper in keepers:
                    nursery.start_soon(self._acquire, keeper, admission, epoch, writer)
            if admission.refusal is not None:
                raise admission.refusal
        except BaseException:
            with trio.CancelScope(shield=True):
                await give_back(keepers)
            raise
        identity = WriterIdentity(
            self._keys,
            load_signer(self._key_set.writer),
            self._header.generation,
            epoch,
            writer,
            self._header.pad_data,
            self._settings.header_bytes,
        )
        return keepers, identity

    async def _acquire(self, keeper: LeaseKeeper, admission: Admission, epoch: int, writer: bytes) -> None:
        name = keeper.state().store
        is_rotating, answers = name in self.rotating, False
        # Nobody waits for another writer's lease on a store that only rotates: the mirror takes it later.
        limit_s = ROTATING_S if is_rotating else LEASE_PERIOD_S + STORE_LOOK_S
        with trio.move_on_after(limit_s) as scope:

            async def admit(store: str, lease: Lease | None) -> float:
                # The judgement may take as long as reading the log does.
                scope.deadline = math.inf
                try:
                    return await admission.admit(store, lease)
                finally:
                    scope.deadline = trio.current_time() + STORE_LOOK_S

            try:
                await keeper.acquire(
                    epoch=epoch, writer=writer, own_before=self._gone,
                    own_rebooted=self._rebooted, admit=admit, take_over=self._settings.take_over,
                )  # fmt: skip
            except InUseError as exc:
                # What a rotating store holds that was written elsewhere stops nobody.
                if not is_rotating:
                    admission.refuse(exc)
            except (StoreError, DamagedError, LimitError) as exc:
                # The mirror goes on trying; nothing is sent there before the lease is held.
                logger.log(self._level(name), "The lease of store %s is not held yet: %s", name, exc)
                answers = not isinstance(exc, StoreError)
        admission.give_up(name, answers=answers)

    async def _see(self, keepers: Sequence[LeaseKeeper], lasting: Sequence[str], *, epoch: int) -> Seen:
        """The leases that stores show, once it is seen whether a writer is alive whose lease is lost.

        A lease that is watched tells who holds the volume. Where it has rotted, is gone, or is older than the
        log, whoever wrote last may be alive: then it puts its lease back meanwhile.
        `epoch`: of the end of the log, if another machine wrote it.
        """
        seen = await self._look_at(keepers)
        if self._settings.take_over or not seen.is_doubtful(lasting, epoch=epoch):
            return seen
        logger.warning(
            "a lease of the volume is lost: waiting %.0f s, to see whether its writer is alive", LOST_S
        )
        self._on_watch(LOST_S)
        until = trio.current_time() + LOST_S
        while seen.is_doubtful(lasting, epoch=epoch) and trio.current_time() < until:
            await trio.sleep(WATCH_POLL_S)
            seen = await self._look_at(keepers, again=True)
        return seen

    async def _look_at(self, keepers: Sequence[LeaseKeeper], *, again: bool = False) -> Seen:
        """The leases of the stores that show theirs."""
        seen = Seen({}, set())

        async def look(keeper: LeaseKeeper) -> None:
            name = keeper.state().store
            with trio.move_on_after(STORE_LOOK_S):
                try:
                    lease = await keeper.look()
                    if lease is None and await self._has_log(name):
                        seen.lost.add(name)
                    seen.good[name] = lease
                except (StoreError, DamagedError, LimitError) as exc:
                    level = logging.DEBUG if again else self._level(name)
                    logger.log(level, "The lease of store %s cannot be read: %s", name, exc)
                    if not isinstance(exc, StoreError):
                        seen.lost.add(name)

        async with trio.open_nursery() as nursery:
            for keeper in keepers:
                nursery.start_soon(look, keeper)
        return seen

    async def _has_log(self, store: str) -> bool:
        return bool(await self.places[store].store.list(STREAM_PREFIX[Stream.MAIN]))

    async def _late_notice_s(self, store: str, lease: Lease | None) -> float:
        """See engine/admission.py."""
        if lease is None:
            return float(LEASE_PERIOD_S) if await self._has_log(store) else 0.0
        return _notice_s([lease], own=self._gone) if self._settings.take_over else 0.0

    async def acquire_late(self, keeper: LeaseKeeper, identity: WriterIdentity, *, rotating: bool) -> None:
        """Take the lease of a store that was added to a mounted volume; it is tried again if that fails."""
        name = keeper.state().store
        with trio.move_on_after(LEASE_PERIOD_S + STORE_LOOK_S):
            try:
                await keeper.acquire(
                    epoch=identity.epoch, writer=identity.writer,
                    own_before=self._gone, own_rebooted=self._rebooted,
                    admit=None if self._admission is None else self._admission.admit,
                )  # fmt: skip
            except (StoreError, DamagedError, LimitError, InUseError) as exc:
                level = logging.INFO if rotating else logging.WARNING
                logger.log(level, "The lease of store %s is not held yet: %s", name, exc)

    def describe(self, lease: Lease) -> str:
        """Who holds a lease, and since when."""
        return self._documents.describe(lease)

    @property
    def has_created(self) -> bool:
        """See engine/own_writers.py."""
        return has_created(self._world)

    @property
    def own_writers(self) -> list[bytes]:
        """Writer ids of the last mounts from this state directory, whose lock we hold."""
        return [one.writer for one in self._before]

    @property
    def _gone(self) -> list[bytes]:
        boot = boot_tag(self._settings.boot_id)
        return [one.writer for one in self._before if one.boot == boot]

    @property
    def _rebooted(self) -> list[bytes]:
        boot = boot_tag(self._settings.boot_id)
        return [one.writer for one in self._before if one.boot != boot]

    def _say_what_is_watched(self, seen: Sequence[Lease]) -> None:
        waits_s = [watch_s(lease, gone=self._gone, rebooted=self._rebooted) for lease in seen]
        if seconds := max(waits_s, default=0.0):
            logger.info("waiting %.0f s, to see whether a writer of before is alive", seconds)
            self._on_watch(seconds)

    @property
    def settled_writers(self) -> list[bytes]:
        """Those of `own_writers` whose lease proves that nobody else wrote before."""
        return [one.writer for one in self._before if one.settled]

    async def mounted(self, *, holds_one: bool) -> None:
        """After `take_leases`: the end of the log was read again. `holds_one`: under the lease of a store."""
        assert self._admission is not None and self._ours is not None
        if holds_one:
            self._ours = self._ours._replace(settled=True)
            await write_own_writers(self._world, [*self._before, self._ours])
        self._admission.open()

    @property
    def takes_over(self) -> bool:
        """Whether the mount was told to go on without what other writers may have."""
        return self._settings.take_over

    def _level(self, name: str) -> int:
        return logging.INFO if name in self.rotating else logging.WARNING

    async def keeper(self, store: Store, *, rotating: bool) -> LeaseKeeper:
        """One that holds nothing yet, of a store that is probed if it answers."""
        weak: bool | None = None
        level = logging.INFO if rotating else logging.WARNING
        with trio.move_on_after(STORE_LOOK_S):
            try:
                weak = not (await store.probe()).conditional_put
            except StoreDenied as exc:
                logger.log(level, "Store %s cannot be written to: %s", store.name, exc)
            except StoreError as exc:
                logger.log(level, "Store %s cannot be asked: %s", store.name, exc)
        return LeaseKeeper(
            store,
            keys=self._keys,
            seed=self._key_set.writer,
            public_key=self._header.public_keys.writer,
            clock=self._world.clock,
            entropy=self._world.entropy,
            host=self._settings.host,
            weak_fencing=weak,
            own=self.own_writers,
        )


def _notice_s(seen: Sequence[Lease | None], *, own: Sequence[bytes]) -> float:
    """How long a writer that is displaced may go on; what does not show, or was lost, may be anybody's."""
    waits_s = [0.0]
    for lease in seen:
        if lease is None:
            waits_s.append(float(LEASE_PERIOD_S))
        elif not lease.released and lease.writer not in own:
            waits_s.append(lease.period_ms / 1000)
    return max(waits_s)


async def give_back(keepers: Sequence[LeaseKeeper]) -> None:
    """Release leases under which nothing was written; one that stays expires."""
    for keeper in keepers:
        with trio.move_on_after(RELEASE_S):
            try:
                await keeper.release(unused=True)
            except MirrorfsError as exc:
                logger.warning("A lease could not be given back: %s", exc)
