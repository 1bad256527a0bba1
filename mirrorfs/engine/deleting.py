"""Deleting from one store what the volume no longer needs.

Order: the objects count as not held and are not sent any more, no request under way sends one, and only then
they are deleted, each under a fresh lease. That an object is gone counts once the place was verified after
its deletion, as that one is held does. Whatever is broken off is done again as a whole: to delete what is not
there is success.

What may be deleted is for the caller to know; that a store does not allow it is an answer, not a fault. One
that is append-only is not asked for it: another machine deletes there, and it is only seen what is gone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import trio

from mirrorfs.engine.guarded_store import verify_place
from mirrorfs.engine.look import look_at
from mirrorfs.engine.mirror import Mirror
from mirrorfs.errors import ObjectLocked, StoreDenied, StoreError
from mirrorfs.ports import ObjectKey

logger = logging.getLogger(__name__)

PAUSE_S: Final = 0.1
"""Between two deletions: whoever reads or sends goes first."""


@dataclass(frozen=True, slots=True)
class Deletion:
    """What became of objects that were to be deleted from one store."""

    gone: tuple[str, ...]
    """Keys under which the store has nothing any more."""
    fault: StoreError | None
    """Why not all are gone; None: they are, or another machine is to delete them."""

    @property
    def denied(self) -> bool:
        """Whether the store does not allow it: it is to be tried again, but not soon."""
        return isinstance(self.fault, StoreDenied)


async def delete_objects(
    mirror: Mirror, keys: Sequence[str], *, on_deleted: Callable[[int], None] = lambda count: None
) -> Deletion:
    """Delete objects, one after the other, until the store refuses or fails; what is locked is passed over.

    `on_deleted` hears how many are gone.
    Raises: InUseError: the volume is another writer's. DamagedError: its lease cannot be read.
    """
    await mirror.abandon(keys)
    if mirror.append_only:
        return await _gone(mirror, keys)
    gone: list[str] = []
    fault: StoreError | None = None
    try:
        for key in keys:
            if gone:
                await trio.sleep(PAUSE_S)
            await mirror.lease_fresh()
            try:
                await mirror.store.delete(ObjectKey(key))
            except ObjectLocked as exc:
                fault = exc  # until its lock is over; it holds no other one up
                continue
            gone.append(key)
            on_deleted(len(gone))
    except StoreError as exc:
        logger.info(
            "store %s: %d of %d objects were deleted: %s", mirror.store.name, len(gone), len(keys), exc
        )
        fault = exc
    if gone:
        try:
            await verify_place(mirror.store)
        except StoreError as exc:
            return Deletion((), fault or exc)
    return Deletion(tuple(gone), fault)


async def _gone(mirror: Mirror, keys: Sequence[str]) -> Deletion:
    """Those that another machine has deleted."""
    try:
        found = await look_at(mirror.store, keys)
    except StoreError as exc:
        return Deletion((), exc)
    return Deletion(tuple(key for key, size_bytes in found.items() if size_bytes is None), None)
