"""Every kind of object, harmed in every way: in one place, and in two at once.

What must hold, whatever the harm is:
- reading gives the right bytes, or an error where no good copy is left; never other bytes;
- `verify` finds what sizes can show, `verify --deep` every bad copy and nothing else;
- before any repair, a restore from both stores and a PC that has nothing get all that has a good copy;
- `repair` mends every bad copy of which there is a good one, so that the stores are as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from trio.testing import MockClock

from mirrorfs.engine.scrub import DEEP, LOCAL, SIZES, BadObject
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import LEASE_KEY
from tests.corruption.original import A, B
from tests.corruption.place import HARMS, KINDS, SEGMENTS, Place, Restored, harm_at, other_than

Bad = set[tuple[str, str]]

WARNINGS = (
    "is damaged",
    "object (segments|relocated|heads|checkpoints|header)/",
    "Segment [0-9]+: ",
    "head heads/.* is passed over",
    "has gone back to an earlier state",
    "checkpoint cannot be used",
    "holds other bytes under",
    "is mended",
)
pytestmark = pytest.mark.expects_warnings(*WARNINGS)


def pairs() -> list[tuple[str, str, str, str]]:
    """(kind on A, its harm, kind on B, its harm) for all pairs of kinds; each harm comes up evenly."""
    found = []
    for number, (first, second) in enumerate(permutations(KINDS, 2)):
        found.append((first, harm_at(number), second, harm_at(2 * number + number // len(HARMS))))
    return found


async def check_everything_is_had(place: Place) -> Restored:
    """From both stores as they are: by a restore, and by a PC that has nothing."""
    restored = await place.restore()
    assert restored.report.complete and restored.plan.damage is None
    assert restored.contents == place.original.contents
    async with place.fresh_pc().mounted() as volume:
        assert await place.read_all(volume) == set()
    return restored


async def check_found(place: Place, volume: MountedVolume, bad: Bad, *, by_size: Bad) -> list[BadObject]:
    sizes = await volume.scrubber.run(SIZES)
    assert {(one.place, one.key) for one in sizes.bad} == by_size
    deep = await volume.scrubber.run(DEEP)
    assert {(one.place, one.key) for one in deep.bad} == bad
    assert not deep.unreachable
    return deep.bad


async def check_mended(place: Place, volume: MountedVolume, bad: Sequence[BadObject]) -> None:
    """Repair what was found, and look whether all is as it was."""
    results = await volume.mender.mend(bad)
    assert set(results.values()) <= {None}
    await volume.flush()
    place.assert_stores_whole()
    assert (await volume.scrubber.run(DEEP)).bad == []
    assert await place.read_all(volume) == set()


# --- alone -----------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_one_bad_copy_on_a_store(autojump_clock: MockClock, place: Place, kind: str, harm: str) -> None:
    """On the store that is asked first; what is bad on the other one meets readers in the pairs below."""
    bad = {(A, place.harm(A, kind, harm))}
    restored = await check_everything_is_had(place)
    # Each segment is read from one of the stores, so that this copy was met or not.
    assert restored.report.bad_copies in ([{}, {A: 1}] if kind in SEGMENTS else [{}])
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        by_size = bad if place.shows_in_size(kind, harm) else set()
        await check_mended(place, volume, await check_found(place, volume, bad, by_size=by_size))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_one_bad_copy_on_the_local_disk(
    autojump_clock: MockClock, place: Place, kind: str, harm: str
) -> None:
    async with place.pc().mounted() as volume:
        key = place.harm(LOCAL, kind, harm)
        assert await place.read_all(volume) == set()
        # Segments may be gone here, for the cache gives them up, or longer, after a crash; nothing else may.
        bad = set() if harm == "delete" and kind in SEGMENTS else {(LOCAL, key)}
        shows = place.shows_in_size(kind, harm, even_longer=kind not in SEGMENTS)
        found = await check_found(place, volume, bad, by_size=bad if shows else set())
        await check_mended(place, volume, found)
        assert not bad or place.file(key).read_bytes() == place.original.objects[A][key]


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS[1:])
async def test_the_local_disk_was_harmed_before_the_mount(
    autojump_clock: MockClock, place: Place, kind: str, harm: str
) -> None:
    key = place.harm(LOCAL, kind, harm)
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        await check_mended(place, volume, (await volume.scrubber.run(DEEP)).bad)
        # What holds no commit any more may be no part of the local log: then the stores have it.
        assert not place.file(key).exists() or (
            place.file(key).read_bytes() == place.original.objects[A][key]
        )
    async with place.fresh_pc().mounted() as volume:
        assert await place.read_all(volume) == set()


@pytest.mark.expects_warnings("Another machine wrote", "taken from store")
@pytest.mark.parametrize("harm", HARMS)
async def test_the_index_is_gone_and_the_newest_segment_is_harmed(
    autojump_clock: MockClock, place: Place, harm: str
) -> None:
    """Only the head knows then that the segment was closed; its last commits are on the stores."""
    place.harm(LOCAL, "newest segment", harm)
    for path in (place.root / "pc").glob("index.db*"):
        path.unlink()
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        await check_mended(place, volume, (await volume.scrubber.run(DEEP)).bad)


# --- in pairs --------------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "harm", "second", "other_harm"), pairs())
async def test_both_stores_are_bad_in_different_objects(
    autojump_clock: MockClock, place: Place, first: str, harm: str, second: str, other_harm: str
) -> None:
    bad = {(A, place.harm(A, first, harm)), (B, place.harm(B, second, other_harm))}
    by_size = {
        one
        for one, shows in zip(
            sorted(bad),
            (place.shows_in_size(first, harm), place.shows_in_size(second, other_harm)),
            strict=True,
        )
        if shows
    }
    await check_everything_is_had(place)
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        await check_mended(place, volume, await check_found(place, volume, bad, by_size=by_size))


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_object_is_bad_on_both_stores(
    autojump_clock: MockClock, place: Place, kind: str, harm: str
) -> None:
    """And good here: so it is not lost."""
    other_harm = other_than(harm)
    key = place.harm(A, kind, harm)
    place.harm(B, kind, other_harm)
    by_size = {(store, key) for store, one in ((A, harm), (B, other_harm)) if place.shows_in_size(kind, one)}
    async with place.pc().mounted() as volume:
        assert await place.read_all(volume) == set()
        found = await check_found(place, volume, {(A, key), (B, key)}, by_size=by_size)
        await check_mended(place, volume, found)
    await check_everything_is_had(place)


# --- no good copy at all ---------------------------------------------------------------------


@pytest.mark.expects_warnings("No good copy", "refers to frame", "in every place", "cannot be sent")
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS[1:])
async def test_no_good_copy_is_left(autojump_clock: MockClock, place: Place, kind: str, harm: str) -> None:
    """It is a loss: said, named, confined to what lies in that object. (Of a header each mount keeps one.)"""
    original = place.original
    other_harm = other_than(harm)
    key = original.kinds[kind]
    lost = {name for name, segments in original.lies_in.items() if key in segments}
    async with place.pc().mounted(wait=False) as volume:
        place.file(key).unlink()
        place.harm(A, kind, harm)
        place.harm(B, kind, other_harm)
        there = [store.objects.get(key) for store in place.stores]
        assert await place.read_all(volume) <= lost
        deep = await volume.scrubber.run(DEEP)
        here = set() if kind in SEGMENTS else {(LOCAL, key)}
        assert {(one.place, one.key) for one in deep.bad} == {(A, key), (B, key)} | here
        whys = await volume.mender.mend(deep.bad)
        # A flipped bit and a missing end: what is good of each makes a whole, for a trailer says what is.
        if harm == "flip at the start" and kind not in ("early head", "newest head", "cut segment"):
            assert set(whys.values()) == {None}
            await volume.flush()
            place.assert_stores_whole()
        else:
            assert all("no good copy could be had" in str(why) for why in whys.values())
            assert [store.objects.get(key) for store in place.stores] == there, "nothing is thrown away"
            if kind in SEGMENTS:  # it is no upload that is still to come
                again = await volume.scrubber.run(DEEP)
                assert {(one.place, one.key) for one in again.bad} == {(A, key), (B, key)}
    for store in place.stores:
        for other, data in original.objects[store.name].items():
            assert other in (key, LEASE_KEY) or store.objects[other] == data, other


@pytest.mark.expects_warnings("No good copy", "refers to frame", "in every place", "cannot be sent")
@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_restore_of_what_has_no_good_copy(
    autojump_clock: MockClock, place: Place, kind: str, harm: str
) -> None:
    """A file is right, or named as incomplete, or belongs to commits of which the plan says they are lost."""
    place.harm(A, kind, harm)
    place.harm(B, kind, other_than(harm))
    restored = await place.restore()
    incomplete = {path.encode() for path in restored.report.incomplete}
    for name, data in restored.contents.items():
        assert name in incomplete or data == place.original.contents[name], name
    missing = place.original.contents.keys() - restored.contents.keys()
    assert not missing or restored.plan.damage is not None
    if kind not in SEGMENTS:
        assert not missing and not incomplete
