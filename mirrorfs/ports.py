"""The interfaces between the engine and the world, as Protocols.

The engine knows stores, clocks, files and the index only through these, so that the simulator in
tests/ can stand in for each. A driver translates foreign errors into mirrorfs.errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NewType, Protocol, TypeVar

from mirrorfs.format.object_lock import ObjectLock
from mirrorfs.format.objects import ObjectInfo as ObjectInfo
from mirrorfs.format.objects import ObjectKey as ObjectKey
from mirrorfs.format.objects import ObjectVersion as ObjectVersion
from mirrorfs.format.objects import StoreTraits as StoreTraits
from mirrorfs.format.rows import (
    CondemnedRow,
    ContentRow,
    DentryRow,
    ExtentRow,
    FrameRow,
    InodeRow,
    MomentRow,
    RelocatedRow,
    RelocationRow,
    SegmentRow,
    SnapshotRow,
    XattrRow,
)

T = TypeVar("T")

Sealed = NewType("Sealed", bytes)
"""Bytes that may leave the machine: already encrypted or authenticated. Plaintext does not type-check."""

Version = NewType("Version", str)
"""Opaque version of a mutable object, as `read_mutable` and `compare_and_swap` return it."""

OBJECT_SIZE_MAX = 32 * 1024 * 1024
LIST_PAGE_MAX = 1000
THROTTLE_PIECE = 64 * 1024


class Store(Protocol):
    """One remote place that keeps objects. Every method is a trio checkpoint and may be cancelled.

    Errors are StoreUnavailable (a passing fault, nothing written), UnknownOutcome (a write that may
    or may not be durable; so too if cancelled), StoreDenied, StoreFull, ObjectNotFound and
    ObjectExists. No method retries: retry, limits and metrics wrap this interface.
    """

    name: str
    lock: ObjectLock | None
    """How `put` locks what it sends; None: not at all."""

    async def put(self, key: ObjectKey, data: Sealed) -> None:
        """Make data durable under key before returning; never replace other bytes.

        A retry is safe: equal bytes already there mean success.
        Raises: ObjectExists: the key holds other bytes; nothing changed.
        """

    async def put_over(self, key: ObjectKey, data: Sealed) -> bool:
        """Put data on top of what is under the key, which stays beneath it as an earlier version.

        Returns: False: the store keeps no versions, and nothing was done.
        """

    async def get(
        self, key: ObjectKey, *, size_max: int = OBJECT_SIZE_MAX, version: ObjectVersion | None = None
    ) -> bytes:
        """Return the whole object, by default its newest version.

        Raises ObjectNotFound, also where it is hidden; LimitError when it exceeds size_max.
        """

    async def get_range(
        self, key: ObjectKey, *, offset: int, size_bytes: int, version: ObjectVersion | None = None
    ) -> bytes:
        """Return size_bytes from offset, fewer only where the object ends. Raises ObjectNotFound."""

    async def versions(self, key: ObjectKey) -> Sequence[ObjectVersion]:
        """The versions beneath the one that `get` finds, if any; none where the store keeps none.

        In the order in which to try them: what was there first cannot have been put by who came later. Of
        very many only some are told.
        """

    async def lock_until(self, key: ObjectKey, *, until_ns: int, size_bytes: int | None) -> None:
        """Have an object locked until a time (CLOCK_REALTIME) at least; never shortens a lock.

        Args:
            size_bytes: of the object, by which its versions are told from what somebody put over it; None:
                not known.
        Raises: ObjectNotFound: there is no version of that size. StoreDenied: the store has no locks, or the
            credentials may not set them.
        """

    async def head(self, key: ObjectKey) -> ObjectInfo:
        """Look at one object without reading it. Raises ObjectNotFound."""

    async def list(self, prefix: str, *, start_after: str = "") -> Sequence[ObjectInfo]:
        """Up to LIST_PAGE_MAX objects whose key starts with prefix and is > start_after, in key order.

        An empty page means the end. Unfinished uploads are never listed; hidden objects are.
        """

    async def delete(self, key: ObjectKey) -> None:
        """Remove the object with all its versions; removing one that is not there is success.

        Raises: ObjectLocked: its lock is not over yet; it stays as it is.
        """

    async def read_mutable(self, key: ObjectKey) -> tuple[bytes, Version]:
        """Return a small mutable object (at most 64 KiB) and its version. Raises ObjectNotFound."""

    async def compare_and_swap(self, key: ObjectKey, data: Sealed, *, expected: Version | None) -> Version:
        """Replace a small mutable object if its version is still `expected` (None: if absent).

        Raises: ObjectExists: another version is there; nothing changed.
        """

    async def probe(self) -> StoreTraits:
        """Write, conditionally overwrite and remove a scratch object to learn the store's traits.

        Raises: StoreDenied: the store cannot be written to.
        """

    async def aclose(self) -> None:
        """Release connections and threads. Never raises for a dead store."""


class Throttle(Protocol):
    """How fast stores may move bytes. Called on the trio loop; it reserves, the caller waits.

    One call is about THROTTLE_PIECE bytes at most, so that others get their turn between two.
    """

    def upload(self, size_bytes: int, *, urgent: bool) -> float:
        """Seconds to wait before sending so many bytes. Urgent ones pass others, for a part of the rate."""

    def download(self, size_bytes: int, *, urgent: bool) -> float:
        """Seconds to wait before receiving so many bytes."""

    def download_s(self, size_bytes: int) -> float:
        """How long so many urgent bytes would take from now on by the limit alone; reserves nothing."""


class Clock(Protocol):
    """The only source of time."""

    def now_ns(self) -> int:
        """CLOCK_REALTIME in nanoseconds."""

    def boottime_ns(self) -> int:
        """CLOCK_BOOTTIME in nanoseconds: monotonic, counts suspend."""


Entropy = Callable[[int], bytes]
"""Return that many bytes from the system's CSPRNG."""


class Offload(Protocol):
    """Runs blocking work: in threads when live, inline when simulated."""

    async def run(self, work: Callable[[], T]) -> T:
        """Run CPU or short I/O work in a worker thread. Not cancellable once started."""

    async def sync(self, work: Callable[[], T]) -> T:
        """Run an fsync-like wait, under a limiter of its own."""

    def is_working(self) -> bool:
        """Whether work or a sync is under way in a thread."""

    def syncs_are_brief(self) -> bool:
        """Whether syncs were lately so short that to wait for one costs less than to go to a thread."""

    def sync_here(self, work: Callable[[], T]) -> T:
        """Run an fsync-like wait in the caller's thread; nothing else on the loop runs meanwhile."""


class OpenFile(Protocol):
    """An open local file. Methods block, and `write` writes all; errors are DiskError, DiskFull."""

    def write(self, data: bytes | bytearray | memoryview, *, offset: int) -> None: ...

    def read(self, *, offset: int, size_bytes: int) -> bytes:
        """Read up to size_bytes at offset, fewer only at the end of the file."""

    def size(self) -> int: ...

    def write_out(self) -> None:
        """Have what was written go to the disk soon, so that `sync` has less to wait for; no promise."""

    def truncate(self, size_bytes: int) -> None: ...

    def sync(self) -> None:
        """fdatasync: the file's bytes and size are durable after it returns."""

    def close(self) -> None:
        """Close the descriptor."""


class Disk(Protocol):
    """A directory tree of local files, paths relative to its root. Methods block."""

    def create(self, path: str) -> OpenFile:
        """Create a new file (0600), making parent directories (0700). Raises DiskError if it exists."""

    def open(self, path: str, *, writable: bool = False) -> OpenFile:
        """Open an existing file. Raises FileNotFoundError."""

    def list(self, path: str) -> Sequence[str]:
        """Sorted names in a directory; empty when it does not exist."""

    def remove(self, path: str) -> None:
        """Unlink; removing what is not there is success."""

    def allocated_bytes(self, path: str) -> int:
        """Bytes that a file takes on the disk; holes take none. Raises FileNotFoundError."""

    def write_whole(self, path: str, data: bytes) -> None:
        """Replace a small file atomically and durably (temporary name, sync, rename, directory sync)."""

    def sync_directory(self, path: str) -> None:
        """Make creations and removals in a directory durable."""

    def free_bytes(self) -> int:
        """Space an unprivileged process can still use on the disk."""

    def total_bytes(self) -> int:
        """Size of the disk."""


class Index(Protocol):
    """The namespace and extent maps at a position: one open transaction at any time.

    All methods are synchronous and are called from the trio loop only, but for `snapshot`.
    Rows that do not exist are None. `put_*` inserts or replaces.
    """

    def get_inode(self, inode: int) -> InodeRow | None: ...
    def put_inode(self, row: InodeRow) -> None: ...
    def delete_inode(self, inode: int) -> None: ...

    def get_dentry(self, parent: int, name: bytes) -> DentryRow | None: ...
    def put_dentry(self, row: DentryRow) -> None: ...
    def delete_dentry(self, row: DentryRow) -> None: ...
    def list_dentries(self, parent: int, *, after_cookie: int, limit: int) -> list[DentryRow]:
        """Entries of a directory in cookie order, strictly after a cookie."""

    def has_dentries(self, parent: int) -> bool: ...

    def get_xattr(self, inode: int, name: bytes) -> bytes | None: ...
    def put_xattr(self, row: XattrRow) -> None: ...
    def delete_xattr(self, inode: int, name: bytes) -> None: ...
    def list_xattrs(self, inode: int) -> list[bytes]: ...
    def delete_xattrs(self, inode: int) -> None: ...
    def count_xattrs(self) -> int:
        """Number of extended attributes in the volume (0 lets the kernel stop asking)."""

    def get_extents(self, inode: int, chunk: int) -> bytes | None:
        """The packed extents of one 1 MiB chunk (format/rows.py), or None where it is a hole."""

    def put_extents(self, row: ExtentRow) -> None: ...
    def delete_extents(self, inode: int, chunk: int) -> None: ...
    def list_extents(self, inode: int, *, from_chunk: int, limit: int) -> list[ExtentRow]:
        """Chunk rows of one inode in chunk order, from a chunk on."""

    def get_frame(self, frame: int) -> FrameRow | None: ...
    def put_frame(self, row: FrameRow) -> None: ...

    def get_relocation(self, frame: int) -> RelocationRow | None: ...
    def put_relocation(self, row: RelocationRow) -> None: ...

    def frames_in(self, stream: int, sequence: int) -> list[FrameRow]:
        """The frames that lie in a segment now, dead ones too, in the order of their names."""

    def delete_frame(self, frame: int) -> None:
        """Forget a frame, and where it was moved to."""

    def get_moment(self, position: int) -> MomentRow | None: ...
    def base_moment(self) -> MomentRow | None:
        """The one from which on every commit can be returned to; None: that is so of all the log."""

    def put_moment(self, row: MomentRow) -> None: ...
    def delete_moment(self, position: int) -> None: ...
    def count_moments(self) -> int: ...
    def list_moments(self) -> list[MomentRow]:
        """All of them, in the order of their positions: MOMENTS_MAX at most."""

    def get_relocated(self, sequence: int) -> RelocatedRow | None: ...
    def put_relocated(self, row: RelocatedRow) -> None: ...
    def delete_relocated(self, sequence: int) -> None: ...
    def list_relocated(self, *, from_sequence: int, limit: int) -> list[RelocatedRow]: ...
    def last_relocated(self) -> int:
        """The highest sequence in the relocated stream that is in use, or condemned; -1 for none."""

    def get_condemned(self, stream: int, sequence: int) -> CondemnedRow | None: ...
    def put_condemned(self, row: CondemnedRow) -> None: ...
    def delete_condemned(self, stream: int, sequence: int) -> None: ...
    def list_condemned(self, *, after: tuple[int, int], limit: int) -> list[CondemnedRow]:
        """In the order of (stream, sequence), strictly after one."""

    def delete_segment(self, sequence: int) -> None: ...
    def get_segment(self, sequence: int) -> SegmentRow | None: ...
    def put_segment(self, row: SegmentRow) -> None: ...
    def last_segment(self) -> SegmentRow | None: ...
    def list_segments(self, *, from_sequence: int, limit: int) -> list[SegmentRow]: ...

    def get_snapshot(self, name: bytes) -> SnapshotRow | None: ...
    def put_snapshot(self, row: SnapshotRow) -> None:
        """Names are unique: one of the same name is replaced, whatever its position."""

    def delete_snapshot(self, name: bytes) -> None: ...
    def list_snapshots(self) -> list[SnapshotRow]:
        """All of them, in the order of their positions: SNAPSHOTS_MAX at most."""

    def count_snapshots(self) -> int: ...

    def orphans(self) -> list[int]:
        """Inodes with nlink 0: unlinked while open, not yet removed."""

    def totals(self) -> tuple[int, int]:
        """(inodes, allocated bytes) of the volume, for statfs; cheap."""

    def get_meta(self, key: str) -> int | bytes | None:
        """A named value that belongs to the position: counters, journal sequence and hash, position."""

    def put_meta(self, key: str, value: int | bytes) -> None: ...

    def held(self, store: str, *, after: str, limit: int) -> list[str]:
        """Keys known to be held by a store instance, in order, strictly after one. Not checkpointed."""

    def put_held(self, store: str, key: str) -> None: ...
    def delete_held(self, store: str, key: str) -> None: ...
    def clear_held(self, store: str) -> None: ...

    def get_content(self, digest: bytes) -> ContentRow | None:
        """Where bytes of this digest were put last. Local knowledge, not checkpointed, and a hint."""

    def put_contents(self, rows: Iterable[ContentRow]) -> None: ...
    def drop_contents(self, frames: Iterable[int]) -> None:
        """Forget what lies in these frames."""

    def load_rows(self, table: str, rows: Sequence[tuple[object, ...]]) -> None:
        """Insert rows of a checkpointed table in bulk, into an index that has none of them."""

    def commit(self) -> None:
        """COMMIT and BEGIN. What is committed may reach the database only after `backfill`."""

    def rollback(self) -> None:
        """Drop the open transaction and begin another: the state of the last `commit`."""

    def wal_bytes(self) -> int:
        """Bytes in the write-ahead log, to decide when to backfill."""

    def backfill(self) -> None:
        """Move committed pages into the database; in any thread, all commits durable, and none running."""

    def finish_backfill(self) -> None:
        """COMMIT, move the rest so that the write-ahead log restarts, BEGIN: on the loop, all durable."""

    def snapshot(self) -> IndexSnapshot:
        """A read view of the last commit, for one worker thread; not a snapshot of the volume."""

    def close(self) -> None:
        """Close. What was not committed is dropped, as when the process ends."""


class IndexSnapshot(Protocol):
    """A consistent, read-only view of a committed index."""

    def rows(self, table: str, *, first: tuple[int | bytes, ...]) -> Iterable[tuple[object, ...]]:
        """Rows of a checkpointed table in canonical key order from a key on (format/rows.py)."""

    def get_meta(self, key: str) -> int | bytes | None: ...

    def close(self) -> None: ...


class IndexFiles(Protocol):
    """The files of one index: opening, mending and starting over."""

    def open(self) -> Index:
        """Open it, or make an empty one. Raises DamagedError when the files are not an index of this key."""

    def drop_wal(self) -> None:
        """Remove the write-ahead log of the closed index: back to what was last moved into the database."""

    def remove(self) -> None:
        """Remove all files of the closed index, but what `doubt` noted."""

    def doubt(self) -> None:
        """Note, durably, that the write-ahead log is to be dropped unless `trust` follows."""

    def trust(self) -> None: ...
    def is_doubted(self) -> bool: ...
