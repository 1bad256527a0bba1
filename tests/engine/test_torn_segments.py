"""A segment that a crash left is a part of the log where a head says where it ended: nobody overrules it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.control import LEASE_KEY
from mirrorfs.ports import ObjectInfo, ObjectKey, Sealed
from tests.support.practice import FORKED, SAID, Pc, Practice, names, save

FOLLOWED = "Another machine wrote since"
ENDED = "holds the end of a writer that was fenced"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


async def vouched_for(practice: Practice) -> None:
    """Both stores have what a crash left, and a head that says where it ended: it counts as safe."""
    one = practice.pc("one")
    async with one.mounted() as volume:
        await save(volume, b"a")
    async with practice.pc("two").mounted() as volume:
        assert names(volume) == [b"a"]
    async with one.until_killed(wait=False) as volume:
        one.cut_off()
        await save(volume, b"b")
        again = practice.copy(one, "one again")
    again.mirror_delay_s = 3600.0
    async with again.until_killed(wait=False) as volume:
        await trio.sleep(20)
        assert not any(state.pending_count for state in volume.status().stores)


def no_heads(pc: Pc, store: str, *, until_s: float) -> None:
    """The heads of a store cannot be read from a PC for a while; all else can."""
    link = pc.links[store]
    list_all = link.list

    async def listed(prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        if prefix == "heads/" and trio.current_time() < until_s:
            raise StoreUnavailable(f"Store {store} is busy.")
        return await list_all(prefix, start_after=start_after)

    link.list = listed  # type: ignore[method-assign]


@pytest.mark.expects_warnings(
    *SAID,
    *FORKED,
    FOLLOWED,
    ENDED,
    "does not verify",
    "passed over",
    "left by a crash",
    "is lost",
    "cannot be sent",
)
@pytest.mark.parametrize("harm", ["away", "rotten", "gone"])
async def test_heads_that_cannot_be_read(autojump_clock: MockClock, practice: Practice, harm: str) -> None:
    """Who wrote without stores meets one that lost its lease, and whose newest head does not show either."""
    await vouched_for(practice)
    two = practice.pc("two")
    two.cut_off()
    async with two.mounted(take_over=True, wait=False) as volume:
        await save(volume, b"c")
        home = practice.places["home"]
        del home[LEASE_KEY]
        head = max(key for key in home if key.startswith("heads/"))
        if harm == "rotten":
            home[head] = home[head][:-1] + bytes([home[head][-1] ^ 1])
        elif harm == "gone":
            del home[head]
        else:
            no_heads(two, "home", until_s=trio.current_time() + 200)
        before = practice.objects()
        two.links["home"].outage = False
        await trio.sleep(600)
        assert practice.objects() == before
        two.reconnect()
        await trio.sleep(600)
        assert volume.status().fenced is not None
        assert practice.objects() == before
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"b"]


@pytest.mark.expects_warnings(*SAID, *FORKED, FOLLOWED, "cannot be sent")
async def test_it_is_safe_when_the_head_is_there(autojump_clock: MockClock, practice: Practice) -> None:
    """Before that no other PC can use what a crash left, whoever has the segment."""
    one = practice.pc("one")
    async with one.until_killed(wait=False) as volume:
        await save(volume, b"a")
        await volume.flush()
        one.cut_off()
        before_ns = one.world.clock.now_ns()
        await save(volume, b"b")
        again = practice.copy(one, "one again")
    again.mirror_delay_s = 3600.0
    link = again.links["s3"]
    put, is_denied = link.put, True

    async def put_no_head(key: ObjectKey, data: Sealed) -> None:
        if is_denied and key.startswith("heads/"):
            raise StoreUnavailable("Store s3 is busy.")
        await put(key, data)

    link.put = put_no_head  # type: ignore[method-assign]
    async with again.until_killed(wait=False) as volume:
        await trio.sleep(300)
        home, s3 = volume.status().stores
        assert home.pending_count == 0 and s3.pending_count == 1
        assert s3.oldest_pending_ns is not None and s3.oldest_pending_ns <= before_ns
        is_denied = False
        await trio.sleep(900)
        assert volume.status().stores[1].pending_count == 0
