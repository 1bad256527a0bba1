"""The mirror: brings every local object to ONE store, whatever that store does meanwhile.

The objects on the local disk minus those that the store's instance is known to hold are the queue;
nothing else is remembered, so a restart resumes by offering the local objects again.

Invariants:
- An object is recorded as held only after a look (engine/look.py, which verifies the place, too) that
  began after its PUT returned, and found it under its key with its size. Names hold 8 random bytes of their
  writer and PUT never replaces other bytes: the size tells an object cut short; rot is verify's business.
- An object is outstanding from `offer` until it is recorded as held, or abandoned; an outage, a cancelled PUT
  or an unknown outcome only makes it be sent again, which the store's PUT contract makes safe.
- No PUT starts unless the lease was fresh just before. The lease may still be lost while the PUT is
  under way: names are never shared between writers, so that leaves an orphan, not damage.
- Memory: `parallel` objects, and UNCONFIRMED_MAX and PARKED_MAX entries beside the queue.
- What fails here stays here: one store's trouble delays its own mirror only. Faults of the store
  hold all its uploads back (with one trial request at a time); faults of one object, only that one
  (engine/set_aside.py): it is the object's when that failed before, and the store took another one meanwhile.
  Of what the store takes and does not keep: engine/losses.py.

Rejected: asking with HEAD before each PUT, and taking "the key exists" for success (equal bytes are).
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial

import trio

from mirrorfs.core.held import HeldKeys
from mirrorfs.engine.backoff import Trial
from mirrorfs.engine.confirming import Confirming
from mirrorfs.engine.look import list_around
from mirrorfs.engine.losses import Losses
from mirrorfs.engine.mirror_state import MirrorState, StateWord, fault_word
from mirrorfs.engine.rate import Rate
from mirrorfs.engine.set_aside import OWN_FAULT_AFTER, SetAside
from mirrorfs.engine.store_faults import StoreFaults
from mirrorfs.engine.upload_pace import UploadPace
from mirrorfs.engine.upload_queue import Item, UploadQueue
from mirrorfs.errors import DamagedError, MirrorfsError, ObjectExists, StoreError
from mirrorfs.ports import Clock, ObjectKey, Sealed, Store

UPLOADS_PARALLEL = 4
UNCONFIRMED_MAX = 1000
PARKED_MAX = 64
CONFLICT_PATIENCE_S = 60.0  # how long whoever waits gives a conflict to be mended
_logger = logging.getLogger(__name__)


class Mirror:
    """The state and the upload task of one store."""

    def __init__(
        self,
        store: Store,
        *,
        instance: str,
        read_object: Callable[[str], Awaitable[bytes]],
        lease_fresh: Callable[[], Awaitable[None]],
        held: HeldKeys,
        save_held: Callable[[str], None],
        forget_held: Callable[[str], None],
        on_conflict: Callable[[str], None] = lambda key: None,
        is_known_bad: Callable[[str], bool] = lambda key: False,
        clock: Clock,
        pace: UploadPace,
        random: Callable[[], float],
        parallel: int = UPLOADS_PARALLEL,
        may_be_away: bool = False,
        append_only: bool = False,
    ) -> None:
        """
        Args:
            store: with deadlines but without retries of its own (RetryingStore, attempts_max=1): a
                PUT repeated below this module would go out under a lease checked long before.
            instance, held: UUID (hex) of the store's instance, and what it is known to hold.
            read_object: the local bytes of a key. Errors: MirrorfsError, OSError.
            lease_fresh: returns while this writer may write to the store (LeaseKeeper.fresh).
            save_held, forget_held: persist that a key is held, or is not after all; called on the loop.
            on_conflict: hears the key of an object under which the store holds other bytes.
            is_known_bad: whether what the store lists under a key is damaged, whatever its size.
            random: uniform in [0, 1), for the back-off.
            may_be_away: that it does not answer is no reason for a warning.
            append_only: nothing is deleted there from here.
        """
        self.store = store
        self.instance = instance
        self.append_only = append_only
        self._read_object = read_object
        self.lease_fresh = lease_fresh
        self._save_held = save_held
        self._forget_held = forget_held
        self._on_conflict = on_conflict
        self._is_known_bad = is_known_bad
        self._conflict_since_s = 0.0
        self._clock = clock
        self._pace = pace
        self._parallel = parallel
        self._held = held
        self._queue = UploadQueue()
        self._faults = StoreFaults(clock, random, store=store.name, may_be_away=may_be_away)
        self._event = trio.lowlevel.ParkingLot()
        self._waiters: list[set[str]] = []
        self._confirming = Confirming(
            store, self._queue, self._faults, self._event,
            is_awaited=lambda: any(self._waiters), on_seen=self._judge,
        )  # fmt: skip
        self._aside = SetAside(clock, store=store.name)
        self._losses = Losses(self._queue, self._aside, self._faults, store=store.name)
        self._trial, self._put_at_s = Trial(), float("-inf")
        self._newest_ns: int | None = None
        self._conflict: str | None = None
        self._rate = Rate()

    # --- what others ask ---------------------------------------------------------------------

    def offer(
        self,
        key: str,
        size_bytes: int,
        *,
        written_ns: int,
        after_sequence: int | None = None,
        withheld: bool = False,
    ) -> None:
        """Queue an object that has become immutable here; what is held or queued already is passed over.

        One that is `withheld` is pending, but not sent until `resume`. The other arguments are those of Item.
        Raises: LimitError: no object of that name is mirrored.
        """
        if key in self._held:
            return
        self._queue.offer(Item(key, size_bytes, written_ns, after_sequence), withheld=withheld)
        self._newest_ns = written_ns if self._newest_ns is None else max(self._newest_ns, written_ns)
        self._event.unpark_all()

    def is_held(self, key: str) -> bool:
        """Whether the store's instance is known to hold an object."""
        return key in self._held

    def forget(self, key: str) -> None:
        """The store does not hold an object after all, or not whole; it is not sent until `resume`.

        What lies there damaged is to be deleted in between: an upload at the same time would be, too. One
        that the store was thought to hold is to be offered in the same step, or nobody misses it.
        """
        if key in self._held:
            self._forget_held(key)
            self._held.discard(key)
        self._queue.withhold(key)
        self._aside.forget(key)
        if not self._queue.conflicts:
            self._conflict = None

    def resume(self, key: str) -> None:
        """An object that was forgotten, or offered as withheld, is sent."""
        self._queue.resume(key)
        self._event.unpark_all()

    def drop(self, key: str) -> None:
        """An object is of no use any more: neither sent nor counted as held, and nobody waits for it."""
        self.forget(key)
        self._queue.remove(key)
        self._no_longer_waited_for(key)
        self._event.unpark_all()

    async def abandon(self, keys: Collection[str]) -> None:
        """Drop objects, and return when no request sends one of them any more."""
        for key in keys:
            self.drop(key)
        while not self._queue.in_flight.keys().isdisjoint(keys):
            await self._event.park()

    def in_conflict(self) -> list[str]:
        """Keys under which the store holds other bytes."""
        return list(self._queue.conflicts)

    def snapshot(self) -> MirrorState:
        """The state of the store now; costs no more with a long queue."""
        oldest_ns = self._queue.oldest_ns()
        blocked = self._aside.blocked()
        fault = self._faults.fault
        if self._conflict is not None:
            word = StateWord.CONFLICT
        elif fault is not None:
            word = fault_word(fault)
        else:
            word = StateWord.CATCHING_UP if len(self._queue) else StateWord.UP_TO_DATE
        return MirrorState(
            store=self.store.name,
            held_count=len(self._held),
            pending_count=len(self._queue),
            pending_bytes=self._queue.size_bytes,
            oldest_pending_ns=oldest_ns,
            safe_before_ns=self._newest_ns if oldest_ns is None else oldest_ns,
            rate_bytes_s=self._rate.bytes_s(),
            last_error=self._conflict or (str(fault) if fault else blocked and blocked[0]),
            failing_since_ns=self._faults.since_ns,
            state=word,
            blocked=blocked and blocked[0],
            blocked_since_ns=blocked and blocked[1],
        )

    async def wait_held(self, keys: Iterable[str] | None = None) -> None:
        """Return when the store is seen to hold everything offered so far, or those keys of it.

        A back-off is cut short once: whoever waits sees the store as it is now.
        Raises: ObjectExists: an object waited for is in conflict, and nobody mends that.
        """
        waiting = set(self._queue.keys()) if keys is None else {key for key in keys if key in self._queue}
        self._waiters.append(waiting)
        began_s = trio.current_time()
        try:
            self._faults.retry_now()
            self._queue.unpark(lambda key: True)
            self._event.unpark_all()
            await trio.lowlevel.checkpoint()
            while waiting:
                patience_s = float("inf")
                if any(key in waiting for key in self._queue.conflicts):
                    end_s = max(began_s, self._conflict_since_s) + CONFLICT_PATIENCE_S
                    patience_s = end_s - trio.current_time()
                    if patience_s <= 0:
                        raise ObjectExists(self._conflict)
                with trio.move_on_after(patience_s):
                    await self._event.park()
        finally:
            self._waiters = [other for other in self._waiters if other is not waiting]

    async def reconcile(self) -> None:
        """Learn from listings which of the objects offered so far the store has already.

        Raises: StoreError: what was seen before it counts.
        """

        def found(key: str, size_bytes: int) -> None:
            item = self._queue.item(key)
            if item is not None and item.size_bytes == size_bytes and not self._is_known_bad(key):
                self._now_held(key)

        await list_around(self.store, list(self._queue.keys()), found)

    # --- tasks -------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Upload and confirm until cancelled. Errors that are not the store's or an object's pass through."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._parallel):
                nursery.start_soon(self._upload_forever)
            nursery.start_soon(self._confirming.run)
            task_status.started()

    async def _upload_forever(self) -> None:
        while True:
            item = await self._next_item()
            try:
                await self._pace.wait(item.written_ns, hurried=lambda: bool(self._waiters))
                await self._upload(item)
            finally:
                # In flight means that a task has it, and this one no longer has.
                if item.key in self._queue.in_flight:
                    self._queue.requeue(item)
                self._trial.end(item.key)
                self._event.unpark_all()

    async def _next_item(self) -> Item:
        while True:
            delay_s = self._faults.upload_delay_s()
            self._queue.unpark(self._aside.is_due)
            is_trial = self._faults.is_trial
            if (
                delay_s <= 0
                and not (is_trial and self._trial.left_s() > 0)
                and not self._losses.must_look_first()
                and len(self._queue.unconfirmed) < UNCONFIRMED_MAX
                and len(self._queue.parked) < PARKED_MAX
            ):
                # Popping puts the item in flight in the same step: no two tasks have one item.
                item = self._queue.pop()
                if item is not None:
                    if is_trial:
                        self._trial.begin(item.key)
                    return item
            due_s = max(0.0, self._aside.due_s(self._queue.parked) - trio.current_time())
            waits_s = (delay_s, self._trial.left_s() if is_trial else 0.0)
            wait_s = min((one for one in waits_s if one > 0), default=float("inf"))
            with trio.move_on_after(min(wait_s, due_s)):
                await self._event.park()

    async def _upload(self, item: Item) -> None:
        """Send one object. The queue has it in flight across every await here."""
        # To read an object may mean to fetch it: for nothing, if the store is away.
        if not await self._has_lease():
            return
        try:
            data = await self._read_object(item.key)
            if len(data) != item.size_bytes:
                raise DamagedError(f"The local object {item.key} is not {item.size_bytes} bytes any more.")
        except (MirrorfsError, OSError) as exc:
            known = isinstance(exc, MirrorfsError)  # the text of an OSError may hold a path
            self._park(item, str(exc) if known else f"The local object {item.key} cannot be read.")
            return
        if not await self._has_lease():
            return
        started_s = trio.current_time()
        try:
            await self.store.put(ObjectKey(item.key), Sealed(data))
        except ObjectExists as exc:
            self._settle_conflict(item, str(exc))
        except StoreError as exc:
            self._put_failed(item, exc, started_s=started_s)
        except MirrorfsError as exc:
            self._park(item, str(exc))
        else:
            self._put_succeeded(item)

    async def _has_lease(self) -> bool:
        lease = self._faults.lease
        return await lease.succeeds(self.lease_fresh, partial(self._faults.failed, lease))

    def _put_succeeded(self, item: Item) -> None:
        if self._faults.puts.failures:
            # What was tried in vain meanwhile is older: it goes first.
            self._queue.unpark(lambda key: True)
        self._faults.recovered(self._faults.puts)
        self._put_at_s = trio.current_time()
        if not self._aside.was_lost(item.key):
            self._rate.add(item.size_bytes)
        self._confirming.gather()
        self._queue.settle_put(item)

    def _put_failed(self, item: Item, fault: StoreError, *, started_s: float) -> None:
        if item.key not in self._queue:
            return  # it was abandoned meanwhile; so in what follows
        failures = self._aside.failed(item.key)
        if self._put_at_s > started_s and failures >= OWN_FAULT_AFTER:
            self._queue.park(item)
            self._aside.store_chokes(item.key, str(fault), took_s=trio.current_time() - started_s)
            return
        self._faults.failed(self._faults.puts, fault, started_s)
        if self._trial.failed(item.key):
            self._aside.take_turns(item.key)
            self._queue.park(item)

    def _park(self, item: Item, sentence: str) -> None:
        """Set an object aside that cannot be read here."""
        if item.key not in self._queue:
            return
        self._queue.park(item)
        self._aside.unreadable(item.key, sentence)

    # --- confirming --------------------------------------------------------------------------

    def _judge(self, item: Item, size_bytes: int | None) -> None:
        if item.key not in self._queue:
            return
        if size_bytes == item.size_bytes:
            self._now_held(item.key)
        elif size_bytes is not None:
            self._settle_conflict(
                item,
                f"Store {self.store.name} took {item.key} and holds {size_bytes} bytes of {item.size_bytes};"
                " run `mirrorfs verify`.",
            )
        elif item.key in self._queue.unconfirmed:
            self._losses.lost(item, put_at_s=self._put_at_s)

    # --- state -------------------------------------------------------------------------------

    def _now_held(self, key: str) -> None:
        if key in self._held or key not in self._queue:
            return
        self._save_held(key)
        self._held.add(key)
        self._queue.remove(key)
        self._aside.forget(key)
        self._losses.kept()
        self._no_longer_waited_for(key)

    def _no_longer_waited_for(self, key: str) -> None:
        for waiting in self._waiters:
            waiting.discard(key)

    def _settle_conflict(self, item: Item, sentence: str) -> None:
        if item.key not in self._queue:
            return
        if self._conflict is None:
            self._conflict_since_s = trio.current_time()
        self._conflict = sentence
        self._queue.settle_conflict(item)
        self._aside.forget(item.key)
        self._on_conflict(item.key)
        _logger.error("store %s holds other bytes under %s: %s", self.store.name, item.key, sentence)
