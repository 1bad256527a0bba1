"""Waiting longer after each failure of a task that never gives up: exponential, capped, full jitter.

Full jitter (a uniform draw between nothing and the bound) spreads the retries of many clients
evenly; adding a little noise to a fixed delay leaves them in step
(https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from mirrorfs.engine.retry import RetryPolicy
from mirrorfs.errors import MirrorfsError

BACKOFF_FIRST_S = 1.0
BACKOFF_CAP_S = 60.0
TRIAL_S = 15.0
TRIALS_MAX = 2
"""So often in a row an object is the trial; it may be the one that never works."""

_POLICY = RetryPolicy(backoff_first_s=BACKOFF_FIRST_S, backoff_max_s=BACKOFF_CAP_S)


class Backoff:
    """When to try again, after how many failures, and the last one. Never gives up."""

    def __init__(self, random: Callable[[], float]) -> None:
        """Args: random: uniform in [0, 1)."""
        self._random = random
        self._retry_at_s = 0.0
        self._failed_at_s = float("-inf")
        self.failures = 0
        """Failures in a row, those of requests in flight together counted once."""
        self.fault: MirrorfsError | None = None

    def failed(self, fault: MirrorfsError, *, started_s: float) -> None:
        """Note a failure of a request that started at `started_s` (trio's clock)."""
        self.fault = fault
        if started_s < self._failed_at_s:
            # It was under way when another one failed: one outage, not two.
            return
        self._failed_at_s = trio.current_time()
        self.failures += 1
        pause_s = _POLICY.backoff_s(failure_count=self.failures, random=self._random())
        self._retry_at_s = self._failed_at_s + pause_s

    def succeeded(self) -> None:
        """Forget all failures."""
        self.failures = 0
        self.fault = None
        self._retry_at_s = 0.0

    async def succeeds(
        self, work: Callable[[], Awaitable[None]], on_fault: Callable[[MirrorfsError, float], None]
    ) -> bool:
        """Do something and note how it went; a fault goes to `on_fault`, which notes it with `failed`."""
        started_s = trio.current_time()
        try:
            await work()
        except MirrorfsError as exc:
            on_fault(exc, started_s)
            return False
        self.succeeded()
        return True

    def retry_now(self) -> None:
        """Let the next try start at once; a failure of it waits as long as the next would have."""
        self._retry_at_s = 0.0

    def delay_s(self) -> float:
        """Seconds until the next try; 0 when it may start."""
        return max(0.0, self._retry_at_s - trio.current_time()) if self.failures else 0.0


class Trial:
    """The one request that finds out whether a store is back, while others wait for what it tells."""

    def __init__(self) -> None:
        self._key: str | None = None
        self._began_s = 0.0
        self._last: tuple[str, int] = ("", 0)

    def begin(self, key: str) -> None:
        """An object is sent as the trial."""
        self._key, self._began_s = key, trio.current_time()

    def end(self, key: str) -> None:
        """The request for an object ended, whether it was the trial or not."""
        if self._key == key:
            self._key = None

    def left_s(self) -> float:
        """How long others still wait for it: it may take TRIAL_S, then the next is sent as well."""
        return 0.0 if self._key is None else max(0.0, self._began_s + TRIAL_S - trio.current_time())

    def failed(self, key: str) -> bool:
        """The request for an object failed. Returns whether it is another one's turn to be the trial."""
        if self._key != key:
            return False
        self._last = key, self._last[1] + 1 if self._last[0] == key else 1
        return self._last[1] >= TRIALS_MAX
