"""Once a day every store is asked for what it took, however seldom and shortly the PC is on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.daily_look import DAYS_SAID, FIRST_S, LOOKED_PATH, POLL_S, Unfinished
from mirrorfs.engine.scrub import SIZES, BadObject
from mirrorfs.errors import DiskError, StoreUnavailable
from mirrorfs.ports import ObjectInfo
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc

HOUR_S = 3600.0
LOST = "Object segments/.* of s3: missing"


class AskedStore(MemoryStore):
    """Notes when it was looked at, and can be away for that."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.looks_s: list[float] = []
        self.away = False
        self.faults: Iterator[bool] = iter(())
        """Whether each of the next listings fails."""
        self.slow = False

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        if prefix == "segments/":  # which nobody else lists once the volume is mounted
            if self.away:
                raise StoreUnavailable(f"Store {self.name} is away.")
            if next(self.faults, False):
                raise StoreUnavailable(f"Store {self.name} answers 503 SlowDown.")
            if self.slow:
                await trio.sleep(HOUR_S)
            # One look may list it in several pages.
            if not self.looks_s or trio.current_time() - self.looks_s[-1] > 60.0:
                self.looks_s.append(trio.current_time())
        return await super().list(prefix, start_after=start_after)

    def lose(self) -> str:
        key = next(key for key in sorted(self.objects) if key.startswith("segments/"))
        del self.objects[key]
        return key


class Practice(VirtualPc):
    """A PC that is on for some hours, and off for the rest of the day."""

    def __init__(self, root: Path) -> None:
        self.home, self.s3 = AskedStore("home"), AskedStore("s3")
        super().__init__(root, [self.home, self.s3])

    async def day(self, name: bytes, *, hours: float = 0.5, away: bool = False) -> None:
        began_s = trio.current_time()
        async with self.mounted() as volume:
            await write_file(volume, name, b"x" * 1000)
            await volume.flush()
            self.home.looks_s.clear()
            self.s3.looks_s.clear()
            self.s3.away = away
            await trio.sleep(hours * HOUR_S)
            self.s3.away = False
        # Mounted again at the same time tomorrow, give or take what mounting takes.
        await trio.sleep(began_s + 24.2 * HOUR_S - trio.current_time())


@pytest.mark.expects_warnings(LOST)
async def test_a_pc_that_is_off_every_night(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Practice(tmp_path)
    await it.day(b"monday")
    assert (len(it.home.looks_s), len(it.s3.looks_s)) == (1, 1)
    lost = it.s3.lose()
    await it.day(b"tuesday")
    assert lost in it.s3.objects
    assert (len(it.home.looks_s), len(it.s3.looks_s)) == (1, 1)


async def test_once_a_day_is_enough(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Practice(tmp_path)
    looks = 0
    for number in range(4):
        async with it.mounted() as volume:
            await write_file(volume, b"%d" % number, b"x" * 1000)
            await volume.flush()
            it.home.looks_s.clear()
            await trio.sleep(0.6 * HOUR_S)
            looks += len(it.home.looks_s)
        await trio.sleep(HOUR_S)
    assert looks == 1
    async with it.mounted() as volume:
        await volume.flush()
        it.home.looks_s.clear()
        await trio.sleep(50 * HOUR_S)
        assert len(it.home.looks_s) == 2
        gap_s = it.home.looks_s[1] - it.home.looks_s[0]
        assert 24 * HOUR_S <= gap_s <= 24 * HOUR_S + POLL_S + 1


@pytest.mark.expects_warnings(LOST)
async def test_a_store_that_was_away_is_looked_at_when_it_is_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Practice(tmp_path)
    async with it.mounted() as volume:
        await write_file(volume, b"a", b"x" * 1000)
        await volume.flush()
        it.home.looks_s.clear()
        it.s3.away = True
        lost = it.s3.lose()
        await trio.sleep(FIRST_S + 3 * POLL_S + 10)
        assert len(it.home.looks_s) == 1
        assert lost not in it.s3.objects
        it.s3.away = False
        await trio.sleep(POLL_S)
        await volume.flush()
        assert lost in it.s3.objects
        assert len(it.home.looks_s) == 1


@pytest.mark.expects_warnings(LOST)
async def test_a_store_that_throttles_is_looked_at_to_the_end(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Practice(tmp_path)
    async with it.mounted() as volume:
        await write_file(volume, b"a", b"x" * 1000)
        await volume.flush()
        lost = it.s3.lose()
        it.s3.faults = cycle([True, True, True, True, False])
        await trio.sleep(FIRST_S + 60)
        await volume.flush()
        assert lost in it.s3.objects


@pytest.mark.expects_warnings(
    "The daily look at s3 did not come to its end on [3-6] days in a row: .* is away"
)
async def test_that_looks_do_not_come_to_their_end_for_days_is_said(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    it = Practice(tmp_path)

    def said() -> int:
        return sum("days in a row" in record.message for record in caplog.records)

    began_ns = it.clock.now_ns()
    for number in range(5):
        assert said() == max(0, number - DAYS_SAID + 1)
        await it.day(b"%d" % number, hours=0.2, away=True)
    async with it.mounted() as volume:
        it.s3.away = True
        await trio.sleep(FIRST_S + 60)
        since_ns = volume.daily_look.unfinished()
        assert list(since_ns) == ["s3"]
        assert 0 <= since_ns["s3"] - began_ns < 3600 * 10**9, "when the first of them began"
        it.s3.away = False
        await trio.sleep(POLL_S)
        assert volume.daily_look.unfinished() == {}
    said_before = said()
    await it.day(b"another", hours=0.2, away=True)
    await it.day(b"one more", hours=0.2, away=True)
    assert said() == said_before, "in a row"


def test_days_are_counted_under_any_clock() -> None:
    day_ns = 24 * 3600 * 10**9
    one = Unfinished(10 * day_ns, 1, 10 * day_ns)
    assert one.again(10 * day_ns + day_ns // 2) == one
    assert one.again(11 * day_ns) == Unfinished(10 * day_ns, 2, 11 * day_ns)
    assert one.again(5 * day_ns) == Unfinished(5 * day_ns, 1, 5 * day_ns), "the clock was put back"


async def test_it_gives_way_to_a_person(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Whoever wants to verify need not wait for it; it comes again."""
    it = Practice(tmp_path)
    async with it.mounted() as volume:
        await write_file(volume, b"a", b"x" * 1000)
        await volume.flush()
        assert not volume.daily_look.give_way()
        it.home.looks_s.clear()
        it.home.slow = True
        await trio.sleep(FIRST_S + 10)
        assert volume.scrubbing.locked()
        it.home.slow = False
        assert volume.daily_look.give_way()
        async with volume.scrubbing:
            await volume.scrubber.run(SIZES)
        looks = len(it.home.looks_s)
        await trio.sleep(POLL_S + 10)
        assert len(it.home.looks_s) > looks


async def test_mending_is_in_nobodys_way(tmp_path: Path, autojump_clock: MockClock) -> None:
    """What was lost may take days to be sent; others can verify meanwhile."""
    it = Practice(tmp_path)
    mends: list[str] = []

    async def mend(bad: Sequence[BadObject]) -> dict[BadObject, str | None]:
        mends.extend(one.key for one in bad)
        await trio.sleep_forever()
        return {}

    async with it.mounted() as volume:
        await write_file(volume, b"a", b"x" * 1000)
        await volume.flush()
        lost = it.s3.lose()
        volume.mender.mend = mend  # type: ignore[method-assign]
        await trio.sleep(FIRST_S + 10)
        assert mends == [lost]
        assert not volume.scrubbing.locked() and not volume.daily_look.give_way()


@pytest.mark.parametrize(
    "kept",
    [
        b"",
        b"[1]",
        b"{",
        b'{"20202020202020202020202020202020": "x"}',
        b'{"unfinished": 5}',
        b'{"unfinished": {"local disk": [1, "x", true]}}',
    ],
)
async def test_what_is_remembered_may_be_anything(
    kept: bytes, tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Practice(tmp_path)
    it.disk.write_whole(LOOKED_PATH, kept)
    await it.day(b"a")
    assert len(it.home.looks_s) == 1


@pytest.mark.parametrize("stepped_s", [-40 * HOUR_S, 40 * HOUR_S])
async def test_a_clock_that_was_set_puts_no_look_off(
    stepped_s: float, tmp_path: Path, autojump_clock: MockClock
) -> None:
    it = Practice(tmp_path)
    it.clock.stepped_s = 100 * HOUR_S
    await it.day(b"a")
    it.clock.stepped_s += stepped_s
    await it.day(b"b")
    assert len(it.home.looks_s) == 1


@pytest.mark.expects_warnings("The task of the daily look at the stores failed")
async def test_a_full_disk_makes_it_look_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    it = Practice(tmp_path)
    async with it.mounted() as volume:
        await volume.flush()
        it.disk.full_for = LOOKED_PATH
        await trio.sleep(FIRST_S + 10)
        assert it.disk.refused == 1
        it.disk.full_for = ""
        await trio.sleep(2 * FIRST_S)
        with pytest.raises(DiskError):
            it.disk.create(LOOKED_PATH)
        file = it.disk.open(LOOKED_PATH)
        assert len(json.loads(file.read(offset=0, size_bytes=1000))) == 3
        file.close()
