"""Earlier versions of an object, for when the newest is gone or is not good.

Somebody with a PC's credentials can put anything on top of an object, or delete it, and in a store that keeps
versions both leave it where it was, beneath. Of an object that is written once only one content verifies: so
the first version that does is it, whichever that is, and which one is right shows by its bytes alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from mirrorfs.errors import DamagedError, LimitError, ObjectNotFound
from mirrorfs.ports import OBJECT_SIZE_MAX, ObjectKey, Store

T = TypeVar("T")

NOT_GOOD = (ObjectNotFound, DamagedError, LimitError)
"""What a version of an object may be: then the next one is tried."""


async def get_good(
    store: Store, key: ObjectKey, check: Callable[[bytes], T], *, size_max: int = OBJECT_SIZE_MAX
) -> T:
    """What `check` makes of the first version of an object that it accepts; it raises one of NOT_GOOD else.

    Raises: as `get_checked`.
    """

    async def checked(data: bytes) -> T:
        return check(data)

    return await get_checked(store, key, checked, size_max=size_max)


async def get_checked(
    store: Store,
    key: ObjectKey,
    check: Callable[[bytes], Awaitable[T]],
    *,
    size_max: int = OBJECT_SIZE_MAX,
    on_newest: Callable[[ObjectNotFound | DamagedError | LimitError], None] = lambda exc: None,
) -> T:
    """`get_good` with a check that awaits.

    Args:
        on_newest: hears what is wrong with the newest version before earlier ones are tried.
    Raises: StoreError; what is wrong with the newest version, where no earlier one is good.
    """
    try:
        return await check(await store.get(key, size_max=size_max))
    except NOT_GOOD as exc:
        newest = exc
    on_newest(newest)
    for version in await store.versions(key):
        try:
            return await check(await store.get(key, size_max=size_max, version=version))
        except NOT_GOOD:
            continue
    raise newest
