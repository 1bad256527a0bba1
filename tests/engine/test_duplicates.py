"""The same bytes written again: the engine as it is, with stores in memory and a virtual clock."""

from __future__ import annotations

import os
import random
from hashlib import sha256
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import checkpointer
from mirrorfs.engine.local import World
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.header import header_key
from mirrorfs.ports import Store
from tests.golden.independent_log import Reader
from tests.golden.independent_reader import read_tree
from tests.sim.world import InlineOffload
from tests.support.machine import FILE, HEADER_BYTES, Machine, read_file, write_file
from tests.support.store_memory import MemoryStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import HEADER, KEY_SET, KEYS

LARGE = random.Random(1).randbytes(3_500_000)
SMALL = [random.Random(2 + number).randbytes(20_000) for number in range(3)]
LITTLE = 30_000
"""Bytes that records of a few files take, and no file's contents."""


def stores() -> list[MemoryStore]:
    found = []
    for entry in HEADER.stores:
        store = MemoryStore(entry.name)
        store.objects[INSTANCE_KEY] = seal_control(
            Instance(store=entry.name, instance=entry.instance), keys=KEYS, seed=KEY_SET.writer
        )
        found.append(store)
    return found


def machine(root: Path, places: list[MemoryStore], *, deduplicate: bool = True) -> Machine:
    root.mkdir(exist_ok=True)
    found: list[Store] = list(places)
    clock, offload = TrioClock(), InlineOffload(random.Random(1))
    it = Machine(root, found, world=World(LocalDisk(root), clock, os.urandom, offload))
    it.deduplicate = deduplicate
    return it


async def appended(volume: MountedVolume, name: bytes, data: bytes) -> int:
    """Bytes that the log grew by when a file was written."""
    before = volume.status().log_bytes_appended
    await write_file(volume, name, data)
    await volume.flush()
    return volume.status().log_bytes_appended - before


async def contents(volume: MountedVolume, name: bytes) -> bytes:
    return await read_file(volume, volume.filesystem.lookup(1, name).inode)


def remove(volume: MountedVolume, name: bytes) -> None:
    inode = volume.filesystem.lookup(1, name).inode
    volume.filesystem.unlink(1, name)
    volume.filesystem.forgotten(inode)


async def test_a_copy_is_referred_to_and_outlives_the_original(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    places = stores()
    it = machine(tmp_path / "pc", places)
    async with it.mounted() as volume:
        assert await appended(volume, b"large", LARGE) > len(LARGE)
        for number, data in enumerate(SMALL):
            await write_file(volume, b"small%d" % number, data)
        await volume.flush()
        assert await appended(volume, b"large copy", LARGE) < LITTLE
        assert await appended(volume, b"small copy", SMALL[1]) < LITTLE
        remove(volume, b"large")
        for number in range(3):
            remove(volume, b"small%d" % number)
        await volume.flush()
        assert await appended(volume, b"third", LARGE) > len(LARGE), "its place is known by the first alone"
        assert await contents(volume, b"large copy") == LARGE
        remove(volume, b"third")
    for number, place in enumerate(places):
        async with machine(tmp_path / f"new{number}", [place]).mounted(take_over=True, wait=False) as volume:
            assert await contents(volume, b"large copy") == LARGE
            assert await contents(volume, b"small copy") == SMALL[1]


class Unlocked(Reader):
    """The independent reader, of a header whose slot nothing opens."""

    def _unlock(self, body: object, password: bytes, secret: bytes) -> bytes:
        return KEY_SET.root + KEY_SET.writer + KEY_SET.pruner + KEY_SET.drill


async def test_others_read_it(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the log, and from a checkpoint in which more bytes of a frame are alive than it has."""
    # A checkpoint of every segment.
    monkeypatch.setattr(checkpointer, "JOURNAL_MIN_BYTES", 10)
    monkeypatch.setattr(checkpointer, "SEGMENTS_MAX", 0)
    places = stores()
    data = LARGE[:50_000]  # the independent reader is slow
    expected = dict.fromkeys((b"first", b"second", b"third"), data)
    async with machine(tmp_path / "pc", places).mounted() as volume:
        for name in expected:
            await appended(volume, name, data)
        rows = volume._local.index.frames_in(1, 0)
        assert [row.live for row in rows] == [3 * row.length for row in rows]
        await trio.sleep(60)
    assert any(key.startswith("checkpoints/") for key in places[1].objects)
    async with machine(tmp_path / "new", [places[0]]).mounted(take_over=True, wait=False) as volume:
        for name in expected:
            assert await contents(volume, name) == data
    header = {header_key(HEADER.generation, HEADER_BYTES): HEADER_BYTES}
    for from_checkpoint in (False, True):
        tree = read_tree(Unlocked(places[1].objects | header, "", b""), from_checkpoint=from_checkpoint)
        found = {path: entry["sha256"] for path, entry in tree.items() if path != "/"}
        assert found == {f"/{name.decode()}": sha256(data).hexdigest() for name in expected}


async def test_a_file_written_once_more_costs_nothing(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with machine(tmp_path, stores()).mounted() as volume:
        await appended(volume, b"file", LARGE)
        inode = volume.filesystem.lookup(1, b"file").inode
        before = volume.status().log_bytes_appended
        await volume.filesystem.write(inode, 0, LARGE)
        await volume.flush()
        assert volume.status().log_bytes_appended - before < LITTLE
        assert await contents(volume, b"file") == LARGE
        assert volume.filesystem.getattr(inode).allocated == len(LARGE)


async def test_dead_bytes_of_a_live_frame_stay_dead(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with machine(tmp_path, stores()).mounted() as volume:
        for number, data in enumerate(SMALL):
            await write_file(volume, b"small%d" % number, data)
        await volume.flush()
        frames = {row.frame for row in volume._local.index.frames_in(1, 0) if row.live}
        remove(volume, b"small1")
        await volume.flush()
        assert await appended(volume, b"again", SMALL[1]) > len(SMALL[1])
        assert len(frames) == 1, "the three share a frame"


async def synced(volume: MountedVolume, name: bytes) -> int:
    """As `appended`, without waiting for the stores."""
    before = volume.status().log_bytes_appended
    await write_file(volume, name, LARGE)
    await volume.filesystem.sync()
    return volume.status().log_bytes_appended - before


async def test_what_a_store_turns_out_to_lack_is_not_relied_on(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with machine(tmp_path, stores()).mounted() as volume:
        await appended(volume, b"file", LARGE)
        assert await synced(volume, b"copy") < LITTLE
        mirror = volume._stores[1].mirror
        keys = [info.key for info in await mirror.store.list("segments/")]
        for key in keys:
            mirror.forget(key)
        assert await synced(volume, b"third") > len(LARGE)
        for key in keys:
            mirror.resume(key)


async def test_what_a_store_lacks_yet_is_stored_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with machine(tmp_path, stores()).mounted() as volume:
        await write_file(volume, b"file", LARGE)
        await volume.filesystem.sync()
        assert await synced(volume, b"copy") > len(LARGE)


@pytest.mark.parametrize("why", ["off", "another owner", "index rebuilt", "keys rotated"])
async def test_where_nothing_is_found(autojump_clock: MockClock, tmp_path: Path, why: str) -> None:
    it = machine(tmp_path, stores(), deduplicate=why != "off")
    async with it.mounted() as volume:
        await appended(volume, b"file", LARGE)
        ends = await volume.ends()
    if why == "index rebuilt":
        it.files.remove()
    elif why == "keys rotated":
        it.rotate(ends)
    async with it.mounted() as volume:
        before = volume.status().log_bytes_appended
        uid = 7 if why == "another owner" else 0
        inode = volume.filesystem.create(1, b"copy", mode=FILE, uid=uid, gid=0, umask=0).inode
        volume.filesystem.opened(inode, writable=True)
        await volume.filesystem.write(inode, 0, LARGE)
        volume.filesystem.released(inode, writable=True)
        await volume.flush()
        assert volume.status().log_bytes_appended - before > len(LARGE)
        assert await contents(volume, b"copy") == LARGE
        if why in ("index rebuilt", "keys rotated"):
            assert await appended(volume, b"third", LARGE) < LITTLE, "what is new is found"


async def test_a_copy_is_found_however_it_is_written(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with machine(tmp_path, stores()).mounted() as volume:
        await appended(volume, b"file", LARGE)
        before = volume.status().log_bytes_appended
        filesystem = volume.filesystem
        inode = filesystem.create(1, b"copy", mode=FILE, uid=0, gid=0, umask=0).inode
        filesystem.opened(inode, writable=True)
        for at in range(0, len(LARGE), 70_001):
            await filesystem.write(inode, at, LARGE[at : at + 70_001])
            filesystem.released(inode, writable=True)
        await volume.flush()
        assert volume.status().log_bytes_appended - before < len(LARGE) // 2
        assert await contents(volume, b"copy") == LARGE
