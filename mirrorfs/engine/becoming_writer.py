"""Becoming the writer: the end of the log is settled only once the leases are ours.

What was read before is as old as the wait for the leases, in which the writer before us may have sent more:
its last changes before an unmount, or before a displaced one noticed. Both count as safe to its users. So
the stores are looked at again afterwards, and after a take-over not before the displaced writer has stopped:
its leases are fresh for less than one period. What lands later was under way then, and is an orphan.

Rejected: holding the leases while the whole log is read. On a new machine that may take long.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import LeaseTaker, give_back
from mirrorfs.engine.publisher import Heads
from mirrorfs.engine.recovery import Recovered, Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.errors import InUseError
from mirrorfs.ports import Index, Store

logger = logging.getLogger(__name__)


async def become_writer(
    recovery: Recovery, recovered: Recovered, heads: Heads, taker: LeaseTaker, stores: Sequence[Store]
) -> tuple[Recovered, list[LeaseKeeper], WriterIdentity]:
    """Take the leases, and bring the index to where the log ended when nobody else wrote any more.

    The caller closes the index on an error; the leases are given back.
    Raises: InUseError: another writer has the volume, or came in between. ChainError, DamagedError: the
        stores hold what this machine cannot continue.
    """
    await heads.compare(stores, recovered.index)
    leases, identity = await taker.take_leases(local_epoch=_epoch(recovered.index))
    try:
        await _outwait(leases, taker.notice_s)
        recovered = await recovery.go_on(recovered)
        await heads.compare(stores, recovered.index)
        fenced = next((sentence for one in leases if (sentence := one.state().fenced)), None)
        if fenced is not None:
            raise InUseError(fenced)
        if _epoch(recovered.index) >= identity.epoch:
            raise InUseError("Another machine wrote meanwhile; unmount the volume there, and mount again.")
    except BaseException:
        with trio.CancelScope(shield=True):
            await give_back(leases)
        raise
    return recovered, leases, identity


async def _outwait(leases: Sequence[LeaseKeeper], notice_s: float) -> None:
    """Let a displaced writer notice, while our leases are renewed."""
    if not notice_s:
        return
    logger.info("waiting %.0f s, until the writer that was displaced has noticed", notice_s)
    async with trio.open_nursery() as nursery:
        for one in leases:
            nursery.start_soon(one.run)
        await trio.sleep(notice_s)
        nursery.cancel_scope.cancel()


def _epoch(index: Index) -> int:
    known = index.get_meta("epoch")
    return known if isinstance(known, int) else 0
