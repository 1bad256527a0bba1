"""Becoming the writer: the end of the log is settled only once the leases are ours.

What was read before is as old as the wait for the leases, in which the writer before us may have sent more:
its last changes before an unmount, or before a displaced one noticed. Both count as safe to its users. So
the stores are looked at again afterwards, and after a take-over not before the displaced writer has stopped:
its leases are fresh for less than one period. What lands later was under way then, and is an orphan.

Rejected: holding the leases while the whole log is read. On a new machine that may take long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from mirrorfs.engine.lease import LeaseKeeper
from mirrorfs.engine.lease_taker import LeaseTaker, VolumeSettings, give_back, stores_present
from mirrorfs.engine.local import World
from mirrorfs.engine.publisher import Heads
from mirrorfs.engine.recovery import Recovered, Recovery
from mirrorfs.engine.segment_writer import WriterIdentity
from mirrorfs.errors import InUseError
from mirrorfs.format.header import VolumeHeader
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.signing import load_public_key
from mirrorfs.format.slot import KeySet
from mirrorfs.ports import Index, IndexFiles, Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Writer:
    """A local state at the end of the log, and the leases that allow going on from there."""

    recovered: Recovered
    leases: list[LeaseKeeper]
    """One per store."""
    identity: WriterIdentity
    taker: LeaseTaker
    heads: Heads


async def open_as_writer(
    world: World,
    files: IndexFiles,
    key_set: KeySet,
    keys: VolumeKeys,
    header: VolumeHeader,
    stores: Sequence[Store],
    settings: VolumeSettings,
    *,
    on_progress: Callable[[int, int], None] | None,
    on_loaded: Callable[[int, int], None] | None = None,
) -> Writer:
    """Recover the local log and take the leases. The caller closes the index.

    Raises: InUseError: another writer has the volume. DamagedError: the local log cannot be used.
    """
    public_key = header.public_keys.writer
    # A rotating store that is not there is not missed: it gets what it lacks when it is back.
    present = await stores_present(stores, settings)
    recovery = Recovery(
        world.disk,
        files,
        world.offload,
        keys,
        load_public_key(public_key),
        stores=present,
        on_progress=on_progress,
        on_loaded=on_loaded,
    )
    recovered = await recovery.run()
    heads = Heads(world.disk, world.offload, world.clock, keys=keys, public_key=public_key)
    try:
        heads.load()
        taker = LeaseTaker(world, key_set, keys, header, stores, settings)
        recovered, leases, identity = await become_writer(recovery, recovered, heads, taker, present)
    except BaseException:
        recovered.index.close()
        raise
    return Writer(recovered, leases, identity, taker, heads)


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
        lasting = [one.state() for one in leases if one.state().store not in taker.rotating]
        fenced = next((state.fenced for state in lasting if state.fenced is not None), None)
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
