"""What a store answers that keeps no versions and locks nothing."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mirrorfs.errors import StoreDenied
from mirrorfs.format.object_lock import ObjectLock
from mirrorfs.ports import ObjectKey, ObjectVersion, Sealed


class Unversioned:
    """Part of a `Store`."""

    name: str
    lock: ObjectLock | None = None

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """See Store.put_over."""
        await trio.lowlevel.checkpoint()
        return False

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """See Store.versions."""
        await trio.lowlevel.checkpoint()
        return ()

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """See Store.lock_until."""
        await trio.lowlevel.checkpoint()
        raise StoreDenied(f"Store {self.name} cannot lock objects: only S3 stores can.")
