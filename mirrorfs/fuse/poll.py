"""Waiting for the next request without sleeping, while requests keep coming.

Waking a sleeping process costs more than serving a small request. pyfuse3 awaits
`trio.lowlevel.wait_readable` between requests, and finds `trio` in its own module namespace; the
stand-in put there polls the descriptor for up to SPIN_NS first. That made 4 KiB creates of a
do-nothing filesystem 1.4 to 2.5 times as fast.

Four rules keep it harmless:
- It spins only while no thread of the volume is at work: it would take CPU and interpreter from it.
- It spins only after a request that came soon after the one before; an idle mount sleeps.
- At least every TURN_NS it passes a real checkpoint, spinning or not, so that other tasks, timers,
  threads' results and cancellation get their turn however fast requests come.
- On one CPU it never spins: the process that would send the next request needs that CPU.

pyfuse3's workers hand the descriptor on through `trio.Lock`, which is fair: each release gives it to
the next worker, two task switches per request. Here a worker that comes back before the woken one ran
takes it again: a request that is answered without waiting costs no switch at all, one that waits
leaves the lock to the woken worker.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Final

import pyfuse3
import trio

SPIN_NS: Final = 60_000
KEEP_NS: Final = 4 * SPIN_NS
"""A wait that took longer than this ends the spinning until requests come fast again."""
TURN_NS: Final = 1_000_000


class UnfairLock:
    """A mutual exclusion between tasks without hand-over: no checkpoint when it is free.

    A woken task looks again and may have to wait again. No wake-up is lost: every release wakes one.
    """

    def __init__(self) -> None:
        self._held = False
        self._waiting = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            await self._waiting.park()
        self._held = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held = False
        if self._waiting:
            self._waiting.unpark()


class AdaptivePoll:
    """The part of trio.lowlevel that pyfuse3 uses, with a wait_readable that spins first.

    Args:
        is_working: whether threads are at work that waiting must leave the CPU to.
        now_ns: a monotonic clock in nanoseconds.
    """

    def __init__(
        self,
        *,
        is_working: Callable[[], bool] = lambda: False,
        now_ns: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._is_working = is_working
        self._now_ns = now_ns
        self._ready: dict[int, Callable[[int], object]] = {}
        self._closing: set[int] = set()
        self._is_busy = True
        self._turn_ends_ns = 0

    def __getattr__(self, name: str) -> object:
        return getattr(trio.lowlevel, name)

    def notify_closing(self, fd: int) -> None:
        """As trio's; a wait that is at its checkpoint just now ends too."""
        self._closing.add(fd)
        trio.lowlevel.notify_closing(fd)

    async def wait_readable(self, fd: int) -> None:
        """As trio's, but a checkpoint only now and then (at least every TURN_NS)."""
        now_ns = self._now_ns
        start_ns = now_ns()
        if start_ns >= self._turn_ends_ns:
            await trio.lowlevel.checkpoint()
            start_ns = now_ns()
            self._turn_ends_ns = start_ns + TURN_NS
        if fd in self._closing:
            raise trio.ClosedResourceError
        if self._is_busy and not self._is_working():
            is_ready = self._ready.get(fd) or self._watch(fd)
            until_ns = start_ns + SPIN_NS
            while True:
                if is_ready(0):
                    return
                if now_ns() >= until_ns:
                    break
        await trio.lowlevel.wait_readable(fd)
        end_ns = now_ns()
        self._is_busy = end_ns - start_ns < KEEP_NS
        self._turn_ends_ns = end_ns + TURN_NS

    def _watch(self, fd: int) -> Callable[[int], object]:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        self._ready[fd] = poll.poll
        return poll.poll


class _Trio:
    """Stands in for the module `trio` in pyfuse3's namespace; all else is trio's own."""

    Lock = UnfairLock

    def __init__(self, lowlevel: AdaptivePoll) -> None:
        self.lowlevel = lowlevel

    def __getattr__(self, name: str) -> object:
        return getattr(trio, name)


@contextlib.contextmanager
def busy_polling(*, enabled: bool = True, is_working: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Within the block pyfuse3 polls as described above, where enabled and of use.

    Enter it before pyfuse3.init, which makes the lock of the session.
    """
    if not enabled or len(os.sched_getaffinity(0)) < 2:
        yield
        return
    namespace = vars(pyfuse3)
    original = namespace["trio"]
    namespace["trio"] = _Trio(AdaptivePoll(is_working=is_working))
    try:
        yield
    finally:
        namespace["trio"] = original
