"""Clock, threads and entropy of a simulated machine: one seed and one program give one run.

`deterministic` makes trio run its tasks in an order drawn from the seed. Between trio.run calls the
simulated clock goes on (`boot`), entropy never repeats, and nothing really sleeps.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

import trio
import trio._core._run as trio_run

T = TypeVar("T")

START_NS = 1_700_000_000_000_000_000
BOOT_NS = 60_000_000_000


def deterministic(seed: int) -> None:
    """From now on trio schedules by this seed.

    trio shuffles runnable tasks on purpose; these two names are what hypothesis-trio and pytest-trio
    use to make that repeatable as well.
    """
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)


class SimulatedClock:
    """ports.Clock on trio's virtual time."""

    def __init__(self) -> None:
        self._before_ns = START_NS

    def boot(self, *, ran_s: float) -> None:
        """The machine ran that long and was off for a while."""
        self._before_ns += int(ran_s * 1e9) + BOOT_NS

    def now_ns(self) -> int:
        return self._before_ns + int(trio.current_time() * 1e9)

    def boottime_ns(self) -> int:
        return self.now_ns()


class InlineOffload:
    """ports.Offload without threads: the work is one instant between two pauses of random length.

    So other tasks run before and after it, but never inside: real threads may interleave more finely.
    """

    def __init__(self, rng: random.Random) -> None:
        self._random = rng

    async def _pause(self) -> None:
        rng = self._random
        await trio.sleep(rng.choice((0.0, 0.0, 0.001, 0.02)) * rng.random())

    async def run(self, work: Callable[[], T]) -> T:
        # Once begun, offloaded work is not cancelled.
        with trio.CancelScope(shield=True):
            await self._pause()
            result = work()
            await self._pause()
        return result

    async def sync(self, work: Callable[[], T]) -> T:
        return await self.run(work)

    def is_working(self) -> bool:
        return False

    def syncs_are_brief(self) -> bool:
        return self._random.random() < 0.5

    def sync_here(self, work: Callable[[], T]) -> T:
        return work()


class SeededEntropy:
    """ports.Entropy: bytes that look random and never repeat within a seed."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._count = 0

    def __call__(self, size_bytes: int) -> bytes:
        self._count += 1
        text = b"%d %d" % (self._seed, self._count)
        return blake2b(text, digest_size=64).digest()[:size_bytes]
