"""A store that is used only while it is the one that is meant.

A place can be emptied, replaced or not be plugged in: an empty directory under a mountpoint looks like a
store that holds nothing. Sending objects there would count as mirrored what stands alone. So the store's
instance document is looked at before the first request, and then every CHECK_EVERY_S; while it is not there,
or is another one, nothing is read or written, and the store is tried again like one that does not answer.

The document itself can rot or be lost. What the place holds then says whose it is: `reclaim`, which is what
`mirrorfs repair` does first, writes it anew where there are a header and a head of this volume that this very
store is known to have taken.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import trio

from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound, StoreMismatch
from mirrorfs.format.control import INSTANCE_KEY, Instance, open_instance, seal_control
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectInfo, ObjectKey, Sealed, Store, StoreTraits, Version

CHECK_EVERY_S: Final = 60.0
PROOFS_TRIED: Final = 16


class GuardedStore:
    """`Store` around a `Store`: the same contract, and StoreMismatch while the place is not the right one."""

    def __init__(
        self, store: Store, *, instance: bytes, keys: VolumeKeys, public_key: bytes, seed: bytes | None = None
    ) -> None:
        """
        Args:
            instance: UUID of the store's instance, 16 bytes.
            public_key, seed: Ed25519 of the writer role, 32 bytes each; without a seed nothing is reclaimed.
        """
        self.name = store.name
        self._store = store
        self._instance = instance
        self._keys = keys
        self._public_key = public_key
        self._seed = seed
        self._checked_s = float("-inf")
        self._lock = trio.Lock()

    async def _check(self) -> None:
        if trio.current_time() - self._checked_s < CHECK_EVERY_S:
            return
        async with self._lock:
            began_s = trio.current_time()
            if began_s - self._checked_s < CHECK_EVERY_S:
                return
            self._checked_s = float("-inf")
            try:
                data = await self._store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX)
                found = open_instance(data, keys=self._keys, public_key=self._public_key)
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
            self._checked_s = began_s

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
            for prefix in ("header/", "heads/"):
                if not await self._holds_ours(prefix, is_held, check):
                    raise
        else:
            return False
        document = seal_control(Instance(self.name, self._instance), keys=self._keys, seed=self._seed)
        await self._store.delete(ObjectKey(INSTANCE_KEY))
        await self._store.put(ObjectKey(INSTANCE_KEY), Sealed(document))
        await self._check()
        return True

    async def _is_rotten(self) -> bool:
        """Whether there is no instance document that verifies: one that does is another store's."""
        try:
            data = await self._store.get(ObjectKey(INSTANCE_KEY), size_max=DOCUMENT_SIZE_MAX)
            open_instance(data, keys=self._keys, public_key=self._public_key)
        except (ObjectNotFound, DamagedError, LimitError):
            return True
        return False

    async def _holds_ours(
        self, prefix: str, is_held: Callable[[str], bool], check: Callable[[str, bytes], Awaitable[None]]
    ) -> bool:
        known = [info.key for info in await self._store.list(prefix) if is_held(info.key)]
        for key in known[:PROOFS_TRIED]:
            try:
                await check(key, await self._store.get(key))
            except (ObjectNotFound, DamagedError, LimitError):
                continue
            return True
        return False

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        await self._check()
        await self._store.put(key, data)

    async def get(self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX) -> bytes:
        """See Store.get."""
        await self._check()
        return await self._store.get(key, size_max=size_max)

    async def get_range(self, key: ObjectKey, *, offset: int, size_bytes: int) -> bytes:
        """See Store.get_range."""
        await self._check()
        return await self._store.get_range(key, offset=offset, size_bytes=size_bytes)

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        await self._check()
        return await self._store.head(key)

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        await self._check()
        return await self._store.list(prefix, start_after=start_after)

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        await self._check()
        await self._store.delete(key)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        await self._check()
        return await self._store.read_mutable(key)

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        await self._check()
        return await self._store.compare_and_swap(key, data, expected=expected)

    async def probe(self) -> StoreTraits:
        """See Store.probe."""
        await self._check()
        return await self._store.probe()

    async def aclose(self) -> None:
        """See Store.aclose."""
        await self._store.aclose()
