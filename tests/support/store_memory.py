"""A store in memory: the shortest true implementation of `Store`, checked by tests/contract."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import trio

from mirrorfs.drivers.object_keys import check_key, check_listing, check_mutable_size
from mirrorfs.drivers.unversioned import Unversioned
from mirrorfs.errors import LimitError, ObjectExists, ObjectNotFound
from mirrorfs.ports import (
    LIST_PAGE_MAX,
    OBJECT_SIZE_MAX,
    ObjectInfo,
    ObjectKey,
    ObjectVersion,
    Sealed,
    StoreTraits,
    Version,
)


class MemoryStore(Unversioned):
    """`Store` in a dictionary, which tests may read and change."""

    def __init__(self, name: str, objects: dict[str, bytes] | None = None) -> None:
        """Keep objects in a dictionary; pass that of another store to look at the same place."""
        self.name = name
        self.objects: dict[str, bytes] = {} if objects is None else objects

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        check_key(key)
        if len(data) > OBJECT_SIZE_MAX:
            raise LimitError(f"Object {key} is too large.")
        await trio.lowlevel.checkpoint()
        if self.objects.setdefault(key, bytes(data)) != data:
            raise ObjectExists(f"Store {self.name} holds other bytes under {key}.")

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        data = await self._find(key)
        if len(data) > size_max:
            raise LimitError(f"Object {key} exceeds {size_max} bytes.")
        return data

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        return (await self._find(key))[offset : offset + size_bytes]

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """See Store.head."""
        return ObjectInfo(key, len(await self._find(key)))

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list."""
        check_listing(prefix, start_after)
        await trio.lowlevel.checkpoint()
        keys = sorted(key for key in self.objects if key.startswith(prefix) and key > start_after)
        return [ObjectInfo(ObjectKey(key), len(self.objects[key])) for key in keys[:LIST_PAGE_MAX]]

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        self.objects.pop(key, None)

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """See Store.read_mutable."""
        data = await self._find(key)
        check_mutable_size(data, key=key, store=self.name)
        return data, _version(data)

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """See Store.compare_and_swap."""
        check_key(key)
        check_mutable_size(data, key=key, store=self.name)
        await trio.lowlevel.checkpoint()
        found = self.objects.get(key)
        if (None if found is None else _version(found)) != expected:
            raise ObjectExists(f"Object {key} of store {self.name} has another version than expected.")
        self.objects[key] = bytes(data)
        return _version(data)

    async def probe(self) -> StoreTraits:
        """See Store.probe."""
        await trio.lowlevel.checkpoint()
        return StoreTraits(conditional_put=True)

    async def aclose(self) -> None:
        """See Store.aclose."""
        await trio.lowlevel.checkpoint()

    async def _find(self, key: ObjectKey) -> bytes:
        check_key(key)
        await trio.lowlevel.checkpoint()
        try:
            return self.objects[key]
        except KeyError as exc:
            raise ObjectNotFound(f"Store {self.name} holds no object {key}.") from exc


def _version(data: bytes) -> Version:
    return Version(hashlib.sha256(data).hexdigest())
