"""ports.Clock: the kernel's clocks."""

from __future__ import annotations

import time


class SystemClock:
    """CLOCK_REALTIME and CLOCK_BOOTTIME of this machine."""

    def now_ns(self) -> int:
        """Nanoseconds since the epoch; jumps when the clock is set."""
        return time.time_ns()

    def boottime_ns(self) -> int:
        """Nanoseconds since boot; never jumps, and counts the time of suspends."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
