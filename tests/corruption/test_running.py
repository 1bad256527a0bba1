"""Harm that befalls a volume while it is mounted, and stores that went back: it mends by itself."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine import daily_look
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.scrub import DEEP, SIZES
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES
from tests.corruption.original import NAMES, A, B
from tests.corruption.place import HARMS, KINDS, SEGMENTS, Place, flipped

NOT_IN_A_FRAME = "flip at the end"
"""In the trailer, or a commit: no reader of files gets there."""

LOOK_S = 300.0


@pytest.fixture(autouse=True)
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A day of virtual time is thousands of lease renewals."""
    monkeypatch.setattr(daily_look, "FIRST_S", LOOK_S)
    monkeypatch.setattr(daily_look, "POLL_S", LOOK_S)
    monkeypatch.setattr(daily_look, "LOOK_INTERVAL_NS", round(LOOK_S * 1e9))


pytestmark = pytest.mark.expects_warnings(
    "object (segments|relocated|heads|checkpoints|header)/",
    "is mended",
    "Mended.",
    "has gone back to an earlier state",
)


@pytest.mark.parametrize("store", NAMES)
@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != NOT_IN_A_FRAME])
@pytest.mark.parametrize("kind", SEGMENTS)
async def test_what_a_reader_meets_is_mended(
    autojump_clock: MockClock, place: Place, kind: str, harm: str, store: str
) -> None:
    """The cache gave the segment up, so that the stores are read."""
    async with place.pc().mounted() as volume:
        key = place.harm(store, kind, harm)
        place.file(key).unlink()
        assert await place.read_all(volume) == set()
        if store == A and (kind, harm) != ("newest segment", "flip in the middle"):  # that is a commit
            await trio.sleep(60)
            place.assert_stores_whole()
        # Of two stores one is asked; what is bad on the other is found by looking.
        results = await volume.mender.mend((await volume.scrubber.run(DEEP)).bad)
        assert set(results.values()) <= {None}
        await volume.flush()
        place.assert_stores_whole()
        assert await place.read_all(volume) == set()


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("kind", KINDS)
async def test_the_daily_look_mends_what_sizes_show(
    autojump_clock: MockClock, place: Place, kind: str, harm: str
) -> None:
    async with place.pc().mounted() as volume:
        key = place.harm(B, kind, harm)
        harmed = place.stores[1].objects.get(key)
        await trio.sleep(2 * LOOK_S)
        await volume.flush()
        if place.shows_in_size(kind, harm):
            place.assert_stores_whole()
        else:
            assert place.stores[1].objects[key] == harmed


@pytest.mark.parametrize("harm", HARMS[:5])
async def test_parts_that_were_fetched_and_rot(autojump_clock: MockClock, place: Place, harm: str) -> None:
    async with place.pc().mounted() as volume:
        for kind in SEGMENTS:
            place.file(place.original.kinds[kind]).unlink()
        assert await place.read_all(volume) == set()
        parts = sorted((place.root / "pc" / "ranges").iterdir())
        assert len(parts) == len(SEGMENTS)
        for path in parts:
            data = path.read_bytes()
            path.write_bytes(
                {
                    "flip at the start": lambda data=data: flipped(data, 3),
                    "flip in the middle": lambda data=data: flipped(data, len(data) // 2),
                    "flip at the end": lambda data=data: flipped(data, len(data) - 200),
                    "truncate": lambda data=data: data[: len(data) // 2],
                    "empty": lambda data=data: b"",
                }[harm]()
            )
        assert await place.read_all(volume) == set()


# --- stores that went back ---------------------------------------------------------------------


def set_back(place: Place, *names: str) -> None:
    """Stores as they were halfway, as if a back-up of them had been brought back."""
    for store in place.stores:
        if store.name in names:
            store.objects.clear()
            store.objects.update(place.original.early[store.name])


@pytest.mark.parametrize("names", [(A,), (B,), (A, B)], ids=["A", "B", "both"])
async def test_stores_that_went_back_before_the_mount(
    autojump_clock: MockClock, place: Place, names: tuple[str, ...]
) -> None:
    set_back(place, *names)
    if len(names) == 1:
        restored = await place.restore()
        assert restored.report.complete and restored.contents == place.original.contents
        async with place.fresh_pc().mounted() as volume:
            assert await place.read_all(volume) == set()
    async with place.pc().mounted() as volume:
        assert {store.store for store in volume.status().stores if store.went_back_ns} == set(names)
        assert await place.read_all(volume) == set()
        found = await volume.scrubber.run(SIZES)
        gone = {
            (store, key)
            for store in names
            for key in place.original.objects[store].keys() - place.original.early[store].keys()
            if key.startswith(MIRRORED_PREFIXES)
        }
        assert {(bad.place, bad.key) for bad in found.bad} == gone
        assert set((await volume.mender.mend(found.bad)).values()) == {None}
        await volume.flush()
        place.assert_stores_whole()
    async with place.fresh_pc().mounted() as volume:
        assert await place.read_all(volume) == set()


@pytest.mark.expects_warnings("rolled back. It is written anew", "is falling behind")
@pytest.mark.parametrize("names", [(A,), (A, B)], ids=["A", "both"])
async def test_stores_that_go_back_while_mounted(
    autojump_clock: MockClock, place: Place, names: tuple[str, ...]
) -> None:
    async with place.pc().mounted() as volume:
        await trio.sleep(200)
        set_back(place, *names)
        await trio.sleep(2 * LOOK_S)
        await volume.flush()
        place.assert_stores_whole()
        status = volume.status()
        assert status.fenced is None
        assert {store.state for store in status.stores} == {StateWord.UP_TO_DATE}
        assert {store.store for store in status.stores if store.went_back_ns} == set(names)


# --- different objects missing -------------------------------------------------------------------


@pytest.mark.expects_warnings("damaged", "holds no object")
@pytest.mark.parametrize("first", [0, 1])
async def test_every_object_is_on_one_store_only(autojump_clock: MockClock, place: Place, first: int) -> None:
    """Of all that is mirrored every other object is missing on A, the rest on B."""
    keys = sorted(key for key in place.original.objects[A] if key.startswith(MIRRORED_PREFIXES))
    gone = set()
    for number, key in enumerate(keys):
        store = place.stores[(number + first) % 2]
        del store.objects[key]
        gone.add((store.name, key))
    restored = await place.restore()
    assert restored.report.complete and restored.plan.damage is None
    assert restored.contents == place.original.contents
    assert restored.report.bad_copies.keys() <= {A, B}
    async with place.fresh_pc().mounted() as volume:
        assert await place.read_all(volume) == set()
    async with place.pc().mounted() as volume:
        found = await volume.scrubber.run(DEEP)
        assert {(bad.place, bad.key) for bad in found.bad} == gone
        assert set((await volume.mender.mend(found.bad)).values()) == {None}
        await volume.flush()
        place.assert_stores_whole()


async def test_a_restore_counts_the_bad_copies_that_it_met(autojump_clock: MockClock, place: Place) -> None:
    objects = place.stores[1].objects
    segments = sorted(key for key in objects if key.startswith("segments/"))
    for key in segments:
        objects[key] = flipped(objects[key], 400)
    restored = await place.restore()
    assert restored.report.complete and restored.contents == place.original.contents
    assert restored.report.bad_copies.keys() == {B}
    assert 1 <= restored.report.bad_copies[B] <= len(segments)
    one = await place.restore([place.stores[0]])
    assert one.report.complete and one.report.bad_copies == {}
