"""Watching the lease of another writer: it has expired when it stayed unchanged for its whole period.

One of an earlier mount from this very state directory needs less. Of this boot of the machine its process has
ended: we hold the directory's lock. Of an earlier boot it ended with the machine, unless the directory was
copied, or put back, from a PC that is alive: that one renews what it holds within OWN_WATCH_S.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final, NamedTuple

import trio

from mirrorfs.engine.lease_documents import LeaseDocuments
from mirrorfs.errors import InUseError
from mirrorfs.format.control import Lease
from mirrorfs.ports import Version

WATCH_POLL_S: Final = 5.0
OWN_WATCH_S: Final = 30.0
"""More than a writer that is alive lets pass between two renewals, of which one may fail."""


class Found(NamedTuple):
    """What lies under the lease's key."""

    data: bytes
    version: Version
    looked_ns: int
    """CLOCK_BOOTTIME before the request that showed it."""


def watch_s(lease: Lease, *, gone: Collection[bytes], rebooted: Collection[bytes]) -> float:
    """How long a lease must stay unchanged to be taken; 0 if it need not be watched.

    Args:
        gone: writer ids of mounts from this state directory in this boot of the machine.
        rebooted: those of earlier boots.
    """
    if lease.released or lease.writer in gone:
        return 0.0
    period_s = lease.period_ms / 1000
    return min(period_s, OWN_WATCH_S) if lease.writer in rebooted else period_s


async def watch(
    found: Found,
    lease: Lease,
    read: Callable[[], Awaitable[Found | None]],
    documents: LeaseDocuments,
    *,
    began_ns: int,
    gone: Collection[bytes],
    rebooted: Collection[bytes],
) -> Found | None:
    """Return what may be replaced, once it may; None: it is gone.

    Args:
        found, lease: the first look, which is over.
        read: another look.
        began_ns: CLOCK_BOOTTIME when the first look was over.
        gone, rebooted: see `watch_s`.
    Raises: InUseError: its writer is alive. StoreError. AuthenticationError: what is there now is rotten.
    """
    period_s = watch_s(lease, gone=gone, rebooted=rebooted)
    if not period_s:
        return found
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
        if now.looked_ns - began_ns >= period_s * 1e9:
            return now
