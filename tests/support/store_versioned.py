"""A store in memory that keeps versions and locks them, as a bucket with Object Lock does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio

from mirrorfs.drivers.object_keys import check_key
from mirrorfs.errors import ObjectExists, ObjectNotFound, StoreDenied
from mirrorfs.format.object_lock import ObjectLock
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectInfo, ObjectKey, ObjectVersion, Sealed
from tests.support.store_memory import MemoryStore


@dataclass(slots=True)
class Kept:
    """One version of an object; without data it is a delete marker."""

    data: bytes | None
    until_ns: int = 0


class VersionedStore(MemoryStore):
    """`objects` is what shows; `kept` has all versions of what is written once, the oldest first."""

    def __init__(self, name: str, *, lock: ObjectLock | None = None) -> None:
        super().__init__(name)
        self.lock = lock
        self.kept: dict[str, list[Kept]] = {}
        self.now_ns = 0
        self.may_lock = True
        self.may_delete = True
        self.locked: list[str] = []
        """Keys of each call of lock_until."""

    def put_anything(self, key: str, data: bytes | None) -> None:
        """What a thief does; None deletes."""
        self.kept.setdefault(key, []).append(Kept(data))
        self._show(key)

    def _show(self, key: str) -> None:
        newest = self.kept[key][-1].data
        if newest is None:
            self.objects.pop(key, None)
        else:
            self.objects[key] = newest

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """See Store.put."""
        shown = self.objects.get(key)
        if shown is not None and shown != data:
            raise ObjectExists(f"Store {self.name} holds other bytes under {key}.")
        if shown is None:
            await self.put_over(key, data)

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """See Store.put_over."""
        await trio.lowlevel.checkpoint()
        until_ns = 0 if self.lock is None else self.lock.until_ns(key, now_ns=self.now_ns)
        self.kept.setdefault(key, []).append(Kept(bytes(data), until_ns))
        self._show(key)
        return True

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get."""
        if version is None:
            return await super().get(key, size_max=size_max)
        await trio.lowlevel.checkpoint()
        data = self.kept[key][int(version)].data
        assert data is not None
        return data

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """See Store.get_range."""
        return (await self.get(key, version=version))[offset : offset + size_bytes]

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """See Store.versions."""
        check_key(key)
        await trio.lowlevel.checkpoint()
        kept = self.kept.get(key, [])
        beneath = kept[:-1]
        return [ObjectVersion(str(at)) for at, one in enumerate(beneath) if one.data is not None]

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """See Store.list; of fewer than a page of objects."""
        found = {info.key: info for info in await super().list(prefix, start_after=start_after)}
        for key, kept in self.kept.items():
            sizes = [len(one.data) for one in kept if one.data is not None]
            if key.startswith(prefix) and key > start_after and key not in found and sizes:
                found[ObjectKey(key)] = ObjectInfo(ObjectKey(key), sizes[-1], is_hidden=True)
        return [found[key] for key in sorted(found)]

    async def delete(self, key: ObjectKey) -> None:
        """See Store.delete."""
        if not self.may_delete:
            raise StoreDenied(f"Store {self.name} does not allow deleting.")
        self.put_anything(key, None)

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """See Store.lock_until."""
        await trio.lowlevel.checkpoint()
        if not self.may_lock:
            raise StoreDenied(f"Store {self.name} does not let these credentials lock.")
        self.locked.append(key)
        kept = [
            one
            for one in self.kept.get(key, [])
            if one.data is not None and size_bytes in (None, len(one.data))
        ]
        if not kept:
            raise ObjectNotFound(f"Store {self.name} holds no object {key}.")
        for one in kept:
            one.until_ns = max(one.until_ns, until_ns)
