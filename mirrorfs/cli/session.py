"""Serving one unlocked volume in this process, from opening the local log to the last upload.

Order at the end: the mount goes first, while it is still served, so that the kernel hands over what it
holds; then the engine commits, seals and, if somebody waits for it, sends everything to the stores; then
the clients of the control socket are told; then the process ends, and the keys with it.

Signals (TERM, INT, HUP): the first unmounts, a second one ends the waiting for stores.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from typing import Final

import trio

from mirrorfs.cli import session_lock
from mirrorfs.cli.alarm import Alarm
from mirrorfs.cli.alarm_note import AlarmNote
from mirrorfs.cli.config import StoreConfig, VolumeConfig, VolumePaths
from mirrorfs.cli.control import ControlServer
from mirrorfs.cli.drill_record import DrillRecord
from mirrorfs.cli.drill_requests import DrillRequests
from mirrorfs.cli.failures import single_error
from mirrorfs.cli.key_events import EventLog
from mirrorfs.cli.key_pipe import UnlockedSession
from mirrorfs.cli.resolve import fsname
from mirrorfs.cli.session_control import SessionControl
from mirrorfs.cli.session_history import IndexPlace, start_history
from mirrorfs.cli.session_lock import Locking
from mirrorfs.cli.store_adoption import read_change
from mirrorfs.cli.stores import ONCE, limits_of, open_limited_store, system_random
from mirrorfs.cli.waiting import Patience, watched
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.drivers.os_threads import ThreadOffload
from mirrorfs.drivers.process import boot_id, write_back_here
from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.history import History
from mirrorfs.engine.lease_taker import RELEASE_S, VolumeSettings
from mirrorfs.engine.local import World
from mirrorfs.engine.past_views import PastViews
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.header import StoreEntry, verify_header
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.fuse.history_operations import HistoryOperations
from mirrorfs.fuse.kernel_mount import Mounter
from mirrorfs.fuse.mount import serve
from mirrorfs.fuse.operations import MirrorOperations
from mirrorfs.ports import Store

log = logging.getLogger(__name__)

EXIT_WAIT_S: Final = 30.0
"""How long the stores are waited for when nobody does: after a signal, or an umount(8)."""
STORE_CLOSE_S: Final = 5.0
WRITE_BACK_S: Final = 10.0

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Opened:
    """A volume whose engine runs, ready to be served."""

    filesystem: FileSystem
    close: Callable[[], Awaitable[None]]
    on_unexpected: Callable[[Exception], None] | None = None
    """Hears of exceptions in requests that nobody foresaw; it must not raise."""
    follows: bool = False
    """Another machine makes the changes."""
    history: History | None = None
    """What is below `.mirrorfs`; None: there is none."""

    def operations(self) -> MirrorOperations:
        """The request handlers of its mount."""
        if self.history is None:
            return MirrorOperations(self.filesystem, on_unexpected=self.on_unexpected, follows=self.follows)
        return HistoryOperations(
            self.filesystem, self.history, on_unexpected=self.on_unexpected, follows=self.follows
        )


async def with_history(opened: Opened, views: PastViews, nursery: trio.Nursery) -> Opened:
    """The same with its history, which is closed before it."""
    history, close = await start_history(nursery, views, opened.close)
    return replace(opened, history=history, close=close)


class Session:
    """One volume, mounted by this process."""

    def __init__(
        self,
        unlocked: UnlockedSession,
        paths: VolumePaths,
        *,
        on_ready: Callable[[], None],
        on_replay: Callable[[int], None] = lambda sequence: None,
        on_loaded: Callable[[int, int], None] = lambda done, total: None,
        on_watch: Callable[[float], None] = lambda seconds: None,
        on_stopping: Callable[[], None] = lambda: None,
        mounter: Mounter | None = None,
    ) -> None:
        """
        Args:
            on_ready: called once, when the mount answers.
            on_replay: hears of each segment number while the log is replayed.
            on_loaded: hears how much of a checkpoint is loaded, and of how much.
            on_watch: hears for how many seconds leases are watched that were not given back.
            on_stopping: called once, when the mount is about to go, or gone.
            mounter: who mounts and unmounts; by default this process.
        """
        self._unlocked = unlocked
        self._request = unlocked.request
        self._config = unlocked.request.parsed_config()
        self._paths = paths
        self._on_ready = on_ready
        self._on_replay = on_replay
        self._on_loaded = on_loaded
        self._on_watch = on_watch
        self._on_stopping = on_stopping
        self._mounter = mounter
        self._limits = limits_of(self._config)
        self._control = self._make_control()
        self._control.limits = self._limits
        self._drills = DrillRequests(unlocked, paths, self._control)
        self._control.change_stores = self._change_stores
        self._events = EventLog(paths, seen=self._request.events_seen)
        self._control.log_events = self._events.log_new
        self._open_stores: list[Store] = []
        self._serving = trio.CancelScope()
        self._stopping = False
        self._locking = Locking(
            self._request, paths, self._config.lock,
            control=self._control, leave=self._leave, write_back=self._write_back,
            detaches=None if mounter is None else mounter.detach,
        )  # fmt: skip

    def _make_control(self) -> SessionControl:
        return SessionControl(self._request)

    async def run(self) -> None:
        """Serve until the volume is unmounted, by whomever.

        Raises: MirrorfsError: it could not be mounted, or not be closed properly.
        """
        error: BaseException
        try:
            await self._run()
            return
        except BaseExceptionGroup as group:
            error = single_error(group)
            if not isinstance(error, MirrorfsError):
                raise
        # Outside the handler: the group must not become the context of what it holds.
        raise error

    def wipe_keys(self) -> None:
        """Overwrite the keys wherever they are in memory, as the last thing before this process ends."""
        log.debug("%d copies of keys were overwritten", self._unlocked.wipe())

    async def _run(self) -> None:
        drills = self._drills.handle
        handlers = {**self._control.handlers(), "lock": self._locking.handle, "drill": drills}
        server = ControlServer(self._paths.socket, handlers)
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                nursery.start_soon(self._locking.watch)
                await nursery.start(server.serve)
                try:
                    await self._with_stores()
                except BaseException as error:
                    leaf = single_error(error)
                    unforeseen = MirrorfsError(f"The volume was not closed properly; see {self._paths.log}.")
                    self._control.finish(leaf if isinstance(leaf, MirrorfsError) else unforeseen)
                    raise
                else:
                    self._control.finish(None)
                finally:
                    with trio.CancelScope(shield=True):
                        await server.drain()
                nursery.cancel_scope.cancel()

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if self._stopping:
                self._control.hurry()
            log.info("stopping after signal %d", number)
            self._leave()

    def _leave(self) -> None:
        self._stop()
        self._serving.cancel()

    def _stop(self) -> None:
        if not self._stopping:
            self._stopping = True
            self._on_stopping()

    # --- from the stores down to the mount ---------------------------------------------------

    async def _with_stores(self) -> None:
        stores = self._stores()
        self._open_stores = list(stores)
        try:
            async with trio.open_nursery() as nursery:
                # Once mounted, `_serving` ends before anything of the engine does.
                opened: Opened | None = None
                with self._serving:
                    opened = await self._open(stores, nursery)
                if opened is None:
                    raise MirrorfsError("The volume was not mounted, for a signal or a lock came first.")
                await self._serve(opened)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(STORE_CLOSE_S, shield=True):
                for store in self._open_stores:
                    await store.aclose()

    def _stores(self) -> list[Store]:
        header, keys = verify_header(self._unlocked.header, self._unlocked.key_set)
        return [self._guarded(store, keys, header.public_keys.writer) for store in self._config.stores]

    def _guarded(self, config: StoreConfig, keys: VolumeKeys, public_key: bytes) -> Store:
        return GuardedStore(
            open_limited_store(config, self._config, self._limits, policy=ONCE),
            instance=config.instance,
            keys=keys,
            public_key=public_key,
            seed=self._unlocked.key_set.writer,
            clock=SystemClock(),
        )

    async def _change_stores(self, volume: MountedVolume) -> None:
        """Have the stores of the configuration as it is now. Raises: MirrorfsError: nothing was changed."""
        header, keys = verify_header(self._unlocked.header, self._unlocked.key_set)

        def opened(config: VolumeConfig, entry: StoreEntry) -> Store:
            (found,) = (store for store in config.stores if store.instance == entry.instance)
            # One that leaves the volume is closed by the engine; closing it again is nothing.
            self._open_stores.append(self._guarded(found, keys, header.public_keys.writer))
            return self._open_stores[-1]

        change = await trio.to_thread.run_sync(
            read_change, self._paths, self._unlocked.key_set, volume.header_bytes, opened
        )
        before = list(volume.instances)
        await volume.change_stores(change)
        log.info("stores were %s, and are %s", ", ".join(before), ", ".join(volume.instances))

    def _scratch(self) -> SqliteIndexFiles:
        """Of an index that is thrown away. The key is never stored: what a crash leaves nobody can read."""
        path = self._paths.state / f"past-{secrets.token_hex(4)}.db"
        return SqliteIndexFiles(str(path), secrets.token_bytes(32), digest_key=secrets.token_bytes(32))

    async def _open(self, stores: list[Store], nursery: trio.Nursery) -> Opened:
        unlocked = self._unlocked
        header, keys = verify_header(unlocked.header, unlocked.key_set)
        files = SqliteIndexFiles(
            str(self._paths.state / "index.db"),
            keys.index_key,
            digest_key=keys.closed_index_key(),
        )
        settings = VolumeSettings(
            instances={store.name: store.instance.hex() for store in self._config.stores},
            header_bytes=unlocked.header,
            host=socket.gethostname()[:255],
            owner=(os.getuid(), os.getgid()),
            mirror_delay_s=self._config.mirror_delay_s,
            cache_bytes=self._config.cache_bytes,
            parallel=self._config.limits.parallel,
            prefetch=self._config.prefetch,
            encrypted_max=self._config.alarm.max_encrypted_files,
            deduplicate=self._config.deduplicate,
            take_over=self._request.take_over,
            rotating=frozenset(store.name for store in self._config.stores if store.rotating),
            append_only=frozenset(store.name for store in self._config.stores if store.append_only),
            boot_id=boot_id(),
            retention=self._config.retention,
            scratch=self._scratch,
        )
        volume = await MountedVolume.open(
            nursery=nursery,
            world=self._world(),
            files=files,
            key_set=unlocked.key_set,
            keys=keys,
            header=header,
            stores=stores,
            settings=settings,
            random=system_random(),
            on_progress=lambda sequence, _: self._on_replay(sequence),
            on_loaded=self._on_loaded,
            on_watch=self._on_watch,
        )
        self._control.opened(volume)
        volume.before_read_only = self._write_back
        self._locking.sync = volume.filesystem.sync
        self._locking.turn_read_only = volume.turn_read_only
        record = DrillRecord(self._paths, volume=self._config.volume)
        alarm = Alarm(
            self._request.name,
            self._config.alarm,
            status=lambda: asdict(volume.status()),
            drills=lambda: record.last(self._config.stores),
            untold=volume.went_back.untold,
            on_told=volume.went_back.told,
            note=AlarmNote(self._paths),
        )
        self._control.unheard_alarm = alarm.unheard
        self._locking.on_lock = alarm.locked
        nursery.start_soon(alarm.run)
        nursery.start_soon(self._drills.by_schedule)
        opened = Opened(volume.filesystem, lambda: self._close(volume, files), volume.unforeseen)
        if not self._config.history_directory:
            return opened
        views = volume.past_views(IndexPlace(self._paths).files, header.public_keys.writer)
        return await with_history(opened, views, nursery)

    async def _write_back(self) -> None:
        """Have the kernel hand over what it holds of the mount, for at most WRITE_BACK_S."""
        with trio.move_on_after(WRITE_BACK_S):
            await trio.to_thread.run_sync(write_back_here, self._request.mountpoint, abandon_on_cancel=True)

    def _world(self) -> World:
        return World(
            disk=LocalDisk(self._paths.state),
            clock=SystemClock(),
            entropy=secrets.token_bytes,
            offload=ThreadOffload(),
            throttle=self._limits,
        )

    async def _serve(self, opened: Opened) -> None:
        request = self._request
        self._serving = trio.CancelScope()
        if self._stopping:
            self._serving.cancel()
        try:
            with self._serving:
                await serve(
                    opened.operations(),
                    request.mountpoint,
                    allow_other=request.allow_other,
                    read_only=request.read_only,
                    fsname=fsname(request.name, request.view),
                    on_ready=self._ready,
                    mounter=self._mounter,
                )
        finally:
            self._control.unmounted()
            self._stop()
            with trio.CancelScope(shield=True):
                await opened.close()

    def _ready(self) -> None:
        self._locking.mounted()
        self._events.log_new()
        self._on_ready()

    async def _close(self, volume: MountedVolume, files: SqliteIndexFiles) -> None:
        """Close the engine, waiting for the stores as long as somebody wants it."""
        wait, patience = self._control.closing_plan()
        if patience is None:
            patience = Patience(stall_s=EXIT_WAIT_S, limit_s=EXIT_WAIT_S)
        release_s = session_lock.RELEASE_S if self._control.is_locked else RELEASE_S
        left_behind = await watched(
            lambda progress: volume.close(wait_for_stores=wait, progress=progress, release_s=release_s),
            patience=patience,
            publish=self._control.publish,
            is_hurried=lambda: self._control.is_hurried,
        )
        if volume.filesystem.fatal is None:
            # Blocks for the time of reading the index once; nobody is served any more.
            await trio.to_thread.run_sync(files.seal)
        if left_behind is not None:
            log.info("closed while %s", left_behind)
            self._control.left_behind(left_behind)
