"""How long `repair` waits for stores, what it says meanwhile, and what it says of what is on its way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.cli.control_protocol import Message
from mirrorfs.cli.scrubbing import ON_ITS_WAY, STALL_S, scrub
from mirrorfs.engine.store_tasks import StoreChange
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.errors import StoreUnavailable
from mirrorfs.format.control import INSTANCE_KEY, Instance, seal_control
from mirrorfs.format.header import StoreEntry
from mirrorfs.ports import ObjectKey, Sealed
from tests.support.machine import write_file
from tests.support.store_memory import MemoryStore
from tests.support.virtual_pc import VirtualPc
from tests.support.volumes import HEADER, KEY_SET, KEYS

LOST = 5


class SlowStore(MemoryStore):
    """Takes its time for each object, or takes none."""

    takes_s = 0.0
    takes = True
    refuses = ""

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        await trio.sleep(self.takes_s)
        if not self.takes or key == self.refuses:
            raise StoreUnavailable(f"Store {self.name} answers 503 SlowDown.")
        await super().put(key, data)


@asynccontextmanager
async def robbed(root: Path) -> AsyncIterator[tuple[MountedVolume, SlowStore, list[str]]]:
    """A volume of which a store lost some segments."""
    store = SlowStore("s3")
    machine = VirtualPc(root, [MemoryStore("home"), store])
    async with machine.mounted() as volume:
        for number in range(LOST + 3):
            await write_file(volume, b"%d" % number, b"x" * 1000)
            await volume.flush()
        lost = [key for key in sorted(store.objects) if key.startswith("segments/")][:LOST]
        for key in lost:
            del store.objects[key]
        yield volume, store, lost


async def repair(volume: MountedVolume) -> list[Message]:
    said: list[Message] = []

    async def say(message: Message) -> None:
        said.append(message)
        await trio.lowlevel.checkpoint()

    await scrub(volume, {"mend": True}, say)
    return said


def mended(said: list[Message]) -> dict[str, tuple[object, object]]:
    return {
        str(message["key"]): (message["why"], message["on_its_way"])
        for message in said
        if message["type"] == "mended"
    }


def counts(said: list[Message], phase: str) -> list[tuple[object, object]]:
    return [
        (message["done"], message["total"])
        for message in said
        if message["type"] == "progress" and message["phase"] == phase
    ]


async def test_a_store_that_is_slow_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorfs.cli.scrubbing.MENDED_AT_ONCE", 2)
    async with robbed(tmp_path) as (volume, store, lost):
        store.takes_s = 2 * STALL_S
        began_s = trio.current_time()
        said = await repair(volume)
        assert trio.current_time() - began_s > store.takes_s
        assert mended(said) == {key: (None, False) for key in lost}
        assert counts(said, "mended") == [(2, LOST), (4, LOST), (LOST, LOST)]
        assert counts(said, "sent") == [(count, LOST) for count in range(1, LOST + 1)]
        assert volume.scrubber.faults.all() == []
        assert set(lost) <= store.objects.keys()


@pytest.mark.expects_warnings("is falling behind")
async def test_what_a_store_does_not_take_is_on_its_way(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with robbed(tmp_path) as (volume, store, lost):
        store.takes = False
        began_s = trio.current_time()
        said = await repair(volume)
        assert STALL_S <= trio.current_time() - began_s <= 3 * STALL_S
        assert mended(said) == {key: (ON_ITS_WAY, True) for key in lost}
        assert [bad.key for bad in volume.scrubber.faults.all()] == lost
        store.takes = True
        await volume.flush()
        assert set(lost) <= store.objects.keys()


@pytest.mark.expects_warnings("is falling behind", "does not get")
async def test_one_object_that_does_not_get_there_is_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with robbed(tmp_path) as (volume, store, lost):
        store.refuses = lost[2]

        async def write_on() -> None:
            for number in range(10_000):
                await write_file(volume, b"more %d" % number, b"x" * 1000)
                await trio.sleep(5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_on)
            with trio.fail_after(20 * STALL_S):
                said = await repair(volume)
            nursery.cancel_scope.cancel()
        assert mended(said) == {key: (ON_ITS_WAY, True) if key == lost[2] else (None, False) for key in lost}
        store.refuses = ""


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_store_that_leaves_the_volume_is_not_waited_for(
    tmp_path: Path, autojump_clock: MockClock, replaced: bool
) -> None:
    home, s3 = HEADER.stores
    new = StoreEntry(s3.name, b"\x23" * 16)
    comer = MemoryStore(s3.name)
    comer.objects[INSTANCE_KEY] = seal_control(
        Instance(store=s3.name, instance=new.instance), keys=KEYS, seed=KEY_SET.writer
    )
    store = SlowStore(s3.name)
    machine = VirtualPc(tmp_path, [MemoryStore(home.name), store])
    async with machine.mounted() as volume:
        for number in range(LOST):
            await write_file(volume, b"%d" % number, b"x" * 1000)
            await volume.flush()
        lost = [key for key in sorted(store.objects) if key.startswith("segments/")][:LOST]
        for key in lost:
            del store.objects[key]
        store.takes_s = 50.0
        said: list[Message] = []

        async def mend() -> None:
            said.extend(await repair(volume))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(mend)
            await trio.sleep(30.0)
            machine.next_header(home, *([new] if replaced else []))
            change = StoreChange(machine.header, machine.header_bytes, frozenset(), lambda entry: comer)
            await volume.change_stores(change)
            with trio.fail_after(STALL_S):
                while not said:  # noqa: ASYNC110 - a repair has no event
                    await trio.sleep(1.0)
            nursery.cancel_scope.cancel()
        why = "Store s3 is not one of the volume's any more."
        assert mended(said) == {key: (why, False) for key in lost}
        machine.stores = [machine.stores[0], *([comer] if replaced else [])]
