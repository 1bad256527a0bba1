"""What one store says that it takes and does not keep: sent again at once the first time, then with care.

Whose fault a second loss is shows by what else the store keeps. If it kept another object since, it is the
object's: that one waits, longer each time, and holds nothing up. If not, the store may keep nothing at all:
its uploads are held back, one object at a time tries it, and the next waits until that one was looked for.
That the store takes an object ends neither, only that a look finds one.
"""

from __future__ import annotations

import logging

import trio

from mirrorfs.engine.set_aside import OWN_FAULT_AFTER, SetAside
from mirrorfs.engine.store_faults import StoreFaults
from mirrorfs.engine.upload_queue import Item, UploadQueue
from mirrorfs.errors import StoreUnavailable

_logger = logging.getLogger(__name__)


class Losses:
    """The losses of one mirror's store."""

    def __init__(self, queue: UploadQueue, aside: SetAside, faults: StoreFaults, *, store: str) -> None:
        """`store` is its name."""
        self._queue = queue
        self._aside = aside
        self._faults = faults
        self._store = store
        self._kept_at_s = float("-inf")

    def must_look_first(self) -> bool:
        """Whether the next upload waits until what was put before it is looked for."""
        return self._faults.losses.failures > 0 and len(self._queue.unconfirmed) > 0

    def kept(self) -> None:
        """The store was seen to have what is offered."""
        self._kept_at_s = trio.current_time()
        if self._faults.losses.failures:
            self._queue.unpark(lambda key: True)
        self._faults.recovered(self._faults.losses)

    def lost(self, item: Item, *, put_at_s: float) -> None:
        """A look did not find an unconfirmed item; the last PUT at the store returned at `put_at_s`."""
        _logger.warning("store %s lost %s after taking it; sending it again", self._store, item.key)
        gone = StoreUnavailable(
            f"Store {self._store} said that it took {item.key}, and does not have it:"
            " look what removes objects there."
        )
        # With the time of the PUT as their beginning all that one look misses is one failure.
        count, first_s = self._aside.lost(item.key)
        if count < OWN_FAULT_AFTER and not self._faults.losses.failures:
            self._queue.requeue(item)
            self._faults.failed(self._faults.puts, gone, put_at_s)
            return
        self._queue.park(item)
        if self._kept_at_s >= first_s:
            self._aside.store_chokes(item.key, str(gone), took_s=0.0)
        else:
            self._aside.store_loses(item.key)
            self._faults.failed(self._faults.losses, gone, put_at_s)
