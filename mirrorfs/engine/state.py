"""What the parts of a mounted volume share: the index, the records not yet logged, the dirty files.

Invariants
- A change is one synchronous step: `record` applies it to the index and appends it to `pending`, and
  nothing awaits in between. So the open transaction of the index always equals the log plus `pending`.
- `dirty_bytes` is the sum of all bytes in memory that no journal frame names yet.
"""

from __future__ import annotations

from mirrorfs.core.dirty import DirtyRanges
from mirrorfs.core.grouping import DirtyPiece
from mirrorfs.core.sense import Sense
from mirrorfs.engine.apply import Applier
from mirrorfs.errors import ReadOnlyVolume, WritesStopped
from mirrorfs.format.record import Record, encode_record
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Clock, Index

MIB = 1024 * 1024


class DirtyFile:
    """Bytes of one file on their way into the log.

    Layers, oldest first: `sealing` (in frames being built), `frozen` (a commit will take all of it),
    `ranges` (what comes in now). A read lays them over the file in this order.
    """

    __slots__ = ("frozen", "inode", "parent", "ranges", "sealing", "size", "uid")

    def __init__(self, inode: int, *, uid: int, parent: int) -> None:
        self.inode = inode
        self.uid = uid
        self.parent = parent
        self.ranges = DirtyRanges()
        self.frozen = DirtyRanges()
        self.sealing: list[DirtyPiece] = []
        self.size = 0
        """Highest end of a write since the file became dirty, cut by truncates."""

    @property
    def waiting_bytes(self) -> int:
        """Bytes not yet on their way into a frame."""
        return self.ranges.size_bytes + self.frozen.size_bytes

    def freeze(self) -> int:
        """Set everything dirty now apart, so that a commit knows when it has all of it.

        Returns the older bytes that newer ones replaced.
        """
        before = self.waiting_bytes
        if not self.frozen:
            self.frozen, self.ranges = self.ranges, self.frozen
        else:
            # The older layer stays below: move the newer ranges over it.
            for offset, data in self.ranges.take(self.ranges.size_bytes):
                self.frozen.write(offset, bytes(data))
        return before - self.waiting_bytes

    def truncate(self, size: int) -> int:
        """Cut every layer. Returns the bytes dropped from the waiting ones."""
        before = self.waiting_bytes
        self.ranges.truncate(size)
        self.frozen.truncate(size)
        for piece in self.sealing:
            piece.length = max(0, min(piece.length, size - piece.offset))
        self.size = size
        return before - self.waiting_bytes

    def read_into(self, buffer: bytearray, offset: int) -> None:
        """Lay all layers over `buffer`, which starts at `offset` of the file."""
        end = offset + len(buffer)
        for piece in self.sealing:
            low, high = max(piece.offset, offset), min(piece.offset + piece.length, end)
            if low < high:
                buffer[low - offset : high - offset] = piece.data[low - piece.offset : high - piece.offset]
        self.frozen.read_into(buffer, offset)
        self.ranges.read_into(buffer, offset)


class VolumeState:
    """The shared state of one mounted volume."""

    def __init__(self, index: Index, clock: Clock, *, read_only: bool) -> None:
        self.index = index
        self.clock = clock
        self.read_only = read_only
        self.applier = Applier(index)
        self.pending: list[bytes] = []
        self.pending_bytes = 0
        self.dirty: dict[int, DirtyFile] = {}
        self.dirty_bytes = 0
        self.named: set[int] = set()
        """Inodes whose data must be in the log before the next journal frame (the order that holds)."""
        self.writers: dict[int, int] = {}
        """Open handles for writing, by inode."""
        self.truncated: set[int] = set()
        """Inodes truncated while open for writing: at the last close their data has to go first."""
        self.parent_of: dict[int, int] = {}
        """Directory of recently created files, so that neighbours share frames; a hint only."""
        self.written_ns = 0
        """CLOCK_BOOTTIME of the last write or fsync."""
        self.sense = Sense()
        """Hears of what files lose and get."""
        self.fatal: str | None = None
        self.stalled = False
        """The local disk is full: nothing new is accepted until what is in memory is durable."""

    def check_writable(self) -> None:
        """Raises ReadOnlyVolume, WritesStopped."""
        if self.read_only:
            raise ReadOnlyVolume("The volume is mounted read-only.")
        if self.fatal is not None:
            raise WritesStopped(self.fatal)

    def record(self, record: Record) -> None:
        """Carry out one change and queue it for the journal, in one step."""
        self.applier.apply(record)
        data = encode_record(record)
        self.pending.append(data)
        self.pending_bytes += len(data)

    def live(self, row: InodeRow) -> InodeRow:
        """A row with what is still dirty counted in."""
        dirty = self.dirty.get(row.inode)
        if dirty is None:
            return row
        return row._replace(
            size=max(row.size, dirty.size),
            allocated=row.allocated + dirty.waiting_bytes + sum(piece.length for piece in dirty.sealing),
        )

    def live_size(self, row: InodeRow) -> int:
        """Size of the file with what is still dirty."""
        dirty = self.dirty.get(row.inode)
        return row.size if dirty is None else max(row.size, dirty.size)

    def drop_if_clean(self, dirty: DirtyFile) -> None:
        """Forget a file all of whose bytes are named by records."""
        if not dirty.sealing and not dirty.ranges and not dirty.frozen:
            self.dirty.pop(dirty.inode, None)
            self.named.discard(dirty.inode)
