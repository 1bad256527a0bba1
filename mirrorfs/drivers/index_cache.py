"""A write-back cache of the rows of one table, between the index's methods and SQLite.

A create touches its directory's inode row, a 4 KiB overwrite the row of its chunk and of two frames;
kept here they reach SQLite once per commit instead of once per request.

Invariants:
- A key in `_dirty` is in `_rows`; the value None there is a tombstone: the row is deleted.
- A key that is not in `_rows` has in the table exactly what `load` returns.
- `newest` is at least every key in the table and in `_rows`, so that a greater key is known to be
  absent without asking (inode and frame numbers only grow: most first look-ups end here).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Generic, Protocol, Self, TypeVar

from mirrorfs.drivers.index_schema import Table


class _Ordered(Protocol):
    def __lt__(self, other: Self, /) -> bool: ...


K = TypeVar("K", bound=_Ordered)
V = TypeVar("V")


class WriteBack(Generic[K, V]):
    """Rows by key: clean ones bounded by LRU, dirty ones until `flush`.

    Args:
        load: reads one row from the table.
        store: writes rows to the table (rows by key order) and deletes those of the given keys.
        clean_max: rows kept after a flush.
        dirty_max: changed rows that are held back before `put` flushes on its own.
    """

    __slots__ = ("_clean_max", "_dirty", "_dirty_max", "_load", "_rows", "_store", "newest")

    def __init__(
        self,
        *,
        load: Callable[[K], V | None],
        store: Callable[[list[V], list[K]], None],
        clean_max: int,
        dirty_max: int,
    ) -> None:
        self._rows: OrderedDict[K, V | None] = OrderedDict()
        self._dirty: set[K] = set()
        self._load = load
        self._store = store
        self._clean_max = clean_max
        self._dirty_max = dirty_max
        self.newest: K | None = None

    def get(self, key: K) -> V | None:
        """The row of a key, or None."""
        rows = self._rows
        if key in rows:
            rows.move_to_end(key)
            return rows[key]
        if self.newest is None or self.newest < key:
            return None
        row = self._load(key)
        if row is not None:
            rows[key] = row
            if len(rows) > self._clean_max + len(self._dirty):
                self._evict_one()
        return row

    def put(self, key: K, row: V | None) -> None:
        """Insert or replace a row; None deletes it."""
        self._rows[key] = row  # its place in the LRU order is that of the `get` before
        self._dirty.add(key)
        if self.newest is None or self.newest < key:  # inline: this is the hot path
            self.newest = key
        if len(self._dirty) > self._dirty_max:
            self.flush()

    def flush(self) -> None:
        """Write what has changed to the table, inside the open transaction."""
        if not self._dirty:
            return
        rows = self._rows
        puts: list[V] = []
        deletes: list[K] = []
        for key in sorted(self._dirty):  # neighbours share pages
            row = rows[key]
            if row is None:
                deletes.append(key)
            else:
                puts.append(row)
        self._store(puts, deletes)
        self._dirty.clear()
        for key in deletes:
            del rows[key]
        while len(rows) > self._clean_max:
            rows.popitem(last=False)

    def raise_newest(self, key: K) -> None:
        """Note that the table has been given rows up to a key without this cache."""
        if self.newest is None or self.newest < key:
            self.newest = key

    def forget(self) -> None:
        """Drop everything, changed rows too: the transaction was rolled back."""
        self._rows.clear()
        self._dirty.clear()

    def _evict_one(self) -> None:
        oldest = next(iter(self._rows))
        if oldest in self._dirty:
            # Bounded work per miss: a clean row is found within a few more misses, and a flush trims.
            self._rows.move_to_end(oldest)
        else:
            del self._rows[oldest]


def cached_table(
    query: Callable[[str, tuple[object, ...]], list[tuple[Any, ...]]],
    query_many: Callable[[str, Iterable[tuple[object, ...]]], None],
    table: Table,
    row_type: Any,
    *,
    clean_max: int,
    dirty_max: int,
) -> WriteBack[Any, Any]:
    """A cache of one table's rows, as `row_type`, by their keys.

    Args:
        query, query_many: run a statement, once or for each of several bindings.
    """
    select, upsert, delete = table.select_key(), table.upsert(), table.delete()
    single = table.key_count == 1

    def load(key: Any) -> Any:
        rows = query(select, (key,) if single else key)
        return row_type._make(rows[0]) if rows else None

    def store(puts: list[Any], deletes: list[Any]) -> None:
        query_many(upsert, puts)
        query_many(delete, [(key,) for key in deletes] if single else deletes)

    return WriteBack(load=load, store=store, clean_max=clean_max, dirty_max=dirty_max)
