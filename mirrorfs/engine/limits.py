"""The limits of a volume at work: what its stores may send and receive now.

One for all stores of a volume that are reached by a network: they share the practice's line. A store that
takes nothing reserves nothing, so that it holds up no other.

A restore drill of a mounted volume reads in a process of its own (cli/drill_requests.py): meanwhile each of
them has half of the download rate. Passing every reservation from one to the other was rejected as too much.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
        transfers: how many may go at a time, of all stores and whoever shares the rate, in one direction.
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

    def __init__(self, timetable: Timetable, clock: Clock, *, is_shared: bool = False) -> None:
        """
        Args:
            is_shared: another process has half of the download rate, all the time.
        """
        self._is_shared = is_shared
        self._timetable = timetable
        self._clock = clock
        self._up = Pacing()
        self._down = Pacing()

    def rates(self) -> Rates:
        """The limits in force now, by the clock and time zone of this machine; of all who share them."""
        return self._timetable.rates_at(datetime.fromtimestamp(self._clock.now_ns() // _NS))

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Meanwhile another process has half of the download rate; one at a time."""
        self._is_shared = True
        try:
            yield
        finally:
            self._is_shared = False

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        """See Throttle.upload."""
        return self._up.reserve(
            size_bytes, rate_bytes_s=self.rates().upload_bytes_s, now_s=trio.current_time(), urgent=urgent
        )

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        """See Throttle.download."""
        return self._down.reserve(
            size_bytes, rate_bytes_s=self._download_bytes_s(), now_s=trio.current_time(), urgent=urgent
        )

    def download_s(self, size_bytes: int) -> float:
        """See Throttle.download_s."""
        return self._down.urgent_takes_s(
            size_bytes, rate_bytes_s=self._download_bytes_s(), now_s=trio.current_time()
        )

    def _download_bytes_s(self) -> int:
        rate_bytes_s = self.rates().download_bytes_s
        # At least 1: 0 would be no limit.
        return (rate_bytes_s + 1) // 2 if self._is_shared else rate_bytes_s
