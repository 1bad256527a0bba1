"""Whoever judges whether a PC may write has seen all that tells; what was settled once is not asked again.

Variants of test_unread_names.py: what is not answered, what is ours, and what somebody was told to pass over.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.store_tasks import StoreChange
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.control import LEASE_KEY
from mirrorfs.ports import ObjectKey
from tests.engine.test_unread_names import harm, overtaken
from tests.support.practice import Practice, names, save, seen_by_a_new_pc
from tests.support.store_simulated import Faults, SimulatedStore

# Stores that fail and objects that rot are said in many ways; what is sent and seen is judged here.
pytestmark = pytest.mark.expects_warnings(".*")


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


def segments(place: dict[str, bytes]) -> set[str]:
    """The keys of segments."""
    return {key for key in place if key.startswith("segments/")}


def rot_heads(place: dict[str, bytes]) -> None:
    """Have no head in a store that verifies."""
    for key in place:
        if key.startswith("heads/"):
            place[key] = b"\xff" * len(place[key])


class Unanswered:
    """Requests for objects that a store does not answer, a number of times."""

    def __init__(self, link: SimulatedStore, prefix: str, count: int) -> None:
        self.count = count
        get, get_range = link.get, link.get_range

        def fail(key: str) -> None:
            if key.startswith(prefix) and self.count:
                self.count -= 1
                raise StoreUnavailable(f"Store {link.name} cannot be reached.")

        async def got(key: ObjectKey, **options: Any) -> bytes:
            fail(key)
            return await get(key, **options)

        async def got_range(key: ObjectKey, **options: Any) -> bytes:
            fail(key)
            return await get_range(key, **options)

        link.get, link.get_range = got, got_range  # type: ignore[method-assign]


# --- what nobody else can have made ----------------------------------------------------------


async def test_a_rotating_disk_on_a_journey(autojump_clock: MockClock, practice: Practice) -> None:
    """What an earlier mount sent there is ours, although no other store has it yet."""
    one = practice.pc("one")
    one.rotating = frozenset({"s3"})
    async with one.mounted() as volume:
        await save(volume, b"a")
    one.cut_off("home")
    for number in range(3):
        async with one.mounted(wait=False) as volume:
            before = segments(practice.places["s3"])
            await save(volume, b"travel %d" % number)
            await trio.sleep(600)
            assert segments(practice.places["s3"]) - before


@pytest.mark.parametrize("is_late", [False, True])
async def test_own_heads_rot(autojump_clock: MockClock, practice: Practice, is_late: bool) -> None:
    """One PC alone, whose only store that answers has no head that verifies: by their names they are ours."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    place = practice.places["home"]
    rot_heads(place)
    one.cut_off("s3")
    if is_late:
        one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"b")
        one.links["home"].outage = False
        before = segments(place)
        await trio.sleep(600)
        assert segments(place) - before


# --- what was settled ------------------------------------------------------------------------


async def test_what_all_stores_settled(autojump_clock: MockClock, practice: Practice) -> None:
    """A mount saw both stores; when only the one answers whose heads rot, nothing new can be told of them."""
    await overtaken(practice)
    place = practice.places["home"]
    rot_heads(place)
    one = practice.pc("one")
    async with one.mounted(wait=False) as volume:
        assert names(volume) == [b"a", b"safe"]
        one.cut_off()
        await save(volume, b"b")
        await trio.sleep(300)
        one.links["home"].outage = False
        before = segments(place)
        await trio.sleep(600)
        assert segments(place) - before


async def test_mounted_more_often_than_own_writers_are_kept(
    autojump_clock: MockClock, practice: Practice
) -> None:
    one = practice.pc("one")
    for name in (b"a", b"b"):
        async with one.mounted() as volume:
            await save(volume, name)
    place = practice.places["home"]
    key = max(key for key in place if key.startswith("heads/"))
    place[key] = b"\xff" * len(place[key])
    one.cut_off()
    for number in range(9):
        async with one.mounted(wait=False) as volume:
            await save(volume, b"offline %d" % number)
    async with one.mounted(wait=False) as volume:
        one.links["home"].outage = False
        before = segments(place)
        await trio.sleep(600)
        assert segments(place) - before


async def test_an_invented_name(autojump_clock: MockClock, practice: Practice) -> None:
    """A store can invent one; who was told to go on without the other store is not stopped by it later."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    place = practice.places["home"]
    place["segments/00000000000000ff-ffffffff-0123456789abcdef"] = b"\xff" * 5000
    one.cut_off("s3")
    assert "--take-over" in await one.refusal()
    async with one.mounted(take_over=True, wait=False) as volume:
        await save(volume, b"b")
        await trio.sleep(300)
        one.cut_off()
        await save(volume, b"c")
        await trio.sleep(300)
        one.links["home"].outage = False
        before = segments(place)
        await trio.sleep(600)
        assert segments(place) - before


# --- what does not answer --------------------------------------------------------------------


async def test_put_back_and_the_next_segment_is_lost(autojump_clock: MockClock, practice: Practice) -> None:
    """Of what the PC itself wrote after a back-up of it, the first store to answer has but the later part."""
    pc = practice.pc("one")
    pc.mirror_delay_s = 2.0
    place = practice.places["home"]
    async with pc.until_killed() as volume:
        await save(volume, b"a")
        await volume.flush()
        await trio.sleep(60)
        practice.copy(pc, "back-up")
        before = set(place)
        for name in (b"b", b"c", b"d"):
            await save(volume, name)
            await trio.sleep(10)
            await volume.flush()
    new = sorted(set(place) - before)
    for key in (LEASE_KEY, min(segments(place) - before), *(key for key in new if key.startswith("heads/"))):
        del place[key]
    pc = practice.pc("back-up")
    pc.cut_off()
    async with pc.mounted(wait=False) as volume:
        assert names(volume) == [b"a"]
        await save(volume, b"other")
        objects = practice.objects()
        pc.links["home"].outage = False
        await trio.sleep(600)
        assert practice.objects() == objects
        pc.reconnect()
        await trio.sleep(600)
        assert volume.status().fenced is not None
    assert await seen_by_a_new_pc(practice) == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("count", [1, 2, 6])
async def test_heads_do_not_answer(autojump_clock: MockClock, practice: Practice, count: int) -> None:
    """The heads of the late store are whole, and would tell of the segments that it lost."""
    keys = await overtaken(practice)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline")
        harm(practice, "home", keys, segments="lost", heads="whole")
        before = practice.objects()
        Unanswered(one.links["home"], "heads/", count)
        one.links["home"].outage = False
        await trio.sleep(600)
        assert practice.objects() == before
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"safe"]


async def test_the_other_store_lists_and_does_not_read(autojump_clock: MockClock, practice: Practice) -> None:
    keys = await overtaken(practice)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline")
        harm(practice, "home", keys, segments="rotten", heads="rotten")
        place = practice.places["s3"]
        for key in [key for key in place if key.startswith("heads/")]:
            del place[key]
        before = practice.objects()
        Unanswered(one.links["s3"], "segments/", 1000)
        one.reconnect()
        await trio.sleep(600)
        assert practice.objects() == before
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"safe"]


@pytest.mark.parametrize("after_s", [0.5, 3, 6])
async def test_a_store_is_removed_while_it_is_asked(
    autojump_clock: MockClock, practice: Practice, after_s: float
) -> None:
    """Another one cannot be read; without the one that was removed there is nobody else to ask."""
    keys = await overtaken(practice)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline")
        harm(practice, "home", keys, segments="rotten", heads="rotten")
        one.links["home"].outage = False
        await trio.sleep(120)
        home, _ = one.header.stores
        one.next_header(home)
        one.links["s3"].faults = Faults(latency_min_s=2.0, latency_max_s=2.5)
        one.links["s3"].outage = False
        admission = volume._tasks_of_stores._taker._admission
        assert admission is not None
        for _ in range(600):
            if admission._late.locked():
                break
            await trio.sleep(0.1)
        await trio.sleep(after_s)
        change = StoreChange(
            header=one.header, header_bytes=one.header_bytes, rotating=one.rotating,
            open_store=lambda entry: one.links[entry.name],
        )  # fmt: skip
        await volume.change_stores(change)
        await volume.flush()
        assert volume.status().fatal is None and volume.status().fenced is None


# --- a line that breaks at the end of a take-over --------------------------------------------


@pytest.mark.parametrize("how", ["whole", "cut", "one store", "unread"])
@pytest.mark.parametrize("is_behind", [False, True])
async def test_the_line_breaks_at_the_end_of_the_minute(
    autojump_clock: MockClock, practice: Practice, how: str, is_behind: bool
) -> None:
    """What the displaced writer was told is safe meanwhile cannot be read just then; or not in one store.

    The PC that takes over is merely behind, or has changes of its own as well.
    """
    three = practice.pc("three")
    if not is_behind:
        async with three.mounted() as volume:
            await save(volume, b"a")
        three.cut_off()
        async with three.mounted(wait=False) as volume:
            await save(volume, b"unsent")
        three.reconnect()
    async with practice.pc("two").mounted(wait=False) as second, trio.open_nursery() as nursery:
        began_s = trio.current_time()

        async def tell() -> None:
            await trio.sleep(5)
            await save(second, b"told safe")
            with trio.fail_after(20):
                await second.flush()
            await trio.sleep_until(began_s + 55)
            unanswered = []
            if how == "cut":
                three.cut_off()
            elif how == "one store":
                three.cut_off("home")
            elif how == "unread":
                unanswered = [Unanswered(link, "", 10_000) for link in three.links.values()]
            await trio.sleep(15)
            three.reconnect()
            for one in unanswered:
                one.count = 0

        nursery.start_soon(tell)
        if is_behind and how == "whole":
            async with three.mounted(take_over=True) as volume:
                assert b"told safe" in names(volume)
        elif how == "whole":
            assert "--from-state" in await three.refusal(take_over=True)
        else:
            assert "mount again" in await three.refusal(take_over=True)
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert b"told safe" in names(volume)
