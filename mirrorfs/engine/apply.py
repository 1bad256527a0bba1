"""Applying a record to the index: the one place where a logged change becomes rows.

The live filesystem and replay both come through here, so a tree rebuilt from the log equals the tree
that wrote it. A record was checked before it was logged; here it is carried out. A record that does
not fit the tree means that the log and the index disagree: DamagedError, never a guess.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from typing import Any

from mirrorfs.core.extents import Extent, Freed, overlay_packed, pack_extents, trim, unpack_extents
from mirrorfs.core.file_changes import NOTHING_LOST, Lost, compressed_well
from mirrorfs.engine.apply_retention import RETENTION_HANDLERS
from mirrorfs.errors import DamagedError
from mirrorfs.format.limits import CHUNK_SIZE, FIRST_COOKIE, ROOT_INODE, SNAPSHOTS_MAX
from mirrorfs.format.record import (
    SET_ATIME,
    SET_CTIME,
    SET_GID,
    SET_MODE,
    SET_MTIME,
    SET_UID,
    Create,
    Epoch,
    Extents,
    Forget,
    Link,
    Record,
    Removexattr,
    Rename,
    Setattr,
    Setxattr,
    Snapshot,
    SnapshotGone,
    Truncate,
    Unlink,
    unpack_pieces,
)
from mirrorfs.format.rows import DentryRow, ExtentRow, InodeRow, SnapshotRow, XattrRow
from mirrorfs.ports import Index

_TRIM_BATCH = 256
_CHUNKS_SINGLY = 8
"""So many chunks are asked for one by one, which the index answers from memory more often than not."""


class Applier:
    """Carries out records on an index, and keeps what a commit must know of them.

    Invariant: after `apply` returns, rows, counters and frame live counts are those of the tree with
    the record; `emptied` holds the frames whose last byte died since the last `settle`, and `named` the
    snapshots made since.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.emptied: set[int] = set()
        self._freed_bytes = 0
        self._freed_compressible = 0
        self.named: set[bytes] = set()
        self.next_inode = self._counter("next_inode", ROOT_INODE)
        self.next_generation = self._counter("next_generation", 1)
        self.next_cookie = self._counter("next_cookie", FIRST_COOKIE)
        self.epoch = self._counter("epoch", 0)

    def _counter(self, key: str, first: int) -> int:
        value = self._index.get_meta(key)
        return value if isinstance(value, int) else first

    def save_counters(self) -> None:
        """Write the counters into the open transaction."""
        put = self._index.put_meta
        put("next_inode", self.next_inode)
        put("next_generation", self.next_generation)
        put("next_cookie", self.next_cookie)
        put("epoch", self.epoch)

    def settle(self, position: int) -> None:
        """The commit at `position` is where the emptied frames died, and what new snapshots name."""
        index = self._index
        dead = []
        for frame in self.emptied:
            row = index.get_frame(frame)
            if row is not None and row.live == 0:
                index.put_frame(row._replace(death=position))
                dead.append(frame)
        if dead:
            index.drop_contents(dead)
        self.emptied.clear()
        for name in self.named:
            snapshot = index.get_snapshot(name)
            if snapshot is not None:
                index.put_snapshot(snapshot._replace(position=position))
        self.named.clear()

    def take_lost(self) -> Lost:
        """What the records since the last call took away from files."""
        if not self._freed_bytes:
            return NOTHING_LOST
        lost = Lost(self._freed_bytes, self._freed_compressible)
        self._freed_bytes = self._freed_compressible = 0
        return lost

    def apply(self, record: Record) -> None:
        """Carry out one record. Raises DamagedError when it does not fit the tree."""
        _HANDLERS[type(record)](self, record)

    # --- the records -------------------------------------------------------------------------

    def _epoch(self, record: Epoch) -> None:
        self.epoch = max(self.epoch, record.epoch)

    def _create(self, r: Create) -> None:
        index = self._index
        is_directory = stat.S_ISDIR(r.mode)
        parent = r.parent if is_directory else 0
        size = len(r.target) if stat.S_ISLNK(r.mode) else 0
        time_ns = r.time_ns
        row = InodeRow(
            r.inode, r.generation, r.mode, r.uid, r.gid, 2 if is_directory else 1, size, 0, r.rdev,
            time_ns, time_ns, time_ns, parent, r.target,
        )  # fmt: skip
        index.put_inode(row)
        self.next_inode = max(self.next_inode, r.inode + 1)
        self.next_generation = max(self.next_generation, r.generation + 1)
        if r.inode == ROOT_INODE:
            return
        index.put_dentry(DentryRow(r.cookie, r.parent, r.name, r.inode))
        self.next_cookie = max(self.next_cookie, r.cookie + 1)
        self._touch_directory(r.parent, time_ns, links=1 if is_directory else 0)

    def _link(self, r: Link) -> None:
        row = self._inode(r.inode)
        self._index.put_inode(row._replace(nlink=row.nlink + 1, ctime_ns=r.time_ns))
        self._index.put_dentry(DentryRow(r.cookie, r.parent, r.name, r.inode))
        self.next_cookie = max(self.next_cookie, r.cookie + 1)
        self._touch_directory(r.parent, r.time_ns)

    def _unlink(self, r: Unlink) -> None:
        entry = self._dentry(r.parent, r.name)
        self._index.delete_dentry(entry)
        was_directory = self._drop_name(entry.inode, r.time_ns)
        self._touch_directory(r.parent, r.time_ns, links=-1 if was_directory else 0)

    def _rename(self, r: Rename) -> None:
        if r.exchange:
            self._exchange(r)
            return
        index = self._index
        entry = self._dentry(r.parent, r.name)
        replaced = index.get_dentry(r.new_parent, r.new_name)
        target_links = 0
        if replaced is not None:
            index.delete_dentry(replaced)
            if self._drop_name(replaced.inode, r.time_ns):
                target_links = -1
        index.delete_dentry(entry)
        index.put_dentry(DentryRow(r.cookie, r.new_parent, r.new_name, entry.inode))
        self.next_cookie = max(self.next_cookie, r.cookie + 1)
        moved = self._inode(entry.inode)
        is_directory = stat.S_ISDIR(moved.mode)
        index.put_inode(moved._replace(ctime_ns=r.time_ns, parent=r.new_parent if is_directory else 0))
        if r.parent == r.new_parent:
            self._touch_directory(r.parent, r.time_ns, links=target_links)
        else:
            self._touch_directory(r.parent, r.time_ns, links=-1 if is_directory else 0)
            self._touch_directory(r.new_parent, r.time_ns, links=target_links + (1 if is_directory else 0))

    def _exchange(self, r: Rename) -> None:
        index = self._index
        one, two = self._dentry(r.parent, r.name), self._dentry(r.new_parent, r.new_name)
        index.put_dentry(one._replace(inode=two.inode))
        index.put_dentry(two._replace(inode=one.inode))
        one_is = self._adopt(one.inode, r.new_parent, r.time_ns)
        two_is = self._adopt(two.inode, r.parent, r.time_ns)
        shift = int(two_is) - int(one_is) if r.parent != r.new_parent else 0
        self._touch_directory(r.parent, r.time_ns, links=shift)
        if r.parent != r.new_parent:
            self._touch_directory(r.new_parent, r.time_ns, links=-shift)

    def _adopt(self, inode: int, parent: int, time_ns: int) -> bool:
        row = self._inode(inode)
        is_directory = stat.S_ISDIR(row.mode)
        self._index.put_inode(row._replace(ctime_ns=time_ns, parent=parent if is_directory else 0))
        return is_directory

    def _setattr(self, r: Setattr) -> None:
        row = self._inode(r.inode)
        mask = r.mask
        self._index.put_inode(
            row._replace(
                mode=r.mode if mask & SET_MODE else row.mode,
                uid=r.uid if mask & SET_UID else row.uid,
                gid=r.gid if mask & SET_GID else row.gid,
                atime_ns=r.atime_ns if mask & SET_ATIME else row.atime_ns,
                mtime_ns=r.mtime_ns if mask & SET_MTIME else row.mtime_ns,
                ctime_ns=r.ctime_ns if mask & SET_CTIME else row.ctime_ns,
            )
        )

    def _truncate(self, r: Truncate) -> None:
        row = self._inode(r.inode)
        freed = self._drop_extents(row, r.size) if r.size < row.size else 0
        self._index.put_inode(row._replace(size=r.size, allocated=row.allocated - freed))

    def _extents(self, r: Extents) -> None:
        index = self._index
        row = self._inode(r.inode)
        added = 0
        for offset, length, frame, frame_offset in unpack_pieces(r.pieces):
            while length:
                chunk, start = divmod(offset, CHUNK_SIZE)
                step = min(length, CHUNK_SIZE - start)
                packed, freed = overlay_packed(
                    index.get_extents(r.inode, chunk), Extent(start, step, frame, frame_offset)
                )
                index.put_extents(ExtentRow(r.inode, chunk, packed))
                added += step - self._free(freed)
                self._revive(frame, step)
                offset, length, frame_offset = offset + step, length - step, frame_offset + step
        index.put_inode(row._replace(size=max(row.size, r.size), allocated=row.allocated + added))

    def _setxattr(self, r: Setxattr) -> None:
        row = self._inode(r.inode)
        self._index.put_xattr(XattrRow(r.inode, r.name, r.value))
        self._index.put_inode(row._replace(ctime_ns=r.time_ns))

    def _removexattr(self, r: Removexattr) -> None:
        row = self._inode(r.inode)
        self._index.delete_xattr(r.inode, r.name)
        self._index.put_inode(row._replace(ctime_ns=r.time_ns))

    def _forget(self, r: Forget) -> None:
        row = self._inode(r.inode)
        if row.nlink:
            raise DamagedError("the log removes an inode that still has names; restore from the stores.")
        if stat.S_ISREG(row.mode) and row.allocated:
            self._drop_extents(row, 0)
        self._index.delete_xattrs(r.inode)
        self._index.delete_inode(r.inode)

    def _snapshot(self, r: Snapshot) -> None:
        index = self._index
        row = index.get_snapshot(r.name)
        if row is not None:
            index.put_snapshot(row._replace(held=r.held))
            return
        if index.count_snapshots() >= SNAPSHOTS_MAX:
            raise DamagedError("the log has more snapshots than a volume can have.")
        index.put_snapshot(SnapshotRow(0, r.name, r.time_ns, r.held))
        self.named.add(r.name)

    def _snapshot_gone(self, r: SnapshotGone) -> None:
        row = self._index.get_snapshot(r.name)
        if row is None or row.held:
            raise DamagedError("the log deletes a snapshot that is not there, or is held.")
        self._index.delete_snapshot(r.name)
        self.named.discard(r.name)

    # --- pieces ------------------------------------------------------------------------------

    def _inode(self, inode: int) -> InodeRow:
        row = self._index.get_inode(inode)
        if row is None:
            raise DamagedError(f"the log names inode {inode}, which is not in the tree.")
        return row

    def _dentry(self, parent: int, name: bytes) -> DentryRow:
        entry = self._index.get_dentry(parent, name)
        if entry is None:
            raise DamagedError(f"the log names an entry of directory {parent} that is not in the tree.")
        return entry

    def _touch_directory(self, inode: int, time_ns: int, *, links: int = 0) -> None:
        row = self._inode(inode)
        self._index.put_inode(row._replace(mtime_ns=time_ns, ctime_ns=time_ns, nlink=row.nlink + links))

    def _drop_name(self, inode: int, time_ns: int) -> bool:
        """One name of an inode is gone. Returns whether it is a directory, which loses both its links."""
        row = self._inode(inode)
        is_directory = stat.S_ISDIR(row.mode)
        nlink = 0 if is_directory else row.nlink - 1
        self._index.put_inode(row._replace(nlink=nlink, ctime_ns=time_ns))
        return is_directory

    def _drop_extents(self, row: InodeRow, size: int) -> int:
        """Drop what lies at or beyond `size`. Returns the bytes that were mapped there."""
        first, start = divmod(size, CHUNK_SIZE)
        end = -(-row.size // CHUNK_SIZE)
        freed_bytes = 0
        for chunk, packed in self._chunks(row.inode, first, end):
            kept, freed = trim(unpack_extents(packed), start if chunk == first else 0)
            freed_bytes += self._free(freed)
            if kept:
                self._index.put_extents(ExtentRow(row.inode, chunk, pack_extents(kept)))
            else:
                self._index.delete_extents(row.inode, chunk)
        return freed_bytes

    def _chunks(self, inode: int, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Chunks in [first, end) that are no holes, which nothing lies beyond, and their packed extents."""
        if end - first <= _CHUNKS_SINGLY:
            for chunk in range(first, end):
                packed = self._index.get_extents(inode, chunk)
                if packed:
                    yield chunk, packed
            return
        while True:
            rows = self._index.list_extents(inode, from_chunk=first, limit=_TRIM_BATCH)
            for row in rows:
                yield row.chunk, row.packed
            if len(rows) < _TRIM_BATCH:
                return
            first = rows[-1].chunk + 1

    def _free(self, freed: list[Freed]) -> int:
        total = 0
        for frame, length in freed:
            total += length
            row = self._index.get_frame(frame)
            if row is None or row.live < length:
                raise DamagedError(f"the log frees bytes of frame {frame} that are not alive.")
            self._index.put_frame(row._replace(live=row.live - length))
            self._freed_bytes += length
            if compressed_well(row.size, row.length):
                self._freed_compressible += length
            if row.live == length:
                self.emptied.add(frame)
        return total

    def _revive(self, frame: int, length: int) -> None:
        row = self._index.get_frame(frame)
        if row is None:
            raise DamagedError(f"the log names frame {frame}, which is in no segment.")
        self._index.put_frame(row._replace(live=row.live + length, death=0))
        self.emptied.discard(frame)


def _on_index(apply: Callable[[Index, Any], None]) -> Callable[[Applier, Any], None]:
    return lambda applier, record: apply(applier._index, record)


_HANDLERS: dict[type[object], Callable[[Applier, Any], None]] = {
    Epoch: Applier._epoch,
    Create: Applier._create,
    Link: Applier._link,
    Unlink: Applier._unlink,
    Rename: Applier._rename,
    Setattr: Applier._setattr,
    Truncate: Applier._truncate,
    Extents: Applier._extents,
    Setxattr: Applier._setxattr,
    Removexattr: Applier._removexattr,
    Forget: Applier._forget,
    Snapshot: Applier._snapshot,
    SnapshotGone: Applier._snapshot_gone,
    **{cls: _on_index(apply) for cls, apply in RETENTION_HANDLERS.items()},
}
