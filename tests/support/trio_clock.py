"""A clock that follows trio's, so that a virtual clock moves both; suspend and clock steps on request."""

from __future__ import annotations

import trio

_START_NS = 1_800_000_000_000_000_000
_NS = 1_000_000_000


class TrioClock:
    """`Clock` for tests: trio's time is the monotonic time that passes while the machine is awake."""

    def __init__(self) -> None:
        self.suspended_s = 0.0
        """Time slept: it counts for both clocks, not for trio."""
        self.stepped_s = 0.0
        """How far CLOCK_REALTIME was set, or ran on while a frozen machine image did not."""

    def now_ns(self) -> int:
        """See Clock.now_ns."""
        return _START_NS + self.boottime_ns() + round(self.stepped_s * _NS)

    def boottime_ns(self) -> int:
        """See Clock.boottime_ns."""
        return round((trio.current_time() + self.suspended_s) * _NS)
