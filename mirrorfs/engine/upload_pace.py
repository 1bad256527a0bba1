"""Uploads let local writes pass.

A segment that fills up within a burst of writes is sent when the burst is over, or when its oldest change
is as old as an open segment may become anyway: what a store may lack is bounded as before, and the
program that writes is not slowed down by copies of what it has just written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from mirrorfs.ports import Clock

QUIET_NS: Final = 300_000_000
"""After so long without a write the burst is over."""
LOOK_S: Final = 0.1


class UploadPace:
    """When one object may be sent.

    Args:
        written_ns: CLOCK_BOOTTIME of the last write to the volume.
        delay_s: how old a change may become before it is sent whatever is going on.
    """

    def __init__(self, clock: Clock, *, written_ns: Callable[[], int], delay_s: float) -> None:
        self._clock = clock
        self._written_ns = written_ns
        self._delay_s = delay_s

    async def wait(self, oldest_ns: int, *, hurried: Callable[[], bool]) -> None:
        """Return when an object may be sent whose oldest change is of `oldest_ns` (CLOCK_REALTIME).

        That is at once when `hurried`, and after `delay_s` at the latest, however the clock is set.
        """
        end_s = trio.current_time() + self._delay_s
        end_ns = oldest_ns + int(self._delay_s * 1e9)
        while (  # noqa: ASYNC110 - see below
            not hurried()
            and self._clock.boottime_ns() - self._written_ns() < QUIET_NS
            and self._clock.now_ns() < end_ns
            and trio.current_time() < end_s
        ):
            await trio.sleep(LOOK_S)  # the hot path of writes sets a number, it wakes nobody
