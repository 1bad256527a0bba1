"""What a store does not let be mended now: it is not forgotten, and not looked at over and over."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreDenied
from mirrorfs.ports import ObjectKey, ObjectVersion, Sealed
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc

SAID = (
    "is refused|may not be|does not allow",
    "holds other bytes",
    "is damaged",
    "does not verify",
    "mended",
)
PATIENCE_S = 3600.0


class KeepingStore(MemoryStore):
    """Can refuse to delete anything; counts what is read and sent of segments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.keeps = False
        self.reads = 0
        self.puts = 0

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        self.puts += key.startswith("segments/")
        await super().put(key, data)

    async def get(
        self, key: ObjectKey, *, size_max: int = 1 << 25, version: ObjectVersion | None = None
    ) -> bytes:
        self.reads += key.startswith("segments/")
        return await super().get(key, size_max=size_max, version=version)

    async def delete(self, key: ObjectKey) -> None:
        if self.keeps:
            raise StoreDenied(f"Store {self.name} does not allow deleting.")
        await super().delete(key)


@pytest.fixture
def stores() -> list[KeepingStore]:
    return [KeepingStore("home"), KeepingStore("s3")]


async def rotten(volume: MountedVolume, store: KeepingStore) -> str:
    """Have a segment rot at a store that lets nothing be removed, and a reader find that. Returns its key."""
    for number in range(3):
        await write_file(volume, b"%d" % number, random.Random(number).randbytes(50_000))
        await volume.flush()
    key = min(key for key in store.objects if key.startswith("segments/"))
    store.objects[key] = store.objects[key][:2000] + b"rot" + store.objects[key][2003:]
    store.keeps = True
    volume.mender.suspect(store.name, key)
    return key


@pytest.mark.expects_warnings(*SAID)
async def test_it_is_not_counted_as_held_after_a_kill(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    """Damaged bytes have the right size, so that a listing shows nothing."""
    home, s3 = stores
    (tmp_path / "pc").mkdir()
    async with VirtualPc(tmp_path / "pc", stores).mounted(wait=False) as volume:
        key = await rotten(volume, home)
        await trio.sleep(60)
        assert volume.status().stores[0].pending_count
        shutil.copytree(tmp_path / "pc", tmp_path / "killed")
        found = dict(home.objects)
    home.keeps = False
    home.objects = found
    async with VirtualPc(tmp_path / "killed", stores).mounted() as volume:
        await trio.sleep(120)
        assert home.objects[key] == s3.objects[key]
        assert not volume.scrubber.faults.all()


@pytest.mark.expects_warnings(*SAID)
async def test_it_is_tried_again_ever_more_seldom(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    home, s3 = stores
    machine = VirtualPc(tmp_path, stores)
    async with machine.mounted() as volume:
        key = await rotten(volume, home)
        await trio.sleep(PATIENCE_S)
        assert home.reads + home.puts < 40
        home.keeps = False
        await trio.sleep(PATIENCE_S)
        assert home.objects[key] == s3.objects[key]
        assert not volume.scrubber.faults.all()


@pytest.mark.expects_warnings(*SAID)
async def test_whoever_waits_does_not_wait_for_that(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    home, s3 = stores
    async with VirtualPc(tmp_path, stores).mounted() as volume:
        key = await rotten(volume, home)
        await trio.sleep(PATIENCE_S)
        home.keeps = False
        with trio.fail_after(60):
            await volume.flush()
        assert home.objects[key] == s3.objects[key]
