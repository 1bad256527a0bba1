"""A store that is used only while it is the one that is meant.

A place can be emptied, replaced or not be plugged in: an empty directory under a mountpoint looks like a
store that holds nothing. Sending objects there would count as mirrored what stands alone. So the store's
instance document is looked at before the first request, and then every CHECK_EVERY_S; while it is not there,
or is another one, nothing is read or written, and the store is tried again like one that does not answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import trio

from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound, StoreMismatch
from mirrorfs.format.control import INSTANCE_KEY, open_instance
from mirrorfs.format.document import DOCUMENT_SIZE_MAX
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectInfo, ObjectKey, Sealed, Store, StoreTraits, Version

CHECK_EVERY_S: Final = 60.0


class GuardedStore:
    """`Store` around a `Store`: the same contract, and StoreMismatch while the place is not the right one."""

    def __init__(self, store: Store, *, instance: bytes, keys: VolumeKeys, public_key: bytes) -> None:
        """
        Args:
            instance: UUID of the store's instance, 16 bytes.
            public_key: Ed25519 of the writer role, 32 bytes.
        """
        self.name = store.name
        self._store = store
        self._instance = instance
        self._keys = keys
        self._public_key = public_key
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
                    " If it is gone for good, run `mirrorfs store replace`."
                ) from exc
            except (DamagedError, LimitError) as exc:
                raise StoreMismatch(
                    f"Store {self.name} does not show that it belongs to this volume: nothing is sent to it."
                    " Check its place, or run `mirrorfs store replace`."
                ) from exc
            if found.instance != self._instance:
                raise StoreMismatch(
                    f"In the place of store {self.name} is another store of this volume: check its URL."
                )
            self._checked_s = began_s

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
