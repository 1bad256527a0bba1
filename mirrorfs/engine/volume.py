"""A mounted volume: the local half, and for each store a lease and a mirror.

Invariant: nothing is sent to a store but by its Mirror, behind its LeaseKeeper; and nothing on the path
of a filesystem call ever waits for either.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import trio

from mirrorfs.core.sense import Burst
from mirrorfs.engine.attached import (
    AttachedStore,
    Attaching,
    StoreSet,
    mirrors_of,
    object_source,
    upload_pace,
)
from mirrorfs.engine.becoming_writer import open_as_writer
from mirrorfs.engine.checkpointer import Checkpointer
from mirrorfs.engine.checkpoints import WrittenCheckpoint
from mirrorfs.engine.daily_look import DailyLook
from mirrorfs.engine.daily_prune import DailyPrune
from mirrorfs.engine.lasting import lasting
from mirrorfs.engine.lease_taker import RELEASE_S, VolumeSettings
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.log_ends import LogEnds, log_ends
from mirrorfs.engine.mend import Mender
from mirrorfs.engine.objects import LocalObjects, ObjectSource, SegmentAges
from mirrorfs.engine.past_views import PastViews, Sources
from mirrorfs.engine.prefetch import Prefetcher
from mirrorfs.engine.pruner import Pruner
from mirrorfs.engine.publisher import Heads
from mirrorfs.engine.scrub import Scrubber
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.engine.store_records import StoreRecords
from mirrorfs.engine.store_tasks import StoreChange, StoreTasks
from mirrorfs.engine.torn_checkpoints import remove_torn
from mirrorfs.engine.volume_status import VolumeStatus, status_of
from mirrorfs.engine.went_back import WentBack
from mirrorfs.errors import DamagedError, StoreUnavailable, WritesStopped
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.rows import SegmentRow
from mirrorfs.format.signing import load_public_key
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import IndexFiles, Store

logger = logging.getLogger(__name__)

HEAD_INTERVAL_S = 600.0
PROGRESS_S = 0.5
Progress = Callable[[VolumeStatus], None]


class MountedVolume:
    """One writable session on a volume, from `open` to `close`."""

    def __init__(
        self,
        world: World,
        local: LocalVolume,
        stores: StoreTasks,
        source: ObjectSource,
        checkpointer: Checkpointer,
        heads: Heads,
        ages: SegmentAges,
        pruner: Pruner,
        settings: VolumeSettings,
        random: Callable[[], float],
    ) -> None:
        """Use `open`."""
        self.filesystem = local.filesystem
        """What fuse/ serves."""
        self.snapshots = local.snapshots
        """The positions that have names."""
        self._world = world
        self._local = local
        self._tasks_of_stores = stores
        self._checkpointer = checkpointer
        self._heads = heads
        self._ages = ages
        self.pruner = pruner
        """Keeps what the policy keeps, and does without the rest."""
        self.daily_prune = DailyPrune(pruner, settings.retention, world.disk, world.clock)
        self._objects = LocalObjects(world.disk, local.index, world.offload)
        self._published_position = -1
        self._publishing = trio.Lock()
        self.before_read_only: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
        """Awaited before changes are refused for good: the kernel may hold some."""
        stores.members.on_held = local.cache.judge
        stores.members.on_counted = local.cache.judge_all
        mirrors = stores.members.mirrors
        self.scrubber = Scrubber(self._objects, source, mirrors, world.disk, world.clock, random=random)
        self.scrubbing = trio.Lock()
        """Held by whoever scrubs: there is one place to go on from."""
        self.mender = Mender(
            self._objects, source, self.scrubber, mirrors, world.disk, local.space, world.offload,
            world.clock, settle_index=local.committer.settle_index, on_replaced=local.cache.replaced,
            on_fork=stores.fence,
        )  # fmt: skip
        faults = self.scrubber.faults
        stores.members.know(faults)
        faults.on_change, local.cache.on_changed = local.cache.judge, faults.file_changed
        self._prefetches = settings.prefetch
        self._prefetcher = Prefetcher(
            local.index, local.cache, source, stores=stores.members.stores, on_bad_copy=self.mender.suspect,
            is_busy=lambda: local.is_busy() or stores.members.is_catching_up(),
        )  # fmt: skip
        self.daily_look = DailyLook(
            self.scrubber, self.mender, self.scrubbing, mirrors, world.disk, world.clock,
            doubted=set(heads.went_back), is_away=stores.members.is_away,
        )  # fmt: skip
        self.went_back = WentBack(heads, stores.members, world, on_found=self.daily_look.doubt)
        """The stores that went back to an earlier state."""
        self._tasks = trio.CancelScope()
        self._ended = trio.Event()

    @property
    def _stores(self) -> list[AttachedStore]:
        return self._tasks_of_stores.members.members

    @classmethod
    async def open(
        cls,
        *,
        nursery: trio.Nursery,
        world: World,
        files: IndexFiles,
        key_set: KeySet,
        keys: VolumeKeys,
        header: VolumeHeader,
        stores: Sequence[Store],
        settings: VolumeSettings,
        random: Callable[[], float],
        on_progress: Callable[[int, int], None] | None = None,
        on_loaded: Callable[[int, int], None] | None = None,
        on_watch: Callable[[float], None] = lambda seconds: None,
    ) -> MountedVolume:
        """Recover the local log, take the leases (`on_watch`: LeaseTaker), start the tasks in `nursery`.

        Raises: InUseError: another writer has the volume. DamagedError: the local log cannot be used.
        """
        writer = await open_as_writer(
            world, files, key_set, keys, header, stores, settings,
            on_progress=on_progress, on_loaded=on_loaded, on_watch=on_watch,
        )  # fmt: skip
        recovered, identity, index = writer.recovered, writer.identity, writer.recovered.index
        writer_key = load_public_key(header.public_keys.writer)
        volume: MountedVolume
        local: LocalVolume

        def suspect(store: str | None, key: str) -> None:
            volume.mender.suspect(store, key)

        def adopt(identity: WriterIdentity) -> None:
            local.adopt(identity)
            checkpointer.adopt(identity)

        members = StoreSet(settings.append_only)
        objects = object_source(world, index, keys, header, members)
        attaching = Attaching(
            members, objects, index, world, upload_pace(world, settings, lambda: local), random, suspect,
            settings.parallel,
        )  # fmt: skip
        ages = SegmentAges(recovered.time_ns)
        checkpointer = Checkpointer(
            world, identity, writer_key, index, on_written=lambda written: volume._checkpointed(written)
        )
        tasks = StoreTasks(
            members, attaching, LocalObjects(world.disk, index, world.offload),
            StoreRecords(world.disk, world.offload, world.clock), writer.taker, world.clock, identity,
            settle_index=lambda: local.committer.settle_index(), on_fenced=lambda: volume.turn_read_only(),
            on_unforeseen=lambda error: volume.unforeseen(error),
            on_left=lambda name: volume.scrubber.forget_store(name),
            adopt=adopt,
        )  # fmt: skip
        await tasks.start_with(stores, writer.leases, settings)

        def closed(row: SegmentRow, key: str) -> None:
            tasks.offer(key, row.size, written_ns=ages.closed(first_ns=row.first_ns, last_ns=row.last_ns))

        local = LocalVolume(
            world, recovered, identity, writer_key, nursery=nursery, mirrors=mirrors_of(members, suspect),
            cache_bytes=settings.cache_bytes, owner=settings.owner, mirror_delay_s=settings.mirror_delay_s,
            level=settings.level, encrypted_max=settings.encrypted_max, deduplicate=settings.deduplicate,
            on_closed=closed, on_commit=checkpointer.committed,
        )  # fmt: skip
        public_key = header.public_keys.writer
        pruner = Pruner(world, local, tasks, checkpointer, objects, settings.scratch, public_key)
        volume = cls(world, local, tasks, objects, checkpointer, writer.heads, ages, pruner, settings, random)
        await volume._start(nursery)
        return volume

    async def _start(self, nursery: trio.Nursery) -> None:
        await self._local.start()
        await remove_torn(
            self._objects, self._world.disk, self._world.offload,
            is_held=lambda key: any(one.mirror.is_held(key) for one in self._stores),
        )  # fmt: skip
        await self._tasks_of_stores.offer_all(self._stores)
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            await self._run_tasks()
        finally:
            self._ended.set()

    async def _run_tasks(self) -> None:
        with self._tasks:
            async with trio.open_nursery() as nursery:
                start = partial(nursery.start_soon, partial(lasting, on_unforeseen=self.unforeseen))
                start(self._tasks_of_stores.run, "the stores")
                start(self._checkpoint, "checkpoints")
                start(self.daily_look.run, "the daily look at the stores")
                start(self.mender.run, "mending")
                start(self.daily_prune.run, "pruning")
                start(self.went_back.run, "the list of stores that went back")
                start(self._publish_now_and_then, "heads")
                if self._prefetches:
                    start(self._prefetcher.run, "filling the cache")

    async def turn_read_only(self) -> None:
        """Another writer took over, or the token is gone. After an error it is to be called again."""
        # What was accepted so far is kept in the local log; where no lease is fresh it goes nowhere.
        if not self._local.state.read_only:
            await self.before_read_only()
            self._local.state.read_only = True
        await self._local.quiesce()

    async def _checkpoint(self) -> None:
        try:
            await self._checkpointer.load()
        except DamagedError as exc:
            logger.warning("The newest checkpoint cannot be read: %s", exc)
            self._checkpointer.begin_anew()
        await self._checkpointer.run()

    # --- checkpoints and heads ---------------------------------------------------------------

    def _checkpointed(self, written: WrittenCheckpoint) -> None:
        self._heads.checkpoint = (written.keys[-1], written.previous.digest)
        for key in written.keys:
            self._tasks_of_stores.offer(
                key,
                self._objects.size_of(key),
                written_ns=written.root.time_ns,
                after=written.root.position >> 20,
            )

    async def _publish_now_and_then(self) -> None:
        last = self._local.index.last_segment()
        if last is not None and not last.sealed:
            await self._publish()  # a crash left it: nobody else says where it ends, and so no reader has it
        while True:
            await trio.sleep(HEAD_INTERVAL_S)
            await self._publish()

    async def _publish(self) -> None:
        """Write a head that names the newest closed segment, and queue it behind that segment."""
        local = self._local
        # Whoever comes second waits for the head that is being written, or makes the next one.
        async with self._publishing:
            last = local.index.last_segment()
            position = local.committer.durable_position
            if last is None or self._published_position == position:
                return
            key, size, created_ns = await self._heads.publish(
                last,
                local.identity,
                position=position,
                journal_sequence=local.log.journal_sequence,
                header_hash=hashlib.sha256(local.identity.header_bytes).digest(),
            )
            self._published_position = position
            # What a crash left no reader has without the head: its changes are not safe before.
            since_ns = created_ns if last.sealed else self._objects.since_ns(last)
            self._tasks_of_stores.offer(key, size, written_ns=since_ns, after=last.sequence)

    # --- for the command line ----------------------------------------------------------------

    def status(self) -> VolumeStatus:
        """The state now; cheap."""
        return status_of(self._local, self._ages, self._tasks_of_stores.members, self.went_back)

    async def ends(self) -> LogEnds:
        """What a rotation of the keys attests of everything until now; after `flush`. Raises: as log_ends."""
        stores = self._tasks_of_stores.members.stores()
        return await log_ends(self._world, self._local, stores, self._heads.checkpoint)

    async def wait_held(self, store: str, key: str) -> None:
        """Return when a store is seen to hold an object. Raises as Mirror.wait_held; StoreUnavailable."""
        await self._store(store).mirror.wait_held([key])

    async def wait_filled(self, store: str, progress: Progress) -> None:
        """Return when a store holds everything that there is now; as `flush`, of it alone."""
        one = self._store(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report, progress)
            await one.wait_held()
            nursery.cancel_scope.cancel()

    def _store(self, name: str) -> AttachedStore:
        one = self._tasks_of_stores.members.find(name)
        if one is None:
            raise StoreUnavailable(f"Store {name} is not one of the volume's any more.")
        return one

    async def clear_burst(self) -> Burst | None:
        """A person looked at the burst that is open. Returns it. Raises: as Bursts.clear."""
        return await self._local.bursts.clear()

    def past_views(self, files: Callable[[int], IndexFiles], writer_key: bytes) -> PastViews:
        """Moments of the past, to be run beside this session and closed before it; `files` as of Sources."""
        local, stores = self._local, self._tasks_of_stores.members.stores
        sources = Sources(self._world, lambda: local.identity.keys, writer_key, stores, files)
        return PastViews(sources, local.index, local.reader, local.space)

    @property
    def header_bytes(self) -> bytes:
        """The newest volume header that this session knows."""
        return self._local.identity.header_bytes

    @property
    def instances(self) -> dict[str, str]:
        """Of its stores, by their names (hex)."""
        return {one.store.name: one.instance for one in self._stores}

    async def change_stores(self, change: StoreChange) -> None:
        """Have other stores from now on. Raises: as StoreTasks.change."""
        if self._local.state.fatal is not None:
            raise WritesStopped(self._local.state.fatal)
        await self._tasks_of_stores.change(change)

    def unforeseen(self, error: Exception) -> None:
        """Stop writing for good, for an exception that nobody foresaw; reads go on until the unmount."""
        self._local.unforeseen(error)

    async def flush(self, progress: Progress | None = None) -> None:
        """Return when every store holds everything written so far.

        Waits as long as a store is away, but for one that rotates, and for those that are added meanwhile.
        `progress` hears of the state twice a second.
        Raises: what the commit raises; ObjectExists: a store holds other bytes under our name.
        """
        await self._local.quiesce()
        await self._publish()
        self.mender.try_now()
        async with trio.open_nursery() as nursery:
            if progress is not None:
                nursery.start_soon(self._report, progress)
            waited: list[AttachedStore] = []
            while more := [one for one in self._stores if one not in waited]:
                async with trio.open_nursery() as waiting:
                    for one in more:
                        waiting.start_soon(one.wait_held)
                waited += more
            nursery.cancel_scope.cancel()
        if progress is not None:
            progress(self.status())

    async def _report(self, progress: Progress) -> None:
        while True:
            progress(self.status())
            await trio.sleep(PROGRESS_S)

    async def close(
        self, *, wait_for_stores: bool, progress: Progress | None = None, release_s: float = RELEASE_S
    ) -> None:
        """End the session. The filesystem must get no calls any more.

        What the stores lack goes out with the next mount. Leases are given back for `release_s` at most.
        Raises what the last commit raises, after everything else was closed.
        """
        try:
            if wait_for_stores:
                await self.flush(progress)
            else:
                await self._local.quiesce()
                await self._publish()
        finally:
            self._tasks.cancel()
            with trio.CancelScope(shield=True):
                # A checkpoint being written ends with its thread; the index must outlive it.
                await self._ended.wait()
                await self._tasks_of_stores.remember(at_once=True)
                async with trio.open_nursery() as nursery:
                    for one in self._stores:
                        nursery.start_soon(self._tasks_of_stores.release, one, release_s)
            self._local.close()
