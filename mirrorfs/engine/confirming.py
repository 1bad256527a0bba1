"""Looking whether a store has what it said it took: one look for many objects."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import trio

from mirrorfs.engine.look import look_at
from mirrorfs.engine.store_faults import StoreFaults
from mirrorfs.engine.upload_queue import Item, UploadQueue
from mirrorfs.errors import StoreError
from mirrorfs.ports import Store

CONFIRM_DELAY_S = 5.0  # how long PUT objects are gathered, so that one listing confirms many
CONFIRM_BATCH = 256


class Confirming:
    """The looks at what one mirror has put."""

    def __init__(
        self,
        store: Store,
        queue: UploadQueue,
        faults: StoreFaults,
        event: trio.lowlevel.ParkingLot,
        *,
        is_awaited: Callable[[], bool],
        on_seen: Callable[[Item, int | None], None],
    ) -> None:
        """
        Args:
            event: unparked when the queue, or what is waited for, changes.
            is_awaited: whether somebody waits for an object to be held.
            on_seen: hears the size of an object that was put, None: it is not there. Errors: StoreError.
        """
        self._store = store
        self._queue = queue
        self._faults = faults
        self._event = event
        self._is_awaited = is_awaited
        self._on_seen = on_seen
        self._at_s = 0.0

    def gather(self) -> None:
        """An object is about to be unconfirmed; the first of them waits for more."""
        if not self._queue.unconfirmed:
            self._at_s = trio.current_time() + CONFIRM_DELAY_S

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            wait_s = self._wait_s()
            if wait_s > 0:
                with trio.move_on_after(wait_s):
                    await self._event.park()
                continue
            started_s = trio.current_time()
            try:
                await self._look()
            except StoreError as exc:
                self._faults.failed(self._faults.looks, exc, started_s)
            else:
                self._faults.recovered(self._faults.looks)
            self._event.unpark_all()

    def _wait_s(self) -> float:
        if not self._queue.unconfirmed:
            return float("inf")
        if (delay_s := self._faults.looks.delay_s()) > 0:
            return delay_s
        hurry = self._is_awaited() and self._queue.is_idle()
        if hurry or self._queue.header_count or len(self._queue.unconfirmed) >= CONFIRM_BATCH:
            return 0.0
        return self._at_s - trio.current_time()

    async def _look(self) -> None:
        """Look at objects whose PUT has returned; later ones join a later batch."""
        batch = sorted(islice(self._queue.unconfirmed.values(), CONFIRM_BATCH))
        self._at_s = trio.current_time() + CONFIRM_DELAY_S
        items = {item.key: item for item in batch}
        for key, size_bytes in (await look_at(self._store, list(items))).items():
            self._on_seen(items[key], size_bytes)
