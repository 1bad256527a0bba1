"""How one store fails: the back-offs of its uploads, of looks at it and of its lease, and since when.

Losses, of what it said that it took, are counted apart: that it takes the next object does not end them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from mirrorfs.engine.backoff import Backoff
from mirrorfs.errors import MirrorfsError
from mirrorfs.ports import Clock

WARN_AFTER_FAILURES = 3
_logger = logging.getLogger(__name__)


class StoreFaults:
    """The faults of one store."""

    def __init__(self, clock: Clock, random: Callable[[], float], *, store: str, may_be_away: bool) -> None:
        """
        Args:
            random: uniform in [0, 1), for the back-off.
            store: its name, for the log.
            may_be_away: that it does not answer is no reason for a warning.
        """
        self._clock = clock
        self._store = store
        self._level = logging.INFO if may_be_away else logging.WARNING
        self.puts, self.looks, self.lease = Backoff(random), Backoff(random), Backoff(random)
        self.losses = Backoff(random)
        self._all = (self.lease, self.puts, self.losses, self.looks)
        self._since_ns: int | None = None

    @property
    def fault(self) -> MirrorfsError | None:
        """The last fault of what is failing now."""
        return next((backoff.fault for backoff in self._all if backoff.fault), None)

    @property
    def since_ns(self) -> int | None:
        """Since when something has been failing (CLOCK_REALTIME); None: nothing is."""
        return self._since_ns if self.fault else None

    def failed(self, backoff: Backoff, fault: MirrorfsError, started_s: float) -> None:
        """Note a fault of a request that began at `started_s` (trio's clock)."""
        if not any(other.failures for other in self._all):
            self._since_ns = self._clock.now_ns()
        before = backoff.failures
        backoff.failed(fault, started_s=started_s)
        if before < WARN_AFTER_FAILURES <= backoff.failures:
            _logger.log(self._level, "store %s is falling behind: %s", self._store, fault)

    def recovered(self, backoff: Backoff) -> None:
        """Note that a request succeeded."""
        if backoff.failures >= WARN_AFTER_FAILURES:
            _logger.info("store %s takes objects again", self._store)
        backoff.succeeded()

    def retry_now(self) -> None:
        """Let the next tries start at once."""
        for backoff in self._all:
            backoff.retry_now()

    def upload_delay_s(self) -> float:
        """Seconds until the next upload may start."""
        return max(self.puts.delay_s(), self.lease.delay_s(), self.losses.delay_s())

    @property
    def is_trial(self) -> bool:
        """Whether the next upload only finds out whether the store is back."""
        return bool(self.puts.failures or self.lease.failures or self.losses.failures)
