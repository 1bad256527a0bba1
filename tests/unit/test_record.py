"""Records: one table runs both ways, and every cut is refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from mirrorfs.errors import FormatError
from mirrorfs.format.limits import FRAME_LENGTH_MAX
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
from mirrorfs.format.retention import (
    LISTED_MAX,
    Checkpointed,
    Collected,
    Deleted,
    FramePlace,
    Relocated,
    Retain,
    pack_numbers,
    pack_places,
    unpack_numbers,
    unpack_places,
)

NO_SNAPSHOT_NAMES = [
    b"", b"n" * 65, "é".encode() * 33, b"a/b", b"-a", b" a", b"a ", b" ", b"a\0b", b"a\nb", b"a\x1b[2Jb",
    b"\xff", b"\xed\xa0\x80", "\u202egpj".encode(), "a\u00a0b".encode(),
]  # fmt: skip
PLACES = [FramePlace(5, 1, 376, 60), FramePlace(1 << 20, 0, 316, 60)]
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
    (
        Checkpointed(5 << 20, -1, 7, 2, b"\xaa" * 8, b"\xbb" * 32),
        "0e 4c000000 0000500000000000 ffffffffffffffff 0700000000000000 02000000"
        f" 08000000 aaaaaaaaaaaaaaaa 20000000 {'bb' * 32}",
    ),
    (
        Retain(9 << 20, pack_numbers([6, 5])),
        "0f 1c000000 0000900000000000 10000000 0500000000000000 0600000000000000",
    ),
    (
        Relocated(7, 2, 600, b"\xaa" * 8, b"\xbb" * 32, pack_places(PLACES)),
        "10 70000000 0700000000000000 02000000 5802000000000000 08000000 aaaaaaaaaaaaaaaa"
        f" 20000000 {'bb' * 32} 28000000"
        " 0500000000000000 01000000 78010000 3c000000"
        " 0000100000000000 00000000 3c010000 3c000000",
    ),
    (
        Collected(3, -1, pack_numbers([4])),
        "11 15000000 03 ffffffffffffffff 08000000 0400000000000000",
    ),
    (Deleted(1, pack_numbers([4])), "12 0d000000 01 08000000 0400000000000000"),
]


CHECKPOINTED = Checkpointed(5 << 20, 0, 7, 2, b"w" * 8, b"d" * 32)
RELOCATED = Relocated(7, 2, 600, b"w" * 8, b"d" * 32, pack_places(PLACES[:1]))
NO_SEGMENTS: list[dict[str, Any]] = [{"sequence": 2**43}, {"writer": b"short"}, {"digest": b"d" * 31}]


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
        *(CHECKPOINTED._replace(**wrong) for wrong in NO_SEGMENTS),
        CHECKPOINTED._replace(position=0),
        CHECKPOINTED._replace(position=2**63),
        Retain(0, b""),
        Retain(5, pack_numbers([5])),
        Retain(5, bytes(7)),
        Retain(5, pack_numbers([6]) + pack_numbers([6])),
        Retain(5, pack_numbers([2**63])),
        Retain(2**20, pack_numbers(range(LISTED_MAX + 1))),
        *(RELOCATED._replace(**wrong) for wrong in NO_SEGMENTS),
        RELOCATED._replace(size=16 * 1024 * 1024 + 1),
        RELOCATED._replace(size=375),
        RELOCATED._replace(frames=b""),
        RELOCATED._replace(frames=pack_places(PLACES)[:-1]),
        RELOCATED._replace(frames=pack_places(PLACES[1:]) + pack_places(PLACES[:1])),
        RELOCATED._replace(frames=pack_places([PLACES[0], PLACES[0]._replace(ordinal=2)])),
        RELOCATED._replace(frames=pack_places([PLACES[0], PLACES[1]._replace(ordinal=1)])),
        RELOCATED._replace(frames=pack_places([PLACES[0]._replace(frame=2**63)])),
        RELOCATED._replace(frames=pack_places([PLACES[0]._replace(ordinal=2**20)])),
        RELOCATED._replace(frames=pack_places([PLACES[0]._replace(offset=315)])),
        RELOCATED._replace(frames=pack_places([PLACES[0]._replace(offset=2**32 - 1)])),
        RELOCATED._replace(frames=pack_places([PLACES[0]._replace(size=59)])),
        *(
            cls(*fields)
            for cls, rest in ((Collected, (0,)), (Deleted, ()))
            for fields in (
                (0, *rest, pack_numbers([4])),
                (2, *rest, pack_numbers([4])),
                (4, *rest, pack_numbers([4])),
                (1, *rest, b""),
                (1, *rest, bytes(9)),
                (1, *rest, pack_numbers([4]) * 2),
                (1, *rest, pack_numbers([2**43])),
                (1, *rest, pack_numbers(range(LISTED_MAX + 1))),
            )
        ),
    ],
)
def test_values_out_of_range(record: Record) -> None:
    data = encode_record(record)
    assert count_records(data) == 1
    with pytest.raises(FormatError):
        list(decode_records(data))


@pytest.mark.parametrize("code", [0, *range(19, 256)])
def test_reserved_types(code: int) -> None:
    with pytest.raises(FormatError):
        list(decode_records(struct.pack("<BI", code, 8) + bytes(8)))


def test_left_over_bytes() -> None:
    with pytest.raises(FormatError):
        list(decode_records(struct.pack("<BI", 11, 9) + bytes(9)))


def test_lists_of_records() -> None:
    assert unpack_places(pack_places(PLACES[::-1])) == PLACES
    assert unpack_numbers(pack_numbers([7, 2**63 - 1, 0])) == [0, 7, 2**63 - 1]
    full = Collected(1, 0, pack_numbers(range(LISTED_MAX)))
    assert list(decode_records(encode_record(full))) == [full]
    places = [FramePlace(number, number, 316 + 60 * number, 60) for number in range(LISTED_MAX)]
    record = RELOCATED._replace(size=16 * 1024 * 1024, frames=pack_places(places))
    assert list(decode_records(encode_record(record))) == [record]
    # It fits a journal frame.
    assert len(encode_record(record)) < FRAME_LENGTH_MAX


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
