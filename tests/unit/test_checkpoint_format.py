"""Checkpoint rows, chunks and roots: tables run both ways."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mirrorfs.errors import FormatError
from mirrorfs.format.checkpoint import (
    TABLE_BY_NAME,
    TABLES,
    ChunkRef,
    Root,
    Row,
    decode_chunk,
    decode_root,
    encode_chunk,
    encode_root,
    encode_row,
    row_key,
)
from mirrorfs.format.ids import SegmentId
from mirrorfs.format.limits import MOMENTS_MAX
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

WRITER = b"\x0a" * 8
ROWS: dict[str, list[Row]] = {
    "inodes": [
        InodeRow(1, 1, 0o40755, 0, 0, 2, 0, 0, 0, -1, -2, -3, 1, b""),
        InodeRow(2, 2, 0o120777, 1, 2, 1, 3, 0, 0, 4, 5, 6, 0, b"abc"),
    ],
    "dentries": [DentryRow(16, 1, b"a", 2), DentryRow(17, 1, "é".encode(), 3)],
    "xattrs": [XattrRow(1, b"user.a", b""), XattrRow(1, b"user.b", b"\0"), XattrRow(2, b"a", b"v" * 300)],
    "extents": [ExtentRow(1, 0, b"\0" * 20), ExtentRow(1, 1, b"\1" * 40), ExtentRow(2, 0, b"")],
    "frames": [FrameRow(0, 316, 100, 60, 0, 5), FrameRow(1 << 20, 316, 100, 60, 60, 0)],
    "relocations": [RelocationRow(1, 1, 2, 3, 4, 5), RelocationRow(2**62, 3, 2**42, 2**19, 4, 5)],
    "segments": [SegmentRow(0, 1, WRITER, 1 << 24, 1, b"\x0b" * 32, -1, 2)],
    "snapshots": [SnapshotRow(5, b"b", -1, 0), SnapshotRow(6, b"a", 2, 1), SnapshotRow(6, b"a b", 2, 0)],
    "moments": [
        MomentRow(5 << 20, 7, 2, WRITER, b"\x0c" * 32, -1, 0),
        MomentRow(6 << 20, 8, 2, WRITER, b"\x0d" * 32, 2, 1),
    ],
    "relocated": [
        RelocatedRow(0, 1, WRITER, 400, b"\x0e" * 32),
        RelocatedRow(2**42, 2, WRITER, 1 << 24, b"\x0f" * 32),
    ],
    "condemned": [
        CondemnedRow(1, 5, 2, WRITER, -1),
        CondemnedRow(3, 4, 2, WRITER, 1),
        CondemnedRow(3, 2**42, 2, WRITER, 1),
    ],
}
MOMENT = MomentRow(5, 7, 2, WRITER, bytes(32), 0, 0)
SEGMENT = RelocatedRow(5, 2, WRITER, 400, bytes(32))
REF = ChunkRef(1, (1,), SegmentId(4, 1, WRITER), 0, 316, 500, b"\x01" * 32, 10)
ROOT = Root(
    position=5 << 20,
    journal_sequence=9,
    journal_hash=b"\x02" * 32,
    time_ns=-7,
    next_inode=3,
    next_generation=3,
    next_cookie=20,
    epoch=2,
    chunks=[
        REF,
        REF._replace(first=(700,), ordinal=1, segment=SegmentId(2, 1, WRITER)),
        REF._replace(table=3, first=(1, b"user.name")),
        REF._replace(table=4, first=(1, 5)),
        REF._replace(table=4, first=(2, 0)),
        REF._replace(table=8, first=(6, b"a b")),
        REF._replace(table=9, first=(5 << 20,)),
        REF._replace(table=11, first=(1, 2**42)),
    ],
)


def chunk(name: str) -> bytes:
    table = TABLE_BY_NAME[name]
    return encode_chunk(table, [encode_row(table, row) for row in ROWS[name]])


@pytest.mark.parametrize("name", ROWS)
def test_chunk_round_trip(name: str) -> None:
    assert decode_chunk(chunk(name)) == (TABLE_BY_NAME[name], ROWS[name])


def test_every_table_is_tried() -> None:
    assert [table.name for table in TABLES] == list(ROWS)
    assert [table.code for table in TABLES] == list(range(1, 12))


def test_layout() -> None:
    row = DentryRow(cookie=16, parent=1, name=b"ab", inode=2)
    expected = "1000000000000000 0100000000000000 0200000000000000 02000000 6162"
    assert encode_row(TABLE_BY_NAME["dentries"], row) == bytes.fromhex(expected)
    assert row_key(TABLE_BY_NAME["xattrs"], XattrRow(1, b"n", b"v")) == (1, b"n")


@pytest.mark.parametrize("name", ROWS)
def test_every_cut(name: str) -> None:
    data = chunk(name)
    for size in range(len(data)):
        with pytest.raises(FormatError):
            decode_chunk(data[:size])
    with pytest.raises(FormatError):
        decode_chunk(data + b"\0")


@pytest.mark.parametrize("name", [name for name, rows in ROWS.items() if len(rows) > 1])
def test_order_is_canonical(name: str) -> None:
    table = TABLE_BY_NAME[name]
    rows = [encode_row(table, row) for row in ROWS[name]]
    for wrong in (rows[::-1], [rows[0], rows[0]]):
        with pytest.raises(FormatError):
            decode_chunk(encode_chunk(table, wrong))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("inodes", InodeRow(2**63, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b"")),
        ("inodes", InodeRow(1, 1, 0, 0, 0, 1, 2**63 - 1, 0, 0, 0, 0, 0, 0, b"")),
        ("inodes", InodeRow(1, 1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, b"t" * 4096)),
        ("dentries", DentryRow(16, 1, b"..", 2)),
        ("dentries", DentryRow(16, 1, b"a/b", 2)),
        ("xattrs", XattrRow(1, b"", b"")),
        ("xattrs", XattrRow(1, b"n", bytes(65537))),
        ("relocations", RelocationRow(1, 2, 2, 3, 4, 5)),
        ("segments", SegmentRow(0, 1, b"short", 400, 1, bytes(32), 0, 0)),
        ("segments", SegmentRow(0, 1, WRITER, 400, 2, bytes(32), 0, 0)),
        ("segments", SegmentRow(0, 1, WRITER, 400, 1, bytes(31), 0, 0)),
        ("snapshots", SnapshotRow(0, b"a", 0, 0)),
        ("snapshots", SnapshotRow(2**63, b"a", 0, 0)),
        ("snapshots", SnapshotRow(1, b"a", 0, 2)),
        ("snapshots", SnapshotRow(1, b"", 0, 0)),
        ("snapshots", SnapshotRow(1, b"a\x1bb", 0, 0)),
        ("moments", MOMENT._replace(position=0)),
        ("moments", MOMENT._replace(position=2**63)),
        ("moments", MOMENT._replace(sequence=2**43)),
        ("moments", MOMENT._replace(base=2)),
        ("moments", MOMENT._replace(writer=b"short")),
        ("moments", MOMENT._replace(digest=bytes(31))),
        ("relocated", SEGMENT._replace(sequence=2**43)),
        ("relocated", SEGMENT._replace(size=316)),
        ("relocated", SEGMENT._replace(size=(1 << 24) + 1)),
        ("relocated", SEGMENT._replace(writer=b"short")),
        ("relocated", SEGMENT._replace(digest=bytes(33))),
        ("condemned", CondemnedRow(2, 5, 2, WRITER, 0)),
        ("condemned", CondemnedRow(4, 5, 2, WRITER, 0)),
        ("condemned", CondemnedRow(1, 2**43, 2, WRITER, 0)),
        ("condemned", CondemnedRow(1, 5, 2, b"short", 0)),
    ],
)
def test_rows_out_of_range(name: str, row: Row) -> None:
    table = TABLE_BY_NAME[name]
    with pytest.raises(FormatError):
        decode_chunk(encode_chunk(table, [encode_row(table, row)]))


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\0\0\0\1\0\0\0",
        b"\x0b\0\0\0\1\0\0\0",
        b"\x0c\0\0\0\1\0\0\0",
        b"\x01\0\0\0\0\0\0\0",
        b"\x01\1\0\0\0\0\0\0",
    ],
)
def test_chunk_headers_that_are_none(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode_chunk(data)


def test_root_round_trip_and_every_cut() -> None:
    data = encode_root(ROOT)
    assert decode_root(data) == ROOT
    for size in range(len(data)):
        with pytest.raises(FormatError):
            decode_root(data[:size])
    with pytest.raises(FormatError):
        decode_root(data + b"\0")
    assert decode_root(encode_root(replace(ROOT, chunks=[]))).chunks == []


@pytest.mark.parametrize(
    "chunks",
    [
        [REF, REF],
        [REF._replace(first=(2,)), REF],
        [REF._replace(table=2), REF],
        [REF._replace(table=8)],
        [REF._replace(table=12)],
        [REF._replace(table=9, first=(1, 2))],
        [REF._replace(table=11, first=(1,))],
        [REF._replace(table=11, first=(1, b"name"))],
        [REF._replace(first=(1, 2))],
        [REF._replace(table=4, first=(1,))],
        [REF._replace(table=4, first=(1, b"name"))],
        [REF._replace(table=3, first=(1, 7))],
        [REF._replace(first=(2**63,))],
        [REF._replace(rows=0)],
        [REF._replace(segment=SegmentId(1 << 43, 1, WRITER))],
        [REF._replace(ordinal=1 << 20)],
    ],
)
def test_roots_that_cannot_be(chunks: list[ChunkRef]) -> None:
    with pytest.raises(FormatError):
        decode_root(encode_root(replace(ROOT, chunks=chunks)))


@pytest.mark.parametrize("at", [7, 15, 63, 71, 79, 90, 91])
def test_root_fields_out_of_range(at: int) -> None:
    data = bytearray(encode_root(ROOT))
    data[at] |= 0x80
    with pytest.raises(FormatError):
        decode_root(bytes(data))


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"a\0b", b"n" * 256])
def test_one_bad_name_among_many(name: bytes) -> None:
    rows = [DentryRow(16 + number, 1, b"n" * (number or 1), 2) for number in range(256)]
    table = TABLE_BY_NAME["dentries"]
    assert len(decode_chunk(encode_chunk(table, [encode_row(table, row) for row in rows]))[1]) == 256
    rows[100] = rows[100]._replace(name=name)
    with pytest.raises(FormatError):
        decode_chunk(encode_chunk(table, [encode_row(table, row) for row in rows]))


def test_one_base_and_so_many_moments() -> None:
    table = TABLE_BY_NAME["moments"]
    rows = [MOMENT._replace(position=number) for number in range(1, MOMENTS_MAX + 2)]
    encoded = [encode_row(table, row) for row in rows]
    assert len(decode_chunk(encode_chunk(table, encoded[:-1]))[1]) == MOMENTS_MAX
    with pytest.raises(FormatError, match="more moments"):
        decode_chunk(encode_chunk(table, encoded))
    with pytest.raises(FormatError):
        decode_chunk(encode_chunk(table, [encode_row(table, row._replace(base=1)) for row in rows[:2]]))


def test_numbers_out_of_range_in_a_later_row() -> None:
    rows = [FrameRow(number, 316, 100, 60, 60, 0) for number in range(50)]
    rows[40] = rows[40]._replace(death=2**63)
    table = TABLE_BY_NAME["frames"]
    with pytest.raises(FormatError):
        decode_chunk(encode_chunk(table, [encode_row(table, row) for row in rows]))
