"""What a store does not let be mended now: it is not forgotten, and not looked at over and over."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.known_faults import STATE_PATH
from mirrorfs.engine.prune_report import PruneReport
from mirrorfs.engine.scrub import DEEP, BadObject, Fault
from mirrorfs.engine.store_records import PATH as RECORDS_PATH
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import ObjectExists, StoreDenied
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
    """Can refuse to delete anything, or only say that it does; counts what is read and sent of segments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.keeps = self.lies = False
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
        if not self.lies:
            await super().delete(key)


@pytest.fixture
def stores() -> list[KeepingStore]:
    return [KeepingStore("home"), KeepingStore("s3")]


async def rotten(volume: MountedVolume, store: KeepingStore) -> str:
    """Have a segment rot at a store that lets nothing be removed, and a reader find that. Returns its key.

    It has the size that it had.
    """
    for number in range(3):
        await write_file(volume, b"%d" % number, random.Random(number).randbytes(50_000))
        await volume.flush()
    key = max(key for key in store.objects if key.startswith("segments/"))
    assert len(store.objects[key]) > 50_000
    store.objects[key] = store.objects[key][:2000] + b"rot" + store.objects[key][2003:]
    store.keeps = True
    volume.mender.suspect(store.name, key)
    return key


@pytest.mark.expects_warnings(*SAID)
@pytest.mark.parametrize("case", ["simple", "the store is being filled", "very many are bad"])
async def test_it_is_not_counted_as_held_after_a_kill(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore], case: str
) -> None:
    """Damaged bytes have the right size, so that a listing shows nothing."""
    home, s3 = stores
    (tmp_path / "pc").mkdir()
    async with VirtualPc(tmp_path / "pc", stores).mounted(wait=False) as volume:
        if case == "very many are bad":
            for number in range(200):
                volume.scrubber.faults.found(BadObject("s3", f"heads/{number}", Fault.DAMAGED, "it is bad."))
        key = await rotten(volume, home)
        await trio.sleep(60)
        assert volume.status().stores[0].pending_count
        shutil.copytree(tmp_path / "pc", tmp_path / "killed")
        found = dict(home.objects)
        instance = volume.instances["home"]
    home.keeps = False
    home.objects = found
    if case == "the store is being filled":
        path = tmp_path / "killed" / RECORDS_PATH
        records = json.loads(path.read_text())
        records["stores"][instance]["filled"] = False
        path.write_text(json.dumps(records))
    async with VirtualPc(tmp_path / "killed", stores).mounted() as volume:
        await trio.sleep(120)
        assert home.objects[key] == s3.objects[key]
        assert not volume.scrubber.faults.is_bad("home", key)


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


@pytest.mark.expects_warnings(*SAID)
async def test_a_store_that_only_says_that_it_deletes(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    """It counts as mended when the store holds it; and whoever waits hears in the end that it does not."""
    home, _ = stores
    async with VirtualPc(tmp_path, stores).mounted(wait=False) as volume:
        await rotten(volume, home)
        home.keeps, home.lies = False, True
        await trio.sleep(PATIENCE_S)
        assert home.reads + home.puts < 60
        with trio.fail_after(600), pytest.RaisesGroup(ObjectExists, flatten_subgroups=True):
            await volume.flush()


@pytest.mark.expects_warnings(*SAID)
async def test_it_is_the_object_after_all(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    """Whoever owns the store put the good bytes back: it is in nobody's way any more."""
    home, s3 = stores
    async with VirtualPc(tmp_path, stores).mounted(wait=False) as volume:
        key = await rotten(volume, home)
        await trio.sleep(60)
        assert volume.status().stores[0].pending_count
        home.objects[key] = s3.objects[key]
        await trio.sleep(PATIENCE_S)
        assert not volume.status().stores[0].pending_count
        assert not volume.status().damaged


@pytest.mark.expects_warnings(*SAID)
async def test_what_is_deleted_is_not_bad_for_ever(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    """Of heads and checkpoints no index says that they are of no use any more."""
    home, _ = stores
    async with VirtualPc(tmp_path, stores).mounted(wait=False) as volume:
        for number in range(3):
            await write_file(volume, b"%d" % number, b"x")
            await volume.flush()
        key = min(key for key in home.objects if key.startswith("heads/"))
        home.objects[key] = b"x" + home.objects[key][1:]
        home.keeps = True
        volume.mender.suspect("home", key)
        await trio.sleep(60)
        assert volume.status().damaged == {"home": 1}
        home.keeps = False
        await volume.pruner.sweeper._delete([key], PruneReport(), lambda *counts: None)
        await volume.scrubber.run(DEEP)
        assert not volume.status().damaged


@pytest.mark.expects_warnings(*SAID, "disk is full")
async def test_what_cannot_be_written_down_is_not_begun(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    """After a kill it would count as the object."""
    home, s3 = stores
    machine = VirtualPc(tmp_path, stores)
    async with machine.mounted() as volume:
        machine.disk.full_for = STATE_PATH
        key = await rotten(volume, home)
        home.keeps = False
        await trio.sleep(60)
        assert home.objects[key] != s3.objects[key]
        assert volume.status().damaged == {"home": 1}
        machine.disk.full_for = ""
        volume.mender.suspect(home.name, key)
        await trio.sleep(60)
        assert home.objects[key] == s3.objects[key]
        assert not volume.status().damaged


@pytest.mark.expects_warnings(*SAID)
async def test_it_is_tried_again_however_much_readers_find(
    tmp_path: Path, autojump_clock: MockClock, stores: list[KeepingStore]
) -> None:
    home, s3 = stores
    async with VirtualPc(tmp_path, stores).mounted() as volume:
        key = await rotten(volume, home)
        await trio.sleep(60)
        home.keeps = False
        other = min(key for key in home.objects if key.startswith("segments/"))
        for _ in range(100):
            volume.mender.suspect(s3.name, other)
            await trio.sleep(3)
        assert home.objects[key] == s3.objects[key]
