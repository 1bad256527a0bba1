"""Limits: which rate holds when, and what reserving by turns adds up to."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from mirrorfs.core.pacing import URGENT_SHARE, Pacing
from mirrorfs.core.timetable import Rates, Timetable, Window
from mirrorfs.engine.limits import Limits
from mirrorfs.ports import THROTTLE_PIECE

KIB = 1024
PRACTICE = Rates(500 * KIB, 1000 * KIB)
NIGHT = Rates(0, 4000 * KIB)
OTHERWISE = Rates(2000 * KIB, 0)
MON_TO_FRI = frozenset(range(5))
TABLE = Timetable(
    OTHERWISE,
    (
        Window(MON_TO_FRI, 8 * 60, 19 * 60, PRACTICE),
        Window(frozenset({4, 5}), 22 * 60, 6 * 60, NIGHT),
    ),
)
FRIDAY = datetime(2026, 11, 27)


@pytest.mark.parametrize(
    ("moment", "rates"),
    [
        (FRIDAY.replace(hour=7, minute=59, second=59), OTHERWISE),
        (FRIDAY.replace(hour=8), PRACTICE),
        (FRIDAY.replace(hour=18, minute=59, second=59), PRACTICE),
        (FRIDAY.replace(hour=19), OTHERWISE),
        (FRIDAY.replace(hour=22), NIGHT),
        (FRIDAY + timedelta(days=1), NIGHT),
        (FRIDAY + timedelta(days=1, hours=6), OTHERWISE),
        (FRIDAY + timedelta(days=1, hours=12), OTHERWISE),
        # Saturday's ends on Sunday morning, and Thursday has none.
        (FRIDAY + timedelta(days=2, hours=5, minutes=59), NIGHT),
        (FRIDAY + timedelta(hours=5), OTHERWISE),
        (FRIDAY + timedelta(days=2, hours=22), OTHERWISE),
    ],
)
def test_which_rates_hold(moment: datetime, rates: Rates) -> None:
    assert TABLE.rates_at(moment) == rates


def test_sunday_night_ends_on_monday() -> None:
    table = Timetable(windows=(Window(frozenset({6}), 23 * 60, 60, NIGHT),))
    monday = FRIDAY + timedelta(days=3)
    assert table.rates_at(monday.replace(minute=59)) == NIGHT
    assert table.rates_at(monday.replace(hour=1)) == Rates()


def test_a_whole_day_and_the_first_match() -> None:
    table = Timetable(
        OTHERWISE,
        (
            Window(frozenset({4}), 12 * 60, 13 * 60, NIGHT),
            Window(frozenset({4}), 0, 24 * 60, PRACTICE),
            # Equal times are a day from then on.
            Window(frozenset({5}), 60, 60, NIGHT),
        ),
    )
    day = [table.rates_at(FRIDAY + timedelta(minutes=minute)) for minute in range(3 * 24 * 60)]
    assert day[: 24 * 60] == [PRACTICE] * 720 + [NIGHT] * 60 + [PRACTICE] * 660
    assert day[24 * 60 :] == [OTHERWISE] * 60 + [NIGHT] * 24 * 60 + [OTHERWISE] * (23 * 60)


def test_the_lowest() -> None:
    assert TABLE.lowest() == Rates(500 * KIB, 1000 * KIB)
    assert Timetable().lowest() == Rates()


# --- pacing ----------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, THROTTLE_PIECE)), min_size=1, max_size=40))
def test_no_stretch_of_time_carries_more_than_the_rate(calls: list[tuple[float, int]]) -> None:
    """What is begun in a stretch, but for the last piece, fits it. Each kind by itself: urgent bytes go
    beside those that were already told when to go."""
    rate = 100_000
    for kind in (False, True):
        pacing, now_s, begun = Pacing(), 0.0, []
        for pause_s, size in calls:
            now_s += pause_s
            wait_s = pacing.reserve(size, rate_bytes_s=rate, now_s=now_s, urgent=kind)
            assert wait_s >= 0
            begun.append((now_s + wait_s, size))
        for first in range(len(begun)):
            for last in range(first, len(begun)):
                stretch_s = begun[last][0] - begun[first][0]
                sent = sum(size for _, size in begun[first:last])
                assert sent <= rate * stretch_s + 1


def test_urgent_passes_and_leaves_the_rest_its_share() -> None:
    pacing = Pacing()
    rate = 64 * THROTTLE_PIECE
    # Sixteen pieces wait: a quarter of a second.
    waits = [pacing.reserve(THROTTLE_PIECE, rate_bytes_s=rate, now_s=0, urgent=False) for _ in range(16)]
    assert waits == [number / 64 for number in range(16)]
    assert pacing.reserve(THROTTLE_PIECE, rate_bytes_s=rate, now_s=0, urgent=True) == 0
    second = pacing.reserve(THROTTLE_PIECE, rate_bytes_s=rate, now_s=0, urgent=True)
    assert second == pytest.approx(1 / 64 / URGENT_SHARE)
    # What is not urgent goes after all of it.
    assert pacing.reserve(THROTTLE_PIECE, rate_bytes_s=rate, now_s=0, urgent=False) == 18 / 64


def test_no_limit_forgets_what_was_reserved() -> None:
    pacing = Pacing()
    for _ in range(10):
        pacing.reserve(1000, rate_bytes_s=100, now_s=0, urgent=False)
    assert pacing.reserve(1000, rate_bytes_s=100, now_s=0, urgent=False) == 100
    assert pacing.reserve(1000, rate_bytes_s=0, now_s=1, urgent=False) == 0
    assert pacing.reserve(1000, rate_bytes_s=100, now_s=2, urgent=False) == 0


# --- at work, on a virtual clock ---------------------------------------------------------------


class WallClock:
    """Local time that goes with trio's clock."""

    def __init__(self, begin: datetime) -> None:
        self._begin = begin

    def now_ns(self) -> int:
        return int((self._begin + timedelta(seconds=trio.current_time())).timestamp() * 1e9)

    def boottime_ns(self) -> int:
        return int(trio.current_time() * 1e9)


async def sender(reserve: Callable[..., float], urgent: bool, sent: list[tuple[float, int]]) -> None:
    """Sends for ever, on a line that takes no time itself."""
    while True:
        await trio.sleep(reserve(THROTTLE_PIECE, urgent=urgent))
        sent.append((trio.current_time(), THROTTLE_PIECE))
        await trio.sleep(0.001)


def rate(sent: list[tuple[float, int]], begin_s: float, end_s: float) -> float:
    return sum(size for at_s, size in sent if begin_s <= at_s < end_s) / (end_s - begin_s)


async def test_stores_share_the_rate_and_a_window_counts_at_once(autojump_clock: MockClock) -> None:
    limits = Limits(TABLE, WallClock(FRIDAY.replace(hour=7, minute=58)))
    assert limits.rates() == OTHERWISE
    sent: list[list[tuple[float, int]]] = [[], []]
    began_s = trio.current_time()
    with trio.move_on_after(600):
        async with trio.open_nursery() as nursery:
            for store in sent:
                for _ in range(4):
                    nursery.start_soon(sender, limits.upload, False, store)
    every = sent[0] + sent[1]
    assert rate(every, began_s, began_s + 120) == pytest.approx(2000 * KIB, rel=0.01)
    # Eight pieces were reserved at the rate of before.
    assert rate(every, began_s + 120, began_s + 180) == pytest.approx(500 * KIB, rel=0.03)
    assert rate(every, began_s + 180, began_s + 600) == pytest.approx(500 * KIB, rel=0.01)
    assert rate(sent[0], began_s, began_s + 600) == pytest.approx(
        rate(sent[1], began_s, began_s + 600), rel=0.01
    )


async def test_readers_pass_a_scrub_which_goes_on(autojump_clock: MockClock) -> None:
    limits = Limits(Timetable(PRACTICE), WallClock(FRIDAY))
    scrub: list[tuple[float, int]] = []
    readers: list[tuple[float, int]] = []
    began_s = trio.current_time()
    with trio.move_on_after(400):
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(sender, limits.download, False, scrub)
            await trio.sleep(100)
            asked_s = trio.current_time()
            for _ in range(4):
                nursery.start_soon(sender, limits.download, True, readers)
    assert rate(scrub, began_s, began_s + 100) == pytest.approx(1000 * KIB, rel=0.01)
    assert readers[0][0] == asked_s
    assert rate(readers, began_s + 100, began_s + 400) == pytest.approx(875 * KIB, rel=0.01)
    assert rate(scrub, began_s + 100, began_s + 400) == pytest.approx(125 * KIB, rel=0.05)


async def test_who_gives_up_costs_a_piece(autojump_clock: MockClock) -> None:
    limits = Limits(Timetable(PRACTICE), WallClock(FRIDAY))
    given_up: list[tuple[float, int]] = []
    stays: list[tuple[float, int]] = []
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(10):
            async with trio.open_nursery() as others:
                for _ in range(8):
                    others.start_soon(sender, limits.upload, False, given_up)
        nursery.start_soon(sender, limits.upload, False, stays)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    # A piece of each of the eight, and the one that had just gone out.
    assert stays[0][0] - (began_s + 10) <= 9 * THROTTLE_PIECE / PRACTICE.upload_bytes_s
    assert rate(stays, stays[0][0], began_s + 20) == pytest.approx(500 * KIB, rel=0.02)


async def test_a_drill_and_its_mount_have_one_half_each(autojump_clock: MockClock) -> None:
    clock = WallClock(FRIDAY)
    mount = Limits(Timetable(PRACTICE), clock)
    drill = Limits(Timetable(PRACTICE), clock, is_shared=True)
    reads: list[tuple[float, int]] = []
    drilled: list[tuple[float, int]] = []
    sends: list[tuple[float, int]] = []
    began_s = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender, mount.download, False, reads)
        nursery.start_soon(sender, mount.upload, False, sends)
        await trio.sleep(100)
        with mount.shared():
            with trio.move_on_after(300):
                async with trio.open_nursery() as child:
                    for _ in range(4):
                        child.start_soon(sender, drill.download, False, drilled)
            assert mount.download_s(875 * KIB) == pytest.approx(2)
        await trio.sleep(100)
        nursery.cancel_scope.cancel()
    for begin_s, share in ((0, 1), (100, 0.5), (400, 1)):
        end_s = 400 if share < 1 else begin_s + 100
        found = rate(reads, began_s + begin_s, began_s + end_s)
        assert found == pytest.approx(1000 * KIB * share, rel=0.02)
    assert rate(drilled, began_s + 100, began_s + 400) == pytest.approx(500 * KIB, rel=0.01)
    assert rate(sends, began_s, began_s + 500) == pytest.approx(500 * KIB, rel=0.01)


async def test_half_of_no_limit_is_none_and_half_of_a_limit_is_one(autojump_clock: MockClock) -> None:
    for limit_bytes_s, takes_s in ((0, 0), (1, 10), (3, 5)):
        limits = Limits(Timetable(Rates(0, limit_bytes_s)), WallClock(FRIDAY), is_shared=True)
        limits.download(10, urgent=False)
        assert limits.download(10, urgent=False) == takes_s


async def test_how_long_a_reader_takes(autojump_clock: MockClock) -> None:
    limits = Limits(Timetable(PRACTICE), WallClock(FRIDAY))
    assert limits.download_s(875 * KIB) == pytest.approx(1)
    limits.download(THROTTLE_PIECE, urgent=True)
    assert limits.download_s(875 * KIB) == pytest.approx(1 + 64 / 875)
    assert Limits(Timetable(), WallClock(FRIDAY)).download_s(1 << 30) == 0
