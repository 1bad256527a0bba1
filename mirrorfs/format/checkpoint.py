"""Checkpoints: the rows of the index in canonical order, in chunks (docs/FORMAT.md, "Checkpoints").

A chunk holds the rows of one table from a key on, up to the first key of the next chunk. A root lists
the chunks; one that did not change since the last checkpoint is named again, not written again.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.ids import SegmentId
from mirrorfs.format.rows import (
    DentryRow,
    ExtentRow,
    FrameRow,
    InodeRow,
    RelocationRow,
    SegmentRow,
    XattrRow,
)

Row = InodeRow | DentryRow | XattrRow | ExtentRow | FrameRow | RelocationRow | SegmentRow
Key = tuple[int | bytes, ...]


class Table(NamedTuple):
    """How rows of one table are written: fixed fields first, then byte strings with their lengths."""

    code: int
    name: str
    row: type[Any]
    key: tuple[str, ...]
    """Names of the fields that order the rows; each is an unsigned integer or bytes."""
    fixed: struct.Struct
    fixed_fields: tuple[int, ...]
    blob_fields: tuple[int, ...]


def _table(
    code: int, name: str, row: type[Any], key: tuple[str, ...], fixed: str, blobs: tuple[str, ...]
) -> Table:
    names: tuple[str, ...] = row._fields
    fixed_fields = tuple(i for i, field in enumerate(names) if field not in blobs)
    return Table(
        code, name, row, key, struct.Struct(fixed), fixed_fields, tuple(names.index(b) for b in blobs)
    )


TABLES: tuple[Table, ...] = (
    _table(1, "inodes", InodeRow, ("inode",), "<QQIIIIQQQqqqQ", ("target",)),
    _table(2, "dentries", DentryRow, ("cookie",), "<QQQ", ("name",)),
    _table(3, "xattrs", XattrRow, ("inode", "name"), "<Q", ("name", "value")),
    _table(4, "extents", ExtentRow, ("inode", "chunk"), "<QQ", ("packed",)),
    _table(5, "frames", FrameRow, ("frame",), "<QIIIIQ", ()),
    _table(6, "relocations", RelocationRow, ("frame",), "<QBQIII", ()),
    _table(7, "segments", SegmentRow, ("sequence",), "<QIQBqq", ("writer", "digest")),
)
TABLE_BY_CODE = {table.code: table for table in TABLES}
TABLE_BY_NAME = {table.name: table for table in TABLES}

_BLOB = struct.Struct("<I")
_CHUNK = struct.Struct("<B3xI")
_ROOT = struct.Struct("<QQ32sqQQQII")
_REF = struct.Struct("<BB2xQQI8sIII32sI")


class ChunkRef(NamedTuple):
    """One chunk of a checkpoint: which rows, and where."""

    table: int
    first: Key
    """Key of its first row: (int,), (int, int) or (int, bytes)."""
    segment: SegmentId
    """The segment of the checkpoint stream that holds it."""
    ordinal: int
    offset: int
    size: int
    """Bytes of the whole frame."""
    digest: bytes
    """SHA-256 of the plaintext of the chunk."""
    rows: int


@dataclass(frozen=True, slots=True)
class Root:
    """A checkpoint: the whole index at a position."""

    position: int
    journal_sequence: int
    journal_hash: bytes
    time_ns: int
    """Commit time of the position."""
    next_inode: int
    next_generation: int
    next_cookie: int
    epoch: int
    """Highest epoch recorded up to the position."""
    chunks: Sequence[ChunkRef]


def encode_row(table: Table, row: Row) -> bytes:
    """One row, canonical."""
    parts = [table.fixed.pack(*[row[i] for i in table.fixed_fields])]
    for i in table.blob_fields:
        blob: Any = row[i]
        parts.append(_BLOB.pack(len(blob)))
        parts.append(blob)
    return b"".join(parts)


def encode_chunk(table: Table, rows: Sequence[bytes]) -> bytes:
    """The payload of a chunk frame from encoded rows."""
    return _CHUNK.pack(table.code, len(rows)) + b"".join(rows)


def decode_chunk(payload: bytes) -> tuple[Table, list[Row]]:
    """The inverse. Raises FormatError; rows out of order are refused."""
    if len(payload) < _CHUNK.size:
        raise FormatError("checkpoint chunk is cut short.")
    code, count = _CHUNK.unpack_from(payload)
    table = TABLE_BY_CODE.get(code)
    if table is None:
        raise FormatError("checkpoint table is reserved; a newer program wrote it.")
    rows: list[Row] = []
    position, end = _CHUNK.size, len(payload)
    width = len(table.row._fields)
    last: Key = ()
    for _ in range(count):
        if end - position < table.fixed.size:
            raise FormatError("checkpoint row is cut short.")
        fields: list[Any] = [None] * width
        for i, value in zip(table.fixed_fields, table.fixed.unpack_from(payload, position), strict=True):
            fields[i] = value
        position += table.fixed.size
        for i in table.blob_fields:
            if end - position < 4:
                raise FormatError("checkpoint row is cut short.")
            (length,) = _BLOB.unpack_from(payload, position)
            position += 4
            if length > end - position:
                raise FormatError("checkpoint row is cut short.")
            fields[i] = payload[position : position + length]
            position += length
        row: Row = table.row(*fields)
        key = row_key(table, row)
        if key <= last:
            raise FormatError("checkpoint rows are out of order.")
        last = key
        rows.append(row)
    if position != end:
        raise FormatError("checkpoint chunk has bytes left over.")
    return table, rows


def row_key(table: Table, row: Row) -> Key:
    """The key that orders rows of a table."""
    return tuple([getattr(row, name) for name in table.key])


def encode_root(root: Root) -> bytes:
    """The payload of a root: it may be spread over several root frames, in order."""
    parts = [
        _ROOT.pack(
            root.position,
            root.journal_sequence,
            root.journal_hash,
            root.time_ns,
            root.next_inode,
            root.next_generation,
            root.next_cookie,
            root.epoch,
            len(root.chunks),
        )
    ]
    for ref in root.chunks:
        second = ref.first[1] if len(ref.first) > 1 else 0
        name = second if isinstance(second, bytes) else b""
        number = 0 if isinstance(second, bytes) else second
        parts.append(
            _REF.pack(
                ref.table,
                len(ref.first),
                ref.first[0],
                number,
                ref.segment.epoch,
                ref.segment.writer,
                ref.ordinal,
                ref.offset,
                ref.size,
                ref.digest,
                ref.rows,
            )  # fmt: skip
            + struct.pack("<QH", ref.segment.sequence, len(name))
            + name
        )
    return b"".join(parts)


def decode_root(payload: bytes) -> Root:
    """The inverse. Raises FormatError."""
    try:
        position, sequence, digest, time_ns, inode, generation, cookie, epoch, count = _ROOT.unpack_from(
            payload
        )
        at = _ROOT.size
        chunks = []
        for _ in range(count):
            (code, width, key0, key1, c_epoch, writer, ordinal, offset, size, c_digest, rows) = (
                _REF.unpack_from(payload, at)
            )
            at += _REF.size
            c_sequence, length = struct.unpack_from("<QH", payload, at)
            at += 10
            name = payload[at : at + length]
            at += length
            table = TABLE_BY_CODE.get(code)
            if table is None or width != len(table.key) or len(name) != length:
                raise FormatError("checkpoint root names an unknown table.")
            first: Key = (key0,) if width == 1 else (key0, name if table.key[1] == "name" else key1)
            chunks.append(
                ChunkRef(
                    code, first, SegmentId(c_sequence, c_epoch, writer), ordinal, offset, size, c_digest, rows
                )
            )
    except struct.error:
        raise FormatError("checkpoint root is cut short.") from None
    if at != len(payload):
        raise FormatError("checkpoint root has bytes left over.")
    return Root(position, sequence, digest, time_ns, inode, generation, cookie, epoch, chunks)
