"""Looking at objects of a store: which of them are there, and how long they are.

What is told counts as held from then on, so the store's place is verified after each look and before it is
told: the disk may have been unmounted before the objects were sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import groupby

import trio

from mirrorfs.engine.guarded_store import verify_place
from mirrorfs.engine.upload_queue import MIRRORED_PREFIXES, prefix_of
from mirrorfs.errors import ObjectNotFound
from mirrorfs.ports import LIST_PAGE_MAX, ObjectInfo, ObjectKey, Store

AskForPage = Callable[[Callable[[], Awaitable[Sequence[ObjectInfo]]]], Awaitable[Sequence[ObjectInfo]]]

PAGES_MAX = 10_000
TOLD_AT_ONCE = 200
"""What is found is written down: that takes long for a whole page."""
HEADS_PER_LOOK = 3
"""Up to so many objects are looked at singly: cheaper than a listing page."""


async def look_at(store: Store, keys: Sequence[str]) -> dict[str, int | None]:
    """Bytes of each of the objects; None where there is no such object. Raises: StoreError."""
    found: dict[str, int | None] = {}
    for prefix, group in groupby(sorted(keys), key=prefix_of):
        wanted = list(group)
        sizes = await _list_sizes(store, prefix, wanted) if len(wanted) > HEADS_PER_LOOK else {}
        for key in wanted:
            # A listing may lag behind on some servers; only a direct look says that it is gone.
            found[key] = sizes[key] if key in sizes else await size_at(store, key)
    await verify_place(store)
    return found


async def list_around(store: Store, keys: Sequence[str], on_found: Callable[[str, int], None]) -> None:
    """List the pages in which these keys lie; `on_found(key, bytes)` hears of all that is there.

    Raises: StoreError: what was heard before it counts.
    """
    ends: dict[str, tuple[str, str]] = {}
    for count, key in enumerate(keys, 1):
        first, last = ends.get(prefix_of(key), (key, key))
        ends[prefix_of(key)] = min(first, key), max(last, key)
        if count % LIST_PAGE_MAX == 0:
            await trio.lowlevel.checkpoint()
    for prefix in MIRRORED_PREFIXES:
        if prefix not in ends:
            continue
        first, last = ends[prefix]
        start_after = first[:-1]  # a key less its last character sorts just before it
        for _ in range(PAGES_MAX):
            page = await store.list(prefix, start_after=start_after)
            await verify_place(store)
            for count, info in enumerate(page, 1):
                if not info.is_hidden:  # it is sent again, which shows it
                    on_found(info.key, info.size_bytes)
                if count % TOLD_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            if len(page) == 0 or page[-1].key >= last:
                break
            start_after = page[-1].key


async def size_at(store: Store, key: str) -> int | None:
    """Bytes of an object; None when it is not there. Raises: StoreError."""
    try:
        return (await store.head(ObjectKey(key))).size_bytes
    except ObjectNotFound:
        return None


async def _list_sizes(store: Store, prefix: str, keys: Sequence[str]) -> dict[str, int]:
    """Sizes of those of the sorted keys that listings show, in at most one page per key."""
    sizes: dict[str, int] = {}
    position = 0
    while position < len(keys):
        # The key less its last character sorts just before it: the page begins with this object.
        page = await store.list(prefix, start_after=keys[position][:-1])
        sizes.update((info.key, info.size_bytes) for info in page if not info.is_hidden)
        if len(page) < LIST_PAGE_MAX:
            break
        position += 1
        while position < len(keys) and keys[position] <= page[-1].key:
            position += 1
    return sizes


class ListedSizes:
    """The sizes that one store lists under a prefix, asked for in key order."""

    def __init__(self, store: Store, prefix: str, *, ask: AskForPage) -> None:
        """`ask` carries out what lists a page; it may repeat that."""
        self._store = store
        self._prefix = prefix
        self._ask = ask
        self._page: dict[str, int] = {}
        self._after = ""
        self._ended = False

    async def size_of(self, key: str) -> int | None:
        """Bytes of an object that comes after those asked for before; None when it is not listed."""
        while not self._ended and self._after < key:
            # What lies between the last page and this key is of no interest.
            after = max(self._after, key[:-1])
            page = await self._ask(partial(self._store.list, self._prefix, start_after=after))
            self._ended = not page
            if page:
                self._page = {info.key: info.size_bytes for info in page if not info.is_hidden}
                self._after = page[-1].key
        return self._page.get(key)
