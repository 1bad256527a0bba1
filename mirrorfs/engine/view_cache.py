"""What a read-only view fetched from the stores: kept on the local disk while the view lasts, and bounded.

A writable mount keeps the same below its state directory (engine/range_files.py); a view has a directory of
its own, which is thrown away with it. What lies there are bytes of segments as the stores have them: sealed,
never plaintext. Nothing is read from there that does not authenticate, so that a crash can do no harm.
"""

from __future__ import annotations

from mirrorfs.engine.cache import SegmentCache
from mirrorfs.engine.local import World
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.ports import Disk


def view_cache(world: World, disk: Disk, *, limit_bytes: int) -> SegmentCache:
    """A cache of fetched parts alone, empty: any of them may go, least recently used first.

    Args:
        disk: the directory of the view, on the disk that `world` has.
        limit_bytes: of all that is kept. It gives way, too, where that disk runs low, before writing to a
            volume there would be refused.
    """
    return SegmentCache(
        disk,
        SpaceGuard(world.disk, world.clock),
        world.offload,
        limit_bytes=limit_bytes,
        is_held=lambda key: True,
        settle_index=_nothing_is_pinned,
        on_removed=lambda path: None,
    )


async def _nothing_is_pinned() -> int:
    """The index of a view is thrown away: no recovery asks for what lies here."""
    return 0
