"""What cannot be read in a store may be another writer's, and whole in one that is away: it is not overruled.

Names prove nothing, and where all stores are seen, what none of them has whole is followed by nobody.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.format.control import LEASE_KEY
from tests.support.practice import FORKED, SAID, Practice, names, save, seen_by_a_new_pc

WRITTEN_ANEW = (
    "does not verify",
    "passed over",
    "is lost",
    "cannot be sent",
    "damaged",
    "has no good copy",
    "cut short or not one",
)
ENDED = "holds the end of a writer that was fenced"


@pytest.fixture
def practice(tmp_path: Path) -> Practice:
    return Practice(tmp_path)


async def overtaken(practice: Practice) -> list[str]:
    """PC "one" was followed by "two", whose changes both stores have. Returns the keys that "two" sent."""
    async with practice.pc("one").mounted() as volume:
        await save(volume, b"a")
    before = set(practice.places["home"])
    async with practice.pc("two").mounted() as volume:
        await save(volume, b"safe")
    return sorted(set(practice.places["home"]) - before)


def harm(practice: Practice, store: str, keys: list[str], *, segments: str, heads: str) -> None:
    """What "two" sent to a store rots or is lost there, and its lease with it."""
    place = practice.places[store]
    del place[LEASE_KEY]
    for key in keys:
        how = segments if key.startswith("segments/") else heads
        if how == "rotten":
            place[key] = b"\xff" * len(place[key])
        elif how == "lost":
            del place[key]


HARMS = [("rotten", "rotten"), ("rotten", "lost"), ("lost", "rotten")]


@pytest.mark.expects_warnings(*SAID, *FORKED, *WRITTEN_ANEW, ENDED)
@pytest.mark.parametrize(("segments", "heads"), HARMS)
async def test_nothing_is_sent_before_all_stores_are_seen(
    autojump_clock: MockClock, practice: Practice, segments: str, heads: str
) -> None:
    """Who wrote without stores meets one in which nothing of the writer since can be read."""
    keys = await overtaken(practice)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline")
        harm(practice, "home", keys, segments=segments, heads=heads)
        before = practice.objects()
        one.links["home"].outage = False
        await trio.sleep(600)
        assert practice.objects() == before
        said = {state.store: state.last_error or "" for state in volume.status().stores}
        assert "cannot be read" in said["home"] and "s3" in said["home"]
        one.reconnect()
        await trio.sleep(600)
        assert volume.status().fenced is not None
        assert practice.objects() == before
    async with practice.new_pc().mounted(take_over=True) as volume:
        assert names(volume) == [b"a", b"safe"]


@pytest.mark.expects_warnings(*SAID, *FORKED, *WRITTEN_ANEW, ENDED)
@pytest.mark.parametrize(("segments", "heads"), HARMS)
async def test_a_mount_with_a_store_away(
    autojump_clock: MockClock, practice: Practice, segments: str, heads: str
) -> None:
    keys = await overtaken(practice)
    harm(practice, "home", keys, segments=segments, heads=heads)
    one = practice.pc("one")
    one.cut_off("s3")
    before = practice.objects()
    said = await one.refusal()
    assert "cannot be read" in said and "s3" in said and "--take-over" in said
    assert practice.objects() == before
    async with one.mounted(take_over=True, wait=False) as volume:
        assert names(volume) == [b"a"]


@pytest.mark.expects_warnings(*SAID, *FORKED, *WRITTEN_ANEW, ENDED)
@pytest.mark.parametrize(("segments", "heads"), HARMS)
async def test_what_no_store_has_whole_stops_nobody(
    autojump_clock: MockClock, practice: Practice, segments: str, heads: str
) -> None:
    keys = await overtaken(practice)
    for store in practice.places:
        harm(practice, store, keys, segments=segments, heads=heads)
    one = practice.pc("one")
    one.cut_off()
    async with one.mounted(wait=False) as volume:
        await save(volume, b"offline")
        for link in one.links.values():
            await trio.sleep(300)
            link.outage = False
        await trio.sleep(600)
        assert volume.status().fenced is None
        await volume.flush()
    assert await seen_by_a_new_pc(practice) == [b"a", b"offline"]
