"""What a store is known to hold, read from the index in pages: a hundred thousand keys take long."""

from __future__ import annotations

from typing import Final

import trio

from mirrorfs.core.held import HeldKeys
from mirrorfs.ports import Index

_PAGE: Final = 500


async def known_held(index: Index, instance: str) -> HeldKeys:
    """The keys of what a store's instance is known to hold; what comes meanwhile may be missing."""
    held = HeldKeys()
    after = ""
    while keys := index.held(instance, after=after, limit=_PAGE):
        for key in keys:
            held.add(key)
        after = keys[-1]
        await trio.lowlevel.checkpoint()
    return held
