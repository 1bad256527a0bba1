"""Serving a read-only view of a volume: its newest state, or that of a moment in the past.

A view has an index of its own, under a key that only this process knows, and keeps what it fetches, sealed as
the stores have it; its directory goes with it. It takes no lease and changes nothing, so that it may stand
beside a writable mount.
"""

from __future__ import annotations

import os
import secrets
import shutil
from typing import Final

import trio

from mirrorfs.cli.control import Connection
from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.restore_report import gap_of
from mirrorfs.cli.session import Opened, Session, with_history
from mirrorfs.cli.session_control import SessionControl
from mirrorfs.cli.session_history import IndexPlace
from mirrorfs.cli.stores import system_random
from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.past_views import PastViews, Sources
from mirrorfs.engine.range_files import RANGES
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.view_cache import view_cache
from mirrorfs.errors import UsageError
from mirrorfs.format.header import verify_header
from mirrorfs.ports import Store

KEY_SIZE_BYTES: Final = 32


class ViewControl(SessionControl):
    """The control socket's side of a view."""

    _view: ReadOnlyVolume

    def view_opened(self, view: ReadOnlyVolume) -> None:
        """The view is ready to be mounted."""
        self._view = view
        self._is_open = True

    async def _status(self, connection: Connection) -> Message:
        self._check_open()
        await trio.lowlevel.checkpoint()
        follower = self._view.follower
        return {
            "name": self._request.name,
            "mountpoint": self._request.mountpoint,
            "read_only": True,
            "pid": os.getpid(),
            "view_time_ns": self._view.time_ns,
            "follows": follower is not None,
            "gap": gap_of(self._view),
            "fault": None if follower is None else follower.fault,
            "limits": self._limits_now(),
            "silent": [] if follower is None else list(follower.silent),
            "lock": self.lock_state(),
        }

    async def _flush(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("This mount is a read-only view: there is nothing to flush.")

    async def _scrub(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view cannot be verified; name the volume itself.")

    async def _clear_alarm(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view has no alarm of its own; name the volume itself.")

    async def _clear_went_back(self, connection: Connection) -> Message:
        return await self._clear_alarm(connection)

    async def _stores(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view keeps the stores that it was mounted with; mount it again.")

    async def _list_snapshots(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view is asked for no snapshots; name the volume itself.")

    async def _change_snapshot(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view changes no snapshot; name the volume itself.")

    async def _fill(self, connection: Connection) -> Message:
        await trio.lowlevel.checkpoint()
        raise UsageError("A read-only view fills no store; name the volume itself.")


class ViewSession(Session):
    """One read-only view, mounted by this process."""

    def _make_control(self) -> ViewControl:
        self._view_control = ViewControl(self._request)
        return self._view_control

    async def _open(self, stores: list[Store], nursery: trio.Nursery) -> Opened:
        unlocked = self._unlocked
        header, keys = verify_header(unlocked.header, unlocked.key_set)
        files = SqliteIndexFiles(
            str(self._paths.run / "index.db"),
            secrets.token_bytes(KEY_SIZE_BYTES),
            digest_key=secrets.token_bytes(KEY_SIZE_BYTES),
        )
        world = self._world()
        volume = await ReadOnlyVolume.open(
            nursery=nursery,
            world=world,
            files=files,
            keys=keys,
            writer_key=header.public_keys.writer,
            stores=stores,
            random=system_random(),
            cache=view_cache(world, LocalDisk(self._paths.run), limit_bytes=self._config.cache_bytes),
            moment=Moment(
                time_ns=self._request.at_ns,
                position=self._request.at_position,
                snapshot=self._request.at_snapshot.encode() or None,
            ),
            on_progress=lambda sequence, _: self._on_replay(sequence),
            on_loaded=self._on_loaded,
        )
        self._view_control.view_opened(volume)

        async def close() -> None:
            volume.close()
            await trio.to_thread.run_sync(files.remove)

        opened = Opened(volume.filesystem, close, follows=volume.follower is not None)
        if volume.follower is None or not self._config.history_directory:
            return opened
        sources = Sources(
            world, lambda: keys, header.public_keys.writer, lambda: stores, IndexPlace(self._paths).files
        )
        views = PastViews(sources, volume.index, volume.reader, SpaceGuard(world.disk, world.clock))
        return await with_history(opened, views, nursery)

    def wipe_keys(self) -> None:
        """The same, and after it what was fetched goes, which nobody needs any more."""
        super().wipe_keys()
        shutil.rmtree(self._paths.run / RANGES, ignore_errors=True)


def session_kind(view: str) -> type[Session]:
    """The kind of session that serves a mount."""
    return ViewSession if view else Session
