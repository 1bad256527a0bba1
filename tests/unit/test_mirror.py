"""engine/mirror.py against a simulated store on a virtual clock: nothing here waits for real time.

Each test takes `autojump_clock` itself: as a fixture's fixture it would not become the run's clock.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine import deleting
from mirrorfs.engine.backoff import BACKOFF_CAP_S
from mirrorfs.engine.confirming import CONFIRM_BATCH, CONFIRM_DELAY_S
from mirrorfs.engine.deleting import PAUSE_S, Deletion, delete_objects
from mirrorfs.engine.look import HEADS_PER_LOOK
from mirrorfs.engine.mirror import (
    UPLOADS_PARALLEL,
    Mirror,
)
from mirrorfs.engine.mirror_state import StateWord
from mirrorfs.engine.set_aside import FIRST_S, LONGEST_S, UNSURE_LONGEST_S
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.engine.upload_queue import Item, UploadQueue
from mirrorfs.errors import (
    DiskError,
    InUseError,
    LimitError,
    ObjectExists,
    StoreDenied,
    StoreMismatch,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.ids import SegmentId, Stream, segment_object_key
from mirrorfs.ports import ObjectInfo, ObjectKey, Sealed
from tests.support.store_simulated import Faults, SimulatedStore
from tests.support.trio_clock import TrioClock

WRITER = b"writerAB"
OUTAGE_WARNING = "is falling behind"
LOSS_WARNING = "lost .* after taking it"


def segment(sequence: int) -> str:
    return segment_object_key(Stream.MAIN, SegmentId(sequence, 1, WRITER))


def checkpoint(sequence: int) -> str:
    return segment_object_key(Stream.CHECKPOINT, SegmentId(sequence, 1, WRITER))


def head(counter: int) -> str:
    return f"heads/{counter:016x}-00000001-{WRITER.hex()}"


def header(generation: int) -> str:
    return f"header/{generation:08x}-{'ab' * 16}"


class WatchedStore(SimulatedStore):
    """Notes the order of PUTs, how many were under way at once, and which objects were looked at."""

    def __init__(self, name: str = "a", *, seed: int = 1, faults: Faults | None = None) -> None:
        super().__init__(name, seed=seed, faults=faults or Faults(latency_min_s=0.5, latency_max_s=0.5))
        self.started: list[str] = []
        self.head_count = 0
        self.list_count = 0
        self.most_at_once = 0
        self.chokes_on = ""
        self.chokes_for_s = 0.0
        self.loses: Callable[[str], bool] = lambda key: False
        self._at_once = 0

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        self.started.append(key)
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if key == self.chokes_on:
                await trio.sleep(self.chokes_for_s)
                raise UnknownOutcome(f"Store {self.name} did not confirm a change of {key}.")
            await super().put(key, data)
            if self.loses(key):
                self.lose(key)
        finally:
            self._at_once -= 1

    async def head(self, key: ObjectKey) -> ObjectInfo:
        self.head_count += 1
        return await super().head(key)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        self.list_count += 1
        return await super().list(prefix, start_after=start_after)


class Rig:
    """One mirror with its local objects and its persisted knowledge."""

    def __init__(self, store: SimulatedStore, held: list[str] | None = None) -> None:
        self.store = store
        self.objects: dict[str, bytes] = {}
        self.held: list[str] = [] if held is None else held
        self.lease: Callable[[], None] = lambda: None
        self.written_ns = -(10**18)
        """Of the last local write: long ago."""
        self.mirror = self.restart()

    def restart(self) -> Mirror:
        """A new process: what it knows is what was persisted."""
        self.mirror = Mirror(
            self.store,
            instance="00" * 16,
            read_object=self._read,
            lease_fresh=self._fresh,
            held=HeldKeys(self.held),
            save_held=self.held.append,
            forget_held=self.held.remove,
            clock=TrioClock(),
            pace=UploadPace(TrioClock(), written_ns=lambda: self.written_ns, delay_s=10.0),
            random=random.Random(7).random,
        )
        return self.mirror

    def offer(self, key: str, *, written_ns: int = 0, after: int | None = None) -> None:
        data = self.objects.setdefault(key, key.encode() * 3)
        self.mirror.offer(key, len(data), written_ns=written_ns, after_sequence=after)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Mirror]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.mirror.run)
            yield self.mirror
            nursery.cancel_scope.cancel()

    async def _read(self, key: str) -> bytes:
        await trio.lowlevel.checkpoint()
        if key not in self.objects:
            raise DiskError(f"The local object {key} cannot be read.")
        return self.objects[key]

    async def _fresh(self) -> None:
        await trio.lowlevel.checkpoint()
        self.lease()


@pytest.fixture
def store() -> WatchedStore:
    return WatchedStore()


@pytest.fixture
def rig(store: WatchedStore) -> Rig:
    return Rig(store)


async def test_oldest_first_and_bounded(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    for sequence in random.Random(3).sample(range(40), 40):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        await mirror.wait_held()
    started = [int(key[9:25], 16) for key in store.started]
    assert sorted(started) == list(range(40))
    # Taken in order; those in flight together may overtake one another while they are read.
    assert all(abs(sequence - index) < UPLOADS_PARALLEL for index, sequence in enumerate(started))
    assert store.most_at_once == UPLOADS_PARALLEL
    assert store.objects == rig.objects
    assert sorted(rig.held) == sorted(rig.objects)


async def test_priority(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    rig.offer(head(1), after=8)
    rig.offer(checkpoint(1), after=8)
    for sequence in range(3, 9):
        rig.offer(segment(sequence))
    rig.offer(header(1))
    async with rig.running() as mirror:
        await mirror.wait_held()
    assert store.started[0] == header(1)
    assert set(store.started[1:7]) == set(map(segment, range(3, 9)))
    assert store.started[7:] == [checkpoint(1), head(1)]


@pytest.mark.parametrize("after", [8, None])
async def test_a_head_never_comes_before_what_it_names(
    autojump_clock: MockClock, after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a checkpoint; after a restart it is not known any more what they name."""
    store = WatchedStore(faults=Faults(latency_min_s=0.1, latency_max_s=9.0))
    rig = Rig(store)
    for sequence in range(3, 9):
        rig.offer(segment(sequence))
    rig.offer(head(1), after=after)
    rig.offer(checkpoint(1), after=after)
    had: list[int] = []
    put = store.put

    async def watched_put(key: ObjectKey, data: Sealed) -> None:
        if not key.startswith("segments/"):
            had.append(len(store.objects))
        await put(key, data)

    monkeypatch.setattr(store, "put", watched_put)
    async with rig.running() as mirror:
        await mirror.wait_held()
    assert had == [6, 7], "the segments, then the checkpoint as well"


async def test_nothing_goes_before_the_header_is_seen_there(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    rig.offer(segment(1))
    rig.offer(header(2))
    async with rig.running() as mirror:
        with trio.fail_after(CONFIRM_DELAY_S):
            while segment(1) not in store.started:
                assert not rig.held or rig.held == [header(2)]
                await trio.sleep(0.01)
        assert rig.held == [header(2)]
        await mirror.wait_held()


def test_what_waits_for_what() -> None:
    queue = UploadQueue()
    for key, after in [(segment(7), None), (segment(9), None), (checkpoint(1), 8), (head(1), 8)]:
        queue.offer(Item(key, 1, 0, after))
    seven, nine = queue.pop(), queue.pop()
    assert seven is not None and seven.key == segment(7)
    assert nine is not None and nine.key == segment(9)
    assert queue.pop() is None, "the checkpoint names segment 7, which is in flight"
    queue.park(seven)
    assert queue.pop() is None, "nor may it go while segment 7 waits for the local disk"
    queue.unpark(lambda key: True)
    assert queue.pop() is seven
    queue.settle_put(seven)
    after_seven = queue.pop()
    assert after_seven is not None and after_seven.key == checkpoint(1), "segment 9 holds nothing up"
    assert queue.pop() is None, "a head waits for every checkpoint"
    queue.settle_conflict(after_seven)
    last = queue.pop()
    assert last is not None and last.key == head(1), "a conflict holds nothing up"
    assert len(queue) == 5 - 1 and queue.size_bytes == 4
    with pytest.raises(LimitError):
        queue.offer(Item("lease", 1, 0, None))


async def test_held_only_after_a_later_look(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    rig.offer(segment(1))
    async with rig.running() as mirror:
        await trio.sleep(CONFIRM_DELAY_S / 2)
        assert segment(1) in store.objects
        assert rig.held == [] and not mirror.is_held(segment(1))
        assert mirror.snapshot().state is StateWord.CATCHING_UP
        await trio.sleep(CONFIRM_DELAY_S * 2)
        assert rig.held == [segment(1)] and mirror.is_held(segment(1))
        assert mirror.snapshot().state is StateWord.UP_TO_DATE


async def test_confirming_is_cheap(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    count = 3 * CONFIRM_BATCH
    for sequence in range(count):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        await mirror.wait_held()
    assert len(rig.held) == count
    # PUTs of a second here; a listing every CONFIRM_DELAY_S covers all of them.
    assert store.list_count <= count / UPLOADS_PARALLEL / CONFIRM_DELAY_S + 2
    assert store.head_count <= HEADS_PER_LOOK


@pytest.mark.expects_warnings(LOSS_WARNING)
async def test_object_lost_after_the_put_is_sent_again(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for sequence in range(6):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        await trio.sleep(CONFIRM_DELAY_S * 0.9)
        assert store.objects == rig.objects and rig.held == []
        store.lose(segment(3))
        await mirror.wait_held()
    assert store.objects == rig.objects
    assert store.started.count(segment(3)) == 2
    assert len(store.started) == 7


async def faults_seen(mirror: Mirror, *, seconds: int) -> tuple[int, int]:
    """For how many of so many seconds the state was a fault, and for how many in a row at most."""
    total = row = longest = 0
    for _ in range(seconds):
        await trio.sleep(1)
        row = row + 1 if mirror.snapshot().state is StateWord.UNREACHABLE else 0
        total, longest = total + (row > 0), max(longest, row)
    return total, longest


@pytest.mark.expects_warnings(LOSS_WARNING, "cannot be sent")
async def test_an_object_that_the_store_always_loses(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """It is sent ever more seldom, and told; it delays no other, and goes once the store keeps it."""
    store.loses = lambda key: key == segment(0)
    for sequence in range(20):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        for minute in range(60):
            rig.offer(segment(100 + minute))
            await trio.sleep(30)
            assert segment(100 + minute) in rig.held
            await trio.sleep(30)
            if minute == 10:
                state = mirror.snapshot()
                assert state.blocked == state.last_error and state.blocked is not None
                assert "said that it took" in state.blocked and segment(0) in state.blocked
                assert state.blocked_since_ns is not None
                assert (state.state, state.pending_count) == (StateWord.CATCHING_UP, 1)
        assert store.started.count(segment(0)) <= 12
        assert await faults_seen(mirror, seconds=1800) == (0, 0), "it is the object's fault"
        assert mirror.snapshot().rate_bytes_s == 0, "what is sent again brings nothing forward"
        assert store.started.count(segment(0)) <= 14
        store.loses = lambda key: False
        await trio.sleep(LONGEST_S + 2 * CONFIRM_DELAY_S)
        assert mirror.snapshot().state is StateWord.UP_TO_DATE and mirror.snapshot().blocked is None
    assert store.objects == rig.objects
    assert len(store.started) - store.started.count(segment(0)) == 19 + 60


@pytest.mark.expects_warnings(LOSS_WARNING, OUTAGE_WARNING, "cannot be sent")
async def test_a_lonely_object_that_the_store_loses(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """It may be the store: that counts until it is seen to keep another one, which is sent meanwhile."""
    store.loses = lambda key: key == segment(0)
    rig.offer(segment(0))
    async with rig.running() as mirror:
        await trio.sleep(60)
        assert await faults_seen(mirror, seconds=3600) == (3600, 3600)
        state = mirror.snapshot()
        assert state.last_error is not None and "said that it took" in state.last_error
        assert state.blocked is None
        assert store.started.count(segment(0)) <= 3600 / UNSURE_LONGEST_S + 8
        rig.offer(segment(1))
        await trio.sleep(BACKOFF_CAP_S + 2 * CONFIRM_DELAY_S + 1)
        assert rig.held == [segment(1)]
        assert mirror.snapshot().state is StateWord.CATCHING_UP
        await trio.sleep(3600)
        assert mirror.snapshot().blocked is not None


@pytest.mark.expects_warnings(LOSS_WARNING, OUTAGE_WARNING)
async def test_a_store_that_keeps_nothing(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    """Its own fault, told without a break; what is sent to it in vain is little; it catches up by itself."""
    store.loses = lambda key: True
    for sequence in range(40):
        rig.offer(segment(sequence))
    rig.offer(checkpoint(1), after=39)
    async with rig.running() as mirror:
        await trio.sleep(60)
        sent_before = len(store.started)
        assert sent_before <= 2 * 41 + 6, "each twice, and a few trials"
        assert await faults_seen(mirror, seconds=3600) == (3600, 3600)
        assert len(store.started) - sent_before <= 3600 / (BACKOFF_CAP_S / 2)
        state = mirror.snapshot()
        assert state.last_error is not None and "said that it took" in state.last_error
        assert (rig.held, state.blocked, state.rate_bytes_s) == ([], None, 0)
        store.loses = lambda key: False
        await trio.sleep(BACKOFF_CAP_S + UNSURE_LONGEST_S)
        assert mirror.snapshot().state is StateWord.UP_TO_DATE
    assert store.objects == rig.objects


async def test_restart_resumes(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    for sequence in range(90):
        rig.offer(segment(sequence))
    async with rig.running():
        await trio.sleep(CONFIRM_DELAY_S * 1.5)
    assert 0 < len(rig.held) < 90
    before = set(rig.held)
    store.started.clear()
    rig.restart()
    for sequence in range(90):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        await mirror.wait_held()
    assert not before & set(store.started), "what is known to be held is not sent again"
    assert sorted(rig.held) == sorted(rig.objects) and store.objects == rig.objects


@pytest.mark.expects_warnings(OUTAGE_WARNING)
async def test_outage_then_catch_up(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    store.outage = True
    for sequence in range(30):
        rig.offer(segment(sequence), written_ns=1000 + sequence)
    async with rig.running() as mirror:
        await trio.sleep(3600)
        state = mirror.snapshot()
        assert state.state is StateWord.UNREACHABLE
        assert state.last_error == "Store a cannot be reached."
        assert state.failing_since_ns is not None
        assert 3590e9 < TrioClock().now_ns() - state.failing_since_ns <= 3600e9
        assert (state.pending_count, state.held_count) == (30, 0)
        assert state.pending_bytes == sum(map(len, rig.objects.values()))
        assert (state.oldest_pending_ns, state.safe_before_ns) == (1000, 1000)
        # A try every half minute in the mean; many would be a flood, few would be giving up.
        assert 60 < len(store.started) < 240
        store.outage = False
        with trio.fail_after(120):
            await mirror.wait_held()
        state = mirror.snapshot()
        assert (state.state, state.pending_count, state.pending_bytes) == (StateWord.UP_TO_DATE, 0, 0)
        assert (state.oldest_pending_ns, state.safe_before_ns) == (None, 1029)
        assert (state.last_error, state.failing_since_ns) == (None, None)
        assert state.rate_bytes_s > 0
    assert store.objects == rig.objects


@pytest.mark.expects_warnings(OUTAGE_WARNING)
async def test_after_a_fault_one_trial_at_a_time(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for sequence in range(9):
        rig.offer(segment(sequence))
    store.outage = True
    async with rig.running():
        await trio.sleep(60)
        store.most_at_once = 0
        await trio.sleep(600)
        assert store.most_at_once == 1


@pytest.mark.parametrize(
    ("fault", "word"),
    [("denied", StateWord.DENIED), ("full", StateWord.FULL), ("outage", StateWord.UNREACHABLE)],
)
@pytest.mark.expects_warnings(OUTAGE_WARNING)
async def test_words_for_faults(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore, fault: str, word: StateWord
) -> None:
    setattr(store, fault, True)
    rig.offer(segment(1))
    async with rig.running() as mirror:
        await trio.sleep(600)
        assert mirror.snapshot().state is word
        setattr(store, fault, False)
        await mirror.wait_held()
        assert mirror.snapshot().state is StateWord.UP_TO_DATE


async def test_lost_acknowledgement(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    store.faults = Faults(lost_acknowledgement=1.0)
    rig.offer(segment(1))
    async with rig.running() as mirror:
        with trio.move_on_after(0.1):
            await mirror.wait_held()
        assert segment(1) in store.objects and rig.held == []
        store.faults = Faults()
        await mirror.wait_held()
    assert rig.held == [segment(1)]


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.expects_warnings(OUTAGE_WARNING)
async def test_any_faults_end_in_a_full_store(autojump_clock: MockClock, seed: int) -> None:
    faults = Faults(
        unavailable=0.2, lost_request=0.1, lost_acknowledgement=0.2, latency_min_s=0.0, latency_max_s=3.0
    )
    rig = Rig(WatchedStore(seed=seed, faults=faults))
    draw = random.Random(seed)
    async with rig.running():
        for sequence in range(60):
            rig.offer(segment(sequence))
            await trio.sleep(draw.uniform(0, 4))
        rig.offer(checkpoint(1), after=59)
        rig.offer(head(1), after=59)
        for _ in range(3):
            await trio.sleep(draw.uniform(0, 20))
            assert rig.store.objects.items() <= rig.objects.items()
            assert set(rig.held) <= rig.store.objects.keys()
        await rig.mirror.wait_held()
    assert rig.store.objects == rig.objects
    assert sorted(rig.held) == sorted(rig.objects), "each is recorded once"


@pytest.mark.expects_warnings("holds other bytes under")
async def test_conflict_stops_one_object_only(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    store.objects[segment(2)] = b"not ours"
    for sequence in range(5):
        rig.offer(segment(sequence), written_ns=sequence)
    rig.offer(head(1), written_ns=9, after=4)
    async with rig.running() as mirror:
        with pytest.raises(ObjectExists):
            await mirror.wait_held()
        await mirror.wait_held([segment(4), head(1)])
        state = mirror.snapshot()
        assert (state.state, state.pending_count, state.safe_before_ns) == (StateWord.CONFLICT, 1, 2)
        assert state.last_error is not None and segment(2) in state.last_error
        await trio.sleep(600)
    assert store.started.count(segment(2)) == 1
    assert store.objects[segment(2)] == b"not ours"
    assert segment(2) not in rig.held and len(rig.held) == 5


@pytest.mark.expects_warnings("holds other bytes under")
async def test_object_cut_short_in_the_store(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    rig.offer(segment(1))
    async with rig.running() as mirror:
        await trio.sleep(CONFIRM_DELAY_S / 2)
        store.truncate(segment(1), size_bytes=10)
        with pytest.raises(ObjectExists):
            await mirror.wait_held()
    assert rig.held == []


@pytest.mark.expects_warnings("cannot be sent")
async def test_unreadable_local_object_holds_up_no_other(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for sequence in range(5):
        rig.offer(segment(sequence))
    rig.offer(checkpoint(1), after=4)
    missing = rig.objects.pop(segment(0))
    async with rig.running() as mirror:
        await trio.sleep(FIRST_S * 20)
        assert rig.held == [segment(sequence) for sequence in range(1, 5)]
        assert sorted(store.started) == rig.held, "the checkpoint waits for the segment, which was never sent"
        state = mirror.snapshot()
        assert (state.state, state.pending_count) == (StateWord.CATCHING_UP, 2)
        assert state.last_error == f"The local object {segment(0)} cannot be read."
        rig.objects[segment(0)] = missing + b"x"
        await trio.sleep(FIRST_S * 40)
        assert segment(0) not in store.objects, "bytes that are not those offered stay here"
        rig.objects[segment(0)] = missing
        await mirror.wait_held()
        assert mirror.snapshot().last_error is None
    assert store.objects == rig.objects


@pytest.mark.expects_warnings("cannot be sent")
async def test_an_object_that_the_store_chokes_on_holds_up_no_other(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """Its requests end at their deadline each time, the others are taken: it is told, not waited for."""
    deadline_s = 600.0
    store.chokes_on, store.chokes_for_s = segment(0), deadline_s
    for sequence in range(40):
        rig.offer(segment(sequence))
    rig.offer(checkpoint(1), after=4)
    began_ns = TrioClock().now_ns()
    async with rig.running() as mirror:
        await trio.sleep(deadline_s / 2)
        assert sorted(rig.held) == [segment(sequence) for sequence in range(1, 40)]
        assert mirror.snapshot().blocked is None, "nothing failed yet"
        for sequence in range(40, 60):
            # One after the other, for hours: no failure of the first delays any of them.
            rig.offer(segment(sequence))
            await trio.sleep(deadline_s / 2)
            assert segment(sequence) in rig.held
        state = mirror.snapshot()
        assert state.blocked is not None and segment(0) in state.blocked
        assert (
            state.blocked_since_ns is not None and state.blocked_since_ns - began_ns <= 2 * deadline_s * 1e9
        )
        assert (state.state, state.pending_count) == (StateWord.CATCHING_UP, 2)
        assert store.started.count(segment(0)) <= 8, "the longer it fails the seldomer it is tried"
        store.chokes_on = ""
        await mirror.wait_held()
        assert mirror.snapshot().blocked is None
    assert store.objects == rig.objects


@pytest.mark.expects_warnings(OUTAGE_WARNING, "cannot be sent")
async def test_an_object_that_the_store_chokes_on_during_an_outage(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """The oldest object is what tells whether the store is back: not if it is the one that never works."""
    store.chokes_on, store.chokes_for_s = segment(0), 60.0
    store.outage = True
    for sequence in range(10):
        rig.offer(segment(sequence))
    async with rig.running() as mirror:
        await trio.sleep(3 * 3600)
        assert rig.held == [] and mirror.snapshot().blocked is None, "nothing else got there either"
        store.outage = False
        await trio.sleep(600)
        assert sorted(rig.held) == [segment(sequence) for sequence in range(1, 10)]
        await trio.sleep(3600)
        assert mirror.snapshot().blocked is not None


@pytest.mark.expects_warnings(OUTAGE_WARNING)
async def test_nothing_is_sent_without_a_lease(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    def fenced() -> None:
        raise InUseError("Store a was taken over.")

    rig.lease = fenced
    rig.offer(segment(1))
    async with rig.running() as mirror:
        await trio.sleep(3600)
        assert store.started == []
        state = mirror.snapshot()
        assert (state.state, state.last_error) == (StateWord.WAITING_FOR_LEASE, "Store a was taken over.")
        rig.lease = lambda: None
        await mirror.wait_held()
        assert mirror.snapshot().state is StateWord.UP_TO_DATE


async def test_store_fault_while_renewing_is_the_stores(autojump_clock: MockClock, rig: Rig) -> None:
    def denied() -> None:
        raise StoreDenied("Store a refuses these credentials.")

    rig.lease = denied
    rig.offer(segment(1))
    async with rig.running() as mirror:
        await trio.sleep(0.1)
        assert mirror.snapshot().state is StateWord.DENIED


async def test_wait_held_covers_what_was_offered_before(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    async with rig.running() as mirror:
        await mirror.wait_held()
        for sequence in range(10):
            rig.offer(segment(sequence))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mirror.wait_held)
            await trio.sleep(0.1)
            for sequence in range(10, 500):
                rig.offer(segment(sequence))
        assert {segment(sequence) for sequence in range(10)} <= set(rig.held)
        assert mirror.snapshot().pending_count > 0
        await mirror.wait_held([segment(12), segment(3), "segments/unknown"])
        assert segment(12) in rig.held


async def test_reconcile_learns_what_is_there(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for sequence in range(1500):
        rig.offer(segment(sequence))
    rig.offer(head(1))
    store.objects.update(rig.objects)
    store.truncate(segment(700), size_bytes=5)
    store.lose(segment(900))
    await rig.mirror.reconcile()
    assert set(rig.held) == {*rig.objects} - {segment(700), segment(900)}
    state = rig.mirror.snapshot()
    assert (state.held_count, state.pending_count) == (1499, 2)
    requests = store.request_count
    await rig.mirror.reconcile()
    assert store.request_count == requests + 1, "a page that begins with the first that is outstanding"
    store.objects.update(rig.objects)
    await rig.mirror.reconcile()
    requests = store.request_count
    await rig.mirror.reconcile()
    assert store.request_count == requests, "nothing is outstanding"


@pytest.mark.expects_warnings("holds other bytes")
async def test_reconcile_does_not_count_what_is_known_to_be_bad(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """Damaged bytes have the right size; whether they are still there, only a PUT tells."""
    bad = {segment(1), segment(2)}
    rig.mirror._is_known_bad = bad.__contains__
    for sequence in range(4):
        rig.offer(segment(sequence))
    store.objects.update(rig.objects)
    store.objects[segment(1)] = bytes(len(rig.objects[segment(1)]))
    await rig.mirror.reconcile()
    assert set(rig.held) == {segment(0), segment(3)}
    async with rig.running() as mirror:
        await trio.sleep(60)
        assert set(rig.held) == {segment(0), segment(2), segment(3)}
        assert mirror.in_conflict() == [segment(1)]


async def test_cancelled_upload_stays_outstanding(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for sequence in range(6):
        rig.offer(segment(sequence))
    for _ in range(3):
        async with rig.running():
            await trio.sleep(0.7)
        assert rig.mirror.snapshot().pending_count == 6
    async with rig.running() as mirror:
        await mirror.wait_held()
    assert store.objects == rig.objects


def test_a_long_queue_is_no_burden() -> None:
    queue = UploadQueue()
    count = 100_000
    for sequence in range(count):
        queue.offer(Item(segment(sequence), 16, count - sequence, None))
    assert (len(queue), queue.size_bytes, queue.oldest_ns()) == (count, 16 * count, 1)
    for sequence in range(count):
        item = queue.pop()
        assert item is not None and item.key == segment(sequence)
        queue.settle_put(item)
        queue.remove(item.key)
    assert (len(queue), queue.size_bytes, queue.oldest_ns()) == (0, 0, None)
    assert queue.is_idle()


async def test_what_a_store_lost_is_sent_again(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for key in (segment(1), segment(2)):
        rig.offer(key)
    async with rig.running() as mirror:
        await mirror.wait_held()
        del store.objects[segment(1)]
        mirror.forget(segment(1))
        assert rig.held == [segment(2)]
        assert not mirror.is_held(segment(1))
        rig.offer(segment(1))
        await mirror.wait_held()
    assert store.objects == rig.objects
    assert sorted(rig.held) == [segment(1), segment(2)]


async def test_what_is_withheld_is_pending_and_not_sent(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    lost = header(1)
    for key in (lost, segment(2)):
        rig.offer(key, written_ns=70)
    async with rig.running() as mirror:
        await mirror.wait_held()
        del store.objects[lost]
        mirror.forget(lost)
        mirror.offer(lost, len(rig.objects[lost]), written_ns=5, withheld=True)
        state = mirror.snapshot()
        assert (state.state, state.pending_count) == (StateWord.CATCHING_UP, 1)
        assert (state.pending_bytes, state.safe_before_ns) == (len(rig.objects[lost]), 5)
        rig.offer(segment(3), written_ns=80)
        await mirror.wait_held([segment(3)])
        assert lost not in store.objects, "and it holds nothing up"
        mirror.offer(lost, len(rig.objects[lost]), written_ns=90)
        await trio.sleep(600)
        assert lost not in store.objects, "whoever offers it again"
        mirror.resume(lost)
        await mirror.wait_held()
        assert mirror.snapshot().state is StateWord.UP_TO_DATE
        mirror.forget(lost)
        mirror.offer(lost, len(rig.objects[lost]), written_ns=5, withheld=True)
        mirror.drop(lost)
        rig.offer(segment(4))
        await mirror.wait_held()
    assert store.objects == rig.objects


@pytest.mark.expects_warnings("holds other bytes under")
async def test_a_conflict_ends_when_what_was_in_the_way_is_gone(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    store.objects["header/00000001-" + "0" * 32] = b"not ours"
    rig.offer("header/00000001-" + "0" * 32)
    rig.offer(segment(1))
    async with rig.running() as mirror:
        with pytest.raises(ObjectExists):
            await mirror.wait_held()
        await store.delete(ObjectKey("header/00000001-" + "0" * 32))
        mirror.forget("header/00000001-" + "0" * 32)
        with trio.move_on_after(600):
            await mirror.wait_held()
        assert list(store.objects) == [segment(1)], "it is not sent while what is in the way is removed"
        mirror.resume("header/00000001-" + "0" * 32)
        await mirror.wait_held()
        assert mirror.snapshot().state is StateWord.UP_TO_DATE
    assert store.objects == rig.objects


async def test_relocated_segments_delay_nothing(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    moved = [segment_object_key(Stream.RELOCATED, SegmentId(number, 1, WRITER)) for number in range(6)]
    for key in moved:
        rig.offer(key)
    for key in (segment(1), checkpoint(1), head(1)):
        rig.offer(key)
    async with rig.running() as mirror:
        await trio.sleep(2.6)
        assert store.started[:3] == [segment(1), checkpoint(1), head(1)]
        assert sorted(store.started[3:]) == moved[:2], "two at a time, whichever task is first"
        rig.offer(segment(2))
        await trio.sleep(0.1)
        assert store.started[-1] == segment(2), "it is sent beside them, at once"
        await mirror.wait_held()
    assert sorted(store.started[6:]) == moved[2:] and store.objects == rig.objects


# --- giving up, and deleting -----------------------------------------------------------------


@pytest.mark.expects_warnings("holds other bytes", "cannot be sent")
async def test_what_is_abandoned_is_neither_outstanding_nor_held(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """Wherever it is: held, queued, in flight, put, parked, in conflict."""
    held, in_flight, queued, in_conflict, parked = map(segment, range(5))
    store.objects[in_conflict] = b"other bytes"
    rig.offer(held)
    async with rig.running() as mirror:
        await mirror.wait_held()
        rig.offer(in_conflict)
        rig.offer(parked)
        del rig.objects[parked]
        await trio.sleep(1.1)
        assert mirror.in_conflict() == [in_conflict] and mirror.snapshot().state is StateWord.CONFLICT
        store.started.clear()
        rig.offer(in_flight)
        await trio.sleep(0.1)
        assert store.started == [in_flight]
        rig.offer(queued, written_ns=1)
        await mirror.abandon([held, in_flight, queued, in_conflict, parked])
        assert not mirror._queue.in_flight
        state = mirror.snapshot()
        assert (state.held_count, state.pending_count, state.pending_bytes) == (0, 0, 0)
        assert (state.oldest_pending_ns, state.last_error, state.state) == (None, None, StateWord.UP_TO_DATE)
        await trio.sleep(10 * CONFIRM_DELAY_S)
        await mirror.wait_held()
        assert rig.held == [] and not any(map(mirror.is_held, [held, in_flight, queued, in_conflict]))
        # And the next one finds its way.
        rig.offer(segment(9))
        await mirror.wait_held()
    assert rig.held == [segment(9)]


async def test_what_is_abandoned_while_it_is_looked_at_does_not_count(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    rig.offer(segment(0))
    async with rig.running() as mirror:
        await trio.sleep(1 + CONFIRM_DELAY_S + 0.1)
        assert store.list_count + store.head_count == 1 and not rig.held
        await mirror.abandon([segment(0)])
        del store.objects[segment(0)]
        await trio.sleep(10 * CONFIRM_DELAY_S)
        assert rig.held == [] and mirror.snapshot().state is StateWord.UP_TO_DATE
        assert store.started == [segment(0)]


async def test_deleting(autojump_clock: MockClock, rig: Rig, store: WatchedStore) -> None:
    keys = [segment(number) for number in range(5)]
    for key in keys:
        rig.offer(key)
    leases = 0

    def lease() -> None:
        nonlocal leases
        leases += 1

    async with rig.running() as mirror:
        await mirror.wait_held()
        rig.lease = lease
        began_s = trio.current_time()
        # One that is not there is as good as deleted.
        done = await delete_objects(mirror, [*keys[:3], segment(77)])
        assert (done.gone, done.fault, done.denied) == ((*keys[:3], segment(77)), None, False)
        assert leases == 4 and trio.current_time() - began_s >= 3 * PAUSE_S
        assert sorted(store.objects) == keys[3:] == rig.held
        assert await delete_objects(mirror, keys[:3]) == Deletion(tuple(keys[:3]), None)
        await trio.sleep(10 * CONFIRM_DELAY_S)
        assert sorted(store.objects) == keys[3:] == rig.held


async def test_deleting_waits_for_what_is_being_sent(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    """Or it would come back."""
    rig.offer(segment(0))
    async with rig.running() as mirror:
        await trio.sleep(0.1)
        assert store.started == [segment(0)]
        assert (await delete_objects(mirror, [segment(0)])).gone == (segment(0),)
        await trio.sleep(10 * CONFIRM_DELAY_S)
        assert store.objects == {} and rig.held == []


@pytest.mark.parametrize("fault", ["denied", "outage"])
async def test_a_store_that_does_not_delete(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore, fault: str
) -> None:
    keys = [segment(number) for number in range(3)]
    for key in keys:
        rig.offer(key)
    async with rig.running() as mirror:
        await mirror.wait_held()

        async def switch(value: bool) -> None:
            await trio.sleep(1.01)  # the first is deleted
            setattr(store, fault, value)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(switch, True)
            done = await delete_objects(mirror, keys)
        assert done.gone == (keys[0],) and done.denied is (fault == "denied")
        assert isinstance(done.fault, StoreDenied if fault == "denied" else StoreUnavailable)
        assert sorted(store.objects) == keys[1:]
        assert mirror.snapshot().state is StateWord.UP_TO_DATE, "a store that keeps things is no fault"
        await switch(False)
        assert await delete_objects(mirror, keys) == Deletion(tuple(keys), None)
        assert store.objects == {} and rig.held == []


async def test_nothing_is_deleted_without_a_lease(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore
) -> None:
    for number in range(2):
        rig.offer(segment(number))

    def fenced() -> None:
        raise InUseError("Another machine has the volume.")

    async with rig.running() as mirror:
        await mirror.wait_held()
        rig.lease = fenced
        with pytest.raises(InUseError):
            await delete_objects(mirror, [segment(0), segment(1)])
        assert len(store.objects) == 2


async def test_nothing_counts_as_deleted_in_another_place(
    autojump_clock: MockClock, rig: Rig, store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def another_place(store: object) -> None:
        raise StoreMismatch("In the place of store a is another one.")

    rig.offer(segment(0))
    async with rig.running() as mirror:
        await mirror.wait_held()
        monkeypatch.setattr(deleting, "verify_place", another_place)
        done = await delete_objects(mirror, [segment(0)])
        assert done.gone == () and isinstance(done.fault, StoreMismatch)
