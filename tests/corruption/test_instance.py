"""The document by which a store is known: lost or rotten it stops nobody, and repair writes it anew."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.scrub import DEEP
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import INSTANCE_KEY, Instance, open_instance, seal_control
from tests.corruption.original import PUBLIC_KEY, A
from tests.corruption.place import Place, flipped
from tests.support.volumes import HEADER, KEY_SET, KEYS

HARMS = ("flip at the start", "flip in the middle", "flip at the end", "truncate", "empty", "delete", "swap")

pytestmark = pytest.mark.expects_warnings("Store home", "store home")


def harm(place: Place, how: str) -> None:
    objects = place.stores[0].objects
    data = objects.pop(INSTANCE_KEY)
    harmed = {
        "flip at the start": flipped(data, 3),
        "flip in the middle": flipped(data, len(data) // 2),
        "flip at the end": flipped(data, len(data) - 2),
        "truncate": data[:50],
        "empty": b"",
        "swap": objects[place.original.kinds["newest head"]],
    }
    if how != "delete":
        objects[INSTANCE_KEY] = harmed[how]


def word(volume: MountedVolume) -> StateWord:
    return volume.status().stores[0].state


@pytest.mark.parametrize("how", HARMS)
async def test_it_is_written_anew(autojump_clock: MockClock, place: Place, how: str) -> None:
    harm(place, how)
    async with place.pc().mounted(wait=False) as volume:
        assert await place.read_all(volume) == set()
        await trio.sleep(120)
        assert word(volume) is StateWord.MISSING
        report = await volume.scrubber.run(DEEP)
        assert report.places[1].unreachable is not None and "mirrorfs repair" in report.places[1].unreachable
        assert await volume.mender.reclaim_stores() == {A: None}
        found = open_instance(place.stores[0].objects[INSTANCE_KEY], keys=KEYS, public_key=PUBLIC_KEY)
        assert (found.store, found.instance) == (A, HEADER.stores[0].instance)
        assert await volume.mender.reclaim_stores() == {}
        with trio.fail_after(600):
            await volume.flush()
        assert word(volume) is StateWord.UP_TO_DATE
        assert (await volume.scrubber.run(DEEP)).bad == []
        place.assert_stores_whole()


@pytest.mark.parametrize(
    "how",
    [
        "empty place",
        "the other store",
        "the store that it took the place of",
        "only what anybody could put there",
        "only what has no good head",
    ],
)
async def test_another_place_is_not_taken(autojump_clock: MockClock, place: Place, how: str) -> None:
    """An empty directory under a mountpoint must never count as a store that lost one small file."""
    objects = place.stores[0].objects
    if how == "the other store":
        objects[INSTANCE_KEY] = place.stores[1].objects[INSTANCE_KEY]
    elif how.startswith("the store"):
        replaced = Instance(A, b"\x77" * 16)
        objects[INSTANCE_KEY] = seal_control(replaced, keys=KEYS, seed=KEY_SET.writer)
    else:
        objects.clear()
    if how.startswith("only"):
        prefixes = ("header/", "heads/", *(["segments/"] if how.endswith("no good head") else []))
        for key, data in place.original.objects[A].items():
            if key.startswith(prefixes):
                objects[key] = flipped(data, len(data) // 2) if key.startswith("heads/") else data
    before = dict(objects)
    async with place.pc().mounted(wait=False) as volume:
        (why,) = (await volume.mender.reclaim_stores()).values()
        assert why is not None and A in why
        assert objects == before
