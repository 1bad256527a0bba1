"""Uploads wait for the end of a burst of writes, but never longer than the mirror delay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.upload_pace import LOOK_S, QUIET_NS, UploadPace
from tests.support.trio_clock import TrioClock

DELAY_S = 10.0
NS = 1_000_000_000


class Burst:
    """A volume that is written to all the time until it is told to stop."""

    def __init__(self) -> None:
        self.clock = TrioClock()
        self.ended_ns: int | None = None
        self.pace = UploadPace(self.clock, written_ns=self._written_ns, delay_s=DELAY_S)

    def _written_ns(self) -> int:
        return self.clock.boottime_ns() if self.ended_ns is None else self.ended_ns

    def stop(self) -> None:
        self.ended_ns = self.clock.boottime_ns()

    async def waited_s(self, oldest_ns: int, *, hurried: Callable[[], bool] = lambda: False) -> float:
        start_s = trio.current_time()
        await self.pace.wait(oldest_ns, hurried=hurried)
        return trio.current_time() - start_s


@pytest.fixture
def burst() -> Burst:
    return Burst()


async def test_a_quiet_volume_waits_for_nothing(burst: Burst, autojump_clock: MockClock) -> None:
    burst.stop()
    await trio.sleep(QUIET_NS / NS)
    assert await burst.waited_s(burst.clock.now_ns()) == 0


async def test_the_end_of_the_burst_is_waited_for(burst: Burst, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:

        async def stop_later() -> None:
            await trio.sleep(2)
            burst.stop()

        nursery.start_soon(stop_later)
        waited_s = await burst.waited_s(burst.clock.now_ns())
    assert 2 < waited_s <= 2 + QUIET_NS / NS + 2 * LOOK_S


async def test_a_change_becomes_no_older_than_the_delay(burst: Burst, autojump_clock: MockClock) -> None:
    assert DELAY_S - LOOK_S < await burst.waited_s(burst.clock.now_ns()) < DELAY_S + 2 * LOOK_S
    six_s_old = burst.clock.now_ns() - 6 * NS
    assert 4 - LOOK_S < await burst.waited_s(six_s_old) < 4 + 2 * LOOK_S
    assert await burst.waited_s(burst.clock.now_ns() - 11 * NS) == 0


async def test_a_clock_that_was_set_back_makes_it_no_longer(burst: Burst, autojump_clock: MockClock) -> None:
    assert await burst.waited_s(burst.clock.now_ns() + 3600 * NS) <= DELAY_S + 2 * LOOK_S


async def test_who_is_in_a_hurry_is_not_held_up(burst: Burst, autojump_clock: MockClock) -> None:
    hurried = False

    async def hurry() -> None:
        nonlocal hurried
        await trio.sleep(1)
        hurried = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hurry)
        waited_s = await burst.waited_s(burst.clock.now_ns(), hurried=lambda: hurried)
    assert 1 <= waited_s <= 1 + 2 * LOOK_S
    assert await burst.waited_s(burst.clock.now_ns(), hurried=lambda: True) == 0
