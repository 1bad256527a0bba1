"""What the local disk has lost: it keeps every header, checkpoint and head that it ever sent.

Memory: the keys on the local disk under one prefix, a page of a listing, and what is lost.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import PAGE, SMALL_PREFIXES, LocalObjects
from mirrorfs.errors import StoreError


async def find_lost(objects: LocalObjects, mirrors: Iterable[Mirror]) -> set[str]:
    """Keys of headers, checkpoints and heads that a store took from here and that are not here any more.

    A store that cannot be listed tells of none: that is said where it is looked at.
    """
    asked = list(mirrors)
    lost: set[str] = set()
    for prefix in SMALL_PREFIXES:
        here = await objects.keys(prefix)
        for mirror in list(asked):
            try:
                await _compare(mirror, prefix, here, lost)
            except StoreError:
                asked.remove(mirror)
    return lost - await _came_meanwhile(objects, sorted(lost))


async def _compare(mirror: Mirror, prefix: str, here: list[str], lost: set[str]) -> None:
    """Add to `lost` what a store has and `here`, which is in order, has not. Raises: StoreError."""
    after = ""
    while page := await mirror.store.list(prefix, start_after=after):
        after = page[-1].key
        for info in page:
            at = bisect_left(here, info.key)
            if (at == len(here) or here[at] != info.key) and mirror.is_held(info.key):
                lost.add(info.key)


async def _came_meanwhile(objects: LocalObjects, keys: list[str]) -> set[str]:
    """Those that were written, and sent, since the disk was listed."""
    return {key for at in range(0, len(keys), PAGE) for key in await objects.sizes_of(keys[at : at + PAGE])}
