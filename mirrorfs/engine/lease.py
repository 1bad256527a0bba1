"""The lease: one writer at a time on ONE store (docs/FORMAT.md, "Leases").

Invariants:
- `fresh` returns only if this writer's lease was in the store at a moment less than FRESH_S ago on
  CLOCK_BOOTTIME, taken before the request was sent. Suspend counts, and a jump between BOOTTIME and
  REALTIME (a machine image that woke up again) voids the lease until it is renewed.
- A lease of another writer is taken only when it was released, or was watched unchanged for its
  whole period on our own clock. FRESH_S is shorter than the period, so the old writer has stopped
  by then. Time stamps in leases are shown, never compared.
- Every document written differs from all others (its box has a new nonce), clones of this process
  included. So finding the very bytes that this process sent means that they are its own.
- Being fenced is final for this process: another writer's verified lease was found where ours was.
- A document that does not verify, or an older one than ours, is a fault of the store: it stops our writes
  there and fences nobody. It is replaced once it was watched unchanged for long enough (lease_doubt.py), and
  once leave is given anew: somebody else may have written there while it did not show our lease.
- Where a writer was displaced late, nothing is sent before it has noticed, and leave is given anew.

`_lock` is held across every await between reading the lease's state and changing it.

Rejected: comparing expiry times (clocks of two machines), and trusting an outcome whose answer was lost.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Collection
from dataclasses import replace
from typing import NoReturn

import trio

from mirrorfs.engine.lease_claim import Admit, Claim, Notice, Trouble
from mirrorfs.engine.lease_documents import LeaseDocuments
from mirrorfs.engine.lease_doubt import DoubtWatch, was_before
from mirrorfs.engine.lease_watch import Found, watch
from mirrorfs.engine.mirror_state import LeaseState
from mirrorfs.errors import (
    AuthenticationError,
    ChainError,
    InUseError,
    MirrorfsError,
    ObjectExists,
    ObjectNotFound,
    StoreError,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.control import LEASE_KEY, Lease
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Clock, Entropy, ObjectKey, Sealed, Store

LEASE_PERIOD_S = 60
FRESH_S = 45  # the rest is for the write that the lease was asked for, and for clocks that drift
RENEW_S = 20.0
RENEW_AGAIN_S = 5.0  # after a renewal that failed
SETTLE_S = 10.0  # how long a claim on a store without conditional writes must stand
CLOCK_JUMP_S = 5
SWAPS_MAX, ATTEMPTS_KEPT = 5, 16

_NS = 1_000_000_000
_logger = logging.getLogger(__name__)


class LeaseKeeper:
    """This process's claim on one store."""

    def __init__(
        self,
        store: Store,
        *,
        keys: VolumeKeys,
        seed: bytes,
        public_key: bytes,
        clock: Clock,
        entropy: Entropy,
        host: str,
        weak_fencing: bool | None,
        own: Collection[bytes] = (),
    ) -> None:
        """Nothing is asked of the store yet.

        Args:
            store: with deadlines of its own; it must not repeat compare_and_swap.
            seed, public_key: Ed25519 of the writer role, 32 bytes each.
            host: this machine's name, for people who find the volume in use. own: see LeaseDocuments.
            weak_fencing: the store's traits lack conditional_put; None: it is asked when the lease is taken.
        """
        self._store = store
        self._documents = LeaseDocuments(
            store.name, keys=keys, seed=seed, public_key=public_key, entropy=entropy, host=host, own=own
        )
        self._clock = clock
        self._weak = weak_fencing
        self._lock = trio.Lock()
        self._claim: Claim | None = None
        self._notice = Notice()
        self._lease: Lease | None = None
        self._found: Found | None = None
        self._attempts: deque[bytes] = deque(maxlen=ATTEMPTS_KEPT)
        self._displaced: Lease | None = None
        self._held_before = False
        self._renewed_ns = self._clock_offset_ns = 0
        self._doubt = DoubtWatch(LEASE_PERIOD_S * _NS)
        self._fenced: str | None = None
        self._trouble = Trouble()

    def state(self) -> LeaseState:
        """The state now."""
        return LeaseState(
            store=self._store.name,
            epoch=self._claim.epoch if self._claim else None,
            fresh=self._is_fresh(),
            weak_fencing=self._weak is True,
            fenced=self._fenced,
            last_error=self._trouble.sentence,
            word=None if self._fenced else self._trouble.word,
            failing_since_ns=self._trouble.since_ns,
        )

    async def look(self) -> Lease | None:
        """The lease in the store, verified; None when there is none.

        Raises: StoreError; FormatError, LimitError, AuthenticationError: it does not verify.
        """
        found = await self._read()
        return None if found is None else self._documents.open(found.data)

    async def acquire(
        self,
        *,
        epoch: int,
        writer: bytes,
        own_before: Collection[bytes] = (),
        own_rebooted: Collection[bytes] = (),
        take_over: bool = False,
        admit: Admit | None = None,
    ) -> None:
        """Take the lease; watching another writer's takes up to one period.

        Once called, `fresh` and `run` go on trying where this raised StoreError.
        Args:
            epoch: `next_epoch` of all leases seen. writer: this mount's random 8 bytes.
            own_before: writer ids of earlier mounts from this state directory, whose lock we hold, in this
                boot of the machine: they are gone. own_rebooted: in earlier boots (lease_watch.py).
            take_over: take a live lease as well; its writer is fenced.
        Raises: InUseError: another writer holds it. StoreError. DamagedError: the lease does not verify.
        """
        async with self._lock:
            self._claim = Claim(
                epoch, writer, own_before, own_rebooted, take_over, admit, self._clock.now_ns()
            )
            await self._noting_errors_take()

    async def fresh(self) -> None:
        """Return while this writer may write to the store: at once, or after renewing.

        Raises: InUseError: fenced, released or not yet taken. StoreError, DamagedError: not known.
        """
        if self._is_fresh():
            return
        async with self._lock:
            if not self._is_fresh():  # another task may have renewed meanwhile
                await self._noting_errors_take()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew until cancelled, released or fenced."""
        task_status.started()
        pause_s, said = RENEW_S, ""
        while self._fenced is None:
            await trio.sleep(pause_s)
            pause_s = RENEW_AGAIN_S
            async with self._lock:
                if self._claim is None:
                    return
                try:
                    await self._noting_errors_take()
                    pause_s, said = RENEW_S, ""
                except MirrorfsError as exc:
                    # Shown in `state`; whoever needs the lease meets the error in `fresh`.
                    if str(exc) != said:  # a store may be away for weeks
                        said = str(exc)
                        _logger.info("lease of store %s not renewed: %s", self._store.name, exc)

    async def release(self, *, unused: bool = False) -> None:
        """Give the lease back: the next mount need not watch it. Nothing to release is success.

        `unused`: nothing was written under it. Then what it displaced is put back: ours would say to all
        others that there are changes which they do not have.
        Raises: StoreError, DamagedError: it stays, and will expire. InUseError: it was taken over.
        """
        async with self._lock:
            lease, self._lease = self._lease, None
            try:
                if lease is not None and self._fenced is None:
                    given = replace(lease, released=True, counter=lease.counter + 1)
                    await self._write(self._displaced if unused and self._displaced else given)
            finally:
                self._claim = None

    # --- taking and renewing (under _lock) ---------------------------------------------------

    async def _noting_errors_take(self) -> None:
        try:
            if self._fenced is not None:
                raise InUseError(self._fenced)
            if self._claim is None:
                raise InUseError(f"The lease of store {self._store.name} was given back or never taken.")
            if self._lease is None:
                await self._take(self._claim)
            else:
                await self._renew(self._lease)
            await self._notice.end(self._store.name, self._ask_leave, now_ns=self._clock.boottime_ns())
        except MirrorfsError as exc:
            self._trouble.failed(exc, now_ns=self._clock.now_ns())
            raise
        self._trouble.ended()

    async def _renew(self, lease: Lease) -> None:
        started_ns = self._clock.boottime_ns()
        renewed = replace(lease, counter=lease.counter + 1)
        written = await self._write(renewed)
        if self._doubt.is_open:
            await self._settle(written)
        if started_ns - self._renewed_ns >= LEASE_PERIOD_S * _NS:
            # It had expired. That it was still there does not prove that nobody came: a store can go back.
            await self._ask_leave(lease)
        self._lease = renewed
        self._mark(started_ns)

    async def _take(self, claim: Claim) -> None:
        if self._weak is None:
            self._weak = not (await self._store.probe()).conditional_put
        found = await self._read()
        parent, counter = b"", 0
        rotten = False
        if found is not None and found.data not in self._attempts:
            lease = self._open_or_doubt(found)
            rotten = lease is None
            # A later epoch's is not to be outlived: it fences us, whether its writer is alive or not.
            may_end = lease is not None and (lease.epoch < claim.epoch or lease.writer == claim.writer)
            if lease is not None and may_end and not claim.take_over:
                found = await watch(
                    found, lease, self._read, self._documents, began_ns=self._clock.boottime_ns(),
                    gone=claim.own_before, rebooted=claim.own_rebooted,
                )  # fmt: skip
        if found is not None and not rotten:
            lease = self._documents.open(found.data)
            if found.data in self._attempts or (lease.writer, lease.epoch) == (claim.writer, claim.epoch):
                # Our own claim: its answer was lost, or an earlier keeper of this mount gave it back.
                parent, counter = lease.parent, lease.counter + 1
            elif lease.epoch >= claim.epoch:
                self._fence(lease)
            else:
                parent = hashlib.sha256(found.data).digest()
        if found is None or found.data not in self._attempts:
            displaced = None if found is None or rotten else self._documents.open(found.data)
            self._notice.give(displaced, await self._ask_leave(displaced))
            self._displaced = displaced
        self._found = found
        started_ns = self._clock.boottime_ns()
        taken = Lease(
            writer=claim.writer, epoch=claim.epoch, parent=parent, counter=counter, released=False,
            period_ms=LEASE_PERIOD_S * 1000, box=b"",
        )  # fmt: skip
        await self._settle(await self._write(taken))
        self._lease = taken
        self._mark(started_ns)

    async def _ask_leave(self, lease: Lease | None) -> float:
        if self._claim is None or self._claim.admit is None:
            return 0.0
        try:
            return await self._claim.admit(self._store.name, lease)
        except InUseError as exc:
            self._fenced = str(exc)
            raise

    async def _settle(self, written: bytes) -> None:
        """Return when what was written stands: nobody may write on the strength of it before."""
        if not self._weak:
            return
        await trio.sleep(SETTLE_S)
        settled = await self._read()
        if settled is None or settled.data != written:
            if settled is not None:
                await self._lost(settled)
            raise StoreUnavailable(f"Store {self._store.name} lost its lease; it is taken again.")

    # --- the one place that writes -----------------------------------------------------------

    async def _write(self, lease: Lease) -> bytes:
        """Replace what we last saw; return the bytes. Raises: InUseError, StoreError, DamagedError."""
        since_ns = self._claim.since_ns if self._claim else self._clock.now_ns()
        data = self._documents.seal(lease, since_ns=since_ns)
        self._attempts.append(data)
        began_ns = self._clock.boottime_ns()
        fault: StoreError = StoreUnavailable(
            f"Store {self._store.name} does not settle the lease; it is tried again."
        )
        for _ in range(SWAPS_MAX):
            expected = self._found.version if self._found else None
            try:
                # Until the answer is in, `_attempts` holds the bytes: a later look knows them as ours.
                version = await self._store.compare_and_swap(
                    ObjectKey(LEASE_KEY), Sealed(data), expected=expected
                )
            except UnknownOutcome as exc:
                fault = exc
            except (ObjectExists, ObjectNotFound):
                pass
            else:
                self._found = Found(data, version, began_ns)
                return data
            now = await self._read()
            if now is not None and now.data == data:
                self._found = now
                return data
            unchanged = now is not None and self._found is not None and now.data == self._found.data
            if now is None or (not unchanged and now.data not in self._attempts):
                await self._lost(now)
            self._found = now  # absent, unchanged, in doubt for long enough, or an attempt of ours
        raise fault

    async def _lost(self, found: Found | None) -> None:
        """Another document is where ours was, or none. Returns only if it may be replaced."""
        lease = None
        if found is not None and (lease := self._open_or_doubt(found)) is not None:
            self._judge(found, lease)
        if self._lease is not None:
            wait_s = await self._ask_leave(lease)
            if found is None:
                # Nothing was watched here: somebody may have taken it over whose lease got lost.
                self._notice.give(None, wait_s)

    def _judge(self, found: Found, lease: Lease) -> None:
        if self._lease is None and self._claim is not None and lease.epoch < self._claim.epoch:
            raise StoreUnavailable(
                f"The lease of store {self._store.name} is being changed; it is tried again."
            )
        ours = self._lease
        if ours is None or not was_before(lease, ours) or self._doubt.is_a_clones(lease, ours):
            self._fence(lease)
        fault = ChainError(f"Store {self._store.name} shows an old lease of this volume: it was rolled back.")
        self._pass_or_raise(found, fault, lease)

    def _open_or_doubt(self, found: Found) -> Lease | None:
        """What was found; None: it does not verify, and may be replaced.

        Raises: AuthenticationError: it does not verify, and may not be replaced yet.
        """
        try:
            return self._documents.open(found.data)
        except AuthenticationError as exc:
            self._pass_or_raise(found, exc, None)
        return None

    def _pass_or_raise(self, found: Found, fault: MirrorfsError, lease: Lease | None) -> None:
        self._doubt.pass_or_raise(
            found.data,
            fault,
            looked_ns=found.looked_ns,
            now_ns=self._clock.boottime_ns(),
            lease=lease,
            held_before=self._held_before,
        )
        _logger.warning("store %s: %s It is written anew.", self._store.name, fault)

    def _fence(self, lease: Lease) -> NoReturn:
        self._fenced = (
            f"Store {self._store.name} was taken over: {self._documents.describe(lease)}."
            " Unmount here, and mount again where the volume is to be written."
        )
        if self._lease is not None:
            _logger.critical("store %s was taken over by epoch %d", self._store.name, lease.epoch)
        raise InUseError(self._fenced)

    # --- leaves ------------------------------------------------------------------------------

    async def _read(self) -> Found | None:
        looked_ns = self._clock.boottime_ns()
        try:
            return Found(*await self._store.read_mutable(ObjectKey(LEASE_KEY)), looked_ns)
        except ObjectNotFound:
            return None

    def _mark(self, started_ns: int) -> None:
        self._doubt.end()
        self._held_before = True
        self._renewed_ns = started_ns
        self._clock_offset_ns = self._clock.now_ns() - self._clock.boottime_ns()

    def _is_fresh(self) -> bool:
        if self._lease is None or self._fenced is not None or self._notice.runs:
            return False
        boottime_ns = self._clock.boottime_ns()
        jump_ns = self._clock.now_ns() - boottime_ns - self._clock_offset_ns
        return boottime_ns - self._renewed_ns < FRESH_S * _NS and abs(jump_ns) < CLOCK_JUMP_S * _NS
