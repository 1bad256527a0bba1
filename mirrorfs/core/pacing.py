"""How long to wait before the next bytes, so that together they keep to a rate.

Whoever wants to send reserves first, is told how long to wait, and then sends: a queue that is no more than
the moment at which it will be empty, so that nothing has to be woken and a reservation that is given up
costs no more than its own bytes. Idle time is not saved up: there is no burst beyond one reservation.

Urgent bytes pass those that are not. They get at most URGENT_SHARE of the rate, or what is not urgent
could stand still for ever.
"""

from __future__ import annotations

from typing import Final

URGENT_SHARE: Final = 7 / 8


class Pacing:
    """One direction of one line."""

    def __init__(self) -> None:
        self._free_s = 0.0
        """When everything reserved is sent."""
        self._urgent_free_s = 0.0
        """When what is urgent is, did it wait for nothing else."""

    def reserve(self, size_bytes: int, *, rate_bytes_s: int, now_s: float, urgent: bool) -> float:
        """Seconds to wait before sending so many bytes.

        Args:
            rate_bytes_s: the limit now; 0 for none, which forgets what was reserved.
            now_s: of a clock that never goes back.
        """
        if rate_bytes_s == 0:
            self._free_s = self._urgent_free_s = now_s
            return 0.0
        takes_s = size_bytes / rate_bytes_s
        begins_s = max(now_s, self._urgent_free_s if urgent else self._free_s)
        if urgent:
            self._urgent_free_s = begins_s + takes_s / URGENT_SHARE
        self._free_s = max(now_s, self._free_s) + takes_s
        return begins_s - now_s

    def urgent_takes_s(self, size_bytes: int, *, rate_bytes_s: int, now_s: float) -> float:
        """Seconds that urgent bytes take that are reserved piece by piece from now on; reserves nothing."""
        if rate_bytes_s == 0:
            return 0.0
        return max(0.0, self._urgent_free_s - now_s) + size_bytes / rate_bytes_s / URGENT_SHARE
