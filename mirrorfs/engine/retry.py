"""A store that tries again: deadlines, back-off and counters around any `Store`.

What may be repeated follows from the contract of `Store`: StoreUnavailable means that nothing was
written, so that every call may be; UnknownOutcome may have taken effect, so that only calls may be
whose repetition is harmless: all but `compare_and_swap`. A refusal (denied, full, not found, exists)
is an answer, not a fault, and is never repeated.

A write that once had an unknown outcome keeps it: when the attempts end, the last error may say that
nothing was written, yet an earlier attempt may have been.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import trio

from mirrorfs.errors import StoreError, StoreUnavailable, UnknownOutcome
from mirrorfs.ports import (
    OBJECT_SIZE_MAX,
    ObjectInfo,
    ObjectKey,
    ObjectVersion,
    Sealed,
    Store,
    StoreTraits,
    Version,
)

T = TypeVar("T")

ATTEMPTS_MAX = 5
BACKOFF_FIRST_S = 0.5
"""Ceiling of the pause after the first failure; it doubles with each further one."""
BACKOFF_MAX_S = 30.0
REQUEST_DEADLINE_S = 60.0
"""Longest duration of one attempt, beside the time for its bytes."""
SLOWEST_RATE_BYTES_PER_S = 32 * 1024
"""Slower than this, a transfer counts as stuck."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long and how often to try."""

    attempts_max: int = ATTEMPTS_MAX
    """At least 1."""
    backoff_first_s: float = BACKOFF_FIRST_S
    backoff_max_s: float = BACKOFF_MAX_S
    deadline_s: float = REQUEST_DEADLINE_S
    slowest_rate_bytes_per_s: int = SLOWEST_RATE_BYTES_PER_S

    def backoff_s(self, *, failure_count: int, random: float) -> float:
        """Pause after that many failures (from 1), given a random number in [0, 1): full jitter."""
        # The exponent is bounded so that no number of failures overflows a float.
        doubled = self.backoff_first_s * 2.0 ** min(failure_count - 1, 64)
        return random * min(self.backoff_max_s, doubled)

    def attempt_deadline_s(self, size_bytes: int) -> float:
        """Longest duration of an attempt that moves up to size_bytes."""
        return self.deadline_s + size_bytes / self.slowest_rate_bytes_per_s


@dataclass(slots=True)
class StoreMetrics:
    """Counts since the store was made; attempts count, not calls."""

    puts: int = 0
    """Attempts to write: put, put_over, compare_and_swap."""
    gets: int = 0
    """Attempts to read: get, get_range, read_mutable."""
    others: int = 0
    """Attempts of head, list, versions, lock_until, delete, probe."""
    bytes_up: int = 0
    """Bytes of confirmed writes."""
    bytes_down: int = 0
    """Bytes of objects read."""
    errors: int = 0
    """Attempts that failed by a fault of the store or the way to it, not by its answer."""


class RetryingStore:
    """`Store` around a `Store`: the same contract, with deadlines, repetition and metrics.

    Every method raises what the wrapped one raised last, UnknownOutcome before StoreUnavailable.
    """

    def __init__(
        self, store: Store, *, random: Callable[[], float], policy: RetryPolicy | None = None
    ) -> None:
        """Wrap a store, which this one closes. random returns numbers in [0, 1)."""
        self.name = store.name
        self.lock = store.lock
        self.metrics = StoreMetrics()
        self._store = store
        self._random = random
        self._policy = RetryPolicy() if policy is None else policy

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""

        async def attempt() -> None:
            self.metrics.puts += 1
            await self._store.put(key, data)
            self.metrics.bytes_up += len(data)

        await self._repeat(attempt, size_bytes=len(data), writes=True)

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """See Store.put_over."""

        async def attempt() -> bool:
            self.metrics.puts += 1
            done = await self._store.put_over(key, data)
            self.metrics.bytes_up += len(data) * done
            return done

        return await self._repeat(attempt, size_bytes=len(data), writes=True)

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""

        async def attempt() -> bytes:
            self.metrics.gets += 1
            return self._count_down(await self._store.get(key, size_max=size_max, version=version))

        return await self._repeat(attempt, size_bytes=size_max)

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""

        async def attempt() -> bytes:
            self.metrics.gets += 1
            return self._count_down(
                await self._store.get_range(key, offset=offset, size_bytes=size_bytes, version=version)
            )

        return await self._repeat(attempt, size_bytes=size_bytes)

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """See Store.versions."""

        async def attempt() -> Sequence[ObjectVersion]:
            self.metrics.others += 1
            return await self._store.versions(key)

        return await self._repeat(attempt)

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """See Store.lock_until."""

        async def attempt() -> None:
            self.metrics.others += 1
            await self._store.lock_until(key, until_ns=until_ns, size_bytes=size_bytes)

        await self._repeat(attempt, writes=True)

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""

        async def attempt() -> ObjectInfo:
            self.metrics.others += 1
            return await self._store.head(key)

        return await self._repeat(attempt)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""

        async def attempt() -> Sequence[ObjectInfo]:
            self.metrics.others += 1
            return await self._store.list(prefix, start_after=start_after)

        return await self._repeat(attempt)

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""

        async def attempt() -> None:
            self.metrics.others += 1
            await self._store.delete(key)

        await self._repeat(attempt, writes=True)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""

        async def attempt() -> tuple[bytes, Version]:
            self.metrics.gets += 1
            data, version = await self._store.read_mutable(key)
            return self._count_down(data), version

        return await self._repeat(attempt)

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap. After UnknownOutcome, which is not retried: read it again."""

        async def attempt() -> Version:
            self.metrics.puts += 1
            version = await self._store.compare_and_swap(key, data, expected=expected)
            self.metrics.bytes_up += len(data)
            return version

        # Repeated after it took effect, a swap would meet its own new version and report a rival.
        return await self._repeat(attempt, size_bytes=len(data), writes=True, repeats_unknown=False)

    async def probe(self) -> StoreTraits:
        """See Store.probe."""

        async def attempt() -> StoreTraits:
            self.metrics.others += 1
            return await self._store.probe()

        return await self._repeat(attempt, writes=True)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self._store.aclose()

    def _count_down(self, data: bytes) -> bytes:
        self.metrics.bytes_down += len(data)
        return data

    async def _repeat(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        size_bytes: int = 0,
        writes: bool = False,
        repeats_unknown: bool = True,
    ) -> T:
        unknown: UnknownOutcome | None = None
        failure_count = 0
        while True:
            try:
                return await self._attempt_once(attempt, size_bytes=size_bytes, writes=writes)
            except UnknownOutcome as exc:
                unknown = exc
                if not repeats_unknown:
                    raise
                last: StoreError = exc
            except StoreUnavailable as exc:
                last = exc if unknown is None else unknown
            failure_count += 1
            if failure_count >= self._policy.attempts_max:
                raise last
            await trio.sleep(self._policy.backoff_s(failure_count=failure_count, random=self._random()))

    async def _attempt_once(self, attempt: Callable[[], Awaitable[T]], *, size_bytes: int, writes: bool) -> T:
        try:
            with trio.move_on_after(self._policy.attempt_deadline_s(size_bytes)):
                return await attempt()
            if writes:
                raise UnknownOutcome(f"Store {self.name} did not confirm a change in time.")
            raise StoreUnavailable(f"Store {self.name} did not answer in time: check the network.")
        except (StoreUnavailable, UnknownOutcome):
            self.metrics.errors += 1
            raise
