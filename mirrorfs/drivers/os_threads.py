"""ports.Offload: worker threads of trio."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

import trio

T = TypeVar("T")

SYNCS_MAX: Final = 4
"""fsyncs that wait at a time: one for the log, the rest for segments being sealed and small files."""


BRIEF_NS: Final = 1_000_000
"""Syncs that take less than this on average are worth waiting for: to hand one to a thread and to be woken
by it costs 0.2 to 0.5 ms, and for that long, on average, other requests stand still."""
WEIGHT: Final = 8
"""The newest sync counts for one part in so many of the average."""


class ThreadOffload:
    """Runs work in threads: as much at a time as there are CPUs, and SYNCS_MAX syncs beside it.

    Two limiters, so that neither waits for the other: sealing must not queue behind a slow disk, nor
    an fsync that an application waits for behind a long copy.
    """

    def __init__(self) -> None:
        cpus = len(os.sched_getaffinity(0))
        self._work = trio.CapacityLimiter(cpus)
        self._syncs = trio.CapacityLimiter(SYNCS_MAX)
        self._average_ns = BRIEF_NS  # unknown: not brief until one has shown it

    async def run(self, work: Callable[[], T]) -> T:
        """As in ports.Offload. Cancelling takes effect while it queues, never once it has started."""
        return await trio.to_thread.run_sync(work, limiter=self._work, abandon_on_cancel=False)

    async def sync(self, work: Callable[[], T]) -> T:
        """As in ports.Offload. Cancelling takes effect while it queues, never once it has started."""
        return await trio.to_thread.run_sync(
            partial(self.sync_here, work), limiter=self._syncs, abandon_on_cancel=False
        )

    def is_working(self) -> bool:
        """As in ports.Offload."""
        return bool(self._work.borrowed_tokens or self._syncs.borrowed_tokens)

    def syncs_are_brief(self) -> bool:
        """As in ports.Offload: by a moving average, so that one slow sync sends the next ones to threads."""
        return self._average_ns < BRIEF_NS

    def sync_here(self, work: Callable[[], T]) -> T:
        """As in ports.Offload."""
        start_ns = time.monotonic_ns()
        try:
            return work()
        finally:
            # Threads may lose each other's update: it is an estimate.
            self._average_ns += (time.monotonic_ns() - start_ns - self._average_ns) // WEIGHT
