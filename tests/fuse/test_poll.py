"""The stand-in for trio in pyfuse3: it answers at once while requests come, and starves nobody."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pyfuse3
import pytest
import trio
import trio.testing

from mirrorfs.fuse.poll import KEEP_NS, SPIN_NS, TURN_NS, AdaptivePoll, UnfairLock, busy_polling

STEP_NS = 1000


class Clock:
    """Every look at it takes STEP_NS."""

    def __init__(self) -> None:
        self.looks = 0
        self.now_ns = 0

    def __call__(self) -> int:
        self.looks += 1
        self.now_ns += STEP_NS
        return self.now_ns


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


Pair = tuple[socket.socket, socket.socket]


async def test_a_ready_descriptor_costs_no_checkpoint(pair: Pair) -> None:
    near, far = pair
    poll = AdaptivePoll(now_ns=Clock())
    far.send(b"x")
    await poll.wait_readable(near.fileno())
    for _ in range(10):
        with trio.testing.assert_no_checkpoints():
            await poll.wait_readable(near.fileno())


async def test_others_get_their_turn_while_requests_never_pause(pair: Pair) -> None:
    near, far = pair
    clock = Clock()
    poll = AdaptivePoll(now_ns=clock)
    far.send(b"x")
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        start_ns = clock.now_ns
        while clock.now_ns - start_ns < 20 * TURN_NS:
            await poll.wait_readable(near.fileno())
        nursery.cancel_scope.cancel()
    assert 18 <= turns <= 22


async def test_cancellation_arrives_while_requests_never_pause(pair: Pair) -> None:
    near, far = pair
    poll = AdaptivePoll(now_ns=Clock())
    far.send(b"x")
    with trio.CancelScope() as scope:
        scope.cancel()
        for _ in range(TURN_NS // STEP_NS):
            await poll.wait_readable(near.fileno())
    assert scope.cancelled_caught


async def test_it_spins_for_its_time_and_then_sleeps(pair: Pair) -> None:
    near, far = pair
    clock = Clock()
    poll = AdaptivePoll(now_ns=clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll.wait_readable, near.fileno())
        await trio.testing.wait_all_tasks_blocked()
        assert SPIN_NS <= clock.now_ns <= SPIN_NS + 5 * STEP_NS
        far.send(b"x")


async def test_after_a_long_wait_it_sleeps_at_once_until_requests_come_fast(pair: Pair) -> None:
    near, far = pair
    clock = Clock()
    poll = AdaptivePoll(now_ns=clock)

    async def looks_of_a_wait(pause_ns: int) -> int:
        near.setblocking(False)
        before = clock.looks
        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll.wait_readable, near.fileno())
            await trio.testing.wait_all_tasks_blocked()
            looks = clock.looks - before
            clock.now_ns += pause_ns
            far.send(b"x")
        near.recv(1)
        return looks

    assert await looks_of_a_wait(KEEP_NS) > SPIN_NS // STEP_NS
    assert await looks_of_a_wait(0) < 5  # it sleeps, but the next request comes soon,
    assert await looks_of_a_wait(0) > SPIN_NS // STEP_NS  # so it spins again


async def test_closing_ends_a_sleeping_wait(pair: Pair) -> None:
    near, _ = pair
    poll = AdaptivePoll()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await poll.wait_readable(near.fileno())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        poll.notify_closing(near.fileno())


async def test_closing_ends_a_wait_that_is_giving_others_their_turn(pair: Pair) -> None:
    near, _ = pair
    poll = AdaptivePoll()  # the first wait begins with a checkpoint
    waited = False

    async def wait() -> None:
        nonlocal waited
        with pytest.raises(trio.ClosedResourceError):
            await poll.wait_readable(near.fileno())
        waited = True

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        nursery.start_soon(trio.lowlevel.checkpoint)
        poll.notify_closing(near.fileno())
    assert waited


async def test_the_lock_admits_one_and_loses_no_wakeup() -> None:
    lock = UnfairLock()
    inside, rounds, most = 0, 0, 0

    async def worker() -> None:
        nonlocal inside, rounds, most
        for _ in range(50):
            async with lock:
                inside += 1
                most = max(most, inside)
                await trio.lowlevel.checkpoint()
                inside -= 1
                rounds += 1

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(worker)
    assert (most, rounds) == (1, 250)


async def test_a_cancelled_waiter_does_not_take_a_wakeup_along() -> None:
    lock = UnfairLock()
    entered = trio.Event()

    async def wait() -> None:
        async with lock:
            entered.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with lock:
                async with trio.open_nursery() as doomed:
                    doomed.start_soon(wait)
                    await trio.testing.wait_all_tasks_blocked()
                    doomed.cancel_scope.cancel()
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked()
            await entered.wait()


async def test_a_free_lock_costs_no_checkpoint() -> None:
    lock = UnfairLock()
    with trio.testing.assert_no_checkpoints():
        async with lock:
            pass


def test_it_is_confined_to_pyfuse3_and_to_the_block() -> None:
    namespace = vars(pyfuse3)
    with busy_polling(enabled=False):
        assert namespace["trio"] is trio
    with busy_polling(enabled=True):
        if len(os.sched_getaffinity(0)) > 1:
            stand_in = namespace["trio"]
            assert stand_in is not trio
            assert stand_in.lowlevel.current_task is trio.lowlevel.current_task
            assert stand_in.ClosedResourceError is trio.ClosedResourceError
            assert trio.lowlevel.wait_readable.__module__.startswith("trio")
    assert namespace["trio"] is trio


def test_it_restores_pyfuse3_after_a_failure() -> None:
    with pytest.raises(ZeroDivisionError), busy_polling():
        raise ZeroDivisionError
    assert vars(pyfuse3)["trio"] is trio
