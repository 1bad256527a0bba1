"""Verified bytes of objects, from the disk or a store; copies that are there and wrong are named."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from mirrorfs.engine.attached import Attaching, StoreSet
from mirrorfs.engine.objects import LocalObjects, ObjectSource
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.errors import DamagedError, ObjectNotFound
from mirrorfs.ports import Index
from tests.support.built_volume import WRITER_KEY, BuiltVolume
from tests.support.store_memory import MemoryStore
from tests.support.volumes import KEYS

FILE = 0o100644


class Place:
    """A volume of some segments and a checkpoint, and two stores that hold what it holds."""

    def __init__(
        self, built: BuiltVolume, index: Index, source: ObjectSource, stores: list[MemoryStore]
    ) -> None:
        self.built = built
        self.index = index
        self.source = source
        self.stores = stores
        self.good = dict(stores[0].objects)
        self.bad: list[tuple[str | None, str]] = []

    def key(self, prefix: str) -> str:
        return next(key for key in self.good if key.startswith(prefix))

    def spoil(self, store: MemoryStore, key: str) -> None:
        data = bytearray(store.objects[key])
        data[len(data) // 2] ^= 1
        store.objects[key] = bytes(data)

    def remove_local(self, key: str) -> None:
        (self.built.root / "objects" / key).unlink()


@asynccontextmanager
async def place(root: Path) -> AsyncIterator[Place]:
    built = BuiltVolume(root)
    async with built.session(checkpoint=True) as volume:
        inode = volume.filesystem.create(1, b"file", mode=FILE, uid=0, gid=0, umask=0).inode
        await volume.filesystem.write(inode, 0, b"a patient's file" * 1000)
    stores = [MemoryStore("a", built.objects()), MemoryStore("b", built.objects())]
    index = built.files.open()
    found: list[Place] = []
    local = LocalObjects(built.world.disk, index, built.world.offload)
    source = ObjectSource(
        local,
        built.world.offload,
        KEYS,
        WRITER_KEY,
        stores=lambda: stores,
        on_bad_copy=lambda store, key: found[0].bad.append((store, key)),
    )
    found.append(Place(built, index, source, stores))
    try:
        yield found[0]
    finally:
        index.close()


async def test_every_object_is_read_from_each_place(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        assert {key.split("/")[0] for key in it.good} == {"segments", "checkpoints"}
        for key, data in it.good.items():
            assert await it.source.read(key) == data
            assert await it.source.read(key, local=False, but="a") == data
        assert it.bad == []


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize("prefix", ["segments/", "checkpoints/"])
async def test_bad_copies_are_passed_over_and_named(tmp_path: Path, prefix: str) -> None:
    async with place(tmp_path) as it:
        key = it.key(prefix)
        path = it.built.root / "objects" / key
        path.write_bytes(path.read_bytes()[:-9])
        it.spoil(it.stores[0], key)
        assert await it.source.read(key) == it.good[key]
        assert it.bad == [(None, key), ("a", key)]
        it.spoil(it.stores[1], key)
        path.unlink()
        with pytest.raises(DamagedError):
            await it.source.read(key)


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize("prefix", ["segments/", "checkpoints/"])
async def test_copies_that_are_damaged_in_different_places_are_put_together(
    tmp_path: Path, prefix: str
) -> None:
    async with place(tmp_path) as it:
        key = it.key(prefix)
        path = it.built.root / "objects" / key
        path.write_bytes(path.read_bytes()[:-9])
        for store in it.stores:
            it.spoil(store, key)
        assert await it.source.read(key) == it.good[key]
        with pytest.raises(DamagedError):
            await it.source.read(key, but="b", local=False)


@pytest.mark.expects_warnings("is damaged")
async def test_bytes_of_another_object_are_refused(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        segment, checkpoint = it.key("segments/"), it.key("checkpoints/")
        for store in it.stores:
            store.objects[segment], store.objects[checkpoint] = it.good[checkpoint], it.good[segment]
        for key in (segment, checkpoint):
            with pytest.raises(DamagedError):
                await it.source.read(key, local=False)


async def test_nowhere_is_said_so(tmp_path: Path) -> None:
    async with place(tmp_path) as it:
        key = it.key("segments/")
        it.remove_local(key)
        del it.stores[0].objects[key]
        assert await it.source.read(key) == it.good[key]
        with pytest.raises(ObjectNotFound):
            await it.source.read(key, but="b")


@pytest.mark.expects_warnings("is damaged")
@pytest.mark.parametrize("prefix", ["segments/", "checkpoints/"])
async def test_a_store_is_asked_last_for_what_it_is_to_be_sent(tmp_path: Path, prefix: str) -> None:
    """It may be the only one that has it whole; and where nobody has, that is damage."""
    async with place(tmp_path) as it:
        key = it.key(prefix)
        read = reader_for(it, "a")
        it.spoil(it.stores[0], key)
        assert await read(key) == it.good[key], "from the local disk"
        assert it.bad == [], "its own copy was not looked at"
        it.remove_local(key)
        assert await read(key) == it.good[key], "from the other store"
        assert it.bad == []
        it.stores[0].objects[key] = it.good[key]
        it.spoil(it.stores[1], key)
        assert await read(key) == it.good[key], "from itself, the other one being damaged"
        del it.stores[1].objects[key]
        assert await read(key) == it.good[key], "from itself, the other one lacking it"
        it.spoil(it.stores[0], key)
        with pytest.raises(DamagedError):
            await read(key)
        del it.stores[0].objects[key]
        with pytest.raises(ObjectNotFound):
            await read(key)


def reader_for(it: Place, store: str) -> Callable[[str], Awaitable[bytes]]:
    """What the mirror of a store reads with."""
    world = it.built.world
    pace = UploadPace(world.clock, written_ns=lambda: 0, delay_s=0.2)
    attaching = Attaching(StoreSet(), it.source, it.index, world, pace, lambda: 0.5, lambda *_: None, 1)
    return attaching._reader_for(store)
