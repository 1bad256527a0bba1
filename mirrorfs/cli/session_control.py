"""What the control socket can ask of a session: status, flush, umount, scrub, other stores, snapshots."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Final

import trio

from mirrorfs.cli.alarm_note import Unheard
from mirrorfs.cli.control import Connection, Handler
from mirrorfs.cli.control_protocol import STALL_S, Message
from mirrorfs.cli.key_pipe import SessionRequest
from mirrorfs.cli.pruning import prune
from mirrorfs.cli.retention_status import retention_answer
from mirrorfs.cli.scrubbing import scrub
from mirrorfs.cli.session_snapshots import SnapshotRequests
from mirrorfs.cli.waiting import Patience, watched
from mirrorfs.engine.limits import Limits
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.engine.volume_status import VolumeStatus
from mirrorfs.errors import MirrorfsError, StoreUnavailable, UsageError

STALL_MAX_S: Final = 7 * 24 * 3600.0


class SessionControl:
    """The control socket's side of a session, and what its clients want of the session's end."""

    def __init__(self, request: SessionRequest) -> None:
        self._request = request
        self._volume: MountedVolume | None = None
        self._is_open = False
        self._unmounted = trio.Event()
        self._finished = trio.Event()
        self._error: MirrorfsError | None = None
        self._left_behind: str | None = None
        self._away_at_end: list[str] = []
        self._plan: tuple[bool, Patience] | None = None
        self._snapshots = SnapshotRequests()
        self._watchers: list[Callable[[VolumeStatus], None]] = []
        self.limits: Limits | None = None
        """What the stores keep to; None: no limit."""
        self.change_stores: Callable[[MountedVolume], Awaitable[None]] = _no_change
        """Has the stores of the configuration as it is now. Raises: MirrorfsError."""
        self.log_events: Callable[[], None] = lambda: None
        """Logs what is new in the record of keys and stores; reads a small file."""
        self.is_hurried = False
        """Whether the waiting for stores at the end is to be cut short."""
        self.is_locked = False
        """Whether the session ends because it is locked."""
        self.lock_state: Callable[[], Message] = dict
        """What `status` shows of the locking."""
        self.unheard_alarm: Callable[[], Unheard | None] = lambda: None
        """What the alarm command could not be told."""

    # --- what the session tells ----------------------------------------------------------------

    def opened(self, volume: MountedVolume) -> None:
        """The engine runs; the mount is about to appear."""
        self._volume = volume
        self._is_open = True

    def unmounted(self) -> None:
        """The mount is gone; closing begins."""
        self._unmounted.set()

    def publish(self, status: VolumeStatus) -> None:
        """Progress of the closing."""
        self._away_at_end = _away(status)
        for watcher in self._watchers:
            watcher(status)

    def left_behind(self, what: str) -> None:
        """Closed while a store lacked something."""
        self._left_behind = what

    def finish(self, error: MirrorfsError | None) -> None:
        """Everything is closed, or failed; the first word counts."""
        if not self._finished.is_set():
            self._error = error
            self._unmounted.set()
            self._finished.set()

    def closing_plan(self) -> tuple[bool, Patience | None]:
        """(whether to wait for the stores, for how long); no patience: nobody asked."""
        if self.is_locked:
            return False, Patience(stall_s=0.0)
        return (True, None) if self._plan is None else self._plan

    def lock(self) -> None:
        """The session ends now, whatever the stores lack."""
        self.is_locked = True
        self.hurry()

    @property
    def is_unmounted(self) -> bool:
        """Whether the mount is gone."""
        return self._unmounted.is_set()

    async def wait_unmounted(self) -> None:
        """Return when the mount is gone."""
        await self._unmounted.wait()

    async def wait_finished(self) -> None:
        """Return when everything is closed. Raises: MirrorfsError: it was not closed properly."""
        await self._finished.wait()
        if self._error is not None:
            raise self._error

    def hurry(self) -> None:
        """Wait for no store any more."""
        self.is_hurried = True

    # --- what clients ask ----------------------------------------------------------------------

    def handlers(self) -> dict[str, Handler]:
        """By command."""
        return {
            "status": self._status,
            "flush": self._flush,
            "umount": self._umount,
            "scrub": self._scrub,
            "stores": self._stores,
            "events": self._events,
            "fill": self._fill,
            "clear_alarm": self._clear_alarm,
            "clear_went_back": self._clear_went_back,
            "prune": self._prune,
            "snapshots": self._list_snapshots,
            "snapshot": self._change_snapshot,
        }

    async def _status(self, connection: Connection) -> Message:
        volume = self._running()
        await trio.lowlevel.checkpoint()
        return {
            "name": self._request.name,
            "mountpoint": self._request.mountpoint,
            "read_only": self._request.read_only,
            "pid": os.getpid(),
            "status": asdict(volume.status()),
            "limits": self._limits_now(),
            "instances": volume.instances,
            "lock": self.lock_state(),
            "alarm": None if (unheard := self.unheard_alarm()) is None else asdict(unheard),
            "unfinished_looks": volume.daily_look.unfinished(),
            "retention": retention_answer(volume),
        }

    def _limits_now(self) -> Message | None:
        return None if self.limits is None else asdict(self.limits.rates())

    async def _flush(self, connection: Connection) -> Message:
        volume = self._running()
        await self._wait_for_stores(connection, volume.flush)
        return {"away": _away(volume.status())}

    async def _fill(self, connection: Connection) -> Message:
        """Wait until one store holds everything."""
        volume = self._running()
        name = str(connection.request.get("store"))
        await self._wait_for_stores(
            connection, lambda progress: volume.wait_filled(name, progress), only=name
        )
        return {"away": [away for away in _away(volume.status()) if away == name]}

    async def _clear_alarm(self, connection: Connection) -> Message:
        burst = await self._running().clear_burst()
        return {"burst": None if burst is None else asdict(burst)}

    async def _clear_went_back(self, connection: Connection) -> Message:
        volume, name = self._running(), str(connection.request.get("store"))
        if name not in volume.instances:
            raise UsageError(f"There is no store {name}; there are: {', '.join(volume.instances)}.")
        return {"went_back_ns": await volume.went_back.acknowledge(name)}

    async def _stores(self, connection: Connection) -> Message:
        """The configuration names other stores: have those."""
        volume = self._running()
        if not await self._unless_unmounted(lambda: self.change_stores(volume)):
            raise MirrorfsError("The volume was unmounted meanwhile; the next mount has the change.")
        return {"stores": list(volume.instances)}

    async def _unless_unmounted(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Whether some work came to its end. It goes on if the client hangs up: half of it may be done."""
        done = False
        async with trio.open_nursery() as nursery:

            async def stop_when_unmounted() -> None:
                await self._unmounted.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_unmounted)
            await work()
            done = True
            nursery.cancel_scope.cancel()
        return done

    async def _list_snapshots(self, connection: Connection) -> Message:
        return await self._snapshots.list(self._running(), connection)

    async def _change_snapshot(self, connection: Connection) -> Message:
        volume = self._running()
        result: Message = {}

        async def change() -> None:
            result.update(await self._snapshots.change(volume, connection.request))

        if not await self._unless_unmounted(change):
            raise MirrorfsError("The volume was unmounted meanwhile; `mirrorfs snapshot list` shows what is.")
        return result

    async def _events(self, connection: Connection) -> Message:
        """A command has recorded something of keys or stores: log it."""
        await trio.to_thread.run_sync(self.log_events)
        return {}

    async def _wait_for_stores(
        self,
        connection: Connection,
        work: Callable[[Callable[[VolumeStatus], None]], Awaitable[None]],
        *,
        only: str | None = None,
    ) -> None:
        patience = Patience(stall_s=_stall_s(connection.request))
        left_behind: str | None = None
        was_unmounted = False

        async with trio.open_nursery() as nursery:
            publish = _publisher(connection, nursery, only)

            async def stop_when_unmounted() -> None:
                nonlocal was_unmounted
                await self._unmounted.wait()
                was_unmounted = True
                nursery.cancel_scope.cancel()

            async def stop_when_closed() -> None:
                await connection.wait_closed()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_unmounted)
            nursery.start_soon(stop_when_closed)
            left_behind = await watched(work, patience=patience, publish=publish, only=only)
            nursery.cancel_scope.cancel()
        if was_unmounted:
            raise MirrorfsError(
                "The volume was unmounted meanwhile; what is left is sent with the next mount."
            )
        if left_behind is not None:
            raise StoreUnavailable(
                f"Not everything is on every store: {left_behind}; it is sent as soon as the store takes it."
            )

    async def _scrub(self, connection: Connection) -> Message:
        volume = self._running()
        result: Message = {}
        async with trio.open_nursery() as nursery:

            async def stop_when_closed() -> None:
                await connection.wait_closed()
                nursery.cancel_scope.cancel()

            async def stop_when_unmounted() -> None:
                await self._unmounted.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_closed)
            nursery.start_soon(stop_when_unmounted)
            result = await scrub(volume, connection.request, connection.send)
            nursery.cancel_scope.cancel()
        if not result:
            raise MirrorfsError("The volume was unmounted meanwhile; run it again, it goes on from there.")
        return result

    async def _prune(self, connection: Connection) -> Message:
        volume = self._running()
        result: Message = {}

        async def run() -> None:
            result.update(await prune(volume, connection.request, connection.send))

        if not await self._unless_unmounted(run):
            raise MirrorfsError("The volume was unmounted meanwhile; run it again, it goes on from there.")
        return result

    async def _umount(self, connection: Connection) -> Message:
        """The client unmounts, after "prepared"; this end waits for that and for the closing."""
        self._check_open()
        if self._plan is not None:
            raise UsageError("The volume is being unmounted already; see `mirrorfs status`.")
        wait = connection.request.get("wait", True) is True
        self._plan = (wait, Patience(stall_s=_stall_s(connection.request)))
        await connection.send({"type": "prepared", "mountpoint": self._request.mountpoint})
        async with trio.open_nursery() as nursery:
            publish = _publisher(connection, nursery)
            self._watchers.append(publish)
            try:
                nursery.start_soon(self._withdraw, connection)
                await self.wait_finished()
            finally:
                self._watchers.remove(publish)
            nursery.cancel_scope.cancel()
        if self.is_locked and wait:
            raise MirrorfsError(
                "The volume was locked meanwhile; what the stores lack is sent with the next mount."
            )
        if self._left_behind is not None and wait:
            raise StoreUnavailable(
                f"The volume is unmounted, but {self._left_behind}; it is sent with the next mount."
            )
        return {"away": self._away_at_end}

    async def _withdraw(self, connection: Connection) -> None:
        """The client hung up: before the mount is gone its wish is void, after it nobody waits."""
        await connection.wait_closed()
        if self._unmounted.is_set():
            self.hurry()
        else:
            self._plan = None
        raise trio.BrokenResourceError

    def _check_open(self) -> None:
        if not self._is_open or self._unmounted.is_set():
            phase = "unmounted" if self._unmounted.is_set() else "mounted"
            raise MirrorfsError(f"The volume is just being {phase}; ask again in a moment.")

    def volume(self) -> MountedVolume:
        """The volume whose engine runs. Raises: MirrorfsError: it is not open."""
        return self._running()

    def _running(self) -> MountedVolume:
        self._check_open()
        assert self._volume is not None
        return self._volume


def _stall_s(request: Message) -> float:
    value = request.get("stall_s", STALL_S)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= STALL_MAX_S:
        raise UsageError("The time to wait for a store is a number of seconds, at most a week.")
    return float(value)


async def _no_change(volume: MountedVolume) -> None:
    await trio.lowlevel.checkpoint()
    raise UsageError("The stores of this mount cannot be changed.")


def _away(status: VolumeStatus) -> list[str]:
    """Rotating stores that are away and lack something."""
    return [store.store for store in status.stores if store.away_since_ns is not None and store.pending_count]


def _publisher(
    connection: Connection, nursery: trio.Nursery, only: str | None = None
) -> Callable[[VolumeStatus], None]:
    """A callback that sends states to a client; the newest waits while one is being sent."""
    sender, receiver = trio.open_memory_channel[VolumeStatus](1)

    async def send() -> None:
        async for status in receiver:
            stores = [
                {
                    "name": store.store,
                    "pending_bytes": store.pending_bytes,
                    "pending_count": store.pending_count,
                    "state": store.state.value,
                    "last_error": store.last_error,
                }
                for store in status.stores
                if store.away_since_ns is None and only in (None, store.store)
            ]
            await connection.send({"type": "progress", "stores": stores})

    def publish(status: VolumeStatus) -> None:
        try:
            sender.send_nowait(status)
        except (trio.WouldBlock, trio.BrokenResourceError):
            # A client that reads slowly misses a state, never the end.
            return

    nursery.start_soon(send)
    return publish
