"""Records: one logical change each, inside journal frames (docs/FORMAT.md, "Records").

One table drives both directions. Records are NamedTuples because one is built per filesystem call.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mirrorfs.errors import FormatError


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
    """Bytes of a file are now in data frames; the size grows to at least `size`."""

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


Record = (
    Epoch | Create | Link | Unlink | Rename | Setattr | Truncate | Extents | Setxattr | Removexattr | Forget
)

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

# type code -> (class, fixed fields, number of byte strings that follow). Codes 0, 12..255 are reserved:
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
}
_BY_CLASS: dict[type[Any], tuple[int, Callable[..., bytes], int, int]] = {
    cls: (code, fixed.pack, fixed.size, blobs) for code, (cls, fixed, blobs) in _TABLE.items()
}
_INTS = {cls: len(cls._fields) - blobs for cls, _, blobs in _TABLE.values()}


def pack_pieces(pieces: Sequence[Piece]) -> bytes:
    """Pieces as 24 bytes each."""
    return b"".join([_PIECE.pack(*piece) for piece in pieces])


def unpack_pieces(packed: bytes) -> list[Piece]:
    """The inverse. Raises FormatError when the length is not a multiple of 24."""
    if len(packed) % _PIECE.size:
        raise FormatError("extents record has a piece cut short.")
    return [Piece._make(piece) for piece in _PIECE.iter_unpack(packed)]


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
        yield _decode(entry, data, position, size)
        position += size


def _decode(entry: tuple[type[Any], struct.Struct, int], data: bytes, position: int, size: int) -> Record:
    cls, fixed, blobs = entry
    end = position + size
    if size < fixed.size:
        raise FormatError("record fields are cut short.")
    fields = list(fixed.unpack_from(data, position))
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
    return record
