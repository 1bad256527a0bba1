"""A store that is used only while it is the one that is meant.

A place can be emptied, replaced or not be plugged in: an empty directory under a mountpoint looks like a
store that holds nothing. Sending objects there would count as mirrored what stands alone. So the store's
instance document is looked at before the first request, then every CHECK_EVERY_S, and after a suspend, in
which disks are unplugged. While it is not there, or is another one, nothing is read or written, and the
store is tried again like one that does not answer.

A disk may go between two such looks. So what is to be relied on for longer, that an object is held or that a
lease is ours, counts only once the place was verified by a look that began after it was seen (`verify`).

Whoever asks a store that hangs waits for a deadline, and a mount asks for many things one after the other. So
after a request that had no answer in time the place is looked at again, with a shorter deadline, and while
that has just been in vain, requests fail at once.

The document itself can rot or be lost. What the place holds then says whose it is: `reclaim`, which is what
`mirrorfs repair` does first, writes it anew where there are a head of this volume, and a header or else a
segment, that this very store is known to have taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import trio

from mirrorfs.engine.versions import get_good
from mirrorfs.errors import (
    DamagedError,
    LimitError,
    ObjectNotFound,
    StoreMismatch,
    StoreUnavailable,
    UnknownOutcome,
)
from mirrorfs.format.control import INSTANCE_KEY, Instance, open_instance, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.ids import STREAM_PREFIX, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import (
    OBJECT_SIZE_MAX,
    Clock,
    ObjectInfo,
    ObjectKey,
    ObjectVersion,
    Sealed,
    Store,
    StoreTraits,
    Version,
)

CHECK_EVERY_S: Final = 60.0
PROOFS_TRIED: Final = 16
SUSPEND_S: Final = 1.0
"""CLOCK_BOOTTIME ran on by so much more than trio's clock, which stands still in a suspend: there was one."""
CHECK_DEADLINE_S: Final = 15.0
"""How long a store that has not answered yet, or not lately, is waited for; else its own deadlines hold."""
SLOW_S: Final = 5.0
"""A request that fails sooner holds nobody up."""
SILENT_S: Final = 30.0
"""For so long a store that was waited for in vain is not asked again."""


class GuardedStore:
    """`Store` around a `Store`: the same contract, and StoreMismatch while the place is not the right one."""

    def __init__(
        self,
        store: Store,
        *,
        instance: bytes,
        keys: VolumeKeys,
        public_key: bytes,
        clock: Clock,
        seed: bytes | None = None,
    ) -> None:
        """
        Args:
            instance: UUID of the store's instance, 16 bytes.
            public_key: Ed25519 of the writer role, 32 bytes.
            seed: of that role; without it no instance document can be written anew.
        """
        self.name = store.name
        self.lock = store.lock
        self.traits: StoreTraits | None = None
        """What the last probe found out."""
        self._store = store
        self._instance = instance
        self._keys = keys
        self._public_key = public_key
        self._clock = clock
        self._seed = seed
        self._checked_s = float("-inf")
        self._asleep_s = 0.0
        """What `_slept_s` said when the check began."""
        self._answers = False
        """The last request was answered in time, or failed at once."""
        self._silent_until_s = float("-inf")
        self._lock = trio.Lock()

    async def verify(self) -> None:
        """Look at the place now: what was seen there before this call was seen at the store that is meant.

        Raises: StoreMismatch: it is another place. StoreError: it cannot be told.
        """
        async with self._lock:
            await self._look()

    def _slept_s(self) -> float:
        return self._clock.boottime_ns() / 1e9 - trio.current_time()

    def _is_checked(self) -> bool:
        recently = trio.current_time() - self._checked_s < CHECK_EVERY_S
        return recently and self._slept_s() - self._asleep_s < SUSPEND_S

    async def _check(self) -> None:
        if self._is_checked():
            return
        async with self._lock:
            if not self._is_checked():
                await self._look()

    async def _look(self) -> None:
        began_s, asleep_s = trio.current_time(), self._slept_s()
        if began_s < self._silent_until_s:
            raise StoreUnavailable(f"Store {self.name} did not answer a moment ago: check the network.")
        self._checked_s = float("-inf")
        try:
            with trio.move_on_after(float("inf") if self._answers else CHECK_DEADLINE_S) as scope:
                await self._check_instance()
            if scope.cancelled_caught:
                raise StoreUnavailable(f"Store {self.name} did not answer in time: check the network.")
        except StoreUnavailable:
            ended_s = trio.current_time()
            if ended_s - began_s >= SLOW_S:
                self._answers, self._silent_until_s = False, ended_s + SILENT_S
            raise
        self._answers = True
        self._checked_s, self._asleep_s = began_s, asleep_s

    async def _check_instance(self) -> None:
        try:
            found = await get_good(
                self._store, ObjectKey(INSTANCE_KEY), self._open_instance, size_max=DOCUMENT_SIZE_MAX
            )
        except ObjectNotFound as exc:
            raise StoreMismatch(
                f"Store {self.name} is empty, or its disk is not there: nothing is sent to it."
                " If only its file `instance` is gone, run `mirrorfs repair`; if all is gone for good,"
                " `mirrorfs store replace`."
            ) from exc
        except (DamagedError, LimitError) as exc:
            raise StoreMismatch(
                f"Store {self.name} does not show that it belongs to this volume: nothing is sent to it."
                " Check its place; if it is the right one, run `mirrorfs repair`."
            ) from exc
        if found.instance != self._instance:
            raise StoreMismatch(
                f"In the place of store {self.name} is another store of this volume: check its URL."
            )

    def _open_instance(self, data: bytes) -> Instance:
        return open_instance(data, keys=self._keys, public_key=self._public_key)

    async def reclaim(
        self, *, is_held: Callable[[str], bool], check: Callable[[str, bytes], Awaitable[None]]
    ) -> bool:
        """Write the instance document anew where it is gone or rotten, if what lies there proves the place.

        It goes out without a lease: it is the same whoever writes it.
        Args:
            is_held: whether this store's instance is known to hold an object.
            check: raises DamagedError or LimitError unless bytes are those of a key.
        Returns: whether it was written. Raises: StoreError: another store is there, or it cannot be told.
        """
        try:
            await self._check()
        except StoreMismatch:
            if self._seed is None or not await self._is_rotten():
                raise
            # A volume may have one header only, and that may be bad here, too.
            for prefixes in (("heads/",), ("header/", STREAM_PREFIX[Stream.MAIN])):
                if not await self._holds_ours(prefixes, is_held, check):
                    raise
        else:
            # It is the right one; a version beneath what was put there, or deleted, may have said so.
            if self._seed is None or not await self._is_rotten():
                return False
        document = seal_control(Instance(self.name, self._instance), keys=self._keys, seed=self._seed)
        if not await self._store.put_over(ObjectKey(INSTANCE_KEY), Sealed(document)):
            await self._store.delete(ObjectKey(INSTANCE_KEY))
            await self._store.put(ObjectKey(INSTANCE_KEY), Sealed(document))
        await self._check()
        return True

    async def _is_rotten(self) -> bool:
        """Whether what shows is no instance document that verifies: one that does is another store's."""
        try:
            self._open_instance(await self._store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX))
        except (ObjectNotFound, DamagedError, LimitError):
            return True
        return False

    async def _holds_ours(
        self,
        prefixes: Sequence[str],
        is_held: Callable[[str], bool],
        check: Callable[[str, bytes], Awaitable[None]],
    ) -> bool:
        for prefix in prefixes:
            known = [info.key for info in await self._store.list(prefix) if is_held(info.key)]
            for key in known[:PROOFS_TRIED]:
                try:
                    await check(key, await self._store.get(key))
                except (ObjectNotFound, DamagedError, LimitError):
                    continue
                return True
        return False

    @contextmanager
    def _noting_silence(self) -> Iterator[None]:
        began_s = trio.current_time()
        try:
            yield
        # Who gives up before the store's own deadline has had no answer, either.
        except (StoreUnavailable, UnknownOutcome, trio.Cancelled):
            if trio.current_time() - began_s >= SLOW_S:
                self._answers, self._checked_s = False, float("-inf")
            raise

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put. That one object does not get through says nothing of the store."""
        await self._check()
        await self._store.put(key, data)

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """See Store.put_over."""
        await self._check()
        return await self._store.put_over(key, data)

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        await self._check()
        with self._noting_silence():
            return await self._store.get(key, size_max=size_max, version=version)

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        await self._check()
        with self._noting_silence():
            return await self._store.get_range(key, offset=offset, size_bytes=size_bytes, version=version)

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """See Store.versions."""
        await self._check()
        with self._noting_silence():
            return await self._store.versions(key)

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """See Store.lock_until."""
        await self._check()
        with self._noting_silence():
            await self._store.lock_until(key, until_ns=until_ns, size_bytes=size_bytes)

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        await self._check()
        with self._noting_silence():
            return await self._store.head(key)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        await self._check()
        with self._noting_silence():
            return await self._store.list(prefix, start_after=start_after)

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        await self._check()
        with self._noting_silence():
            await self._store.delete(key)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        await self._check()
        with self._noting_silence():
            return await self._store.read_mutable(key)

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap. A lease written to a place that is not the store is none."""
        await self._check()
        try:
            with self._noting_silence():
                version = await self._store.compare_and_swap(key, data, expected=expected)
        except UnknownOutcome:
            # The look that tells what became of it is to be one at the store.
            self._checked_s = float("-inf")
            raise
        try:
            await self.verify()
        except StoreUnavailable as exc:
            # Which would say that nothing was written.
            raise UnknownOutcome(str(exc)) from exc
        return version

    async def probe(self) -> StoreTraits:
        """See Store.probe."""
        await self._check()
        with self._noting_silence():
            self.traits = await self._store.probe()
            return self.traits

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self._store.aclose()


async def verify_place(store: Store) -> None:
    """Return once it is known that what was seen at a store before this call was seen in the right place.

    A store that is not guarded is its place. Raises: as GuardedStore.verify.
    """
    if isinstance(store, GuardedStore):
        await store.verify()
