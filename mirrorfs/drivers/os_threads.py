"""ports.Offload: worker threads of trio."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

import trio

T = TypeVar("T")

SYNCS_MAX: Final = 4
"""fsyncs that wait at a time: one for the log, the rest for segments being sealed and small files."""


class ThreadOffload:
    """Runs work in threads: as much at a time as there are CPUs, and SYNCS_MAX syncs beside it.

    Two limiters, so that neither waits for the other: sealing must not queue behind a slow disk, nor
    an fsync that an application waits for behind a long copy.
    """

    def __init__(self) -> None:
        cpus = len(os.sched_getaffinity(0))
        self._work = trio.CapacityLimiter(cpus)
        self._syncs = trio.CapacityLimiter(SYNCS_MAX)

    async def run(self, work: Callable[[], T]) -> T:
        """As in ports.Offload. Cancelling takes effect while it queues, never once it has started."""
        return await trio.to_thread.run_sync(work, limiter=self._work, abandon_on_cancel=False)

    async def sync(self, work: Callable[[], T]) -> T:
        """As in ports.Offload. Cancelling takes effect while it queues, never once it has started."""
        return await trio.to_thread.run_sync(work, limiter=self._syncs, abandon_on_cancel=False)
