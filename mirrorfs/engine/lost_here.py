"""What the local disk has lost: it keeps every header, checkpoint and head that it ever sent."""

from __future__ import annotations

from collections.abc import Iterable

from mirrorfs.engine.mirror import Mirror
from mirrorfs.engine.objects import SMALL_PREFIXES, LocalObjects
from mirrorfs.errors import StoreError


async def find_lost(objects: LocalObjects, mirrors: Iterable[Mirror]) -> set[str]:
    """Keys of headers, checkpoints and heads that a store took from here and that are not here any more.

    A store that cannot be listed tells of none: that is said where it is looked at.
    """
    here = {found.key for found in objects.others()}
    lost: set[str] = set()
    for mirror in mirrors:
        for prefix in SMALL_PREFIXES:
            after = ""
            try:
                while page := await mirror.store.list(prefix, start_after=after):
                    after = page[-1].key
                    lost.update(
                        info.key for info in page if info.key not in here and mirror.is_held(info.key)
                    )
            except StoreError:
                break
    return lost
