"""The rate of a transfer, as status shows it."""

from __future__ import annotations

from collections import deque

import trio

RATE_WINDOW_S = 30.0
RATE_SAMPLES_MAX = 1024


class Rate:
    """Mean rate over the last RATE_WINDOW_S, from at most RATE_SAMPLES_MAX transfers."""

    def __init__(self) -> None:
        self._sent: deque[tuple[float, int]] = deque(maxlen=RATE_SAMPLES_MAX)

    def add(self, size_bytes: int) -> None:
        """Count a transfer that ends now."""
        self._sent.append((trio.current_time(), size_bytes))

    def bytes_s(self) -> int:
        """Bytes per second."""
        begin_s = trio.current_time() - RATE_WINDOW_S
        while self._sent and self._sent[0][0] < begin_s:
            self._sent.popleft()
        return int(sum(size_bytes for _, size_bytes in self._sent) / RATE_WINDOW_S)
