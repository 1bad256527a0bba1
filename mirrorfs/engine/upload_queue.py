"""Which object goes to one store next, and what is not yet known to be there. No I/O.

Invariants:
- A key that was offered is in `_items` until it is held, or given up. It is in exactly one place: queued (a
  heap), in flight, put but unconfirmed, parked after a fault, in conflict, or withheld until
  what lies in its way is removed. A heap, and what is in flight, may also hold keys that are outstanding no
  longer; they are passed over when they come up, and go no further.
- Order: header/ first, and nothing else before it is held, for no object may lie where the header
  that opens it is missing; then segments/ by sequence; then checkpoints/, which must never delay
  user data; heads/ last, so that a head names what the store has. Both wait while a segment up to
  their `after_sequence` is queued, in flight or parked; a head also waits for every
  checkpoint. Whatever else there is goes before relocated/, of which a few are in flight at once: it holds
  copies of what the stores have, and nothing refers to it before they have it. An object in conflict or
  withheld holds nothing up: nobody can say when, if ever, it is settled.

Memory is about 400 bytes for each outstanding object, whatever came and went. Item is a NamedTuple because a
million of them may wait for a store that is down.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import NamedTuple

from mirrorfs.errors import LimitError
from mirrorfs.format.ids import STREAM_PREFIX, Stream, parse_segment_object_key

RELOCATED_AT_ONCE = 2
"""So that an upload of what was written finds a place."""
_AGES_SLACK = 1000


class Item(NamedTuple):
    """One immutable local object. Keys are unique, so items sort by key."""

    key: str
    size_bytes: int
    written_ns: int
    """CLOCK_REALTIME of the oldest change in it."""
    after_sequence: int | None
    """It names main-stream segments up to this one, and goes after them; None: it may name any."""


class _Rank(IntEnum):
    HEADER = 0
    SEGMENT = 1
    CHECKPOINT = 2
    HEAD = 3
    RELOCATED = 4


_RANKS = {
    "header/": _Rank.HEADER,
    STREAM_PREFIX[Stream.MAIN]: _Rank.SEGMENT,
    STREAM_PREFIX[Stream.CHECKPOINT]: _Rank.CHECKPOINT,
    "heads/": _Rank.HEAD,
    STREAM_PREFIX[Stream.RELOCATED]: _Rank.RELOCATED,
}
MIRRORED_PREFIXES = tuple(_RANKS)
"""Prefixes of the objects that are mirrored, each with its slash."""


def prefix_of(key: str) -> str:
    """The part of a key up to and with its first slash; empty when it has none."""
    return key[: key.find("/") + 1]


def _rank(key: str) -> _Rank:
    try:
        return _RANKS[prefix_of(key)]
    except KeyError:
        raise LimitError(f"Object {key[:80]!r} is not one that is mirrored.") from None


class UploadQueue:
    """The outstanding objects of one store."""

    def __init__(self) -> None:
        self._items: dict[str, Item] = {}
        self._heaps: dict[_Rank, list[Item]] = {rank: [] for rank in _Rank}
        self._ages: list[tuple[int, str]] = []
        self.in_flight: dict[str, Item] = {}
        self.unconfirmed: dict[str, Item] = {}
        self.parked: dict[str, Item] = {}
        self.conflicts: dict[str, Item] = {}
        self.withheld: dict[str, Item] = {}
        self.size_bytes = 0
        """Bytes of all outstanding objects."""
        self.header_count = 0
        """Headers outstanding, in no conflict and not withheld: while there are any, nothing else goes."""

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: str) -> bool:
        return key in self._items

    def keys(self) -> Iterator[str]:
        """Every key that is not known to be held."""
        return iter(self._items)

    def item(self, key: str) -> Item | None:
        """The outstanding item of a key."""
        return self._items.get(key)

    def offer(self, item: Item, *, withheld: bool = False) -> None:
        """Queue an item, or have it outstanding and not sent until `resume`.

        A key that is outstanding already stays as it is. Raises: LimitError: no such object is mirrored.
        """
        rank = _rank(item.key)
        if item.key in self._items:
            return
        self._items[item.key] = item
        self.size_bytes += item.size_bytes
        if len(self._ages) > 2 * len(self._items) + _AGES_SLACK:
            # One object that cannot go is the oldest for weeks, and those behind it come and go.
            self._ages = [age for age in self._ages if age[1] in self._items]
            heapq.heapify(self._ages)
        heapq.heappush(self._ages, (item.written_ns, item.key))
        if withheld:
            self.withheld[item.key] = item
            return
        self.header_count += rank is _Rank.HEADER
        heapq.heappush(self._heaps[rank], item)

    def pop(self) -> Item | None:
        """Move the next item that may go into flight; None when there is none."""
        for rank, heap in self._heaps.items():
            if rank is not _Rank.HEADER and self.header_count:
                return None
            while heap and heap[0].key not in self._items:
                heapq.heappop(heap)
            if heap and self._may_go(heap[0], rank):
                item = heapq.heappop(heap)
                self.in_flight[item.key] = item
                return item
            if heap:
                return None
        return None

    def is_idle(self) -> bool:
        """Whether nothing is in flight and nothing waits to be."""
        return len(self._items) == len(self.unconfirmed) + len(self.conflicts) + len(self.withheld)

    def settle_put(self, item: Item) -> None:
        """The store says it has the item: a later look must confirm that."""
        self._leave_flight(item, self.unconfirmed)

    def settle_conflict(self, item: Item) -> None:
        """The store has other bytes under the key: the item is not tried again."""
        if item.key in self._items and item.key not in self.conflicts:
            self.header_count -= _rank(item.key) is _Rank.HEADER
        self.unconfirmed.pop(item.key, None)
        self._leave_flight(item, self.conflicts)

    def park(self, item: Item) -> None:
        """The item is out of the way of the others until `unpark`."""
        self.unconfirmed.pop(item.key, None)
        self._leave_flight(item, self.parked)

    def requeue(self, item: Item) -> None:
        """The item is to be sent (again)."""
        self.in_flight.pop(item.key, None)
        self.unconfirmed.pop(item.key, None)
        self.parked.pop(item.key, None)
        if item.key in self._items:
            heapq.heappush(self._heaps[_rank(item.key)], item)

    def unpark(self, is_due: Callable[[str], bool]) -> None:
        """Queue those parked items again whose keys are due."""
        for item in [item for key, item in self.parked.items() if is_due(key)]:
            self.requeue(item)

    def remove(self, key: str) -> None:
        """The store was seen to have the object, or is not to have it: it is no longer outstanding."""
        item = self._items.pop(key, None)
        if item is not None:
            self.size_bytes -= item.size_bytes
            if key not in self.conflicts and key not in self.withheld:
                self.header_count -= _rank(key) is _Rank.HEADER
        for place in (self.unconfirmed, self.parked, self.conflicts, self.withheld):
            place.pop(key, None)

    def withhold(self, key: str) -> None:
        """What was put, is parked or in conflict is not sent until `resume`; the rest goes on."""
        for place in (self.unconfirmed, self.parked, self.conflicts):
            item = place.pop(key, None)
            if item is not None:
                self.header_count -= place is not self.conflicts and _rank(key) is _Rank.HEADER
                self.withheld[key] = item

    def resume(self, key: str) -> None:
        """What was withheld is sent (again)."""
        item = self.withheld.pop(key, None)
        if item is not None:
            self.header_count += _rank(key) is _Rank.HEADER
            heapq.heappush(self._heaps[_rank(key)], item)

    def oldest_ns(self) -> int | None:
        """`written_ns` of the oldest outstanding item."""
        while self._ages and self._ages[0][1] not in self._items:
            heapq.heappop(self._ages)
        return self._ages[0][0] if self._ages else None

    def _leave_flight(self, item: Item, place: dict[str, Item]) -> None:
        self.in_flight.pop(item.key, None)
        if item.key in self._items:
            place[item.key] = item

    def _may_go(self, item: Item, rank: _Rank) -> bool:
        # Called for a rank only when the heaps before it are empty, so that what is in flight or
        # parked (both bounded) is all that can hold the item up.
        if rank in (_Rank.HEADER, _Rank.SEGMENT):
            return True
        if rank is _Rank.RELOCATED:
            return sum(_rank(key) is rank for key in self.in_flight) < RELOCATED_AT_ONCE
        for place in (self.in_flight, self.parked):
            for key in place:
                if _rank(key) is _Rank.CHECKPOINT and rank is _Rank.HEAD:
                    return False
                after = item.after_sequence
                if _rank(key) is _Rank.SEGMENT and (
                    after is None or parse_segment_object_key(key)[1].sequence <= after
                ):
                    return False
        return True
