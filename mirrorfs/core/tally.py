"""What commits did, counted: the volume of change of a moment, an hour or a day."""

from __future__ import annotations

from collections.abc import Iterable

from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.record import (
    Create,
    Epoch,
    Extents,
    Link,
    Record,
    Removexattr,
    Rename,
    Setattr,
    Setxattr,
    SnapshotGone,
    Truncate,
    Unlink,
    unpack_pieces,
)


class Tally:
    """Counts of some commits that follow one another. Directories count as files do."""

    def __init__(self) -> None:
        self.moments = 0
        self.first_position = 0
        self.first_ns = 0
        self.last_position = 0
        self.last_ns = 0
        self.created = 0
        """New files."""
        self.deleted = 0
        """Names that were removed; one that a rename replaced is not among them."""
        self.renamed = 0
        self.linked = 0
        """Further names of files."""
        self.written_bytes = 0
        self.mounts = 0
        """Times that a writer began."""
        self.snapshots_deleted: list[str] = []
        """Their names."""
        self._new: set[int] = set()
        self._written: set[int] = set()
        self._touched: set[int] = set()

    @property
    def changed(self) -> int:
        """Files whose contents were written or cut, new ones left out."""
        return len(self._written - self._new)

    @property
    def attributes_changed(self) -> int:
        """Files of which only attributes changed: owner, permissions, times, extended attributes."""
        return len(self._touched - self._written - self._new)

    def add(self, records: Iterable[Record], *, position: int, time_ns: int) -> None:
        """Count one commit. Raises: FormatError."""
        if not self.moments:
            self.first_position, self.first_ns = position, time_ns
        self.moments += 1
        self.last_position, self.last_ns = position, time_ns
        for record in records:
            self._count(record)

    def _count(self, record: Record) -> None:
        match record:
            case Create():
                if record.inode != ROOT_INODE:
                    self.created += 1
                self._new.add(record.inode)
            case Extents() if record.size:  # else the bytes are those of before, in other frames
                self._written.add(record.inode)
                self.written_bytes += sum(piece.length for piece in unpack_pieces(record.pieces))
            case Truncate():
                self._written.add(record.inode)
            case Unlink():
                self.deleted += 1
            case Rename():
                self.renamed += 1
            case Link():
                self.linked += 1
            case Setattr() | Setxattr() | Removexattr():
                self._touched.add(record.inode)
            case Epoch():
                self.mounts += 1
            case SnapshotGone():
                self.snapshots_deleted.append(record.name.decode())
