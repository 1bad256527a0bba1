"""The faults that the simulated store promises to its users, each seen to happen."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mirrorfs.errors import ObjectExists, StoreDenied, StoreFull, StoreUnavailable, UnknownOutcome
from mirrorfs.ports import ObjectKey, Sealed
from tests.support.store_simulated import Faults, SimulatedStore

KEY = ObjectKey("segments/1")
LEASE = ObjectKey("lease")
DATA = Sealed(b"bytes")


async def test_faults_of_requests() -> None:
    store = SimulatedStore("a", seed=1)
    store.next_faults = [Faults(unavailable=1), Faults(lost_request=1), Faults(lost_acknowledgement=1)]
    with pytest.raises(StoreUnavailable):
        await store.put(KEY, DATA)
    with pytest.raises(UnknownOutcome):
        await store.put(KEY, DATA)
    assert store.objects == {}
    with pytest.raises(UnknownOutcome):
        await store.put(KEY, DATA)
    assert store.objects == {KEY: DATA}
    store.next_faults = [Faults(lost_acknowledgement=1)]
    with pytest.raises(StoreUnavailable):
        await store.get(KEY)
    await store.put(KEY, DATA)


async def test_switches() -> None:
    store = SimulatedStore("a", seed=1, objects={KEY: DATA})
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await store.head(KEY)
    store.outage, store.denied = False, True
    assert await store.get(KEY) == DATA
    with pytest.raises(StoreDenied):
        await store.delete(KEY)
    store.denied, store.full = False, True
    with pytest.raises(StoreFull):
        await store.put(ObjectKey("segments/2"), DATA)
    assert store.objects == {KEY: DATA}


async def test_damage() -> None:
    store = SimulatedStore("a", seed=1, objects={KEY: DATA, "segments/2": b"2"})
    bit_index = store.flip_bit(KEY)
    assert await store.get(KEY) != DATA
    store.flip_bit(KEY, bit_index=bit_index)
    assert await store.get(KEY) == DATA
    store.truncate(KEY, size_bytes=2)
    assert await store.get(KEY) == b"by"
    store.misdirect(source="segments/2", target=KEY)
    assert await store.get(KEY) == b"2"
    store.lose(KEY)
    assert [info.key for info in await store.list("")] == ["segments/2"]
    version = await store.compare_and_swap(LEASE, Sealed(b"1"), expected=None)
    await store.compare_and_swap(LEASE, Sealed(b"2"), expected=version)
    store.make_stale(LEASE)
    assert await store.read_mutable(LEASE) == (b"1", version)
    store.wipe()
    assert list(await store.list("")) == []


async def test_cancelled_requests_may_have_happened(autojump_clock: trio.testing.MockClock) -> None:
    store = SimulatedStore("a", seed=1, faults=Faults(latency_min_s=1.0, latency_max_s=1.0))
    for patience_s, happened in ((0.5, False), (1.5, True)):
        with trio.move_on_after(patience_s):
            await store.put(KEY, DATA)
        assert (KEY in store.objects) is happened


async def test_weak_store_lets_two_writers_win(autojump_clock: trio.testing.MockClock) -> None:
    objects: dict[str, bytes] = {}
    faults = Faults(latency_min_s=1.0, latency_max_s=1.0)
    first, second = (
        SimulatedStore(name, seed=1, faults=faults, weak=True, objects=objects) for name in ("a", "b")
    )
    assert not (await first.probe()).conditional_put
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.put, KEY, Sealed(b"1"))
        await trio.sleep(0.5)
        nursery.start_soon(second.put, KEY, Sealed(b"2"))
    assert objects[KEY] == b"2"
    with pytest.raises(ObjectExists):
        await first.put(KEY, Sealed(b"1"))
    # Late enough for the first to have read back its own bytes: both hold "the" lease.
    async with trio.open_nursery() as nursery:

        async def swap(store: SimulatedStore, data: bytes) -> None:
            await store.compare_and_swap(LEASE, Sealed(data), expected=None)

        store_faults = Faults(latency_min_s=3.0, latency_max_s=3.0)
        second.faults = store_faults
        nursery.start_soon(swap, first, b"1")
        nursery.start_soon(swap, second, b"2")
    assert objects[LEASE] == b"2"
