"""A read-only view that follows, when stores are not what they were or hang, and when its disk is full."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.follower import AGAIN_EVERY, LOOK_EVERY_S, PATIENCE_S, Follower
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.witness import SEEN_HEAD_PATH
from mirrorfs.errors import DiskFull
from mirrorfs.ports import ObjectKey
from tests.support.practice import Pc, Practice, check_large, names_in, save, with_bad_data, write_large
from tests.support.store_simulated import Faults
from tests.support.volumes import HEADER, KEYS

REFRESH_S = 15.0
"""The promise, from the upload to the look that shows it."""
BOTH = tuple(entry.name for entry in HEADER.stores)
Places = dict[str, dict[str, bytes]]


@asynccontextmanager
async def viewing(pc: Pc) -> AsyncIterator[tuple[ReadOnlyVolume, Follower]]:
    """A view that looks by itself, as a mounted one does."""
    async with trio.open_nursery() as nursery:
        view = await ReadOnlyVolume.open(
            nursery=nursery, world=pc.world, files=pc.files, keys=KEYS,
            writer_key=HEADER.public_keys.writer, stores=pc.stores, moment=NEWEST,
            random=random.Random(1).random,
        )  # fmt: skip
        assert view.follower is not None
        yield view, view.follower
        nursery.cancel_scope.cancel()
    view.close()
    pc.files.remove()


async def written(writer: Pc, *names: bytes) -> None:
    async with writer.mounted() as volume:
        await save(volume, *names)
        await volume.flush()


def copied(places: Places) -> Places:
    return {name: dict(objects) for name, objects in places.items()}


def put_back(places: Places, before: Places) -> None:
    for name, objects in before.items():
        places[name].clear()
        places[name].update(objects)


@pytest.mark.expects_warnings("rolled back", "was released|lost", "gone back")
async def test_a_rollback_is_said_for_as_long_as_it_is_there(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    before = copied(practice.places)
    async with viewing(viewer) as (view, follower):
        await written(writer, b"b")
        await follower.look()
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)
        after = copied(practice.places)
        put_back(practice.places, before)
        await follower.look()
        for _ in range(3):
            assert "it was rolled back" in str(follower.fault) and names_in(view.index) == [b"a", b"b"]
            await follower.look(heads=False)
        put_back(practice.places, after)
        await trio.sleep(3 * LOOK_EVERY_S)
        assert follower.fault is None


@pytest.mark.expects_warnings("damaged|does not verify|other bytes|no trailer|cut|fault", "later state")
async def test_a_newest_segment_that_is_bad_everywhere_is_said(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with viewing(viewer) as (view, follower):
        await written(writer, b"b")
        good = copied(practice.places)
        for objects in practice.places.values():
            newest = max(key for key in objects if key.startswith("segments/"))
            objects[newest] = bytes(len(objects[newest]))
        await trio.sleep(3 * LOOK_EVERY_S)
        assert follower.fault is not None and names_in(view.index) == [b"a"]
        for _ in range(3):
            await trio.sleep(2 * LOOK_EVERY_S)
            assert follower.fault is not None
        put_back(practice.places, good)
        await trio.sleep(4 * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)


@pytest.mark.expects_warnings("does not verify", "damaged|is lost|No good copy", "cannot be followed further")
@pytest.mark.parametrize("is_open", [True, False])
async def test_a_better_copy_of_the_newest_segment_is_taken(
    autojump_clock: MockClock, tmp_path: Path, is_open: bool
) -> None:
    """A bad copy is the only one there is for a while, and no head says how the segment was."""
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with AsyncExitStack() as stack:
        if is_open:
            view, follower = await stack.enter_async_context(viewing(viewer))
        async with writer.mounted() as volume:
            await write_large(volume, b"b")
            await volume.flush()
        good = copied(practice.places)
        for objects in practice.places.values():
            newest = max(key for key in objects if key.startswith("segments/"))
            objects[newest] = with_bad_data(objects[newest])
            for key in [key for key in objects if key.startswith("heads/")]:
                del objects[key]
        if not is_open:
            view, follower = await stack.enter_async_context(viewing(viewer))
        await trio.sleep(4 * LOOK_EVERY_S)
        assert "does not verify" in str(follower.fault) and names_in(view.index) == [b"a", b"b"]
        put_back(practice.places, good)
        await trio.sleep(1.5 * AGAIN_EVERY * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)
        await check_large(view, b"b")
        await written(writer, b"c")
        await trio.sleep(4 * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b", b"c"], None)


@pytest.mark.expects_warnings("does not verify", "cannot be (followed|listed)", "later state")
async def test_a_bad_newest_segment_is_seldom_read_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    """It may be large, and nobody writes at night. When another store is back it is read at once."""
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with writer.mounted() as volume:
        await write_large(volume, b"b")
    home = practice.places["home"]
    newest = max(key for key in home if key.startswith("segments/"))
    home[newest] = with_bad_data(home[newest])
    for key in [key for key in home if key.startswith("heads/")]:
        del home[key]
    viewer.cut_off("s3")
    async with viewing(viewer) as (view, follower):
        link, read = viewer.links["home"], 0
        get = link.get

        async def counted(key: ObjectKey, **options: Any) -> bytes:
            nonlocal read
            read += key == newest
            data: bytes = await get(key, **options)
            return data

        link.get = counted  # type: ignore[method-assign]
        await trio.sleep(3600)
        assert 0 < read < 20 and follower.fault is not None
        viewer.reconnect()
        await trio.sleep(4 * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)


@pytest.mark.expects_warnings("does not verify", "cannot be followed further", "later state")
async def test_what_the_view_has_is_not_needed_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    """The next segment was bad for a while; meanwhile the one before was pruned."""
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with viewing(viewer) as (view, follower):
        before = [key for key in practice.places["home"] if key.startswith("segments/")]
        await written(writer, b"b")
        good = copied(practice.places)
        for objects in practice.places.values():
            newest = max(key for key in objects if key.startswith("segments/"))
            objects[newest] = objects[newest][:-100] + bytes(100)
        await trio.sleep(4 * LOOK_EVERY_S)
        assert follower.fault is not None and names_in(view.index) == [b"a"]
        put_back(practice.places, good)
        for objects in practice.places.values():
            for key in before:
                del objects[key]
        await trio.sleep(4 * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)


@pytest.mark.expects_warnings("seen a later state")
async def test_what_an_earlier_view_saw_is_remembered(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    writer = practice.pc("writer")
    await written(writer, b"a")
    before = copied(practice.places)
    await written(writer, b"b")
    async with viewing(practice.pc("viewer")) as (_, follower):
        await trio.sleep(2 * LOOK_EVERY_S)
        assert follower.fault is None
    kept = (tmp_path / "viewer" / SEEN_HEAD_PATH).read_bytes()
    after = copied(practice.places)
    put_back(practice.places, before)
    async with viewing(practice.pc("viewer")) as (view, follower):
        await trio.sleep(2 * LOOK_EVERY_S)
        assert "seen a later state" in str(follower.fault) and names_in(view.index) == [b"a"]
        put_back(practice.places, after)
        await trio.sleep(3 * LOOK_EVERY_S)
        assert (names_in(view.index), follower.fault) == ([b"a", b"b"], None)
    assert (tmp_path / "viewer" / SEEN_HEAD_PATH).read_bytes() == kept
    put_back(practice.places, before)
    async with viewing(practice.pc("another")) as (_, follower):
        await trio.sleep(2 * LOOK_EVERY_S)
        assert follower.fault is None  # it knows of nothing else
    # What this machine wrote itself counts as well.
    async with viewing(practice.pc("writer")) as (view, follower):
        await trio.sleep(2 * LOOK_EVERY_S)
        assert follower.fault is None and names_in(view.index) == [b"a", b"b"]


@pytest.mark.expects_warnings("What an earlier view saw last cannot be read")
async def test_a_memory_that_is_damaged_counts_as_none(autojump_clock: MockClock, tmp_path: Path) -> None:
    practice = Practice(tmp_path)
    await written(practice.pc("writer"), b"a")
    viewer = practice.pc("viewer")
    viewer.disk.write_whole(SEEN_HEAD_PATH, b"heads/not one\n{}")
    async with viewing(viewer) as (_, follower):
        await follower.look()
        assert follower.fault is None
    assert b"not one" not in (tmp_path / "viewer" / SEEN_HEAD_PATH).read_bytes()


@pytest.mark.parametrize("hanging", BOTH)
@pytest.mark.parametrize("since_open", [True, False])
async def test_a_store_that_hangs_delays_no_look(
    autojump_clock: MockClock, tmp_path: Path, hanging: str, since_open: bool
) -> None:
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with viewing(viewer) as (view, follower):
        viewer.links[hanging].faults = Faults(hang=1.0)
        if since_open:
            await trio.sleep(60)
        for number in range(12):
            name = b"b %d" % number
            await written(writer, name)
            # The first look after it began to hang may wait twice: for its heads, and for its listing.
            await trio.sleep(REFRESH_S if number or since_open else REFRESH_S + 2 * PATIENCE_S)
            assert name in names_in(view.index)
            assert follower.silent == (hanging,) and follower.fault is None
            await trio.sleep(number)
        viewer.links[hanging].faults = Faults()
        await trio.sleep(2 * LOOK_EVERY_S)
        assert follower.silent == ()


@pytest.mark.expects_warnings("is full")
async def test_a_full_disk_shows_no_half_of_a_commit(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    practice = Practice(tmp_path)
    writer, viewer = practice.pc("writer"), practice.pc("viewer")
    await written(writer, b"a")
    async with viewing(viewer) as (view, follower):
        put_dentry, is_full, tried = view.index.put_dentry, True, []

        def fills(*arguments: Any) -> None:
            tried.append(arguments)
            if is_full and len(tried) % 3 == 0:
                raise DiskFull("The local disk is full.")
            put_dentry(*arguments)

        monkeypatch.setattr(view.index, "put_dentry", fills)
        await written(writer, b"b", b"c", b"d", b"e", b"f")
        await trio.sleep(4 * LOOK_EVERY_S)
        assert tried and "is full" in str(follower.fault)
        assert names_in(view.index) == [b"a"]
        is_full = False
        await trio.sleep(2 * LOOK_EVERY_S)
        assert follower.fault is None
        assert names_in(view.index) == [b"a", b"b", b"c", b"d", b"e", b"f"]
