"""engine/lease.py: who holds a store, on a virtual clock and simulated stores.

Each test takes `autojump_clock` itself: as a fixture's fixture it would not become the run's clock.
"""

from __future__ import annotations

import hashlib
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.engine.lease import (
    CLOCK_JUMP_S,
    FRESH_S,
    LEASE_PERIOD_S,
    RENEW_AGAIN_S,
    RENEW_S,
    SETTLE_S,
    LeaseKeeper,
)
from mirrorfs.engine.lease_documents import next_epoch
from mirrorfs.engine.lease_doubt import NEWCOMER_PERIODS
from mirrorfs.engine.lease_watch import OWN_WATCH_S, WATCH_POLL_S
from mirrorfs.errors import (
    AuthenticationError,
    ChainError,
    InUseError,
    MirrorfsError,
    ObjectExists,
    StoreUnavailable,
)
from mirrorfs.format.control import LEASE_KEY, Lease, open_lease
from mirrorfs.ports import Sealed, Version
from tests.support.store_simulated import Faults, SimulatedStore
from tests.support.trio_clock import TrioClock
from tests.support.volumes import KEY_SET, KEYS

PUBLIC_KEY = KEY_SET.public_keys().writer
A, B, C = b"writer-A", b"writer-B", b"writer-C"
TAKEN_OVER = "was taken over by epoch"


class Machine:
    """A machine with a clock of its own and one keeper on a store that others share."""

    def __init__(
        self, store: SimulatedStore, host: str = "alpha", *, seed: int = 0, probed: bool = True
    ) -> None:
        self.clock = TrioClock()
        self.store = store
        self.entropy = random.Random(f"{host} {seed}")
        self.keeper = LeaseKeeper(
            store,
            keys=KEYS,
            seed=KEY_SET.writer,
            public_key=PUBLIC_KEY,
            clock=self.clock,
            entropy=self.entropy.randbytes,
            host=host,
            weak_fencing=store.weak if probed else None,
        )

    @asynccontextmanager
    async def renewing(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.keeper.run)
            yield
            nursery.cancel_scope.cancel()


def stored(store: SimulatedStore) -> Lease:
    return open_lease(store.objects[LEASE_KEY], keys=KEYS, public_key=PUBLIC_KEY)


def make_store(
    objects: dict[str, bytes] | None = None, *, weak: bool = False, seed: int = 1
) -> SimulatedStore:
    return SimulatedStore("home", seed=seed, objects=objects, weak=weak)


@pytest.fixture
def store() -> SimulatedStore:
    return make_store()


@pytest.fixture
def alpha(store: SimulatedStore) -> Machine:
    return Machine(store, "alpha")


@pytest.fixture
def beta(store: SimulatedStore) -> Machine:
    return Machine(store, "beta")


# --- taking ----------------------------------------------------------------------------------


async def test_absent_is_taken_at_once(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    assert await alpha.keeper.look() is None
    assert alpha.keeper.state().epoch is None
    await alpha.keeper.acquire(epoch=1, writer=A)
    await alpha.keeper.fresh()
    assert trio.current_time() == 0
    lease = stored(store)
    assert (lease.writer, lease.epoch, lease.parent, lease.counter) == (A, 1, b"", 0)
    assert (lease.released, lease.period_ms) == (False, LEASE_PERIOD_S * 1000)
    state = alpha.keeper.state()
    assert (state.store, state.epoch, state.fresh) == ("home", 1, True)
    assert (state.weak_fencing, state.fenced, state.last_error) == (False, None, None)


async def test_released_is_taken_at_once(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=4, writer=A)
    await alpha.keeper.release()
    assert stored(store).released
    before = store.objects[LEASE_KEY]
    seen = await beta.keeper.look()
    await beta.keeper.acquire(epoch=next_epoch([seen, None], local=2), writer=B)
    assert trio.current_time() == 0
    lease = stored(store)
    assert (lease.writer, lease.epoch) == (B, 5)
    assert lease.parent == hashlib.sha256(before).digest(), "an epoch names what it follows"
    with pytest.raises(InUseError):
        await alpha.keeper.fresh()


async def test_own_from_before_is_taken_at_once(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    rebooted = Machine(store, "alpha", seed=1)
    await rebooted.keeper.acquire(epoch=2, writer=B, own_before=[C, A])
    assert trio.current_time() == 0
    assert stored(store).writer == B


async def test_own_from_before_a_reboot_is_watched(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    """The state directory may be a copy, and the PC that it is of alive: half a minute tells."""
    assert RENEW_S + RENEW_AGAIN_S < OWN_WATCH_S < LEASE_PERIOD_S
    await alpha.keeper.acquire(epoch=1, writer=A)
    copy = Machine(store, "alpha", seed=1)
    async with alpha.renewing():
        with pytest.raises(InUseError, match="in use"):
            await copy.keeper.acquire(epoch=2, writer=B, own_rebooted=[C, A])
        await alpha.keeper.fresh()
    rebooted, began_s = Machine(store, "alpha", seed=2), trio.current_time()
    await rebooted.keeper.acquire(epoch=2, writer=C, own_rebooted=[A])
    assert OWN_WATCH_S <= trio.current_time() - began_s <= OWN_WATCH_S + WATCH_POLL_S
    assert stored(store).writer == C


async def test_own_from_before_a_reboot_that_was_given_back(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    await alpha.keeper.release()
    await Machine(store, "alpha", seed=1).keeper.acquire(epoch=2, writer=B, own_rebooted=[A])
    assert trio.current_time() == 0


async def test_live_one_is_refused_with_its_host(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with alpha.renewing():
        with pytest.raises(InUseError, match=r"alpha since 2027-01-15 \d\d:\d\d:\d\d UTC"):
            await beta.keeper.acquire(epoch=2, writer=B, own_before=[C])
        assert trio.current_time() <= RENEW_S + WATCH_POLL_S
        assert stored(store).writer == A
        assert beta.keeper.state().fenced is None


async def test_dead_one_is_taken_after_its_period(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    await trio.sleep(10_000)
    # However long ago it was written: time stamps are not compared, only watching counts.
    began_s = trio.current_time()
    await beta.keeper.acquire(epoch=2, writer=B)
    assert LEASE_PERIOD_S <= trio.current_time() - began_s <= LEASE_PERIOD_S + WATCH_POLL_S
    assert stored(store).writer == B


async def test_released_while_watched(autojump_clock: MockClock, alpha: Machine, beta: Machine) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: beta.keeper.acquire(epoch=2, writer=B))
        await trio.sleep(WATCH_POLL_S * 1.5)
        await alpha.keeper.release()
    assert trio.current_time() <= WATCH_POLL_S * 2
    await beta.keeper.fresh()


async def test_removed_while_watched(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: beta.keeper.acquire(epoch=2, writer=B))
        await trio.sleep(WATCH_POLL_S * 1.5)
        store.lose(LEASE_KEY)
    await beta.keeper.fresh()


async def test_epoch_must_rise(autojump_clock: MockClock, alpha: Machine, beta: Machine) -> None:
    await alpha.keeper.acquire(epoch=7, writer=A)
    await alpha.keeper.release()
    with pytest.raises(InUseError, match="epoch 7, by alpha"):
        await beta.keeper.acquire(epoch=7, writer=B)
    assert beta.keeper.state().fenced is not None


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign"])
async def test_lease_that_does_not_verify_fences_nobody(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore, damage: str
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    good = store.objects[LEASE_KEY]
    if damage == "flip":
        store.flip_bit(LEASE_KEY, bit_index=8 * 60)
    elif damage == "truncate":
        store.truncate(LEASE_KEY, size_bytes=40)
    else:
        store.objects[LEASE_KEY] = b"someone else's idea of a lease"
    for keeper in (alpha.keeper, beta.keeper):
        with pytest.raises(AuthenticationError, match="home"):
            await keeper.look()
    with pytest.raises(AuthenticationError):
        await beta.keeper.acquire(epoch=2, writer=B)
    await trio.sleep(FRESH_S)
    with pytest.raises(AuthenticationError):
        await alpha.keeper.fresh()
    state = alpha.keeper.state()
    assert (state.fresh, state.fenced) == (False, None)
    assert state.last_error is not None and "does not verify" in state.last_error
    store.objects[LEASE_KEY] = good
    await alpha.keeper.fresh()
    assert alpha.keeper.state().last_error is None


# --- keeping ---------------------------------------------------------------------------------


async def test_fresh_asks_the_store_only_when_it_must(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    with pytest.raises(InUseError, match="never taken"):
        await alpha.keeper.fresh()
    await alpha.keeper.acquire(epoch=1, writer=A)
    requests = store.request_count
    await trio.sleep(FRESH_S - 1)
    await alpha.keeper.fresh()
    assert store.request_count == requests
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(alpha.keeper.fresh)
    assert store.request_count == requests + 1, "one renewal serves all who wait"
    assert stored(store).counter == 1


async def test_renewing_keeps_it_fresh(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    seen = {store.objects[LEASE_KEY]}
    async with alpha.renewing():
        for count in range(1, 50):
            await trio.sleep(RENEW_S)
            assert alpha.keeper.state().fresh
            assert stored(store).counter in (count - 1, count)
            seen.add(store.objects[LEASE_KEY])
    assert len(seen) >= 49, "a watcher sees every renewal"


async def test_suspend_voids(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    alpha.clock.suspended_s += 1
    assert alpha.keeper.state().fresh
    alpha.clock.suspended_s += LEASE_PERIOD_S
    assert not alpha.keeper.state().fresh
    await alpha.keeper.fresh()
    assert stored(store).counter == 1, "nobody took it meanwhile, so a renewal is enough"


@pytest.mark.expects_warnings(TAKEN_OVER)
async def test_taken_over_while_suspended(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    await beta.keeper.acquire(epoch=2, writer=B)
    # Its own clocks stood still: to alpha no time has passed until the suspend is counted.
    alpha.clock.suspended_s = -trio.current_time()
    assert alpha.keeper.state().fresh
    alpha.clock.suspended_s = 0.0
    requests = store.request_count
    for _ in range(3):
        with pytest.raises(InUseError, match="taken over: epoch 2, by beta since"):
            await alpha.keeper.fresh()
    assert store.request_count - requests <= 2, "fenced is final: no more is asked"
    assert alpha.keeper.state().fenced is not None
    await alpha.keeper.release()
    assert stored(store).writer == B and not stored(store).released


@pytest.mark.parametrize("sign", [1, -1])
async def test_clocks_that_part_void(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore, sign: int
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    alpha.clock.stepped_s += sign * (CLOCK_JUMP_S - 1)
    assert alpha.keeper.state().fresh
    alpha.clock.stepped_s += sign * 2
    assert not alpha.keeper.state().fresh
    await alpha.keeper.fresh()
    assert alpha.keeper.state().fresh


@pytest.mark.expects_warnings(TAKEN_OVER)
async def test_take_over_fences_a_live_writer(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with alpha.renewing():
        await beta.keeper.acquire(epoch=2, writer=B, take_over=True)
        assert trio.current_time() == 0
        await trio.sleep(FRESH_S)
        assert alpha.keeper.state().fenced is not None
        with pytest.raises(InUseError):
            await alpha.keeper.fresh()
    await beta.keeper.fresh()


@pytest.mark.expects_warnings(TAKEN_OVER)
async def test_clone_of_a_running_machine(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    clone = Machine(store, "alpha", seed=1)
    # The clone's memory: the same lease at the same version, but another generator of random numbers.
    for name in ("_claim", "_lease", "_found", "_renewed_ns", "_clock_offset_ns"):
        setattr(clone.keeper, name, getattr(alpha.keeper, name))
    clone.keeper._attempts.extend(alpha.keeper._attempts)
    fenced = 0
    await trio.sleep(FRESH_S)
    for keeper in (alpha.keeper, clone.keeper):
        try:
            await keeper.fresh()
        except InUseError:
            fenced += 1
    assert fenced == 1


async def test_rolled_back_lease_is_a_fault_of_the_store(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    old = store.objects[LEASE_KEY]
    for _ in range(40):
        await trio.sleep(FRESH_S)
        await alpha.keeper.fresh()
    store.objects[LEASE_KEY] = old
    await trio.sleep(FRESH_S)
    with pytest.raises(ChainError, match="rolled back"):
        await alpha.keeper.fresh()
    assert alpha.keeper.state().fenced is None


async def test_lost_lease_is_written_again(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    store.lose(LEASE_KEY)
    await trio.sleep(FRESH_S)
    await alpha.keeper.fresh()
    assert (stored(store).writer, stored(store).counter) == (A, 1)


# --- what is there is not to be believed -------------------------------------------------------


@pytest.mark.expects_warnings("does not verify. It is written anew")
@pytest.mark.parametrize("weak", [False, True])
async def test_rotten_lease_is_written_anew_after_a_period(autojump_clock: MockClock, weak: bool) -> None:
    store = make_store(weak=weak)
    alpha = Machine(store)
    await alpha.keeper.acquire(epoch=7, writer=A)
    async with alpha.renewing():
        await trio.sleep(1)
        store.flip_bit(LEASE_KEY, bit_index=8 * 60)
        rotten = store.objects[LEASE_KEY]
        await trio.sleep(RENEW_S + LEASE_PERIOD_S - RENEW_AGAIN_S)
        assert store.objects[LEASE_KEY] == rotten, "somebody may still believe to hold it"
        assert not alpha.keeper.state().fresh
        await trio.sleep(2 * RENEW_AGAIN_S + 2 * SETTLE_S)
        assert alpha.keeper.state().fresh
        assert (stored(store).writer, stored(store).epoch) == (A, 7)
        assert alpha.keeper.state().last_error is None


@pytest.mark.expects_warnings("does not verify. It is written anew")
async def test_rotten_lease_of_a_dead_writer_is_taken(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    store.truncate(LEASE_KEY, size_bytes=0)
    with pytest.raises(AuthenticationError):
        await beta.keeper.acquire(epoch=2, writer=B)
    assert trio.current_time() == 0, "a mount does not wait for it"
    async with beta.renewing():
        await trio.sleep(NEWCOMER_PERIODS * LEASE_PERIOD_S - 1)
        assert not beta.keeper.state().fresh
        await trio.sleep(2 * RENEW_AGAIN_S)
        await beta.keeper.fresh()
    assert (stored(store).writer, stored(store).parent) == (B, b"")


@pytest.mark.expects_warnings("does not verify. It is written anew")
async def test_rotten_lease_goes_to_the_writer_that_holds_it(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with alpha.renewing():
        store.flip_bit(LEASE_KEY, bit_index=8 * 60)
        with pytest.raises(AuthenticationError):
            await beta.keeper.acquire(epoch=2, writer=B)
        async with beta.renewing():
            await trio.sleep(10 * LEASE_PERIOD_S)
            assert alpha.keeper.state().fresh and not beta.keeper.state().fresh
            assert alpha.keeper.state().fenced is None
            with pytest.raises(InUseError, match="in use"):
                await beta.keeper.fresh()


async def test_rot_that_goes_on_is_left_alone(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    """Bytes that change are somebody's, or the store does not keep what it takes."""
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with alpha.renewing():
        for number in range(20):
            store.objects[LEASE_KEY] = b"%d" % number
            await trio.sleep(LEASE_PERIOD_S / 2)
        assert store.objects[LEASE_KEY] == b"19"
        assert alpha.keeper.state().fenced is None


@pytest.mark.expects_warnings("rolled back. It is written anew")
@pytest.mark.parametrize("earlier", ["renewal", "released before", "expired before"])
async def test_store_that_went_back_is_taken_again(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore, earlier: str
) -> None:
    """What was there before us fences nobody; only whoever comes after us does."""
    await beta.keeper.acquire(epoch=4, writer=B)
    if earlier == "released before":
        await beta.keeper.release()
    old = store.objects[LEASE_KEY]
    await alpha.keeper.acquire(epoch=5, writer=A)
    if earlier == "renewal":
        old = store.objects[LEASE_KEY]
    async with alpha.renewing():
        await trio.sleep(20 * RENEW_S + 1)
        store.objects[LEASE_KEY] = old
        await trio.sleep(FRESH_S + RENEW_S)
        assert not alpha.keeper.state().fresh
        assert "rolled back" in (alpha.keeper.state().last_error or "")
        await trio.sleep(LEASE_PERIOD_S)
        assert alpha.keeper.state().fresh and alpha.keeper.state().fenced is None
        assert (stored(store).writer, stored(store).epoch) == (A, 5)


@pytest.mark.expects_warnings(TAKEN_OVER)
async def test_an_older_lease_that_is_renewed_fences(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    """A clone of this machine, from then, goes on from a store that went back: one of the two must stop."""
    await alpha.keeper.acquire(epoch=1, writer=A)
    clone = Machine(make_store(store.objects), "alpha", seed=1)
    for name in ("_claim", "_lease", "_found", "_held_before", "_renewed_ns", "_clock_offset_ns"):
        setattr(clone.keeper, name, getattr(alpha.keeper, name))
    old = store.objects[LEASE_KEY]
    async with alpha.renewing():
        await trio.sleep(20 * RENEW_S + 1)
        store.objects[LEASE_KEY] = old
        async with clone.renewing():
            await trio.sleep(2 * LEASE_PERIOD_S)
            assert alpha.keeper.state().fenced is not None
            assert clone.keeper.state().fresh


@pytest.mark.expects_warnings("It is written anew", TAKEN_OVER)
@pytest.mark.parametrize("weak", [False, True])
async def test_writers_never_overlap_whatever_the_store_shows(autojump_clock: MockClock, weak: bool) -> None:
    """Rot, old documents, writers that die: no two are ever fresh at one moment."""
    held_count = healed_count = 0
    for seed in range(15):
        draw = random.Random(seed)
        objects: dict[str, bytes] = {}
        machines = [
            Machine(make_store(objects, seed=seed, weak=weak), f"host{n}", seed=seed) for n in range(3)
        ]
        past: list[bytes] = []
        async with trio.open_nursery() as nursery:
            for machine, writer in zip(machines, (A, B, C), strict=True):
                nursery.start_soon(contend_for_long, machine, writer, draw.randrange(1 << 30), 0.8)
            rotten_since_s: float | None = None
            for _ in range(1200):
                await trio.sleep(1)
                fresh = [machine for machine in machines if machine.keeper.state().fresh]
                assert len(fresh) <= 1, f"seed {seed} at {trio.current_time()}"
                held_count += len(fresh)
                now = objects.get(LEASE_KEY)
                if now is None:
                    continue
                if draw.random() < 0.01:
                    harmed = (
                        now[:-1] + bytes([now[-1] ^ 1])
                        if draw.random() < 0.5 or not past
                        else draw.choice(past)
                    )
                    objects[LEASE_KEY] = harmed
                    rotten_since_s = trio.current_time()
                else:
                    if rotten_since_s is not None and fresh:
                        healed_count += 1
                        rotten_since_s = None
                    past = [*past[-50:], now]
            nursery.cancel_scope.cancel()
    assert held_count > 3000 and healed_count > 30


# --- faults ----------------------------------------------------------------------------------


async def test_outage_is_not_a_fence(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    async with alpha.renewing():
        store.outage = True
        await trio.sleep(FRESH_S + RENEW_S)
        with pytest.raises(StoreUnavailable):
            await alpha.keeper.fresh()
        assert alpha.keeper.state().last_error == "Store home cannot be reached."
        store.outage = False
        await trio.sleep(RENEW_S)
        assert alpha.keeper.state().fresh


async def test_store_down_at_mount_is_taken_later(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await alpha.keeper.acquire(epoch=3, writer=A)
    async with alpha.renewing():
        await trio.sleep(600)
        with pytest.raises(StoreUnavailable):
            await alpha.keeper.fresh()
        store.outage = False
        await alpha.keeper.fresh()
    assert (stored(store).writer, stored(store).epoch) == (A, 3)


async def test_lost_answers(autojump_clock: MockClock, alpha: Machine, store: SimulatedStore) -> None:
    for faults in (Faults(lost_acknowledgement=1.0), Faults(lost_request=1.0)):
        store.faults = faults
        with pytest.raises(MirrorfsError):
            await alpha.keeper.acquire(epoch=1, writer=A)
    store.faults = Faults()
    await alpha.keeper.fresh()
    assert stored(store).writer == A
    store.faults = Faults(lost_acknowledgement=1.0)
    await trio.sleep(FRESH_S)
    with pytest.raises(MirrorfsError):
        await alpha.keeper.fresh()
    assert stored(store).counter > 0, "the renewal arrived, its answer did not"
    store.faults = Faults()
    await alpha.keeper.fresh()
    assert alpha.keeper.state().fenced is None


async def test_cancelled_renewal_is_recognised(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    await trio.sleep(FRESH_S)
    store.faults = Faults(latency_min_s=1.0, latency_max_s=1.0)
    with trio.move_on_after(1.5):
        await alpha.keeper.fresh()
    assert stored(store).counter == 1
    await alpha.keeper.fresh()
    assert alpha.keeper.state().fresh


@pytest.mark.parametrize("seed", range(10))
async def test_long_run_with_faults(autojump_clock: MockClock, seed: int) -> None:
    store = make_store(seed=seed)
    alpha = Machine(store, seed=seed)
    await alpha.keeper.acquire(epoch=1, writer=A)
    store.faults = Faults(
        unavailable=0.2, lost_request=0.1, lost_acknowledgement=0.2, latency_min_s=0.0, latency_max_s=4.0
    )
    fresh_count = 0
    async with alpha.renewing():
        for _ in range(200):
            await trio.sleep(7)
            fresh_count += alpha.keeper.state().fresh
    assert alpha.keeper.state().fenced is None
    assert fresh_count > 150


async def test_release_waits_for_nothing_after_an_outage(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    await beta.keeper.release()
    await alpha.keeper.acquire(epoch=1, writer=A)
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await alpha.keeper.release()
    store.outage = False
    with pytest.raises(InUseError):
        await alpha.keeper.fresh()
    async with alpha.renewing():
        await trio.sleep(LEASE_PERIOD_S)
    assert not stored(store).released


# --- two at once -----------------------------------------------------------------------------


async def contend(seed: int, *, weak: bool) -> list[Machine]:
    """Three machines go for one store at about the same time; return those that hold it."""
    objects: dict[str, bytes] = {}
    draw = random.Random(seed)
    machines = []
    winners = []

    async def go(machine: Machine, writer: bytes, delay_s: float) -> None:
        await trio.sleep(delay_s)
        try:
            seen = await machine.keeper.look()
            await machine.keeper.acquire(epoch=next_epoch([seen], local=0), writer=writer)
        except InUseError:
            return
        winners.append(machine)
        await machine.keeper.run()

    with trio.move_on_after(3 * LEASE_PERIOD_S):
        async with trio.open_nursery() as nursery:
            for number, writer in enumerate((A, B, C)):
                store = make_store(objects, weak=weak, seed=seed * 10 + number)
                store.faults = Faults(latency_min_s=0.0, latency_max_s=1.0)
                machines.append(Machine(store, f"host{number}", seed=seed))
                nursery.start_soon(go, machines[-1], writer, draw.uniform(0, 1))
    return winners


@pytest.mark.parametrize("seed", range(60))
async def test_exactly_one_wins(autojump_clock: MockClock, seed: int) -> None:
    winners = await contend(seed, weak=False)
    assert len(winners) == 1
    assert winners[0].keeper.state().fenced is None


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.expects_warnings(TAKEN_OVER)
async def test_exactly_one_remains_where_fencing_is_weak(autojump_clock: MockClock, seed: int) -> None:
    winners = await contend(seed, weak=True)
    assert len(winners) == 1, "a claim must stand before it counts"
    assert winners[0].keeper.state().weak_fencing
    assert winners[0].keeper.state().fenced is None


async def test_weak_claim_must_settle(autojump_clock: MockClock) -> None:
    alpha = Machine(make_store(weak=True))
    await alpha.keeper.acquire(epoch=1, writer=A)
    assert trio.current_time() >= SETTLE_S
    await alpha.keeper.fresh()


async def test_writers_never_overlap(autojump_clock: MockClock) -> None:
    """Machines that fall asleep, come back and contend: no two are ever fresh at one moment."""
    for seed in range(15):
        draw = random.Random(seed)
        objects: dict[str, bytes] = {}
        machines = [Machine(make_store(objects, seed=seed), f"host{n}", seed=seed) for n in range(3)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(contend_for_long, machines[0], A, draw.randrange(1 << 30))
            nursery.start_soon(contend_for_long, machines[1], B, draw.randrange(1 << 30))
            nursery.start_soon(contend_for_long, machines[2], C, draw.randrange(1 << 30))
            held_count = 0
            for _ in range(600):
                await trio.sleep(1)
                fresh = [machine for machine in machines if machine.keeper.state().fresh]
                assert len(fresh) <= 1, f"seed {seed}"
                held_count += len(fresh)
            assert held_count > 50
            nursery.cancel_scope.cancel()


async def contend_for_long(machine: Machine, writer: bytes, seed: int, run_share: float = 0.5) -> None:
    """Take the lease, hold it without renewing (as if crashed) or with, start over."""
    draw = random.Random(seed)
    own = writer
    while True:
        await trio.sleep(draw.uniform(0, 20))
        own_before, own = own, draw.randbytes(8)
        machine.keeper = Machine(machine.store, "host", seed=draw.randrange(1 << 30)).keeper
        try:
            seen = await machine.keeper.look()
        except AuthenticationError:
            seen = None
        try:
            # Only its very last lease is known to be dead: the process that held it is this one.
            epoch = next_epoch([seen], local=0)
            await machine.keeper.acquire(epoch=epoch, writer=own, own_before=[own_before])
        except InUseError:
            continue
        except (AuthenticationError, StoreUnavailable):
            pass  # a mount goes on without the store, and tries again
        with trio.move_on_after(draw.uniform(0, 90)):
            await machine.keeper.run() if draw.random() < run_share else await trio.sleep_forever()


# --- epochs ----------------------------------------------------------------------------------


async def test_next_epoch(autojump_clock: MockClock, alpha: Machine, store: SimulatedStore) -> None:
    assert next_epoch([], local=0) == 1
    assert next_epoch([None, None], local=8) == 9
    await alpha.keeper.acquire(epoch=12, writer=A)
    assert next_epoch([None, await alpha.keeper.look()], local=8) == 13


class SwapRefuser(SimulatedStore):
    """Answers every swap with "exists", and shows the same document: a server with a broken condition."""

    async def compare_and_swap(self, key: str, data: Sealed, *, expected: Version | None) -> Version:
        await trio.lowlevel.checkpoint()
        raise ObjectExists(f"Object {key} has another version.")


async def test_swap_that_is_never_taken_ends(autojump_clock: MockClock) -> None:
    machine = Machine(SwapRefuser("home", seed=1))
    with pytest.raises(StoreUnavailable):
        await machine.keeper.acquire(epoch=1, writer=A)


async def test_a_store_that_comes_back_to_the_same_mount(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    """Removed from the volume and added again: a new keeper with the epoch and the writer of before."""
    await alpha.keeper.acquire(epoch=3, writer=A)
    await alpha.keeper.release()
    again = Machine(store, "alpha", seed=1)
    await again.keeper.acquire(epoch=3, writer=A)
    assert trio.current_time() == 0
    lease = stored(store)
    assert (lease.writer, lease.epoch, lease.released) == (A, 3, False)
    assert again.keeper.state().fenced is None


async def test_own_one_that_was_not_given_back_is_watched(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore
) -> None:
    """A clone of this very process may hold it: only what is unchanged for a period is taken."""
    await alpha.keeper.acquire(epoch=3, writer=A)
    clone = Machine(store, "alpha", seed=1)
    async with alpha.renewing():
        with pytest.raises(InUseError):
            await clone.keeper.acquire(epoch=3, writer=A)
    began_s = trio.current_time()
    await clone.keeper.fresh()
    assert trio.current_time() - began_s >= LEASE_PERIOD_S


async def test_a_later_epoch_fences_while_its_writer_is_alive(
    autojump_clock: MockClock, alpha: Machine, beta: Machine, store: SimulatedStore
) -> None:
    """Who was mounted without the store, and finds it taken over, is not left to wait for its turn."""
    await beta.keeper.acquire(epoch=9, writer=B)
    async with beta.renewing():
        store.outage = True
        with pytest.raises(StoreUnavailable):
            await alpha.keeper.acquire(epoch=3, writer=A)
        store.outage = False
        began_s = trio.current_time()
        with pytest.raises(InUseError, match="taken over"):
            await alpha.keeper.fresh()
    assert alpha.keeper.state().fenced is not None
    assert trio.current_time() - began_s < 1


@pytest.mark.parametrize("weak", [False, True])
async def test_a_store_that_was_away_is_probed_when_it_is_back(autojump_clock: MockClock, weak: bool) -> None:
    store = SimulatedStore("home", seed=1, weak=weak)
    machine = Machine(store, probed=False)
    store.outage = True
    with pytest.raises(StoreUnavailable):
        await machine.keeper.acquire(epoch=1, writer=A)
    state = machine.keeper.state()
    assert (state.unreachable, state.missing, state.weak_fencing) == (True, False, False)
    store.outage = False
    began_s = trio.current_time()
    await machine.keeper.fresh()
    assert machine.keeper.state().weak_fencing is weak
    assert not machine.keeper.state().unreachable
    # A claim that cannot be made conditional must stand for a while.
    assert (trio.current_time() - began_s >= SETTLE_S) is weak


async def test_a_long_outage_is_said_once(
    autojump_clock: MockClock, alpha: Machine, store: SimulatedStore, caplog: pytest.LogCaptureFixture
) -> None:
    await alpha.keeper.acquire(epoch=1, writer=A)
    with caplog.at_level(logging.INFO, logger="mirrorfs.engine.lease"):
        async with alpha.renewing():
            for _ in range(2):
                store.outage = True
                await trio.sleep(10_000)
                store.outage = False
                await trio.sleep(100)
    assert [record.getMessage() for record in caplog.records] == [
        "lease of store home not renewed: Store home cannot be reached."
    ] * 2
