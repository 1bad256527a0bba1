"""Garbage on top of every object, and delete markers: all that reads finds the good version beneath."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mirrorfs.drivers.os_clock import SystemClock
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.scrub import DEEP, SIZES
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.ports import ObjectKey, Sealed
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_memory import MemoryStore
from tests.support.store_versioned import VersionedStore
from tests.support.volumes import HEADER, KEY_SET, KEYS

FILES = 6
CONTENTS = [random.Random(number).randbytes(40_000) for number in range(FILES)]
SAID = "is passed over|is damaged|holds no object|Object .* of .* was|[Ss]tore s3, object|holds other bytes"


async def fill(machine: Machine) -> list[int]:
    """Write files, each sent by itself. Returns their inodes."""
    async with machine.mounted() as volume:
        inodes = []
        for number, data in enumerate(CONTENTS):
            inodes.append(await write_file(volume, b"%d" % number, data))
            await volume.flush()
    return inodes


def attack(store: VersionedStore) -> dict[str, bytes]:
    """Put something over all objects, or delete them, in turns; returns what was there."""
    good = {key: data for key, data in store.objects.items() if key != "lease"}
    for number, key in enumerate(sorted(good)):
        if number % 3 != 1:
            store.put_anything(key, b"garbage" if number % 2 else good[key][::-1])
        if number % 3:
            store.put_anything(key, None)
    return good


def shown(store: VersionedStore) -> dict[str, bytes]:
    return {key: data for key, data in store.objects.items() if key != "lease"}


@pytest.mark.expects_warnings(SAID)
async def test_a_new_machine_reads_everything(tmp_path: Path) -> None:
    stores = [MemoryStore("home"), VersionedStore("s3")]
    inodes = await fill(Machine(tmp_path / "old", stores))
    attack(stores[1])
    # The other store is lost, and the new machine has nothing.
    stores[0].objects = {}
    other = Machine(tmp_path / "new", stores)
    async with other.mounted(wait=False) as volume:
        for inode, data in zip(inodes, CONTENTS, strict=True):
            assert await read_file(volume, inode) == data


@pytest.mark.expects_warnings(SAID)
@pytest.mark.parametrize("may_delete", [True, False])
async def test_repair_puts_the_good_versions_on_top(tmp_path: Path, may_delete: bool) -> None:
    stores = [MemoryStore("home"), VersionedStore("s3")]
    machine = Machine(tmp_path, stores)
    async with machine.mounted() as volume:
        for number, data in enumerate(CONTENTS):
            await write_file(volume, b"%d" % number, data)
        await volume.flush()
        good = attack(stores[1])
        stores[1].may_delete = may_delete
        sizes = await volume.scrubber.run(SIZES, places=["s3"])
        hidden = {key for key in good if key not in stores[1].objects}
        assert hidden <= {bad.key for bad in sizes.bad}
        report = await volume.scrubber.run(DEEP, places=["s3"])
        assert {bad.key for bad in report.bad} == set(good)
        assert set((await volume.mender.mend(report.bad)).values()) == {None}
        await volume.flush()
        assert shown(stores[1]) == good
        assert (await volume.scrubber.run(DEEP, places=["s3"])).bad == []


async def test_the_instance_document_beneath_counts_and_comes_back(tmp_path: Path) -> None:
    instance = HEADER.stores[1].instance
    document = seal_control(Instance("s3", instance), keys=KEYS, seed=KEY_SET.writer)
    inner = VersionedStore("s3")
    key = ObjectKey(INSTANCE_KEY)
    await inner.put(key, Sealed(document))
    inner.may_delete = False
    for wrong in (b"garbage", None):
        inner.put_anything(INSTANCE_KEY, wrong)
        store = GuardedStore(
            inner, instance=instance, keys=KEYS, public_key=KEY_SET.public_keys().writer,
            clock=SystemClock(), seed=KEY_SET.writer,
        )  # fmt: skip
        assert list(await store.list("")) != []
        assert await store.reclaim(is_held=lambda key: False, check=never)
        assert inner.objects[INSTANCE_KEY] == document
        assert not await store.reclaim(is_held=lambda key: False, check=never)


async def never(key: str, data: bytes) -> None:
    raise AssertionError
