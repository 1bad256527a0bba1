"""What stores call objects, and what they tell of them; mirrorfs.ports has the stores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NewType

ObjectKey = NewType("ObjectKey", str)
"""Key of an object relative to the store's root: ASCII [a-z0-9/-], at most 200 characters."""

ObjectVersion = NewType("ObjectVersion", str)
"""Opaque version of an immutable object, as `versions` returns it."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing or a head tells of one object."""

    key: ObjectKey
    size_bytes: int
    """Of the newest version."""
    is_hidden: bool = False
    """It was deleted in a store that keeps versions: `get` does not find it, `versions` does."""
    written_ns: int = field(default=0, compare=False)
    """In a listing: when it was put there, by the store's clock; 0: that is not told."""


@dataclass(frozen=True, slots=True)
class StoreTraits:
    """What `probe` found out about a store."""

    conditional_put: bool
    """The store honours put-if-absent and compare-and-swap; without it fencing is weak."""
    can_delete: bool = True
    """These credentials can remove objects for good, as far as no lock is on them."""
