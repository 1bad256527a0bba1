"""Locking a mounted volume: at once, without waiting for a store, however many files are open.

Order: what was written so far goes to the local log and is synced there, for FLUSH_S at most; the mount
leaves the directory tree and its connection is aborted, so that programs get errors; the engine closes
without waiting for stores; the process ends, and the keys with it. Should any of this hang, the process
ends by itself after EXIT_S more: to the log that is a crash, which it is made for.

The token: while it counts as removed a grace runs; when that is over, the policy of [lock] is carried out.
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from mirrorfs.cli.config import VolumePaths
from mirrorfs.cli.config_lock import LockConfig, Removal
from mirrorfs.cli.control import Connection
from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.key_pipe import SessionRequest
from mirrorfs.cli.lock_note import REASONS, LockEvent, LockNote, remove_note, write_note
from mirrorfs.cli.session_control import SessionControl
from mirrorfs.cli.token_lookout import Lookout
from mirrorfs.cli.watched_token import WatchedToken
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.fuse.mount_table import take_away
from mirrorfs.keys.token_watch import TokenWatch

log = logging.getLogger(__name__)

FLUSH_S: Final = 10.0
"""So long may it take until what was written is in the local log."""
WRITE_BACK_S: Final = 7.0
"""So much of it for what the kernel has not handed over yet."""
RELEASE_S: Final = 2.0
"""So long may giving back the leases take."""
EXIT_S: Final = 20.0
"""So long may everything after the flush take."""
NOTE_S: Final = 2.0


class Locking:
    """The locking of one session."""

    def __init__(
        self,
        request: SessionRequest,
        paths: VolumePaths,
        config: LockConfig,
        *,
        control: SessionControl,
        leave: Callable[[], None],
        write_back: Callable[[], Awaitable[None]],
        detaches: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            leave: ends the serving.
            detaches: who detaches the mount; None: this process.
            write_back: has the kernel hand over what it holds of the mount.
        """
        self._request = request
        self._paths = paths
        self._config = config
        self._control = control
        self._leave = leave
        self._write_back = write_back
        self._detaches = detaches
        self._watched = WatchedToken.from_text(request.watched) if request.watched else None
        self._removal = Removal.NOTHING
        if self._watched is not None:
            self._removal = config.removal_of(self._watched.kind)
        self._mounted = trio.Event()
        self._presence: str | None = None
        self._due_s = math.inf
        self._event: LockEvent | None = None
        self._complete = True
        self._is_read_only = False
        self.sync: Callable[[], Awaitable[None]] | None = None
        """Makes everything durable in the local log; None: nothing is written."""
        self.turn_read_only: Callable[[], Awaitable[None]] | None = None
        """Refuses every change from now on; None: so it is already."""
        self.on_lock: Callable[[str], None] = lambda reason: None
        """Hears of it first, and why; it must not wait."""
        control.lock_state = self.state

    def mounted(self) -> None:
        """The mount answers: the token is looked for from now on."""
        if not self._request.view:
            remove_note(self._paths)
        self._mounted.set()

    def state(self) -> Message:
        """For `status`."""
        return {
            "on_removal": self._removal.value,
            "grace_s": self._config.grace_s,
            "on_suspend": self._config.on_suspend,
            "on_logout": self._config.on_logout,
            "presence": self._presence,
            "locks_in_s": None if self._due_s == math.inf else max(0.0, self._due_s - trio.current_time()),
            "read_only": self._is_read_only,
            "locking": None if self._event is None else self._event.value,
        }

    # --- locking -----------------------------------------------------------------------------

    async def handle(self, connection: Connection) -> Message:
        """The command `lock` of the control socket; the last line is sent when everything is closed."""
        try:
            event = LockEvent(str(connection.request.get("event")))
        except ValueError:
            raise UsageError("The control socket got something that is no request.") from None
        refused = {
            LockEvent.SUSPEND: not self._config.on_suspend,
            LockEvent.LOGOUT: not self._config.on_logout,
        }
        if refused.get(event):
            log.info("not locked, as the configuration has it, although %s", REASONS[event])
            return {"locked": False}
        await self.lock(event)
        if self._mounted.is_set():
            await self._control.wait_finished()
        return {"locked": True, "complete": self._complete}

    async def lock(self, event: LockEvent) -> None:
        """Lock; returns when the mount is gone. A second call returns at once."""
        if self._event is not None:
            return
        self._event = event
        log.warning("The volume is locked: %s.", REASONS[event])
        _end_at_last(FLUSH_S + EXIT_S)
        self._control.lock()
        if self._mounted.is_set() and not self._control.is_unmounted:
            self.on_lock(f"The volume is locked: {REASONS[event]}.")
            self._complete = await self._flush()
            await self._note(event)
            await trio.to_thread.run_sync(self._take_away)
        self._leave()

    async def _flush(self) -> bool:
        """Whether everything written so far is in the local log."""
        if self.sync is None:
            return True
        deadline_s = trio.current_time() + FLUSH_S
        try:
            # What the kernel has handed over is committed also where it had more than there is time for.
            with trio.move_on_after(WRITE_BACK_S) as writing_back:
                await self._write_back()
            with trio.move_on_at(deadline_s):
                await self.sync()
                if not writing_back.cancelled_caught:
                    return True
            log.error("What was written last did not get to the local log in time.")
        except MirrorfsError as error:
            log.error("What was written last could not be kept: %s", error)
        return False

    async def _note(self, event: LockEvent) -> None:
        if self._request.view:
            return
        note = LockNote(event, time.time_ns(), self._complete)
        try:
            with trio.move_on_after(NOTE_S):
                await trio.to_thread.run_sync(write_note, self._paths, note, abandon_on_cancel=True)
        except MirrorfsError as error:
            log.warning("That the volume was locked could not be written down: %s", error)

    def _take_away(self) -> None:
        try:
            if not take_away(self._request.mountpoint, detaches=self._detaches):
                log.info("the connection is gone already, or ends with the process")
        except MirrorfsError as error:
            log.warning("The mount could not be taken away, it ends with the process: %s", error)

    # --- the token ---------------------------------------------------------------------------

    async def watch(self) -> None:
        """Carry out the policy when the token is removed, and stays away for the grace."""
        await self._mounted.wait()
        if self._watched is None or self._removal is Removal.NOTHING:
            return
        sender, looks = trio.open_memory_channel[bool | None](0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Lookout(self._watched, sender).run)
            await self._await_removal(looks)
            nursery.cancel_scope.cancel()
        self._due_s = math.inf
        if self._removal is Removal.UNMOUNT:
            await self.lock(LockEvent.REMOVAL)
        elif self.turn_read_only is not None:
            await self._refuse_changes(self.turn_read_only)

    async def _await_removal(self, looks: trio.MemoryReceiveChannel[bool | None]) -> None:
        watch = TokenWatch()
        while True:
            with trio.move_on_at(self._due_s):
                present = await looks.receive()
                self._heard(present, removed=watch.observe(present, trio.current_time()))
                continue
            return

    def _heard(self, present: bool | None, *, removed: bool) -> None:
        if removed:
            self._presence = "removed"
            if self._due_s == math.inf:
                grace_s = self._config.grace_s
                self._due_s = trio.current_time() + grace_s
                log.warning("The token is gone: %s in %d s.", _THEN[self._removal], grace_s)
            return
        if self._due_s != math.inf:
            self._due_s = math.inf
            log.warning("The token is back in time: nothing happens.")
        self._presence = {True: "present", False: self._presence or "present", None: "unknown"}[present]

    async def _refuse_changes(self, turn_read_only: Callable[[], Awaitable[None]]) -> None:
        log.warning("The volume is read-only: its token was removed.")
        try:
            await turn_read_only()
        except MirrorfsError as error:
            log.error("What was written last could not be kept: %s", error)
        self._is_read_only = True


_THEN: Final = {Removal.UNMOUNT: "the volume locks", Removal.READ_ONLY: "the volume turns read-only"}


def _end_at_last(after_s: float) -> None:
    """End this process in so many seconds, in a thread that no task can hold up."""

    def end() -> None:
        log.critical("The locked volume did not close in time: its process ends now, as in a crash.")
        os._exit(1)

    timer = threading.Timer(after_s, end)
    timer.daemon = True
    timer.start()
