"""Drills of a mounted volume, with the keys of the mount: asked for by a client, or by the configuration.

Each runs in a process of its own (cli/drill_child.py), so that neither the mount nor its cache is touched; it
ends with whoever wanted it. Meanwhile it has half of the mount's download rate. Its indexes lie in a private
directory that is removed afterwards.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Final

import trio

from mirrorfs.cli.config import StoreConfig, VolumePaths, load_config
from mirrorfs.cli.control import Connection
from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.drill_record import DrillRecord
from mirrorfs.cli.drill_sample import choice
from mirrorfs.cli.failures import RemoteError
from mirrorfs.cli.key_pipe import UnlockedSession, encode_session
from mirrorfs.cli.launch import child_environment, command
from mirrorfs.cli.restore import work_directory
from mirrorfs.cli.session_control import SessionControl
from mirrorfs.core.retention import DAY_NS
from mirrorfs.errors import MirrorfsError, UsageError
from mirrorfs.format.slot import Role

log = logging.getLogger(__name__)

FIRST_S: Final = 3600.0
"""After the mount a drill by itself does not begin before."""
EVERY_S: Final = 6 * 3600.0
END_S: Final = 2.0
"""So long a drill that is not wanted any more has to end by itself."""
Say = Callable[[Message], Awaitable[None]]


class DrillRequests:
    """Those of one session; one drill at a time."""

    def __init__(self, unlocked: UnlockedSession, paths: VolumePaths, control: SessionControl) -> None:
        self._unlocked = unlocked
        self._paths = paths
        self._control = control
        self._running = trio.Lock()

    @property
    def _can_sign(self) -> bool:
        return Role.DRILL in self._unlocked.key_set.roles()

    async def handle(self, connection: Connection) -> Message:
        """Carry out the request of a client; it ends when he hangs up. Messages: as of drill_child.

        Raises: MirrorfsError: another one is under way, the volume was unmounted, or as of DrillSession.
        """
        self._control.volume()
        if not self._can_sign:
            return {"can": False}
        store, sample = str(connection.request.get("store")), connection.request.get("sample")
        if store not in [one.name for one in load_config(self._paths).stores]:
            raise UsageError("The volume has no store of that name; see `mirrorfs store list`.")
        choice(sample if isinstance(sample, str) else None)
        if self._running.locked():
            raise MirrorfsError("A drill of this volume is under way; wait for that to end.")
        result: Message = {}
        async with self._running, trio.open_nursery() as nursery:

            async def stop_when_closed() -> None:
                await connection.wait_closed()
                nursery.cancel_scope.cancel()

            async def stop_when_unmounted() -> None:
                await self._control.wait_unmounted()
                nursery.cancel_scope.cancel()

            nursery.start_soon(stop_when_closed)
            nursery.start_soon(stop_when_unmounted)
            result = await self._run(store, sample if isinstance(sample, str) else "", connection.send)
            nursery.cancel_scope.cancel()
        if not result:
            raise MirrorfsError("The volume was unmounted meanwhile; run the drill again.")
        return {**result, "can": True}

    async def by_schedule(self) -> None:
        """Try each store whose last drill is older than the configuration says, until cancelled."""
        wait_s = FIRST_S
        while True:
            await trio.sleep(wait_s)
            wait_s = EVERY_S
            for store in self._due():
                async with self._running:
                    await self._try(store)

    def _due(self) -> list[StoreConfig]:
        """The stores to try now."""
        try:
            config = load_config(self._paths)
            every_ns = config.alarm.drill_every_days * DAY_NS
            if not every_ns or not self._can_sign:
                return []
            last = DrillRecord(self._paths, volume=config.volume).last(config.stores)
        except (MirrorfsError, OSError) as exc:
            known = isinstance(exc, MirrorfsError)  # the text of an OSError may hold a path
            log.warning("No drill is run: %s", exc if known else "the reports cannot be read.")
            return []
        before_ns = time.time_ns() - every_ns
        return [
            store
            for store in config.stores
            if max(last[store.name].good_ns or 0, last[store.name].failed_ns or 0) <= before_ns
        ]

    async def _try(self, store: StoreConfig) -> None:
        async def take(message: Message) -> None:
            await trio.lowlevel.checkpoint()
            if message.get("type") == "warning":
                log.info("drill of store %s: %s", store.name, message.get("text"))

        try:
            done = await self._run(store.name, "", take)
        except MirrorfsError as exc:
            log.info("store %s is not tried now: %s", store.name, exc)
            return
        if done.get("passed"):
            log.info("store %s passed a restore drill", store.name)
        else:
            log.warning("Store %s failed a restore drill; `mirrorfs drill --list` says why.", store.name)

    async def _run(self, store: str, sample: str, say: Say) -> Message:
        """Returns the last message. Raises: MirrorfsError."""
        try:
            return await self._run_child(store, sample, say)
        except OSError as exc:  # which would end the mount
            raise MirrorfsError(f"The drill cannot be run: {exc.strerror}.") from exc

    async def _run_child(self, store: str, sample: str, say: Say) -> Message:
        """As _run. Raises: OSError: there is no room for its indexes, or for its process."""
        session = replace(self._unlocked, header=self._control.volume().header_bytes)
        limits = self._control.limits
        with work_directory(os.environ) as directory, nullcontext() if limits is None else limits.shared():
            arguments = command("mirrorfs.cli.drill_child", store, sample, str(directory))
            async with _child(arguments) as process:
                assert process.stdin is not None and process.stdout is not None
                try:
                    await process.stdin.send_all(encode_session(session))
                except trio.BrokenResourceError as exc:
                    raise MirrorfsError("The process of the drill ended before it began.") from exc
                async with aclosing(_lines(process.stdout)) as messages:
                    async for message in messages:
                        kind = message.get("type")
                        if kind == "done":
                            return {name: value for name, value in message.items() if name != "type"}
                        if kind == "error":
                            raise RemoteError(str(message["message"]), exit_code=message.get("exit_code"))
                        await say(message)
        raise MirrorfsError("The process of the drill ended before it was done; run the drill again.")


@asynccontextmanager
async def _child(arguments: list[str]) -> AsyncIterator[trio.Process]:
    """A process of ours, which is gone in the end."""
    process = await trio.lowlevel.open_process(
        arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/", env=child_environment(os.environ)
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            assert process.stdin is not None and process.stdout is not None
            await process.stdin.aclose()
            with trio.move_on_after(END_S):
                await process.wait()
            if process.returncode is None:
                process.kill()
                await process.wait()
            await process.stdout.aclose()


async def _lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[Message, None]:
    rest = b""
    async for part in stream:
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            message: Message = json.loads(line)
            yield message
