"""Asking a store again what it did not answer: for readers that look at very many objects.

One fault in 100,000 requests must not end such a look. But a store that is away is not to be waited for with
each of its objects: once it has given no answer for as long as is asked, it is asked once only, until it
answers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio

from mirrorfs.engine.retry import RetryPolicy
from mirrorfs.errors import StoreUnavailable, UnknownOutcome

T = TypeVar("T")

POLICY: Final = RetryPolicy(attempts_max=5)
LAST_AFTER_S: Final = 180.0
"""No attempt begins later than this after the first one: a store that hangs takes its deadline each time."""


class AskAgain:
    """Repeats reading requests to the stores of one volume."""

    def __init__(self, random: Callable[[], float]) -> None:
        """`random`: uniform in [0, 1), for the back-off."""
        self._random = random
        self._silent: set[str] = set()
        """Places that gave no answer to the last request that was repeated to its end."""

    def forget(self, place: str) -> None:
        """Have patience with a place again."""
        self._silent.discard(place)

    async def ask(self, place: str, request: Callable[[], Awaitable[T]]) -> T:
        """Carry out a request that changes nothing.

        Raises: what the last attempt raises; only StoreUnavailable and UnknownOutcome are worth another one.
        """
        last_after_s = trio.current_time() + LAST_AFTER_S
        failure_count = 0
        while True:
            try:
                answer = await request()
            except (StoreUnavailable, UnknownOutcome):
                failure_count += 1
                is_last = failure_count >= POLICY.attempts_max or trio.current_time() > last_after_s
                if is_last or place in self._silent:
                    self._silent.add(place)
                    raise
            else:
                self._silent.discard(place)
                return answer
            await trio.sleep(POLICY.backoff_s(failure_count=failure_count, random=self._random()))
