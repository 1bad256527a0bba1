"""Checkpoints: the rows of the index in canonical order, in chunks (docs/FORMAT.md, "Checkpoints").

A chunk holds the rows of one table from a key on, up to the first key of the next chunk. A root lists
the chunks; one that did not change since the last checkpoint is named again, not written again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import lt
from typing import Any, NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.ids import SegmentId, Stream
from mirrorfs.format.limits import (
    FILE_SIZE_MAX,
    INTEGER_MAX,
    MOMENTS_MAX,
    ORDINAL_MAX,
    SEGMENT_SIZE_MAX,
    SEQUENCE_MAX,
    SNAPSHOTS_MAX,
    TARGET_MAX,
)
from mirrorfs.format.names import check_names, check_snapshot_name
from mirrorfs.format.record import check_xattr
from mirrorfs.format.rows import (
    CondemnedRow,
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
from mirrorfs.format.segment import HEADER_SIZE

Row = (
    InodeRow | DentryRow | XattrRow | ExtentRow | FrameRow | RelocationRow | SegmentRow | SnapshotRow
    | MomentRow | RelocatedRow | CondemnedRow
)  # fmt: skip
Key = tuple[int | bytes, ...]
Fields = tuple[int | bytes, ...]
"""The fields of a row, in its order."""
Columns = Sequence[tuple[Any, ...]]
"""The same fields of all rows of a chunk, field by field."""


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
    wide_fields: tuple[int, ...]
    """Those of the fixed fields whose 64 bits can hold more than INTEGER_MAX."""


def _table(
    code: int, name: str, row: type[Any], key: tuple[str, ...], fixed: str, blobs: tuple[str, ...]
) -> Table:
    names: tuple[str, ...] = row._fields
    fixed_fields = tuple(i for i, field in enumerate(names) if field not in blobs)
    codes = zip(fixed_fields, fixed.removeprefix("<"), strict=True)
    return Table(
        code, name, row, key, struct.Struct(fixed), fixed_fields, tuple(names.index(b) for b in blobs),
        tuple(i for i, code in codes if code == "Q"),
    )  # fmt: skip


TABLES: tuple[Table, ...] = (
    _table(1, "inodes", InodeRow, ("inode",), "<QQIIIIQQQqqqQ", ("target",)),
    _table(2, "dentries", DentryRow, ("cookie",), "<QQQ", ("name",)),
    _table(3, "xattrs", XattrRow, ("inode", "name"), "<Q", ("name", "value")),
    _table(4, "extents", ExtentRow, ("inode", "chunk"), "<QQ", ("packed",)),
    _table(5, "frames", FrameRow, ("frame",), "<QIIIIQ", ()),
    _table(6, "relocations", RelocationRow, ("frame",), "<QBQIII", ()),
    _table(7, "segments", SegmentRow, ("sequence",), "<QIQBqq", ("writer", "digest")),
    _table(8, "snapshots", SnapshotRow, ("position", "name"), "<QqB", ("name",)),
    _table(9, "moments", MomentRow, ("position",), "<QQIqB", ("writer", "digest")),
    _table(10, "relocated", RelocatedRow, ("sequence",), "<QIQ", ("writer", "digest")),
    _table(11, "condemned", CondemnedRow, ("stream", "sequence"), "<QQIq", ("writer",)),
)
TABLE_BY_CODE = {table.code: table for table in TABLES}
TABLE_BY_NAME = {table.name: table for table in TABLES}

_BLOB = struct.Struct("<I")
_WRITER_SIZE = 8
_DIGEST_SIZE = 32
_CHUNK = struct.Struct("<B3sI")
_ROOT = struct.Struct("<QQ32sqQQQII")
_REF = struct.Struct("<BB2sQQI8sIII32sIQH")


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
    return _CHUNK.pack(table.code, bytes(3), len(rows)) + b"".join(rows)


def decode_chunk(payload: bytes) -> tuple[Table, list[Row]]:
    """The inverse. Raises FormatError; rows out of order are refused."""
    table, rows = decode_fields(payload)
    make: Callable[[Sequence[Any]], Row] = table.row._make
    return table, [make(row) for row in rows]


def decode_fields(payload: bytes) -> tuple[Table, list[Fields]]:
    """`decode_chunk` with rows that are plain tuples of the same fields: a third of its time.

    A mount on a new machine decodes millions of rows. So what can be checked of a whole column at once is
    checked so: rules are those of single rows all the same.
    """
    if len(payload) < _CHUNK.size:
        raise FormatError("checkpoint chunk is cut short.")
    code, reserved, count = _CHUNK.unpack_from(payload)
    table = TABLE_BY_CODE.get(code)
    if table is None or any(reserved):
        raise FormatError("checkpoint table is reserved; a newer program wrote it.")
    if not count:
        raise FormatError("checkpoint chunk is empty.")
    rows = _split(table, payload, count)
    columns = list(zip(*rows, strict=True))
    for number in table.wide_fields:
        if max(columns[number]) > INTEGER_MAX:
            raise FormatError("checkpoint row has a number out of range.")
    keys = columns[0] if len(table.key) == 1 else list(zip(columns[0], columns[1], strict=True))
    if not all(map(lt, keys, islice(keys, 1, None))):
        raise FormatError("checkpoint rows are out of order.")
    check = _COLUMN_CHECKS.get(code)
    if check is not None:
        check(columns)
    return table, rows


def _split(table: Table, payload: bytes, count: int) -> list[Fields]:
    if len(table.blob_fields) == 1:
        return _split_at_blob(table, payload, count)
    rows: list[Fields] = []
    unpack, size = table.fixed.unpack_from, table.fixed.size
    at = _CHUNK.size
    try:
        for _ in range(count):
            fields = [*unpack(payload, at)]
            at += size
            for number in table.blob_fields:
                (length,) = _BLOB.unpack_from(payload, at)
                start = at + _BLOB.size
                at = start + length
                fields.insert(number, payload[start:at])
            rows.append(tuple(fields))
    except struct.error:
        raise FormatError("checkpoint row is cut short.") from None
    _check_end(payload, at)
    return rows


def _split_at_blob(table: Table, payload: bytes, count: int) -> list[Fields]:
    """Of tables with one byte string, nearly all rows there are: fields and its length in one go."""
    rows: list[Fields] = []
    head = struct.Struct(f"{table.fixed.format}{_BLOB.format[1:]}")
    unpack, size = head.unpack_from, head.size
    (number,) = table.blob_fields
    at = _CHUNK.size
    try:
        for _ in range(count):
            fields = unpack(payload, at)
            start = at + size
            at = start + fields[-1]
            rows.append((*fields[:number], payload[start:at], *fields[number:-1]))
    except struct.error:
        raise FormatError("checkpoint row is cut short.") from None
    _check_end(payload, at)
    return rows


def _check_end(payload: bytes, at: int) -> None:
    # A byte string that goes beyond the end was cut by its slice, and is noticed here.
    if at > len(payload):
        raise FormatError("checkpoint row is cut short.")
    if at < len(payload):
        raise FormatError("checkpoint chunk has bytes left over.")


def _check_inodes(columns: Columns) -> None:
    if max(map(len, columns[_TARGET])) > TARGET_MAX or max(columns[_SIZE]) > FILE_SIZE_MAX:
        raise FormatError("checkpoint row describes an impossible inode.")


def _check_dentries(columns: Columns) -> None:
    check_names(columns[_NAME])


def _check_xattrs(columns: Columns) -> None:
    for name, value in zip(columns[1], columns[2], strict=True):
        check_xattr(name, value)


def _check_relocations(columns: Columns) -> None:
    if not {Stream.MAIN, Stream.RELOCATED}.issuperset(columns[1]):
        raise FormatError("checkpoint row names a stream that holds no data.")


def _check_segments(columns: Columns) -> None:
    for row in zip(*columns, strict=True):
        segment = SegmentRow._make(row)
        if len(segment.writer) != _WRITER_SIZE or len(segment.digest) != _DIGEST_SIZE or segment.sealed > 1:
            raise FormatError("checkpoint row describes an impossible segment.")


def _check_snapshots(columns: Columns) -> None:
    positions, names, _, held = columns
    for name in names:
        check_snapshot_name(name)
    if not positions[0] or max(held) > 1 or len(names) > SNAPSHOTS_MAX:
        raise FormatError("checkpoint row describes an impossible snapshot.")


def _check_moments(columns: Columns) -> None:
    positions, sequences, _, writers, digests, _, bases = columns
    if not positions[0] or max(sequences) > SEQUENCE_MAX or max(bases) > 1 or sum(bases) > 1:
        raise FormatError("checkpoint row describes an impossible moment.")
    if len(positions) > MOMENTS_MAX:
        raise FormatError("checkpoint has more moments than a volume can have.")
    _check_names(writers, digests)


def _check_relocated(columns: Columns) -> None:
    sequences, _, writers, sizes, digests = columns
    if max(sequences) > SEQUENCE_MAX or min(sizes) <= HEADER_SIZE or max(sizes) > SEGMENT_SIZE_MAX:
        raise FormatError("checkpoint row describes an impossible segment.")
    _check_names(writers, digests)


def _check_condemned(columns: Columns) -> None:
    if not {Stream.MAIN, Stream.RELOCATED}.issuperset(columns[0]) or max(columns[1]) > SEQUENCE_MAX:
        raise FormatError("checkpoint row condemns an impossible segment.")
    _check_names(columns[3], ())


def _check_names(writers: Sequence[bytes], digests: Sequence[bytes]) -> None:
    if {*map(len, writers)} - {_WRITER_SIZE} or {*map(len, digests)} - {_DIGEST_SIZE}:
        raise FormatError("checkpoint row describes an impossible segment.")


_TARGET, _SIZE = InodeRow._fields.index("target"), InodeRow._fields.index("size")
_NAME = DentryRow._fields.index("name")
_COLUMN_CHECKS: dict[int, Callable[[Columns], None]] = {
    1: _check_inodes,
    2: _check_dentries,
    3: _check_xattrs,
    6: _check_relocations,
    7: _check_segments,
    8: _check_snapshots,
    9: _check_moments,
    10: _check_relocated,
    11: _check_condemned,
}


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
        fields = (
            ref.table, len(ref.first), bytes(2), ref.first[0], number, ref.segment.epoch, ref.segment.writer,
            ref.ordinal, ref.offset, ref.size, ref.digest, ref.rows, ref.segment.sequence, len(name),
        )  # fmt: skip
        parts.append(_REF.pack(*fields) + name)
    return b"".join(parts)


def decode_root(payload: bytes) -> Root:
    """The inverse. Raises FormatError."""
    if len(payload) < _ROOT.size:
        raise FormatError("checkpoint root is cut short.")
    position, journal, digest, time_ns, inode, generation, cookie, epoch, count = _ROOT.unpack_from(payload)
    if max(position, journal, inode, generation, cookie) > INTEGER_MAX:
        raise FormatError("checkpoint root has a number out of range.")
    at = _ROOT.size
    chunks: list[ChunkRef] = []
    last: tuple[int, Key] = (0, ())
    for _ in range(count):
        ref, at = _decode_ref(payload, at)
        if (ref.table, ref.first) <= last:
            raise FormatError("checkpoint root lists chunks out of order.")
        last = ref.table, ref.first
        chunks.append(ref)
    if at != len(payload):
        raise FormatError("checkpoint root has bytes left over.")
    return Root(position, journal, digest, time_ns, inode, generation, cookie, epoch, chunks)


def _decode_ref(payload: bytes, at: int) -> tuple[ChunkRef, int]:
    if len(payload) - at < _REF.size:
        raise FormatError("checkpoint root is cut short.")
    (
        code, width, reserved, key0, key1, epoch, writer,
        ordinal, offset, size, digest, rows, sequence, length,
    ) = _REF.unpack_from(payload, at)  # fmt: skip
    at += _REF.size
    name = payload[at : at + length]
    table = TABLE_BY_CODE.get(code)
    if table is None or width != len(table.key) or any(reserved) or len(name) != length:
        raise FormatError("checkpoint root names an unknown table.")
    named = table.key[-1] == "name"
    if (name and not named) or (key1 and (named or width == 1)) or max(key0, key1) > INTEGER_MAX:
        raise FormatError("checkpoint root has a key that its table has not.")
    if sequence > SEQUENCE_MAX or ordinal > ORDINAL_MAX or not rows:
        raise FormatError("checkpoint root names an impossible chunk.")
    first: Key = (key0,) if width == 1 else (key0, name if named else key1)
    segment = SegmentId(sequence, epoch, writer)
    return ChunkRef(code, first, segment, ordinal, offset, size, digest, rows), at + length
