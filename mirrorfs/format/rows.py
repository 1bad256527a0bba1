"""Rows of the index, and their canonical encoding in checkpoints (docs/FORMAT.md, "Checkpoints").

Rows are NamedTuples: they are built once per filesystem request, where a frozen dataclass costs
three times as much.
"""

from __future__ import annotations

from typing import NamedTuple


class InodeRow(NamedTuple):
    """One inode. Times are signed nanoseconds since the epoch."""

    inode: int
    generation: int
    mode: int
    """File type and permission bits, as st_mode."""
    uid: int
    gid: int
    nlink: int
    size: int
    """Bytes; what the journal knows, so unsealed dirty data is not in it."""
    allocated: int
    """Bytes that extents map."""
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: int
    """For directories: the inode of '..'. 0 for all else."""
    target: bytes
    """For symbolic links: the target. Empty for all else."""


class DentryRow(NamedTuple):
    """One name in a directory. The cookie is unique in the volume and never reused."""

    cookie: int
    parent: int
    name: bytes
    inode: int


class XattrRow(NamedTuple):
    inode: int
    name: bytes
    value: bytes


class ExtentRow(NamedTuple):
    """The packed extents of one 1 MiB chunk of a file."""

    inode: int
    chunk: int
    packed: bytes


class FrameRow(NamedTuple):
    """One data frame under its stable name."""

    frame: int
    """Stable id: birth sequence << 20 | birth ordinal."""
    offset: int
    """Offset of the frame header in its birth segment."""
    size: int
    """Bytes of header and sealed body."""
    length: int
    """Bytes of plaintext."""
    live: int
    """Plaintext bytes that extents refer to at this position."""
    death: int
    """Position (frame id of a journal frame) at which live fell to 0; 0 while alive."""


class RelocationRow(NamedTuple):
    """Where a frame lies now, when that is not its birth place."""

    frame: int
    stream: int
    sequence: int
    ordinal: int
    offset: int
    size: int


class SegmentRow(NamedTuple):
    """A closed segment of the main stream that the chain names."""

    sequence: int
    epoch: int
    writer: bytes
    size: int
    """Bytes: of the whole object when sealed, up to the cut when not."""
    sealed: int
    """1 when it ends with a trailer, 0 when the next header attests its cut."""
    digest: bytes
    """SHA-256 of those bytes, as the next header attests."""
    first_ns: int
    last_ns: int
    """Commit times of the first and last journal frame."""


class MomentRow(NamedTuple):
    """A position that a checkpoint holds: it can be returned to when the log before it is gone."""

    position: int
    """Of the checkpoint."""
    sequence: int
    """Of the checkpoint segment that holds its root; so are epoch and writer."""
    epoch: int
    writer: bytes
    digest: bytes
    """SHA-256 of that segment, all of it."""
    time_ns: int
    """Commit time of the position."""
    base: int
    """1 of the one from which on every moment can be returned to; 0 of all others."""


class RelocatedRow(NamedTuple):
    """A segment of the relocated stream that is in use."""

    sequence: int
    epoch: int
    writer: bytes
    size: int
    """Bytes of the whole object."""
    digest: bytes
    """SHA-256 of all of it."""


class CondemnedRow(NamedTuple):
    """A segment that nothing refers to any more, and that the stores may still have."""

    stream: int
    sequence: int
    epoch: int
    writer: bytes
    time_ns: int
    """When it was condemned."""


class ContentRow(NamedTuple):
    """Bytes that a file had when they were stored. Local knowledge, in no checkpoint."""

    digest: bytes
    """Keyed, of the bytes (format/content.py)."""
    frame: int
    frame_offset: int
    """Where in the frame's plaintext they begin."""
    inode: int
    chunk: int
    """The chunk of the file that began with them."""


class SnapshotRow(NamedTuple):
    """A named position."""

    position: int
    """Frame id of the journal frame that ended the commit with its name. In the index, and not longer than
    the commit is under way: 0."""
    name: bytes
    time_ns: int
    """When it was made."""
    held: int
    """1 while it cannot be deleted, else 0."""
