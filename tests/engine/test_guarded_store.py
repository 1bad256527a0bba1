"""A store is relied on only while its place is the one that is meant: disks are unplugged at any moment."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine.confirming import CONFIRM_DELAY_S
from mirrorfs.engine.guarded_store import CHECK_EVERY_S, GuardedStore
from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.errors import StoreMismatch
from mirrorfs.format.control import INSTANCE_KEY, LEASE_KEY, seal_control
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.ports import ObjectKey
from tests.support.store_memory import MemoryStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import HEADER, INSTANCE, KEY_SET, KEYS

OBJECT = segment_object_key(Stream.MAIN, SegmentId(1, 1, b"writerAB"))
LATER = segment_object_key(Stream.MAIN, SegmentId(2, 1, b"writerAB"))


class Disk:
    """A directory store whose disk can be unmounted: what is done then is done to the directory below."""

    def __init__(self) -> None:
        self.disk: dict[str, bytes] = {
            INSTANCE_KEY: seal_control(INSTANCE, keys=KEYS, seed=KEY_SET.writer),
        }
        self.below: dict[str, bytes] = {}
        self.place = MemoryStore("home", self.disk)
        self.clock = TrioClock()
        self.store = GuardedStore(
            self.place,
            instance=INSTANCE.instance,
            keys=KEYS,
            public_key=HEADER.public_keys.writer,
            clock=self.clock,
        )

    def unmount(self) -> None:
        self.place.objects = self.below

    def mount(self) -> None:
        self.place.objects = self.disk

    def mirror(self) -> Mirror:
        return Mirror(
            self.store,
            instance=INSTANCE.instance.hex(),
            read_object=self._read,
            lease_fresh=trio.lowlevel.checkpoint,
            held=HeldKeys(),
            save_held=lambda key: None,
            forget_held=lambda key: None,
            clock=self.clock,
            pace=UploadPace(self.clock, written_ns=lambda: -(10**18), delay_s=10.0),
            random=random.Random(7).random,
        )

    async def _read(self, key: str) -> bytes:
        await trio.lowlevel.checkpoint()
        return b"x" * 100


@pytest.mark.expects_warnings("is falling behind", "after taking it; sending it again")
async def test_what_fell_on_a_bare_mountpoint_is_not_held(autojump_clock: MockClock) -> None:
    it = Disk()
    mirror = it.mirror()
    async with trio.open_nursery() as nursery:
        await nursery.start(mirror.run)
        mirror.offer(OBJECT, 100, written_ns=0)
        await mirror.wait_held()
        it.unmount()
        mirror.offer(LATER, 100, written_ns=0)
        await trio.sleep(CONFIRM_DELAY_S * 2)
        # The place was looked at seconds ago, so that the object was sent; it is not held for that.
        assert LATER in it.below
        assert not mirror.is_held(LATER)
        assert mirror.snapshot().state is StateWord.MISSING
        await trio.sleep(CHECK_EVERY_S * 2)
        assert not mirror.is_held(LATER)
        it.mount()
        await mirror.wait_held()
        assert mirror.is_held(LATER)
        assert LATER in it.disk
        nursery.cancel_scope.cancel()


async def test_a_listing_of_a_bare_mountpoint_tells_nothing(autojump_clock: MockClock) -> None:
    it = Disk()
    mirror = it.mirror()
    mirror.offer(OBJECT, 100, written_ns=0)
    await it.store.list("segments/")
    it.unmount()
    it.below[OBJECT] = b"x" * 100
    with pytest.raises(StoreMismatch):
        await mirror.reconcile()
    assert not mirror.is_held(OBJECT)


async def test_a_lease_on_a_bare_mountpoint_is_none(autojump_clock: MockClock) -> None:
    it = Disk()
    keeper = LeaseKeeper(
        it.store, keys=KEYS, seed=KEY_SET.writer, public_key=HEADER.public_keys.writer, clock=it.clock,
        entropy=random.Random(1).randbytes, host="pc", weak_fencing=False,
    )  # fmt: skip
    await it.store.list("")
    it.unmount()
    with pytest.raises(StoreMismatch):
        await keeper.acquire(epoch=1, writer=b"writerAB")
    assert not keeper.state().fresh
    assert keeper.state().missing
    it.mount()
    await keeper.fresh()
    assert LEASE_KEY in it.disk
    assert keeper.state().fresh


async def test_the_place_is_looked_at_again_after_a_suspend(autojump_clock: MockClock) -> None:
    it = Disk()
    await it.store.list("")
    it.unmount()
    assert list(await it.store.list("")) == []  # looked at a moment ago
    it.clock.suspended_s = 30.0
    with pytest.raises(StoreMismatch):
        await it.store.get(ObjectKey(OBJECT))
