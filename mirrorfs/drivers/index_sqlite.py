"""ports.Index on an encrypted SQLite database.

Invariants:
- One transaction is always open on the main connection. It ends only in `commit`, `rollback`,
  `finish_backfill` and `close`; a row that is still in a write-back cache belongs to it.
- Only `backfill` and `finish_backfill` move pages from the write-ahead log into the database file
  (autocheckpoint and the checkpoint on close are off), because the caller alone knows which commits
  the volume's log has made durable.
- Pages are moved all or not at all: none while a snapshot is open, since SQLite would move those
  pages only that the snapshot does not need older, and the database without its log, to which recovery
  may go back, would be a mix; after a move that failed half-way, no commit before one that ends.
- The log restarts from its beginning only if, at a BEGIN, all of it has been moved: hence
  `finish_backfill` does COMMIT, move, BEGIN IMMEDIATE in one step.
- After an error of SQLite the connection is closed: SQLite may have rolled back on its own, and
  whatever followed would be written outside a transaction. Every later call raises DiskError.
- Counters kept under 'index.' in `meta` change in the transaction that changes what they count.
- Large loads must commit now and then: dirty pages are never spilled (cache_spill is off)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import apsw

from mirrorfs.drivers import index_schema as schema
from mirrorfs.drivers import index_statements as sql
from mirrorfs.drivers.index_cache import WriteBack, cached_table
from mirrorfs.drivers.index_connection import (
    CACHE_KIB,
    SNAPSHOT_CACHE_KIB,
    WAL_FRAME_BYTES,
    WAL_HEADER_BYTES,
    connect,
    ensure_schema,
    translated,
)  # fmt: skip
from mirrorfs.drivers.index_snapshot import OpenCount, SqliteSnapshot
from mirrorfs.drivers.index_uncached import UncachedTables
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.ids import Stream, frame_id
from mirrorfs.format.limits import ORDINAL_MAX
from mirrorfs.format.rows import DentryRow, ExtentRow, FrameRow, InodeRow, XattrRow

INODES_KEPT: Final = 50_000
EXTENTS_KEPT: Final = 4_096
FRAMES_KEPT: Final = 16_384
DIRTY_ROWS_MAX: Final = 50_000
DIRTY_EXTENTS_MAX: Final = 4_096


class SqliteIndex(UncachedTables):
    """ports.Index; see there for the contract of each method.

    Errors of every method: IndexDamaged (remove the index, rebuild it), DiskFull, DiskError. Each
    closes the index for good.
    """

    def __init__(self, path: str, key: bytes, *, cache_kib: int) -> None:
        """Use `open`."""
        self._path = path
        self._key = key
        self._connection = connect(path, key, cache_kib=cache_kib)
        self._execute = self._connection.cursor().execute
        self._inodes: WriteBack[int, InodeRow] = self._cache(
            schema.INODES, InodeRow, clean_max=INODES_KEPT, dirty_max=DIRTY_ROWS_MAX
        )
        self._extents: WriteBack[tuple[int, int], ExtentRow] = self._cache(
            schema.EXTENTS, ExtentRow, clean_max=EXTENTS_KEPT, dirty_max=DIRTY_EXTENTS_MAX
        )
        self._frames: WriteBack[int, FrameRow] = self._cache(
            schema.FRAMES, FrameRow, clean_max=FRAMES_KEPT, dirty_max=DIRTY_ROWS_MAX
        )
        self._caches: dict[schema.Table, WriteBack[Any, Any]] = {
            schema.INODES: self._inodes,
            schema.EXTENTS: self._extents,
            schema.FRAMES: self._frames,
        }
        self._last_name: tuple[int, bytes, DentryRow | None] | None = None
        """The name that was asked for last, and its row; None once any name has changed."""
        self._meta: dict[str, int | bytes] = {}
        self._meta_dirty: set[str] = set()
        self._inode_count = self._allocated = self._xattr_count = 0
        self._wal_frames = 0
        self._half_moved = False
        self._snapshots = OpenCount()

    @classmethod
    def open(cls, path: str, key: bytes, *, cache_kib: int = CACHE_KIB) -> Self:
        """Open the index at path, creating an empty one (0600) where there is none.

        Args:
            key: 32 bytes.
            cache_kib: of pages in memory.
        Raises: IndexDamaged: wrong key, damage or an older layout: remove_index, then rebuild.
            UsageError: a newer program's index. DiskError, DiskFull.
        """
        index = cls(path, key, cache_kib=cache_kib)
        try:
            ensure_schema(index._connection)
            index._start()
        except MirrorfsError:
            index._connection.close(True)
            raise
        return index

    def _start(self) -> None:
        wal_path = f"{self._path}-wal"  # what a crash left may count frames not valid any more: harmless
        wal_size = os.path.getsize(wal_path) if os.path.exists(wal_path) else 0
        self._wal_frames = max(0, wal_size - WAL_HEADER_BYTES) // WAL_FRAME_BYTES
        self._connection.set_wal_hook(self._wal_grew)
        self._begin()

    def _wal_grew(self, _connection: apsw.Connection, _database: str, frames: int) -> int:
        self._wal_frames = frames
        return apsw.SQLITE_OK

    def _begin(self) -> None:
        self._query("BEGIN IMMEDIATE")
        self._meta = dict(self._query(sql.ALL_META))
        counts = (int(self._meta.get(key, 0)) for key in schema.COUNTERS)
        self._inode_count, self._allocated, self._xattr_count = counts
        for table, cache in self._caches.items():
            found = self._query(table.select_newest_key())
            cache.newest = table.key_of(found[0]) if found else None

    # --- statements ----------------------------------------------------------------------------

    def _query(self, statement: str, bindings: tuple[object, ...] = ()) -> list[tuple[Any, ...]]:
        try:
            # fetchall, always: an unfinished SELECT would keep the log from restarting.
            return self._execute(statement, bindings).fetchall()
        except apsw.Error as exc:
            raise self._failed(exc) from exc

    def _query_many(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        try:
            self._connection.executemany(statement, rows)
        except apsw.Error as exc:
            raise self._failed(exc) from exc

    def _failed(self, exc: apsw.Error) -> MirrorfsError:
        self._connection.close(True)
        return translated(exc)

    def _cache(self, table: schema.Table, row_type: Any, *, clean_max: int, dirty_max: int) -> Any:
        return cached_table(
            self._query, self._query_many, table, row_type, clean_max=clean_max, dirty_max=dirty_max
        )

    # --- inodes --------------------------------------------------------------------------------

    def get_inode(self, inode: int) -> InodeRow | None:
        return self._inodes.get(inode)

    def put_inode(self, row: InodeRow) -> None:
        old = self._inodes.get(row.inode)
        if old is None:
            self._inode_count += 1
            self._allocated += row.allocated
        else:
            self._allocated += row.allocated - old.allocated
        self._inodes.put(row.inode, row)

    def delete_inode(self, inode: int) -> None:
        old = self._inodes.get(inode)
        if old is not None:
            self._inode_count -= 1
            self._allocated -= old.allocated
            self._inodes.put(inode, None)

    def orphans(self) -> list[int]:
        self._inodes.flush()
        return [inode for (inode,) in self._query(sql.ORPHANS)]

    def totals(self) -> tuple[int, int]:
        return self._inode_count, self._allocated

    # --- dentries ------------------------------------------------------------------------------

    def get_dentry(self, parent: int, name: bytes) -> DentryRow | None:
        # One request asks for one name several times: to answer, to check, to carry out.
        last = self._last_name
        if last is not None and last[1] == name and last[0] == parent:
            return last[2]
        rows = self._query(sql.GET_DENTRY, (parent, name))
        row = DentryRow._make(rows[0]) if rows else None
        self._last_name = parent, name, row
        return row

    def put_dentry(self, row: DentryRow) -> None:
        """Insert; a row with that cookie, or with that parent and name, is replaced."""
        self._last_name = None
        self._query(sql.PUT_DENTRY, row)

    def delete_dentry(self, row: DentryRow) -> None:
        self._last_name = None
        self._query(sql.DELETE_DENTRY, (row.cookie,))

    def list_dentries(self, parent: int, *, after_cookie: int, limit: int) -> list[DentryRow]:
        return [DentryRow._make(row) for row in self._query(sql.LIST_DENTRIES, (parent, after_cookie, limit))]

    def has_dentries(self, parent: int) -> bool:
        return bool(self._query(sql.HAS_DENTRIES, (parent,)))

    # --- extended attributes -------------------------------------------------------------------

    def get_xattr(self, inode: int, name: bytes) -> bytes | None:
        if not self._xattr_count:  # the kernel asks for security.capability at every write
            return None
        rows = self._query(sql.GET_XATTR, (inode, name))
        return rows[0][0] if rows else None

    def put_xattr(self, row: XattrRow) -> None:
        if self.get_xattr(row.inode, row.name) is None:
            self._xattr_count += 1
        self._query(sql.PUT_XATTR, row)

    def delete_xattr(self, inode: int, name: bytes) -> None:
        if self._xattr_count:
            self._query(sql.DELETE_XATTR, (inode, name))
            self._xattr_count -= self._connection.changes()

    def list_xattrs(self, inode: int) -> list[bytes]:
        if not self._xattr_count:
            return []
        return [name for (name,) in self._query(sql.LIST_XATTRS, (inode,))]

    def delete_xattrs(self, inode: int) -> None:
        if self._xattr_count:
            self._query(sql.DELETE_XATTRS, (inode,))
            self._xattr_count -= self._connection.changes()

    def count_xattrs(self) -> int:
        return self._xattr_count

    # --- extents and frames --------------------------------------------------------------------

    def get_extents(self, inode: int, chunk: int) -> bytes | None:
        row = self._extents.get((inode, chunk))
        return None if row is None else row.packed

    def put_extents(self, row: ExtentRow) -> None:
        self._extents.put((row.inode, row.chunk), row)

    def delete_extents(self, inode: int, chunk: int) -> None:
        self._extents.put((inode, chunk), None)

    def list_extents(self, inode: int, *, from_chunk: int, limit: int) -> list[ExtentRow]:
        self._extents.flush()
        return [ExtentRow._make(row) for row in self._query(sql.LIST_EXTENTS, (inode, from_chunk, limit))]

    def get_frame(self, frame: int) -> FrameRow | None:
        return self._frames.get(frame)

    def put_frame(self, row: FrameRow) -> None:
        self._frames.put(row.frame, row)

    def frames_in(self, stream: int, sequence: int) -> list[FrameRow]:
        self._frames.flush()
        born = frame_id(sequence, 0), frame_id(sequence, ORDINAL_MAX)
        rows = self._query(sql.FRAMES_BORN, born) if stream == Stream.MAIN else []
        rows += self._query(sql.FRAMES_MOVED, (stream, sequence))
        return [FrameRow._make(row) for row in sorted(rows)]

    def delete_frame(self, frame: int) -> None:
        self._frames.put(frame, None)
        self._query(sql.DELETE_RELOCATION, (frame,))

    # --- values --------------------------------------------------------------------------------

    def get_meta(self, key: str) -> int | bytes | None:
        return self._meta.get(key)

    def put_meta(self, key: str, value: int | bytes) -> None:
        self._meta[key] = value
        self._meta_dirty.add(key)

    # --- transactions --------------------------------------------------------------------------

    def load_rows(self, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """Insert rows of a checkpointed table whose keys are not there yet, in any order, in bulk.

        Raises: IndexDamaged: a key is taken, or a value has the wrong type.
        """
        if not rows:
            return
        self._flush()
        spec = schema.TABLES[table]
        self._query_many(spec.insert(), rows)
        if spec is schema.XATTRS:
            self._xattr_count += len(rows)
        elif spec is schema.INODES:
            self._inode_count += len(rows)
            self._allocated += sum([row[schema.ALLOCATED] for row in rows])
        self._last_name = None
        if spec in self._caches:
            self._caches[spec].raise_newest(spec.key_of(max(rows)))  # keys differ, and come first

    def _flush(self) -> None:
        for cache in self._caches.values():
            cache.flush()
        counts = (self._inode_count, self._allocated, self._xattr_count)
        for key, count in zip(schema.COUNTERS, counts, strict=True):
            if self._meta.get(key) != count:
                self.put_meta(key, count)
        if self._meta_dirty:
            self._query_many(sql.PUT_META, [(key, self._meta[key]) for key in sorted(self._meta_dirty)])
            self._meta_dirty.clear()

    def commit(self) -> None:
        self._end()
        self._query("BEGIN IMMEDIATE")

    def _end(self) -> None:
        if self._half_moved:
            self.backfill()  # what it moves was durable when that began, and no commit has been since
        self._flush()
        self._query("COMMIT")

    def rollback(self) -> None:
        for cache in self._caches.values():
            cache.forget()
        self._last_name = None
        self._meta_dirty.clear()
        self._query("ROLLBACK")
        self._begin()

    def wal_bytes(self) -> int:
        """Bytes of the log that are in use; 0 after a `finish_backfill` that moved and synced all."""
        return WAL_HEADER_BYTES + self._wal_frames * WAL_FRAME_BYTES if self._wal_frames else 0

    def backfill(self) -> None:
        """As in ports.Index; does nothing while a snapshot is open."""
        if self._snapshots.count:
            return
        # A connection of its own: one SQLite connection must not serve two threads at a time.
        connection = connect(self._path, self._key, cache_kib=SNAPSHOT_CACHE_KIB)
        self._half_moved = True
        try:
            connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
        except apsw.Error as exc:
            raise translated(exc) from exc
        finally:
            connection.close(True)
        self._half_moved = False

    def finish_backfill(self) -> None:
        """As in ports.Index; only commits while a snapshot is open: then wal_bytes() stays above 0."""
        self._end()
        if not self._snapshots.count:
            try:
                frames, moved = self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
            except apsw.Error as exc:
                raise self._failed(exc) from exc
            if frames == moved:
                self._wal_frames = 0
        self._query("BEGIN IMMEDIATE")

    def snapshot(self) -> SqliteSnapshot:
        return SqliteSnapshot(self._path, self._key, self._snapshots)

    def close(self) -> None:
        """As in ports.Index; a log of which all has been moved is removed, any other is kept for `open`."""
        if self._half_moved:
            self.backfill()  # what it moves was durable when that began
        self._query("ROLLBACK")
        try:
            if not self._wal_frames:
                self._connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 0)
            self._connection.close(False)
        except apsw.Error as exc:
            raise translated(exc) from exc
