"""Watching the lease of another writer: it has expired when it stayed unchanged for its whole period."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

import trio

from mirrorfs.engine.lease_documents import LeaseDocuments
from mirrorfs.errors import InUseError
from mirrorfs.format.control import Lease
from mirrorfs.ports import Version

WATCH_POLL_S: Final = 5.0


class Found(NamedTuple):
    """What lies under the lease's key."""

    data: bytes
    version: Version
    looked_ns: int
    """CLOCK_BOOTTIME before the request that showed it."""


async def watch(
    found: Found,
    lease: Lease,
    read: Callable[[], Awaitable[Found | None]],
    documents: LeaseDocuments,
    *,
    began_ns: int,
) -> Found | None:
    """Return what may be replaced, once it may; None: it is gone.

    Args:
        found, lease: the first look, which is over.
        read: another look.
        began_ns: CLOCK_BOOTTIME when the first look was over.
    Raises: InUseError: its writer is alive. StoreError. AuthenticationError: what is there now is rotten.
    """
    # Whatever is unchanged in a look begun a period after the first one has expired.
    while True:
        await trio.sleep(WATCH_POLL_S)
        now = await read()
        if now is None:
            return None
        if now.data != found.data:
            newer = documents.open(now.data)
            if newer.released:
                return now
            raise InUseError(f"The volume is in use: {documents.describe(newer)}. Unmount it there first.")
        if now.looked_ns - began_ns >= lease.period_ms * 1_000_000:
            return now
