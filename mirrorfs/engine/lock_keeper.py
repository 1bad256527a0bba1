"""Renewing the locks of one store, so that none ends while its object is needed.

Nothing is remembered of single objects. PUT locks an object for the store's days, and a round through all
that is needed locks each for as many days from then on, but what was sent lately. A round is begun when half
of the days since the last one are over, and paced to take a small part of them: so an object costs two
renewals per span of the lock, of two requests each. A round that is broken off goes on where it was.

Needed is what the chain and the local disk name, unless it is condemned; of heads only the newest, which say
how far the log goes. It takes no lease: a lock that is longer harms no other writer.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from typing import Final

import trio

from mirrorfs.engine.mirror_state import LockState
from mirrorfs.engine.objects import LocalObject, LocalObjects
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES
from mirrorfs.errors import ObjectNotFound, StoreDenied, StoreError
from mirrorfs.format.control import INSTANCE_KEY
from mirrorfs.format.object_lock import DAY_NS, ObjectLock
from mirrorfs.ports import Clock, Disk, ObjectKey, Store

logger = logging.getLogger(__name__)

RECORD_PREFIX: Final = "locks/"
"""Local files: JSON of a _Record, by instance (hex)."""
FIRST_S: Final = 60.0
"""After the mount."""
POLL_S: Final = 1800.0
"""How often it is seen whether a round is due: sleeping does not count while the machine does."""
AGAIN_S: Final = 300.0
"""After a store did not answer."""
DENIED_S: Final = 3600.0
ROUND_SHARE: Final = 16
"""The share of the lock's days that a round is paced to take."""
PACE_MAX_S: Final = 10.0
PACE_FIRST_MAX_S: Final = 1.0
"""Longest pause between two objects; in the first round nothing may be locked yet."""
SAVE_EVERY: Final = 100
"""Objects after which the place is remembered."""
HEADS_LOCKED: Final = 32
_HEADS: Final = "heads/"


@dataclass(frozen=True, slots=True)
class _Record:
    """How far the rounds are."""

    mode: str
    days: int
    renewed_ns: int = 0
    """CLOCK_REALTIME when the last round that came to its end began; 0: none did."""
    begun_ns: int = 0
    """When the present round began; 0: there is none."""
    after: str = ""
    """The last key that the present round is done with."""


class LockKeeper:
    """Renews the locks of one store."""

    def __init__(
        self,
        store: Store,
        lock: ObjectLock,
        objects: LocalObjects,
        disk: Disk,
        clock: Clock,
        *,
        instance: str,
        is_held: Callable[[str], bool],
    ) -> None:
        """
        Args:
            lock: the store's.
            instance: UUID (hex) of the store's instance.
            is_held: whether the store is known to hold an object; others are locked when they are sent.
        """
        self._store = store
        self._lock = lock
        self._objects = objects
        self._disk = disk
        self._clock = clock
        self._path = RECORD_PREFIX + instance
        self._is_held = is_held
        self._record = self._load()
        self._left = 0
        self._error: str | None = None

    def state(self) -> LockState:
        """What `status` tells."""
        renewed_ns, days = self._record.renewed_ns, self._lock.days
        return LockState(
            mode=self._lock.mode,
            days=days,
            # What the last round left out was sent up to a quarter of the days before it.
            until_ns=renewed_ns + days * DAY_NS * 3 // 4 if renewed_ns else None,
            behind_count=self._left,
            error=self._error,
        )

    async def run(self) -> None:
        """Renew when it is due, until cancelled."""
        await trio.sleep(FIRST_S)
        while True:
            pause_s = POLL_S
            if self._is_due():
                try:
                    await self._renew()
                except StoreDenied as exc:
                    if self._error is None:
                        logger.warning("The locks of store %s are not renewed: %s", self._store.name, exc)
                    self._error, pause_s = str(exc), DENIED_S
                except StoreError as exc:
                    logger.info("the locks of store %s are not renewed now: %s", self._store.name, exc)
                    pause_s = AGAIN_S
            await trio.sleep(pause_s)

    def _is_due(self) -> bool:
        record, now_ns = self._record, self._clock.now_ns()
        if max(record.begun_ns, record.renewed_ns) > now_ns:
            # Written under another clock: it counts for nothing.
            self._record = record = _Record(self._lock.mode, self._lock.days)
        return bool(record.begun_ns) or now_ns - record.renewed_ns >= self._lock.days * DAY_NS // 2

    async def _renew(self) -> None:
        """Go through what is needed, from where the round is. Raises: StoreError."""
        if not self._record.begun_ns:
            self._record = replace(self._record, begun_ns=self._clock.now_ns(), after="")
            self._save()
        self._left = 0
        async with aclosing(self._due()) as due:
            async for _ in due:
                self._left += 1
        pace_s = self._lock.days * DAY_NS / 1e9 / ROUND_SHARE / max(1, self._left)
        pace_s = min(pace_s, PACE_MAX_S if self._record.renewed_ns else PACE_FIRST_MAX_S)
        async with aclosing(self._due()) as due:
            async for found in due:
                await self._renew_one(found)
                await trio.sleep(pace_s)
        self._record = _Record(self._lock.mode, self._lock.days, renewed_ns=self._record.begun_ns)
        self._left, self._error = 0, None
        self._save()

    async def _renew_one(self, found: LocalObject) -> None:
        until_ns = self._lock.until_ns(found.key, now_ns=self._clock.now_ns())
        size_bytes = found.size if found.size >= 0 else None
        try:
            await self._store.lock_until(ObjectKey(found.key), until_ns=until_ns, size_bytes=size_bytes)
        except ObjectNotFound:
            # The daily look finds out what became of it, and what is sent again is locked by that.
            logger.info("object %s of store %s is not there to be locked", found.key, self._store.name)
        self._record = replace(self._record, after=found.key)
        self._left = max(0, self._left - 1)
        if self._left % SAVE_EVERY == 0:
            self._save()

    async def _due(self) -> AsyncGenerator[LocalObject, None]:
        """What the round has still to do, in key order."""
        record = self._record
        # What was sent since is locked for three quarters of the days yet, when half of them are over.
        sent_ns = record.begun_ns - self._lock.days * DAY_NS // 4
        async with aclosing(self._needed()) as needed:
            async for found in needed:
                is_young = record.renewed_ns and found.written_ns >= sent_ns
                if found.key > record.after and not is_young:
                    yield found

    async def _needed(self) -> AsyncGenerator[LocalObject, None]:
        condemned = self._objects.condemned()
        for prefix in sorted((*MIRRORED_PREFIXES, INSTANCE_KEY)):
            if prefix == INSTANCE_KEY:
                yield LocalObject(INSTANCE_KEY, -1, 0)
                continue
            first = ""
            if prefix == _HEADS:
                first = min((await self._objects.keys(prefix))[-HEADS_LOCKED:], default="")
            async with aclosing(self._objects.under(prefix)) as objects:
                async for found in objects:
                    if found.key >= first and self._is_held(found.key) and found.key not in condemned:
                        yield found

    # --- the record --------------------------------------------------------------------------

    def _load(self) -> _Record:
        new = _Record(self._lock.mode, self._lock.days)
        try:
            file = self._disk.open(self._path)
        except FileNotFoundError:
            return new
        try:
            found = _Record(**json.loads(file.read(offset=0, size_bytes=file.size())))
        except (ValueError, TypeError):
            return new  # then a round is due
        finally:
            file.close()
        # With other settings the locks may have to be longer.
        return found if (found.mode, found.days) == (new.mode, new.days) else new

    def _save(self) -> None:
        self._disk.write_whole(self._path, json.dumps(asdict(self._record)).encode())


def forget_locks(disk: Disk, instance: str) -> None:
    """A store is used without locks: what is sent there meanwhile has none, whatever comes later."""
    disk.remove(RECORD_PREFIX + instance)
