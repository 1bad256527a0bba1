"""Retries on a virtual clock: what is repeated, when, how often, and what the counters say."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.engine.retry import (
    ATTEMPTS_MAX,
    BACKOFF_FIRST_S,
    BACKOFF_MAX_S,
    REQUEST_DEADLINE_S,
    SLOWEST_RATE_BYTES_PER_S,
    RetryingStore,
    RetryPolicy,
    StoreMetrics,
)
from mirrorfs.errors import (
    LimitError,
    MirrorfsError,
    ObjectExists,
    ObjectNotFound,
    StoreDenied,
    StoreError,
    StoreFull,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.ports import ObjectKey, Sealed, Store, Version
from tests.support.store_simulated import Faults, SimulatedStore

KEY = ObjectKey("segments/1")
LEASE = ObjectKey("lease")
DATA = Sealed(b"bytes")
ALMOST_ONE = 1.0 - 2**-53

Call = Callable[[Store], Awaitable[object]]
READS: dict[str, Call] = {
    "get": lambda store: store.get(KEY),
    "get_range": lambda store: store.get_range(KEY, offset=0, size_bytes=3),
    "head": lambda store: store.head(KEY),
    "list": lambda store: store.list(""),
    "read_mutable": lambda store: store.read_mutable(KEY),
}
REPEATABLE_WRITES: dict[str, Call] = {
    "put": lambda store: store.put(KEY, DATA),
    "delete": lambda store: store.delete(KEY),
    "probe": lambda store: store.probe(),
}
SWAP: dict[str, Call] = {"swap": lambda store: store.compare_and_swap(LEASE, DATA, expected=None)}
ALL = READS | REPEATABLE_WRITES | SWAP


def simulated(*, faults: Faults | None = None) -> SimulatedStore:
    return SimulatedStore("a", seed=1, faults=faults or Faults(), objects={KEY: DATA})


def retrying(
    store: SimulatedStore, *, draw: float = ALMOST_ONE, policy: RetryPolicy | None = None
) -> RetryingStore:
    return RetryingStore(store, random=lambda: draw, policy=policy)


@asynccontextmanager
async def outage_until(store: SimulatedStore, seconds: float) -> AsyncIterator[None]:
    async def end() -> None:
        await trio.sleep(seconds)
        store.outage = False

    store.outage = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("name", ALL)
async def test_short_outage_is_bridged(name: str, autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    outer = retrying(store)
    # Attempts at about 0, 0.5, 1.5, 3.5 s.
    async with outage_until(store, 3.0):
        await ALL[name](outer)
    assert trio.current_time() == pytest.approx(3.5)
    assert store.request_count == 4
    assert outer.metrics.errors == 3


@pytest.mark.parametrize("name", ALL)
async def test_long_outage_is_reported(name: str, autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await ALL[name](retrying(store))
    assert store.request_count == ATTEMPTS_MAX
    assert trio.current_time() == pytest.approx(sum(BACKOFF_FIRST_S * 2**n for n in range(ATTEMPTS_MAX - 1)))


async def test_full_jitter(autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    store.outage = True
    draws = iter([0.0, 0.25, 1.0, 0.5])
    with pytest.raises(StoreUnavailable):
        await RetryingStore(store, random=lambda: next(draws)).head(KEY)
    assert trio.current_time() == pytest.approx(0.0 * 0.5 + 0.25 * 1.0 + 1.0 * 2.0 + 0.5 * 4.0)


@given(st.integers(1, 10**9), st.floats(0, 1, exclude_max=True))
def test_backoff_is_bounded(failure_count: int, draw: float) -> None:
    pause_s = RetryPolicy().backoff_s(failure_count=failure_count, random=draw)
    assert 0 <= pause_s <= BACKOFF_MAX_S


# --- answers are not repeated -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda store: store.get(ObjectKey("none")), ObjectNotFound),
        (lambda store: store.put(KEY, Sealed(b"other")), ObjectExists),
        (lambda store: store.compare_and_swap(KEY, DATA, expected=Version("other")), ObjectExists),
        (lambda store: store.get(KEY, size_max=1), LimitError),
    ],
)
async def test_answers(
    call: Call, error: type[MirrorfsError], autojump_clock: trio.testing.MockClock
) -> None:
    store = simulated()
    outer = retrying(store)
    with pytest.raises(error):
        await call(outer)
    assert store.request_count == 1
    assert outer.metrics.errors == 0
    assert trio.current_time() == 0


@pytest.mark.parametrize(("attribute", "error"), [("denied", StoreDenied), ("full", StoreFull)])
async def test_refusals(
    attribute: str, error: type[StoreError], autojump_clock: trio.testing.MockClock
) -> None:
    store = simulated()
    setattr(store, attribute, True)
    for count, call in enumerate((REPEATABLE_WRITES | SWAP).values(), 1):
        with pytest.raises(error):
            await call(retrying(store))
        assert store.request_count == count


# --- unknown outcomes ---------------------------------------------------------------------------------


LOST_REQUEST = Faults(lost_request=1.0)
LOST_ACKNOWLEDGEMENT = Faults(lost_acknowledgement=1.0)
UNAVAILABLE = Faults(unavailable=1.0)
NEW = ObjectKey("segments/2")


@pytest.mark.parametrize("fault", [LOST_REQUEST, LOST_ACKNOWLEDGEMENT])
async def test_put_of_unknown_outcome_is_repeated(
    fault: Faults, autojump_clock: trio.testing.MockClock
) -> None:
    store = simulated()
    store.next_faults = [fault, fault]
    outer = retrying(store)
    await outer.put(NEW, DATA)
    assert store.objects[NEW] == DATA
    assert store.request_count == 3
    assert outer.metrics == StoreMetrics(puts=3, bytes_up=len(DATA), errors=2)


async def test_delete_of_unknown_outcome_is_repeated(autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    store.next_faults = [LOST_ACKNOWLEDGEMENT]
    await retrying(store).delete(KEY)
    assert store.objects == {}
    assert store.request_count == 2


@pytest.mark.parametrize(("fault", "happened"), [(LOST_REQUEST, False), (LOST_ACKNOWLEDGEMENT, True)])
async def test_swap_of_unknown_outcome_is_not_repeated(
    fault: Faults, happened: bool, autojump_clock: trio.testing.MockClock
) -> None:
    store = simulated()
    store.next_faults = [UNAVAILABLE, fault]
    outer = retrying(store)
    with pytest.raises(UnknownOutcome):
        await SWAP["swap"](outer)
    assert store.request_count == 2
    assert (LEASE in store.objects) is happened
    assert outer.metrics == StoreMetrics(puts=2, errors=2)


async def test_unknown_stays_unknown(autojump_clock: trio.testing.MockClock) -> None:
    store = simulated(faults=UNAVAILABLE)
    store.next_faults = [UNAVAILABLE, LOST_ACKNOWLEDGEMENT]
    # The last attempt says that nothing was written; the second one did write.
    with pytest.raises(UnknownOutcome):
        await retrying(store).put(NEW, DATA)
    assert store.request_count == ATTEMPTS_MAX
    assert store.objects[NEW] == DATA


# --- deadlines ------------------------------------------------------------------------------------------

STUCK = Faults(latency_min_s=1e9, latency_max_s=1e9)


@pytest.mark.parametrize("name", ALL)
async def test_stuck_request_is_given_up(name: str, autojump_clock: trio.testing.MockClock) -> None:
    store = simulated(faults=STUCK)
    once = RetryPolicy(attempts_max=1)
    outer = retrying(store, policy=once)
    with pytest.raises(StoreUnavailable if name in READS else UnknownOutcome):
        await ALL[name](outer)
    assert trio.current_time() >= REQUEST_DEADLINE_S
    assert outer.metrics.errors == 1


async def test_stuck_request_is_repeated(autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    store.next_faults = [STUCK]
    assert await retrying(store).get(KEY, size_max=0x10000) == DATA
    deadline_s = REQUEST_DEADLINE_S + 0x10000 / SLOWEST_RATE_BYTES_PER_S
    assert trio.current_time() == pytest.approx(deadline_s + BACKOFF_FIRST_S)


async def test_deadline_grows_with_the_bytes(autojump_clock: trio.testing.MockClock) -> None:
    data = Sealed(bytes(1024 * 1024))
    extra_s = len(data) / SLOWEST_RATE_BYTES_PER_S
    # Half the latency lies before the effect, half after it.
    half_s = (REQUEST_DEADLINE_S + extra_s) / 2 - 0.5
    store = simulated(faults=Faults(latency_min_s=half_s, latency_max_s=half_s))
    await retrying(store).put(NEW, data)
    assert store.request_count == 1


async def test_cancellation_ends_it(autojump_clock: trio.testing.MockClock) -> None:
    store = simulated()
    store.outage = True
    outer = retrying(store, policy=RetryPolicy(attempts_max=10**9))
    with trio.move_on_after(1000) as scope:
        await outer.put(NEW, DATA)
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1000)
    assert 1000 / BACKOFF_MAX_S < store.request_count < 1000 / BACKOFF_MAX_S + 10


# --- metrics and repetition of runs --------------------------------------------------------------------


async def test_metrics(autojump_clock: trio.testing.MockClock) -> None:
    outer = retrying(simulated())
    await outer.put(NEW, Sealed(b"1234"))
    version = await outer.compare_and_swap(LEASE, Sealed(b"123"), expected=None)
    await outer.compare_and_swap(LEASE, Sealed(b"12"), expected=version)
    await outer.get(NEW)
    await outer.get_range(NEW, offset=1, size_bytes=2)
    await outer.read_mutable(LEASE)
    await outer.head(NEW)
    await outer.list("")
    await outer.delete(NEW)
    await outer.probe()
    assert outer.metrics == StoreMetrics(puts=3, gets=3, others=4, bytes_up=9, bytes_down=8)


async def test_everything_arrives_through_a_bad_store(autojump_clock: trio.testing.MockClock) -> None:
    async def run(seed: int) -> tuple[float, StoreMetrics]:
        faults = Faults(
            unavailable=0.2, lost_request=0.1, lost_acknowledgement=0.2, latency_min_s=0.01, latency_max_s=2.0
        )
        store = SimulatedStore("a", seed=seed, faults=faults)
        outer = RetryingStore(store, random=random.Random(seed).random, policy=RetryPolicy(attempts_max=40))
        began_s = trio.current_time()
        for number in range(50):
            await outer.put(ObjectKey(f"segments/{number:02}"), Sealed(b"%d" % number))
        assert store.objects == {f"segments/{number:02}": b"%d" % number for number in range(50)}
        return trio.current_time() - began_s, outer.metrics

    first, second, other = await run(1), await run(1), await run(2)
    assert first[0] == pytest.approx(second[0])
    assert first[1] == second[1]
    assert first[1].errors > 10
    assert other[1] != first[1]
