"""The limits of a volume at work: what its stores may send and receive now.

One for all stores of a volume that are reached by a network: they share the practice's line. A store that
takes nothing reserves nothing, so that it holds up no other.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

import trio

from mirrorfs.core.pacing import URGENT_SHARE, Pacing
from mirrorfs.core.timetable import Rates, Timetable
from mirrorfs.engine.retry import RetryPolicy
from mirrorfs.ports import Clock

_NS: Final = 1_000_000_000


def patient(policy: RetryPolicy, timetable: Timetable, *, transfers: int) -> RetryPolicy:
    """A policy under whose deadlines a transfer can be slowed down by the limits alone.

    Args:
        transfers: how many may go at a time, of all stores, in one direction.
    """
    lowest = timetable.lowest()
    rate_bytes_s = min(filter(None, (lowest.upload_bytes_s, lowest.download_bytes_s)), default=0)
    if rate_bytes_s == 0:
        return policy
    # What is not urgent may get no more than this, and the store some time of its own.
    share = int(rate_bytes_s * (1 - URGENT_SHARE) / transfers / 2)
    return replace(policy, slowest_rate_bytes_per_s=max(1, min(policy.slowest_rate_bytes_per_s, share)))


class Limits:
    """`Throttle` by a timetable; a change of it counts from the next reservation on."""

    def __init__(self, timetable: Timetable, clock: Clock) -> None:
        self._timetable = timetable
        self._clock = clock
        self._up = Pacing()
        self._down = Pacing()

    def rates(self) -> Rates:
        """The limits in force now, by the clock and time zone of this machine."""
        return self._timetable.rates_at(datetime.fromtimestamp(self._clock.now_ns() // _NS))

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        """See Throttle.upload."""
        return self._up.reserve(
            size_bytes, rate_bytes_s=self.rates().upload_bytes_s, now_s=trio.current_time(), urgent=urgent
        )

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        """See Throttle.download."""
        return self._down.reserve(
            size_bytes, rate_bytes_s=self.rates().download_bytes_s, now_s=trio.current_time(), urgent=urgent
        )

    def download_s(self, size_bytes: int) -> float:
        """See Throttle.download_s."""
        return self._down.urgent_takes_s(
            size_bytes, rate_bytes_s=self.rates().download_bytes_s, now_s=trio.current_time()
        )
