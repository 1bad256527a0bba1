"""Leases of earlier writers that show up late, renewed in between or shown again: they fence nobody."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.lease import LEASE_PERIOD_S, RENEW_AGAIN_S, RENEW_S, LeaseKeeper
from mirrorfs.errors import InUseError, StoreUnavailable
from mirrorfs.format.control import LEASE_KEY, open_lease
from mirrorfs.ports import ObjectKey, Sealed, Version
from tests.support.store_simulated import SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEY_SET, KEYS

PUBLIC_KEY = KEY_SET.public_keys().writer
OLD, NEW = b"writer-O", b"writer-N"


def keeper(store: SimulatedStore, host: str) -> LeaseKeeper:
    return LeaseKeeper(
        store, keys=KEYS, seed=KEY_SET.writer, public_key=PUBLIC_KEY, clock=TrioClock(),
        entropy=random.Random(host).randbytes, host=host, weak_fencing=False,
    )  # fmt: skip


class RacedStore(SimulatedStore):
    """A store on which, just before the next swaps through this link, another one takes place."""

    def __init__(self, objects: dict[str, bytes], rival: LeaseKeeper, *, swaps: int) -> None:
        super().__init__("home", seed=2, objects=objects)
        self._rival = rival
        self.swaps = swaps

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        if self.swaps:
            self.swaps -= 1
            async with self._rival._lock:
                assert self._rival._lease is not None
                await self._rival._renew(self._rival._lease)
        return await super().compare_and_swap(key, data, expected=expected)


@pytest.mark.expects_warnings("was taken over by epoch 6")
@pytest.mark.parametrize("swaps", [1, 2])
async def test_the_displaced_writer_renews_while_it_is_displaced(
    autojump_clock: MockClock, swaps: int
) -> None:
    """Its epoch is lower: the newer writer tries again, and is not the one that is fenced."""
    place: dict[str, bytes] = {}
    old = keeper(SimulatedStore("home", seed=1, objects=place), "old")
    await old.acquire(epoch=5, writer=OLD)
    store = RacedStore(place, old, swaps=swaps)
    new = keeper(store, "new")
    with pytest.raises(StoreUnavailable, match="tried again"):
        await new.acquire(epoch=6, writer=NEW, take_over=True)
    assert new.state().fenced is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(new.run)
        await trio.sleep(RENEW_S + 2 * RENEW_AGAIN_S + LEASE_PERIOD_S)
        nursery.cancel_scope.cancel()
    assert open_lease(place[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY).writer == NEW
    await new.fresh()
    with pytest.raises(InUseError):
        await old.fresh()
    assert old.state().fenced is not None


@pytest.mark.expects_warnings("rolled back. It is written anew")
async def test_old_leases_shown_again_in_order_fence_nobody(autojump_clock: MockClock) -> None:
    """A hostile store has two of an earlier writer, and plays its renewal: that proves no life."""
    place: dict[str, bytes] = {}
    store = SimulatedStore("home", seed=1, objects=place)
    old = keeper(store, "old")
    await old.acquire(epoch=5, writer=OLD)
    shown = [place[LEASE_KEY]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(old.run)
        await trio.sleep(RENEW_S + 1)
        nursery.cancel_scope.cancel()
    shown.append(place[LEASE_KEY])
    assert shown[0] != shown[1]
    await old.release()
    new = keeper(store, "new")
    await new.acquire(epoch=6, writer=NEW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(new.run)
        for data in shown:
            place[LEASE_KEY] = data
            await trio.sleep(RENEW_S + 2 * RENEW_AGAIN_S)
        assert new.state().fenced is None
        assert "rolled back" in (new.state().last_error or "")
        # Watched unchanged for a period, it is written over.
        await trio.sleep(2 * LEASE_PERIOD_S)
        assert open_lease(place[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY).writer == NEW
        assert (new.state().fresh, new.state().fenced) == (True, None)
        nursery.cancel_scope.cancel()
