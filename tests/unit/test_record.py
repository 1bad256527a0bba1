"""Records: one table runs both ways, and every cut is refused."""

from __future__ import annotations

import struct

import pytest

from mirrorfs.errors import FormatError
from mirrorfs.format.record import (
    Create,
    Epoch,
    Extents,
    Forget,
    Link,
    Piece,
    Record,
    Removexattr,
    Rename,
    Setattr,
    Setxattr,
    Snapshot,
    SnapshotGone,
    Truncate,
    Unlink,
    count_records,
    decode_records,
    encode_record,
    pack_pieces,
    unpack_pieces,
)

NO_SNAPSHOT_NAMES = [
    b"", b"n" * 65, "é".encode() * 33, b"a/b", b"-a", b" a", b"a ", b" ", b"a\0b", b"a\nb", b"a\x1b[2Jb",
    b"\xff", b"\xed\xa0\x80", "\u202egpj".encode(), "a\u00a0b".encode(),
]  # fmt: skip
PIECES = [Piece(0, 10, 1 << 20, 0), Piece(1 << 40, 1 << 20, 5, 0)]
RECORDS: list[tuple[Record, str]] = [
    (Epoch(2, -1, b"\xaa" * 8), "01 18000000 02000000 ffffffffffffffff 08000000 aaaaaaaaaaaaaaaa"),
    (
        Create(1, 2, 3, 16, 0o100644, 5, 6, 7, 8, b"name", b""),
        "02 48000000 0100000000000000 0200000000000000 0300000000000000 1000000000000000 a4810000 05000000"
        " 06000000 0700000000000000 0800000000000000 04000000 6e616d65 00000000",
    ),
    (
        Link(2, 1, 17, 9, b"x"),
        "03 25000000 0200000000000000 0100000000000000 1100000000000000 0900000000000000 01000000 78",
    ),
    (Unlink(1, 9, b"x"), "04 15000000 0100000000000000 0900000000000000 01000000 78"),
    (
        Rename(1, 2, 18, 9, 1, b"a", b"b"),
        "05 2b000000 0100000000000000 0200000000000000 1200000000000000 0900000000000000 01"
        " 01000000 61 01000000 62",
    ),
    (
        Setattr(2, 63, 0o100600, 1, 2, -3, -4, -5),
        "06 2d000000 0200000000000000 3f 80810000 01000000 02000000"
        " fdffffffffffffff fcffffffffffffff fbffffffffffffff",
    ),
    (Truncate(2, 1 << 40), "07 10000000 0200000000000000 0000000000010000"),
    (
        Extents(2, 10, pack_pieces([Piece(0, 10, 1 << 20, 4)])),
        "08 2c000000 0200000000000000 0a00000000000000 18000000"
        " 0000000000000000 0a000000 0000100000000000 04000000",
    ),
    (Setxattr(2, 9, b"n", b"\0v"), "09 1b000000 0200000000000000 0900000000000000 01000000 6e 02000000 0076"),
    (Removexattr(2, 9, b"n"), "0a 15000000 0200000000000000 0900000000000000 01000000 6e"),
    (Forget(2), "0b 08000000 0200000000000000"),
    (Snapshot(-1, 1, "é 1".encode()), "0c 11000000 ffffffffffffffff 01 04000000 c3a92031"),
    (SnapshotGone(9, b"x"), "0d 0d000000 0900000000000000 01000000 78"),
]


@pytest.mark.parametrize(("record", "encoded"), RECORDS, ids=lambda value: type(value).__name__)
def test_table(record: Record, encoded: str) -> None:
    data = bytes.fromhex(encoded)
    assert encode_record(record) == data
    assert list(decode_records(data)) == [record]


def test_many_and_every_cut() -> None:
    records = [record for record, _ in RECORDS]
    parts = [encode_record(record) for record in records]
    data = b"".join(parts)
    assert list(decode_records(data)) == records
    assert count_records(data) == len(records)
    ends = {sum(map(len, parts[:count])) for count in range(len(parts) + 1)}
    for size in range(len(data)):
        if size in ends:
            assert count_records(data[:size]) == len(list(decode_records(data[:size])))
            continue
        with pytest.raises(FormatError):
            list(decode_records(data[:size]))
        with pytest.raises(FormatError):
            count_records(data[:size])


@pytest.mark.parametrize(
    "record",
    [
        Epoch(1, 0, b"short"),
        Create(1, 2, 1, 16, 0o100644, 0, 0, 0, 0, b"", b""),
        Create(1, 1, 1, 0, 0o40755, 0, 0, 0, 0, b"root", b""),
        Create(1, 2, 1, 16, 0o120777, 0, 0, 0, 0, b"n", b"t" * 4096),
        Create(2**63, 2, 1, 16, 0, 0, 0, 0, 0, b"n", b""),
        Link(1, 1, 16, 0, b"a/b"),
        Link(1, 1, 16, 0, b"a\0"),
        Unlink(1, 0, b"."),
        Unlink(1, 0, b".."),
        Rename(1, 1, 16, 0, 2, b"a", b"b"),
        Rename(1, 1, 16, 0, 0, b"a", b"n" * 256),
        Setattr(1, 0, 0, 0, 0, 0, 0, 0),
        Setattr(1, 64, 0, 0, 0, 0, 0, 0),
        Truncate(1, 2**63 - 1),
        Setxattr(1, 0, b"", b""),
        Setxattr(1, 0, b"n" * 256, b""),
        Setxattr(1, 0, b"n", bytes(65537)),
        Removexattr(1, 0, b"a\0b"),
        Snapshot(0, 2, b"x"),
        *(Snapshot(0, 0, name) for name in NO_SNAPSHOT_NAMES),
        *(SnapshotGone(0, name) for name in NO_SNAPSHOT_NAMES),
    ],
)
def test_values_out_of_range(record: Record) -> None:
    data = encode_record(record)
    assert count_records(data) == 1
    with pytest.raises(FormatError):
        list(decode_records(data))


@pytest.mark.parametrize("code", [0, *range(14, 256)])
def test_reserved_types(code: int) -> None:
    with pytest.raises(FormatError):
        list(decode_records(struct.pack("<BI", code, 8) + bytes(8)))


def test_left_over_bytes() -> None:
    with pytest.raises(FormatError):
        list(decode_records(struct.pack("<BI", 11, 9) + bytes(9)))


def test_pieces() -> None:
    assert unpack_pieces(pack_pieces(PIECES)) == PIECES
    assert unpack_pieces(b"") == []


@pytest.mark.parametrize(
    "packed",
    [
        pack_pieces(PIECES)[:-1],
        pack_pieces([Piece(0, 0, 1, 0)]),
        pack_pieces([Piece(0, 1 << 20, 1, 1)]),
        pack_pieces([Piece(2**63 - 1, 1, 1, 0)]),
        pack_pieces([Piece(0, 1, 2**63, 0)]),
    ],
)
def test_pieces_out_of_range(packed: bytes) -> None:
    with pytest.raises(FormatError):
        unpack_pieces(packed)
