"""ports.IndexSnapshot: a read view on a connection of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

import apsw

from mirrorfs.drivers.index_connection import SNAPSHOT_CACHE_KIB, connect, translated
from mirrorfs.drivers.index_schema import TABLES
from mirrorfs.drivers.index_statements import ALL_META, GET_META
from mirrorfs.errors import MirrorfsError


class OpenCount:
    """How many snapshots of an index are open. Thread-safe: they are closed in worker threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.count = 0

    def add(self, change: int) -> None:
        """Count one that was opened (1) or closed (-1)."""
        with self._lock:
            self.count += change


class SqliteSnapshot:
    """ports.IndexSnapshot: the last commit as of its creation, until it is closed."""

    def __init__(self, path: str, key: bytes, open_count: OpenCount) -> None:
        # Counted before the view is taken, so that no move can begin that does not know of it.
        open_count.add(1)
        self._open_count: OpenCount | None = open_count
        try:
            self._connection = connect(path, key, cache_kib=SNAPSHOT_CACHE_KIB)
        except MirrorfsError:
            open_count.add(-1)
            raise
        try:
            self._connection.pragma("query_only", 1)
            self._connection.execute("BEGIN")
            # The view is taken by the first read, not by BEGIN.
            self._connection.execute(ALL_META).fetchall()
        except apsw.Error as exc:
            self.close()
            raise translated(exc) from exc

    def rows(self, table: str, *, first: tuple[int | bytes, ...]) -> Iterable[tuple[Any, ...]]:
        """Rows of a table from a key on, in canonical order; the empty key means all.

        Streams: close the snapshot only after the iterator has ended.
        Raises: IndexDamaged, DiskError.
        """
        spec = TABLES[table]
        try:
            yield from self._connection.execute(spec.select_ordered(bounded=bool(first)), first)
        except apsw.Error as exc:
            raise translated(exc) from exc

    def get_meta(self, key: str) -> int | bytes | None:
        try:
            rows = self._connection.execute(GET_META, (key,)).fetchall()
        except apsw.Error as exc:
            raise translated(exc) from exc
        value = rows[0][0] if rows else None
        assert value is None or isinstance(value, int | bytes)
        return value

    def close(self) -> None:
        """End the view. Never raises: there is nothing to lose."""
        self._connection.close(True)
        if self._open_count is not None:
            self._open_count.add(-1)
            self._open_count = None
