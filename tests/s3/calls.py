"""Every method of a Store, each with what is there before it and with what must be true after it.

A call may end in three ways, and then the place is looked at through a store that nothing disturbs:
- it succeeds: the result is right, and what it was to do is done;
- UnknownOutcome, of writes only: done or not done, nothing in between;
- StoreUnavailable: nothing has changed.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirrorfs.errors import ObjectNotFound
from mirrorfs.ports import ObjectInfo, ObjectKey, Sealed, Store, Version

OLD = Sealed(random.Random(1).randbytes(150_000))
NEW = Sealed(random.Random(2).randbytes(150_000))
SMALL_OLD = Sealed(b"old lease" * 100)
SMALL_NEW = Sealed(b"new lease" * 100)
LISTED = 5

State = bytes | None
"""The bytes under a call's key; None: no object is there."""


@dataclass(frozen=True, slots=True)
class Call:
    """One method and how to judge it."""

    name: str
    run: Callable[[Store, ObjectKey, Version], Awaitable[object]]
    before: Sealed | None
    """What lies under the key; None: nothing."""
    after: Sealed | None
    """What lies there when it was done; the same as before for reads."""
    expects: Callable[[ObjectKey, object], bool]
    """Whether a result is right."""
    repeats_unknown: bool = True
    """Whether to repeat it after an unknown outcome is safe, and RetryingStore does so."""

    @property
    def writes(self) -> bool:
        """Whether it is to change anything."""
        return self.before is not self.after


def _infos(key: ObjectKey) -> list[ObjectInfo]:
    return [ObjectInfo(ObjectKey(f"{key}/{number:03}"), number) for number in range(LISTED)]


CALLS = {
    call.name: call
    for call in (
        Call("get", lambda store, key, _: store.get(key), OLD, OLD, lambda _, found: found == OLD),
        Call(
            "get-range",
            lambda store, key, _: store.get_range(key, offset=70_000, size_bytes=60_000),
            OLD,
            OLD,
            lambda _, found: found == OLD[70_000:130_000],
        ),
        Call(
            "head",
            lambda store, key, _: store.head(key),
            OLD,
            OLD,
            lambda key, found: found == ObjectInfo(key, len(OLD)),
        ),
        Call(
            "list",
            lambda store, key, _: store.list(f"{key}/"),
            None,
            None,
            lambda key, found: found == _infos(key),
        ),
        Call(
            "read-mutable",
            lambda store, key, _: store.read_mutable(key),
            SMALL_OLD,
            SMALL_OLD,
            lambda _, found: isinstance(found, tuple) and found[0] == SMALL_OLD,
        ),
        Call("put", lambda store, key, _: store.put(key, NEW), None, NEW, lambda _, found: found is None),
        Call("delete", lambda store, key, _: store.delete(key), OLD, None, lambda _, found: found is None),
        Call(
            "swap",
            lambda store, key, version: store.compare_and_swap(key, SMALL_NEW, expected=version),
            SMALL_OLD,
            SMALL_NEW,
            lambda _, found: isinstance(found, str),
            repeats_unknown=False,
        ),
    )
}


async def prepare(near: Store, call: Call, key: ObjectKey) -> Version:
    """Put there what a call finds; returns the version that a swap expects."""
    version = Version("")
    if call.before is SMALL_OLD:
        version = await near.compare_and_swap(key, SMALL_OLD, expected=None)
    elif call.before is not None:
        await near.put(key, call.before)
    if call.name == "list":
        for info in _infos(key):
            await near.put(info.key, Sealed(bytes(info.size_bytes)))
    return version


async def state(near: Store, key: ObjectKey) -> State:
    """What is really there."""
    try:
        return await near.get(key)
    except ObjectNotFound:
        return None
