"""Records: one logical change each, inside journal frames (docs/FORMAT.md, "Records").

One table drives both directions. Records are NamedTuples because one is built per filesystem call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.limits import (
    FILE_SIZE_MAX,
    FRAME_LENGTH_MAX,
    INTEGER_MAX,
    ROOT_INODE,
    TARGET_MAX,
    XATTR_NAME_MAX,
    XATTR_VALUE_MAX,
)
from mirrorfs.format.names import check_name, check_snapshot_name
from mirrorfs.format.retention import (
    Checkpointed,
    Collected,
    Deleted,
    Relocated,
    Retain,
    check_checkpointed,
    check_collected,
    check_relocated,
    check_retain,
)


class Epoch(NamedTuple):
    """A writer began: the first record of each mount."""

    epoch: int
    time_ns: int
    writer: bytes


class Create(NamedTuple):
    """A new inode under a new name: file, directory, link, node."""

    parent: int
    inode: int
    generation: int
    cookie: int
    mode: int
    uid: int
    gid: int
    rdev: int
    time_ns: int
    name: bytes
    target: bytes


class Link(NamedTuple):
    """A further name of an inode that is not a directory."""

    inode: int
    parent: int
    cookie: int
    time_ns: int
    name: bytes


class Unlink(NamedTuple):
    """A name goes, of a file or of an empty directory."""

    parent: int
    time_ns: int
    name: bytes


class Rename(NamedTuple):
    """A name moves, replacing what the new name named (exchange 0), or both swap (exchange 1)."""

    parent: int
    new_parent: int
    cookie: int
    time_ns: int
    exchange: int
    name: bytes
    new_name: bytes


class Setattr(NamedTuple):
    """Attributes named by `mask` change; the others are 0."""

    inode: int
    mask: int
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Truncate(NamedTuple):
    """The file's size becomes `size`; extents beyond go."""

    inode: int
    size: int


class Extents(NamedTuple):
    """Bytes of a file are now in data frames; the size grows to at least `size`.

    With size 0 they are the bytes that were there before, moved to other frames: the file has not changed.
    """

    inode: int
    size: int
    pieces: bytes
    """Packed pieces: see `pack_pieces`."""


class Setxattr(NamedTuple):
    inode: int
    time_ns: int
    name: bytes
    value: bytes


class Removexattr(NamedTuple):
    inode: int
    time_ns: int
    name: bytes


class Forget(NamedTuple):
    """An inode without names and without users is removed."""

    inode: int


class Snapshot(NamedTuple):
    """The tree as of the commit that this is in gets a name; or a snapshot is held, or is so no more."""

    time_ns: int
    held: int
    name: bytes


class SnapshotGone(NamedTuple):
    """A snapshot that is not held is deleted; the moment itself is none the less there."""

    time_ns: int
    name: bytes


Record = (
    Epoch
    | Create
    | Link
    | Unlink
    | Rename
    | Setattr
    | Truncate
    | Extents
    | Setxattr
    | Removexattr
    | Forget
    | Snapshot
    | SnapshotGone
    | Checkpointed
    | Retain
    | Relocated
    | Collected
    | Deleted
)

_WRITER_SIZE = 8
SET_MODE, SET_UID, SET_GID, SET_ATIME, SET_MTIME, SET_CTIME = 1, 2, 4, 8, 16, 32


class Piece(NamedTuple):
    """length bytes at `offset` of the file are at `frame_offset` of the plaintext of `frame`."""

    offset: int
    length: int
    frame: int
    frame_offset: int


_PIECE = struct.Struct("<QIQI")
_HEAD = struct.Struct("<BI")
_BLOB = struct.Struct("<I")

# type code -> (class, fixed fields, number of byte strings that follow). Codes 0, 19..255 are reserved:
# a reader refuses them, for a change it does not know cannot be skipped.
_TABLE: dict[int, tuple[type[Any], struct.Struct, int]] = {
    1: (Epoch, struct.Struct("<Iq"), 1),
    2: (Create, struct.Struct("<QQQQIIIQq"), 2),
    3: (Link, struct.Struct("<QQQq"), 1),
    4: (Unlink, struct.Struct("<Qq"), 1),
    5: (Rename, struct.Struct("<QQQqB"), 2),
    6: (Setattr, struct.Struct("<QBIIIqqq"), 0),
    7: (Truncate, struct.Struct("<QQ"), 0),
    8: (Extents, struct.Struct("<QQ"), 1),
    9: (Setxattr, struct.Struct("<Qq"), 2),
    10: (Removexattr, struct.Struct("<Qq"), 1),
    11: (Forget, struct.Struct("<Q"), 0),
    12: (Snapshot, struct.Struct("<qB"), 1),
    13: (SnapshotGone, struct.Struct("<q"), 1),
    14: (Checkpointed, struct.Struct("<QqQI"), 2),
    15: (Retain, struct.Struct("<Q"), 1),
    16: (Relocated, struct.Struct("<QIQ"), 3),
    17: (Collected, struct.Struct("<Bq"), 1),
    18: (Deleted, struct.Struct("<B"), 1),
}
_BY_CLASS: dict[type[Any], tuple[int, Callable[..., bytes], int, int]] = {
    cls: (code, fixed.pack, fixed.size, blobs) for code, (cls, fixed, blobs) in _TABLE.items()
}
_INTS = {cls: len(cls._fields) - blobs for cls, _, blobs in _TABLE.values()}


def pack_pieces(pieces: Sequence[Piece]) -> bytes:
    """Pieces as 24 bytes each."""
    return b"".join([_PIECE.pack(*piece) for piece in pieces])


def unpack_pieces(packed: bytes) -> list[Piece]:
    """The inverse. Raises FormatError: a piece is cut short, empty, or beyond its frame or any file."""
    if len(packed) % _PIECE.size:
        raise FormatError("extents record has a piece cut short.")
    pieces = [Piece._make(piece) for piece in _PIECE.iter_unpack(packed)]
    for offset, length, frame, frame_offset in pieces:
        if (
            not length
            or frame_offset + length > FRAME_LENGTH_MAX
            or offset + length > FILE_SIZE_MAX
            or frame > INTEGER_MAX
        ):
            raise FormatError("extents record has a piece out of range.")
    return pieces


def encode_record(record: Record) -> bytes:
    """A record as bytes: type, length of what follows, fixed fields, byte strings with their lengths."""
    cls = type(record)
    code, pack, size, _ = _BY_CLASS[cls]
    ints = _INTS[cls]
    parts = [b"", pack(*record[:ints])]
    blobs: tuple[bytes, ...] = record[ints:]  # type: ignore[assignment]  # the table says so
    for blob in blobs:
        size += 4 + len(blob)
        parts.append(_BLOB.pack(len(blob)))
        parts.append(blob)
    parts[0] = _HEAD.pack(code, size)
    return b"".join(parts)


def count_records(data: bytes) -> int:
    """How many records there are, going by their heads alone. Raises FormatError: one is cut short."""
    position, end, count = 0, len(data), 0
    while position < end:
        if end - position < _HEAD.size:
            raise FormatError("record head is cut short.")
        position += _HEAD.size + _HEAD.unpack_from(data, position)[1]
        count += 1
    if position != end:
        raise FormatError("record is cut short.")
    return count


def decode_records(data: bytes) -> Iterator[Record]:
    """The records of a journal payload. Raises FormatError at the first that does not parse."""
    position, end = 0, len(data)
    while position < end:
        if end - position < _HEAD.size:
            raise FormatError("record head is cut short.")
        code, size = _HEAD.unpack_from(data, position)
        position += _HEAD.size
        entry = _TABLE.get(code)
        if entry is None:
            raise FormatError(f"record type {code} is reserved; a newer program wrote it.")
        if size > end - position:
            raise FormatError("record is cut short.")
        yield _decode(code, entry, data, position, size)
        position += size


def _decode(
    code: int, entry: tuple[type[Any], struct.Struct, int], data: bytes, position: int, size: int
) -> Record:
    cls, fixed, blobs = entry
    end = position + size
    if size < fixed.size:
        raise FormatError("record fields are cut short.")
    fields = list(fixed.unpack_from(data, position))
    if max(fields) > INTEGER_MAX:
        raise FormatError("record has a number out of range.")
    position += fixed.size
    for _ in range(blobs):
        if end - position < 4:
            raise FormatError("record string is cut short.")
        (length,) = _BLOB.unpack_from(data, position)
        position += 4
        if length > end - position:
            raise FormatError("record string is cut short.")
        fields.append(data[position : position + length])
        position += length
    if position != end:
        raise FormatError("record has bytes left over.")
    record: Record = cls(*fields)
    check = _CHECKS.get(code)
    if check is not None:
        check(record)
    return record


def _check_epoch(r: Epoch) -> None:
    if len(r.writer) != _WRITER_SIZE:
        raise FormatError("epoch record has a writer of another length.")


def _check_create(r: Create) -> None:
    # The root is the one inode without a name.
    if r.inode != ROOT_INODE:
        check_name(r.name)
    elif r.name:
        raise FormatError("create record names the root.")
    if len(r.target) > TARGET_MAX:
        raise FormatError("create record has a target that is too long.")


def _check_entry(r: Link | Unlink) -> None:
    check_name(r.name)


def _check_rename(r: Rename) -> None:
    check_name(r.name)
    check_name(r.new_name)
    if r.exchange > 1:
        raise FormatError("rename record has reserved values.")


def _check_setattr(r: Setattr) -> None:
    if not 0 < r.mask <= _MASK_ALL:
        raise FormatError("setattr record has reserved bits set; a newer program wrote it.")


def _check_size(r: Truncate | Extents) -> None:
    if r.size > FILE_SIZE_MAX:
        raise FormatError("record has a file size out of range.")


def check_xattr(name: bytes, value: bytes) -> None:
    """Raises FormatError: not 1..255 bytes without NUL, or a value beyond 64 KiB."""
    if not 0 < len(name) <= XATTR_NAME_MAX or b"\0" in name or len(value) > XATTR_VALUE_MAX:
        raise FormatError("an extended attribute in the log is out of range.")


def _check_setxattr(r: Setxattr | Removexattr) -> None:
    check_xattr(r.name, r.value if isinstance(r, Setxattr) else b"")


def _check_snapshot(r: Snapshot) -> None:
    check_snapshot_name(r.name)
    if r.held > 1:
        raise FormatError("snapshot record has reserved values.")


def _check_snapshot_gone(r: SnapshotGone) -> None:
    check_snapshot_name(r.name)


_MASK_ALL = SET_MODE | SET_UID | SET_GID | SET_ATIME | SET_MTIME | SET_CTIME
_CHECKS: dict[int, Callable[[Any], None]] = {
    1: _check_epoch,
    2: _check_create,
    3: _check_entry,
    4: _check_entry,
    5: _check_rename,
    6: _check_setattr,
    7: _check_size,
    8: _check_size,
    9: _check_setxattr,
    10: _check_setxattr,
    12: _check_snapshot,
    13: _check_snapshot_gone,
    14: check_checkpointed,
    15: check_retain,
    16: check_relocated,
    17: check_collected,
    18: check_collected,
}
