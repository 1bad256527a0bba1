"""Every fault of the proxy against every method of a Store behind RetryingStore, on two real servers.

Rules that all of it keeps to: a right result or the right typed error, no wrong byte, no write half done, and
an end before the deadlines.
"""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from mirrorfs.engine.retry import RetryingStore, RetryPolicy
from mirrorfs.errors import ObjectExists, StoreError, StoreUnavailable, UnknownOutcome
from mirrorfs.ports import ObjectKey, Sealed, Store, Version
from tests.s3.calls import CALLS, NEW, OLD, SMALL_NEW, Call, prepare, state
from tests.s3.conftest import Place
from tests.support.faults import FAULTS, Always, Fault, Kind, Link, Mix, passes

PATIENCE_S = 60.0
"""Far beyond every deadline that is set here: what takes longer hangs."""
STALLS = frozenset({Kind.STALL_REQUEST, Kind.STALL_ANSWER})
MIDWAY = (Kind.CUT_REQUEST, Kind.CUT_ANSWER, Kind.TRUNCATE)
"""Faults that also come in the middle of a body."""
STEPS = 100
BRIEF_S = 0.1
"""How long silence lasts where its end is not what is tested."""


@asynccontextmanager
async def stores(
    place: Place, *, attempts_max: int, read_timeout_s: float = 10.0
) -> AsyncIterator[tuple[Store, Store]]:
    """(behind the proxy, at the server itself), both probed as at a mount."""
    near, bare = place.near(), place.far(read_timeout_s=read_timeout_s)
    policy = RetryPolicy(attempts_max=attempts_max, backoff_first_s=0.01, backoff_max_s=0.02, deadline_s=30.0)
    far = RetryingStore(bare, random=lambda: 0.5, policy=policy)
    assert (await near.probe()).conditional_put is place.conditional_put
    while True:
        # A busy machine may keep an honest answer for longer than a short timeout.
        try:
            assert (await far.probe()).conditional_put is place.conditional_put
            break
        except (StoreUnavailable, UnknownOutcome):
            continue
    yield far, near
    await far.aclose()
    await near.aclose()


async def judged(
    call: Call, far: Store, near: Store, key: ObjectKey, version: Version
) -> type[StoreError] | None:
    """Carry out a call, check all that must be true after it, and return how it ended."""
    ended: type[StoreError] | None = None
    with trio.fail_after(PATIENCE_S):
        try:
            assert call.expects(key, await call.run(far, key, version)), f"{call.name}: wrong result"
        except (StoreUnavailable, UnknownOutcome) as exc:
            ended = type(exc)
    found = await state(near, key)
    if ended is None:
        assert found == call.after, call.name
    elif ended is UnknownOutcome:
        assert call.writes, f"{call.name} changes nothing"
        assert found in (call.before, call.after), call.name
    else:
        assert found == call.before, f"{call.name} was said to have changed nothing"
    return ended


async def repeated(call: Call, far: Store, near: Store, key: ObjectKey, version: Version) -> None:
    """With the faults gone, the same call again does what it was to do."""
    with trio.fail_after(PATIENCE_S):
        # A busy machine may keep an honest answer for longer than a short timeout: again, then.
        while True:
            try:
                if call.name != "swap":
                    assert call.expects(key, await call.run(far, key, version)), call.name
                else:
                    # Not safe to repeat: whoever swaps reads again, as the contract says.
                    data, version = await far.read_mutable(key)
                    if data != SMALL_NEW:
                        await far.compare_and_swap(key, SMALL_NEW, expected=version)
                break
            except (StoreUnavailable, UnknownOutcome):
                continue
    assert await state(near, key) == call.after, call.name


@pytest.mark.parametrize("is_silent", [False, True], ids=["loud", "silent"])
async def test_fault_that_stays(place: Place, is_silent: bool) -> None:
    """Every request of every method meets the fault, until the attempts end; then the way is clear again."""
    faults = [Fault(kind) for kind in FAULTS] + [Fault(kind, 20_000) for kind in MIDWAY]
    for fault in faults:
        if (fault.kind in STALLS) is is_silent:
            # With connections of its own: none that an earlier fault broke.
            timeout_s = 1.0 if is_silent else 10.0
            async with stores(place, attempts_max=2, read_timeout_s=timeout_s) as (far, near):
                await _stays(place, fault, far, near)


async def _stays(place: Place, fault: Fault, far: Store, near: Store) -> None:
    keys = {name: ObjectKey(f"segments/{fault.kind}-{fault.after_bytes}-{name}") for name in CALLS}
    versions = {name: await prepare(near, call, keys[name]) for name, call in CALLS.items()}
    hits_before = len(place.proxy.hits())
    place.proxy.rule = Always(fault)
    ends: dict[str, type[StoreError] | None] = {}

    async def judge(name: str) -> None:
        ends[name] = await judged(CALLS[name], far, near, keys[name], versions[name])

    async with trio.open_nursery() as nursery:
        for name in CALLS:
            nursery.start_soon(judge, name)
    assert len(place.proxy.hits()) >= hits_before + len(CALLS)
    if fault.kind is Kind.BUSY:
        assert set(ends.values()) == {StoreUnavailable}, "S3 says that it did nothing"
    elif fault.kind not in {Kind.TRUNCATE, Kind.TRUNCATE_HEAD, Kind.CLOSE}:
        writes: set[type[StoreError]] = {UnknownOutcome}
        if not place.conditional_put:
            # What a store without conditional writes does first is a look: nothing has been sent yet.
            writes |= {StoreUnavailable}
        for name, call in CALLS.items():
            assert ends[name] in (writes if call.writes else {StoreUnavailable}), (fault.kind, name)
    place.proxy.rule = passes
    for name, call in CALLS.items():
        await repeated(call, far, near, keys[name], versions[name])


async def test_fault_that_passes(place: Place) -> None:
    """Each request in its turn meets each fault once; whatever may be repeated then succeeds."""
    async with stores(place, attempts_max=4) as (far, near):
        for kind in FAULTS:
            for name, call in CALLS.items():
                for method in ("PUT", "DELETE") if call.writes else ("GET", "HEAD"):
                    key = ObjectKey(f"segments/{kind}-{name}-{method.lower()}")
                    version = await prepare(near, call, key)
                    once = Always(Fault(kind, 1000, BRIEF_S), methods=frozenset({method}), times=1)
                    place.proxy.rule = once
                    ended = await judged(call, far, near, key, version)
                    assert ended is None or not call.repeats_unknown, (kind, name, method, ended)
                    place.proxy.rule = passes
                    await repeated(call, far, near, key, version)
        assert {exchange.fault.kind for exchange in place.proxy.hits()} == set(FAULTS)


async def test_probe_never_takes_a_fault_for_a_trait(place: Place) -> None:
    """To think that a server honours conditions when it does not would let two writers in."""
    async with stores(place, attempts_max=1) as (far, _):
        for kind in FAULTS:
            for skipped in range(5):
                left = [skipped]

                def rule(request: object, kind: Kind = kind, left: list[int] = left) -> Fault:
                    left[0] -= 1
                    return Fault(kind, 0, BRIEF_S) if left[0] == -1 else Fault()

                place.proxy.rule = rule
                try:
                    assert (await far.probe()).conditional_put is place.conditional_put, (kind, skipped)
                except (StoreUnavailable, UnknownOutcome):
                    pass
        hits = [exchange.fault.kind for exchange in place.proxy.hits()]
        assert all(hits.count(kind) >= 3 for kind in FAULTS)


# boto3 parses the cut date of a Last-Modified, of which it warns, and leaves answers that it cannot parse to
# the garbage collector.
@pytest.mark.filterwarnings("ignore:tzname", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_answers_cut_within_their_heads(place: Place) -> None:
    """At every byte: a client that takes half a head for a whole one must not believe what is missing."""
    async with stores(place, attempts_max=1) as (far, near):
        names = ("get", "get-range", "head", "list", "read-mutable")
        keys = {name: ObjectKey(f"segments/{name}") for name in names}
        for name in names:
            await prepare(near, CALLS[name], keys[name])
        for after_bytes in range(0, 600, 9):
            place.proxy.rule = Always(
                Fault(Kind.TRUNCATE_HEAD, after_bytes + random.Random(after_bytes).randrange(9))
            )
            for name in names:
                await judged(CALLS[name], far, near, keys[name], Version(""))
    gc.collect()


@pytest.mark.filterwarnings("ignore:tzname", "ignore::pytest.PytestUnraisableExceptionWarning")
async def test_version_after_a_cut_head(place: Place) -> None:
    """A version from an answer that was cut must be the one that the next swap needs, or none."""
    async with stores(place, attempts_max=1) as (far, near):
        for after_bytes in range(0, 600, 29):
            key = ObjectKey(f"leases/{after_bytes}")
            place.proxy.rule = Always(
                Fault(Kind.TRUNCATE_HEAD, after_bytes), methods=frozenset({"PUT"}), times=1
            )
            try:
                version = await far.compare_and_swap(key, Sealed(b"1"), expected=None)
            except UnknownOutcome:
                _, version = await far.read_mutable(key)
            place.proxy.clear()
            await far.compare_and_swap(key, Sealed(b"2"), expected=version)
            assert await state(near, key) == b"2"


async def test_put_whose_answer_was_lost_is_safe_to_repeat(place: Place) -> None:
    async with stores(place, attempts_max=1) as (far, near):
        key = ObjectKey("segments/1")
        place.proxy.rule = Always(Fault(Kind.LOSE_ANSWER), methods=frozenset({"PUT"}))
        with pytest.raises(UnknownOutcome):
            await far.put(key, NEW)
        assert place.proxy.hits()[0].acted
        assert await near.get(key) == NEW
        # Equal bytes are success, whatever becomes of this answer; other bytes stay refused.
        place.proxy.clear()
        await far.put(key, NEW)
        with pytest.raises(ObjectExists):
            await far.put(key, OLD)
        assert await near.get(key) == NEW


async def test_swap_whose_answer_was_lost_is_not_repeated(place: Place) -> None:
    """Repeated, it would meet its own new version and report a rival."""
    async with stores(place, attempts_max=5) as (far, near):
        key = ObjectKey("lease")
        first = await near.compare_and_swap(key, Sealed(b"1"), expected=None)
        place.proxy.rule = Always(Fault(Kind.LOSE_ANSWER), methods=frozenset({"PUT"}))
        with pytest.raises(UnknownOutcome):
            await far.compare_and_swap(key, Sealed(b"2"), expected=first)
        assert len(place.proxy.hits()) == 1
        place.proxy.clear()
        data, second = await far.read_mutable(key)
        assert data == b"2"
        await far.compare_and_swap(key, Sealed(b"3"), expected=second)


async def test_outage_and_recovery(place: Place) -> None:
    async with stores(place, attempts_max=2) as (far, near):
        keys = {name: ObjectKey(f"segments/{name}") for name in CALLS}
        versions = {name: await prepare(near, call, keys[name]) for name, call in CALLS.items()}
        await trio.to_thread.run_sync(place.proxy.outage)
        for name, call in CALLS.items():
            assert await judged(call, far, near, keys[name], versions[name]) is StoreUnavailable, name
        with pytest.raises(StoreUnavailable):
            await far.probe()
        await trio.to_thread.run_sync(place.proxy.recover)
        for name, call in CALLS.items():
            await repeated(call, far, near, keys[name], versions[name])


async def test_slow_link_is_no_fault(place: Place) -> None:
    """What takes long but goes on is not given up: read_timeout_s is about silence."""
    async with stores(place, attempts_max=1, read_timeout_s=8.0) as (far, near):
        place.proxy.link = Link(latency_s=0.05, bandwidth_bytes_s=100_000)
        for name in ("put", "get"):
            key = ObjectKey(f"segments/{name}")
            await prepare(near, CALLS[name], key)
            started_s = trio.current_time()
            assert await judged(CALLS[name], far, near, key, Version("")) is None
            assert trio.current_time() - started_s > 1.2


async def test_random_mix(place: Place) -> None:
    """Operations drawn at random against a model, with a random mix of all faults at once."""
    seed = 1
    seed = 1
    draw = random.Random(seed)
    async with stores(place, attempts_max=3) as (far, near):
        place.proxy.rule = Mix(
            seed, {kind: 0.05 for kind in FAULTS}, after_bytes_max=200_000, stall_s=BRIEF_S
        )
        keys = [ObjectKey(f"segments/{number}") for number in range(6)]
        possible: dict[ObjectKey, set[bytes | None]] = {key: {None} for key in keys}
        succeeded = 0
        with trio.fail_after(PATIENCE_S * 3):
            for _ in range(STEPS):
                succeeded += await _step(far, draw, keys, possible)
        assert succeeded > STEPS / 2
        assert len({exchange.fault.kind for exchange in place.proxy.hits()}) == len(FAULTS)
        place.proxy.clear()
        for key in keys:
            assert await state(near, key) in possible[key]


async def _step(
    far: Store, draw: random.Random, keys: list[ObjectKey], possible: dict[ObjectKey, set[bytes | None]]
) -> bool:
    """One operation; what may lie under its key is narrowed by answers and widened by unknown outcomes."""
    key = draw.choice(keys)
    data = draw.choice((OLD, NEW))
    states = possible[key]
    name = draw.choice(("put", "delete", "get", "get", "head"))
    try:
        if name == "put":
            await far.put(key, data)
            assert states & {None, data}
            possible[key] = {data}
        elif name == "delete":
            await far.delete(key)
            possible[key] = {None}
        elif name == "get":
            found = await far.get(key)
            assert found in states
            possible[key] = {found}
        else:
            assert (await far.head(key)).size_bytes == len(OLD)
            assert states - {None}
            possible[key] = states - {None}
    except StoreUnavailable:
        return False
    except UnknownOutcome:
        possible[key] = states | ({data} if name == "put" and None in states else set())
        if name == "delete":
            possible[key] = states | {None}
        return False
    except ObjectExists:
        assert name == "put"
        assert states - {None, data}, "no other bytes were ever there"
        possible[key] = states - {None, data}
    except StoreError as exc:
        assert type(exc).__name__ == "ObjectNotFound", exc
        assert None in states, "it is there"
        possible[key] = {None}
    return True
