"""Which heads nobody needs any more.

A reader looks for the newest head that verifies, and takes no other; nothing names a head but the next one.
So the newest HEADS_KEPT are kept, far more than a reader tries, and all of the time of which every moment is
kept. A head says nothing of single moments before that: the checkpoint of each has its digest in the index.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mirrorfs.engine.heads import HEADS_PREFIX, HEADS_TRIED_MAX
from mirrorfs.engine.local import LocalVolume, World
from mirrorfs.engine.objects import LocalObjects
from mirrorfs.errors import DamagedError, LimitError
from mirrorfs.format.control import open_head
from mirrorfs.format.rows import MomentRow

HEADS_KEPT: Final = 32 * HEADS_TRIED_MAX
HEADS_AT_A_TIME: Final = 1000


async def old_heads(world: World, local: LocalVolume, base: MomentRow, public_key: bytes) -> list[str]:
    """Keys of heads that may be deleted everywhere, the oldest first, HEADS_AT_A_TIME at most.

    Args:
        base: from it on every moment is kept.
        public_key: Ed25519 of the writer role, 32 bytes.
    One that cannot be read, or is of a later writer, stays. Raises: DiskError.
    """
    objects = LocalObjects(world.disk, local.index, world.offload)
    keys = (await objects.keys(HEADS_PREFIX))[:-HEADS_KEPT]
    found: list[str] = []
    for key in keys[:HEADS_AT_A_TIME]:
        data = await objects.read(key)
        verify = partial(
            open_head, data, key=key, keys=local.identity.keys, public_key=public_key, with_past=True
        )
        try:
            head = await world.offload.run(verify)
        except (DamagedError, LimitError):
            continue
        if head.position >= base.position:
            break
        if head.epoch <= local.identity.epoch:
            found.append(key)
    return found
