"""A store that rotates: away for weeks, which is no fault, and caught up by itself when it is back."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine import guarded_store
from mirrorfs.engine.daily_look import FIRST_S
from mirrorfs.engine.guarded_store import GuardedStore
from mirrorfs.engine.lease import LEASE_PERIOD_S
from mirrorfs.engine.local import World
from mirrorfs.engine.mirror_state import MirrorState, StateWord
from mirrorfs.engine.volume import MountedVolume
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, Instance, Lease, open_lease, seal_control
from mirrorfs.format.header import StoreEntry
from mirrorfs.ports import Store
from tests.sim.world import InlineOffload
from tests.support.machine import Machine, read_file, write_file
from tests.support.store_simulated import SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import HEADER, KEY_SET, KEYS, WRITER

HOME, S3 = HEADER.stores
USB = StoreEntry(name="usb", instance=b"\x22" * 16)
PUBLIC_KEY = KEY_SET.public_keys().writer
DAY_S = 24 * 3600.0
SIZE = 2_000_000
ABSENCES = ("unplugged", "empty mountpoint")


def contents(number: int) -> bytes:
    return random.Random(number).randbytes(SIZE)


class Disk:
    """A USB disk: pulled out, its mountpoint is gone, or is there and empty."""

    def __init__(self) -> None:
        self.store = SimulatedStore("usb", seed=1)
        document = Instance(store="usb", instance=USB.instance)
        self.store.objects[INSTANCE_KEY] = seal_control(document, keys=KEYS, seed=KEY_SET.writer)
        self._kept: dict[str, bytes] | None = None

    def pull(self, how: str) -> None:
        if how == "unplugged":
            self.store.outage = True
        else:
            self._kept = dict(self.store.objects)
            self.store.wipe()

    def plug(self) -> None:
        self.store.outage = False
        if self._kept is not None:
            assert not self.store.objects, "nothing was written to the empty place"
            self.store.objects.update(self._kept)
            self._kept = None

    def lease(self) -> Lease:
        return open_lease(self.store.objects[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY)


class Office:
    """Two stores that are always there, a disk, and machines in turn; one virtual clock for all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lasting = [SimulatedStore("home", seed=2), SimulatedStore("s3", seed=3)]
        self.disk = Disk()
        self.clock = TrioClock()

    def machine(
        self, name: str, *, stores: Sequence[Store] | None = None, cache_bytes: int = 1 << 30
    ) -> Machine:
        root = self.folder / name
        guarded = GuardedStore(
            self.disk.store, instance=USB.instance, keys=KEYS, public_key=PUBLIC_KEY, clock=self.clock
        )
        world = World(
            LocalDisk(root), self.clock, random.Random(name).randbytes, InlineOffload(random.Random(1))
        )
        made = Machine(
            root, stores or [*self.lasting, guarded], cache_bytes=cache_bytes, world=world, rotating=["usb"]
        )
        made.next_header(HOME, S3, USB)
        return made

    async def check_disk_alone(self, numbers: range) -> None:
        machine = self.machine("bare", stores=[self.disk.store])
        machine.rotating = frozenset()
        async with machine.mounted(wait=False) as volume:
            for number in numbers:
                inode = volume.filesystem.lookup(1, b"file %d" % number).inode
                assert await read_file(volume, inode) == contents(number)


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    # What is looked at is what is there at this moment.
    monkeypatch.setattr(guarded_store, "CHECK_EVERY_S", 0.0)
    return Office(tmp_path)


async def fill(volume: MountedVolume, first: int, count: int) -> None:
    for number in range(first, first + count):
        await write_file(volume, b"file %d" % number, contents(number))


def usb(volume: MountedVolume) -> MirrorState:
    return next(store for store in volume.status().stores if store.store == "usb")


async def until_state(volume: MountedVolume, word: StateWord, *, within_s: float) -> None:
    with trio.fail_after(within_s):
        while usb(volume).state is not word:  # noqa: ASYNC110 - a state has no event
            await trio.sleep(1)


@pytest.mark.parametrize("how", ABSENCES)
async def test_it_is_pulled_out_and_comes_back(autojump_clock: MockClock, office: Office, how: str) -> None:
    machine = office.machine("pc")
    async with machine.mounted() as volume:
        await fill(volume, 0, 3)
        await volume.flush()
        assert usb(volume).state is StateWord.UP_TO_DATE
        pulled_ns = office.clock.now_ns()
        office.disk.pull(how)
        await fill(volume, 3, 3)
        with trio.fail_after(120):
            await volume.flush()
        for store in office.lasting:
            assert len([key for key in store.objects if key.startswith("segments/")]) > 1
        await trio.sleep(DAY_S / 12)
        state = usb(volume)
        assert state.state is StateWord.AWAY
        assert state.pending_bytes > 3 * SIZE
        assert state.away_since_ns is not None
        assert abs(state.away_since_ns - pulled_ns) < 200e9
        office.disk.plug()
        await until_state(volume, StateWord.UP_TO_DATE, within_s=300)
        assert usb(volume).away_since_ns is None
        assert volume.status().fenced is None
    await office.check_disk_alone(range(6))


@pytest.mark.parametrize("how", ABSENCES)
@pytest.mark.parametrize("mounts", [1, 3])
async def test_it_is_away_over_mounts(
    autojump_clock: MockClock,
    office: Office,
    how: str,
    mounts: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    machine = office.machine("pc")
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        office.disk.pull(how)
        # Pulled out under a mount: its lease stays as it is.
        await trio.sleep(100)
        pulled_ns = usb(volume).away_since_ns
        assert pulled_ns is not None
    for number in range(mounts):
        await trio.sleep(5 * DAY_S)  # unmounted
        with caplog.at_level(logging.WARNING, logger="mirrorfs"), trio.fail_after(100):
            began_s = trio.current_time()
            async with machine.mounted() as volume:
                assert trio.current_time() - began_s < 10, "nobody waits for it"
                await fill(volume, number + 1, 1)
                await volume.flush()
                state = usb(volume)
                assert state.state is StateWord.AWAY
                # Remembered from mount to mount.
                assert state.away_since_ns == pulled_ns
        assert caplog.records == []
    epoch = open_lease(office.lasting[0].objects[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY).epoch
    async with machine.mounted() as volume:
        office.disk.plug()
        # Its lease is one of an earlier mount here: nobody has to watch it.
        began_s = trio.current_time()
        await until_state(volume, StateWord.UP_TO_DATE, within_s=150)
        assert trio.current_time() - began_s < LEASE_PERIOD_S + 30
        assert office.disk.lease().epoch == epoch + 1
        assert volume.status().fenced is None
    assert office.disk.lease().released
    await office.check_disk_alone(range(mounts + 1))


@pytest.mark.expects_warnings("Another machine wrote since")
async def test_other_machines_wrote_while_it_was_away(autojump_clock: MockClock, office: Office) -> None:
    """It is back on a third machine, which has never seen it, and has not what it lacks either."""
    async with office.machine("first").mounted() as volume:
        await fill(volume, 0, 2)
    office.disk.pull("unplugged")
    for number, name in ((2, "second"), (3, "first"), (4, "second")):
        async with office.machine(name).mounted() as volume:
            await fill(volume, number, 1)
            await volume.flush()
    third = office.machine("third", cache_bytes=0)
    async with third.mounted() as volume:
        await fill(volume, 5, 1)
        await volume.flush()
        office.disk.plug()
        await until_state(volume, StateWord.UP_TO_DATE, within_s=300)
        assert volume.status().fenced is None
        lasting = open_lease(office.lasting[0].objects[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY)
        assert office.disk.lease().epoch == lasting.epoch
    await office.check_disk_alone(range(6))


async def test_the_lease_of_a_machine_that_is_gone_is_watched(
    autojump_clock: MockClock, office: Office
) -> None:
    """Pulled out of a machine that never gave the lease back, it comes to another one."""
    async with office.machine("first").mounted() as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        office.disk.pull("unplugged")
    async with office.machine("second").mounted() as volume:
        assert not usb(volume).pending_count or usb(volume).state is StateWord.AWAY
        office.disk.plug()
        await fill(volume, 1, 1)
        began_s = trio.current_time()
        await until_state(volume, StateWord.UP_TO_DATE, within_s=400)
        assert trio.current_time() - began_s >= LEASE_PERIOD_S
        assert not office.disk.lease().released
    await office.check_disk_alone(range(2))


@pytest.mark.expects_warnings("Store usb is left alone", "was taken over by epoch")
async def test_what_it_got_elsewhere_stops_nobody(autojump_clock: MockClock, office: Office) -> None:
    """It was written to by a later epoch on a machine that no other store knows: that is its own fault."""
    machine = office.machine("pc")
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        office.disk.pull("unplugged")
        await trio.sleep(100)
        lease = office.disk.lease()
        later = Lease(
            writer=WRITER, epoch=lease.epoch + 5, parent=b"", counter=0, released=True, period_ms=60_000,
            box=lease.box,
        )  # fmt: skip
        office.disk.store.objects[LEASE_KEY] = seal_control(later, keys=KEYS, seed=KEY_SET.writer)
        before = dict(office.disk.store.objects)
        office.disk.plug()
        await fill(volume, 1, 2)
        await until_state(volume, StateWord.CONFLICT, within_s=200)
        await volume.filesystem.sync()
        await fill(volume, 3, 1)
        with trio.fail_after(60):
            await volume.flush()
        assert volume.status().fenced is None
        assert "nothing is sent to it" in (usb(volume).last_error or "")
        assert office.disk.store.objects == before, "nothing is sent to it"


async def test_the_cache_does_not_wait_for_it(autojump_clock: MockClock, office: Office) -> None:
    machine = office.machine("pc", cache_bytes=0)
    async with machine.mounted() as volume:
        office.disk.pull("unplugged")
        await fill(volume, 0, 20)
        await volume.flush()
        await volume._local.cache.shrink()
        segments = machine.root / "objects" / "segments"
        here = {path.name for path in segments.iterdir()}
        sent = {key for key in office.lasting[0].objects if key.startswith("segments/")}
        assert len(here) < len(sent)
        office.disk.plug()
        # From the other stores, then.
        await until_state(volume, StateWord.UP_TO_DATE, within_s=400)
    await office.check_disk_alone(range(20))


async def test_the_cache_keeps_what_a_lasting_store_lacks(autojump_clock: MockClock, office: Office) -> None:
    machine = office.machine("pc", cache_bytes=0)
    async with machine.mounted(wait=False) as volume:
        office.lasting[1].full = True
        await fill(volume, 0, 12)
        for one in (volume._stores[0], volume._stores[2]):
            await one.mirror.wait_held()
        await volume._local.cache.shrink()
        segments = machine.root / "objects" / "segments"
        held = {
            key.removeprefix("segments/") for key in office.lasting[0].objects if key.startswith("segments/")
        }
        assert held <= {path.name for path in segments.iterdir()}
        office.lasting[1].full = False


async def test_flush_waits_for_it_while_it_is_there(autojump_clock: MockClock, office: Office) -> None:
    machine = office.machine("pc")
    async with machine.mounted() as volume:
        await fill(volume, 0, 1)
        await volume.flush()
        await fill(volume, 1, 3)
        await volume.flush()
        assert usb(volume).pending_count == 0
    await office.check_disk_alone(range(4))


async def test_that_a_disk_is_away_is_no_look_that_failed(
    autojump_clock: MockClock, office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mirrorfs.engine.daily_look.DAYS_SAID", 1)
    machine = office.machine("pc")
    async with machine.mounted() as volume:
        await fill(volume, 0, 2)
        await volume.flush()
        office.disk.pull("unplugged")
        await trio.sleep(2 * FIRST_S)
        assert volume.daily_look.unfinished() == {}
