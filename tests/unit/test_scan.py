"""Scanning a segment: what counts, what is damage, and where a torn tail is cut."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from mirrorfs.core.scan import ScannedSegment, cut_of, scan_segment
from mirrorfs.errors import DamagedError
from mirrorfs.format.frame import (
    FRAME_HEADER,
    FRAME_HEADER_SIZE,
    FrameCipher,
    Kind,
    make_body,
    parse_frame_header,
)
from mirrorfs.format.ids import Stream, frame_id
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.record import Forget
from mirrorfs.format.segment import HEADER_SIZE, check_sealed
from tests.support.segment_bytes import PUBLIC, SegmentBytes
from tests.support.volumes import KEYS

SEQUENCE = 6


def scan(data: bytes) -> ScannedSegment:
    return scan_segment(data, KEYS, PUBLIC)


def built() -> tuple[SegmentBytes, list[int]]:
    """data, journal, data, data, journal, data; with the offsets of the frames."""
    segment = SegmentBytes(SEQUENCE)
    offsets = [
        segment.add_data(b"first " * 10),
        segment.add_journal([Forget(1)]),
        segment.add_data(b"second " * 10),
        segment.add_data(b"third " * 10),
        segment.add_journal([Forget(2), Forget(3)]),
        segment.add_data(b"rest " * 10),
    ]
    return segment, offsets


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]


def test_good() -> None:
    segment, offsets = built()
    opened = scan(bytes(segment.data))
    assert (opened.fault, opened.trailer, opened.end) == (None, None, len(segment.data))
    data = segment.seal()
    found = scan(data)
    assert (found.fault, found.end, found.bad, found.journal_whole) == (None, len(data), (), True)
    assert found.digest == hashlib.sha256(data).digest()
    assert found.trailer is not None
    for one in (opened, found):
        assert [journal.position for journal in one.journals] == [
            frame_id(SEQUENCE, 1),
            frame_id(SEQUENCE, 4),
        ]
        assert [[frame.ordinal for frame in journal.frames] for journal in one.journals] == [[0], [2, 3]]
        assert [frame.offset for frame in one.rest] == [offsets[5]]
        assert one.journals[1].end == offsets[5]
        assert [frame.length for frame in one.rest] == [50]


def test_nothing_but_a_header() -> None:
    segment = SegmentBytes()
    found = scan(bytes(segment.data))
    assert (found.end, found.fault, found.journals) == (HEADER_SIZE, None, [])
    assert cut_of(found) == HEADER_SIZE
    sealed = scan(segment.seal())
    assert (sealed.fault, sealed.journals) == (None, [])
    assert sealed.trailer is not None


def test_every_cut() -> None:
    segment, offsets = built()
    ends = [*offsets[1:], len(segment.data)]
    data = segment.seal()
    for size in range(HEADER_SIZE, len(data)):
        found = scan(data[:size])
        assert found.trailer is None
        good = [end for end in ends if end <= size]
        assert found.end == (good[-1] if good else HEADER_SIZE)
        assert (found.fault is None) == (found.end == size)
        assert cut_of(found) == max(
            [end for end in (offsets[2], offsets[5]) if end <= size], default=HEADER_SIZE
        )


def test_every_flipped_bit_of_a_sealed_segment() -> None:
    segment, offsets = built()
    trailer_at = len(segment.data)
    data = segment.seal()
    journals = ((offsets[1], offsets[2], 0), (offsets[4], offsets[5], 1))
    for at in range(len(data)):
        wrong = data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]
        if at < HEADER_SIZE:
            with pytest.raises(DamagedError):
                scan(wrong)
            continue
        found = scan(wrong)
        assert found.fault is not None
        with pytest.raises(DamagedError):
            check_sealed(wrong, KEYS, PUBLIC)
        before = [count for start, end, count in journals if start <= at < end]
        if at >= trailer_at:
            assert (found.trailer, len(found.journals)) == (None, 2)
        elif before:
            assert (found.journal_whole, len(found.journals), found.bad) == (False, before[0], ())
        else:
            assert (found.journal_whole, len(found.journals), len(found.bad)) == (True, 2, 1)
            assert found.trailer is not None


@pytest.mark.parametrize("number", [0, 2, 3, 5])
@pytest.mark.parametrize("inside", [2, 5, 9, 21, 29, 40])
def test_bad_data_frame_keeps_its_name(number: int, inside: int) -> None:
    segment, offsets = built()
    sizes = [end - start for start, end in zip(offsets, [*offsets[1:], len(segment.data)], strict=True)]
    found = scan(flip(segment.seal(), offsets[number] + inside))
    (bad,) = found.bad
    assert bad == (frame_id(SEQUENCE, number), number, offsets[number], sizes[number], 0)
    listed = [frame for journal in found.journals for frame in journal.frames] + list(found.rest)
    assert [frame.ordinal for frame in listed] == [0, 2, 3, 5]
    assert bad in listed
    assert f"(offset {offsets[number]})" in (found.fault or "")


def test_bad_resealed_frame_keeps_its_birth_name() -> None:
    segment = SegmentBytes(SEQUENCE)
    offset = segment.add_data(b"born elsewhere", birth=(SEQUENCE - 1, 9))
    segment.add_journal()
    found = scan(flip(segment.seal(), offset + 60))
    assert [frame.frame for frame in found.bad] == [frame_id(SEQUENCE - 1, 9)]


def test_open_segment_ends_at_the_first_bad_frame() -> None:
    segment, offsets = built()
    found = scan(flip(bytes(segment.data), offsets[2] + 50))
    assert (found.end, len(found.journals), found.bad, found.trailer) == (offsets[2], 1, (), None)
    assert cut_of(found) == offsets[2]


@pytest.mark.parametrize("inside", [1, 5, 21, 40])
@pytest.mark.parametrize("sequence", [0, SEQUENCE])
def test_damage_below_what_was_durable_is_no_tail(inside: int, sequence: int) -> None:
    segment = SegmentBytes(sequence)
    segment.add_journal()
    bad = segment.add_data(b"durable " * 100)
    durable = segment.add_journal()
    segment.add_data(b"later")
    segment.add_journal(durable_size=durable)
    found = scan(flip(bytes(segment.data), bad + inside))
    assert (found.end, len(found.journals)) == (bad, 1)
    assert found.known_durable == durable > found.end


def test_headers_that_claim_each_others_bytes_cost_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store may send a segment whose frames all say that they reach to its end."""
    claims = 1000
    size = claims * FRAME_HEADER_SIZE + SEGMENT_SIZE_MAX // 2
    lies = (
        FRAME_HEADER.pack(size - (at + 1) * FRAME_HEADER_SIZE, 5, b"\xff" * 12, 3, 0) for at in range(claims)
    )
    hostile = bytes(SegmentBytes(3).data) + b"".join(lies) + bytes(SEGMENT_SIZE_MAX // 2)
    opened: list[int] = []
    open_body = FrameCipher.open_body

    def counted(self: FrameCipher, data: bytes, **place: Any) -> Any:
        opened.append(parse_frame_header(data).size)
        return open_body(self, data, **place)

    monkeypatch.setattr(FrameCipher, "open_body", counted)
    found = scan(hostile)
    assert found.fault is not None and found.end == HEADER_SIZE
    assert 4 * SEGMENT_SIZE_MAX <= sum(opened) < 6 * SEGMENT_SIZE_MAX


def test_torn_tail_is_not_damage() -> None:
    segment = SegmentBytes(SEQUENCE)
    segment.add_journal()
    durable = len(segment.data)
    bad = segment.add_data(b"unsynced " * 100)
    segment.add_journal(durable_size=durable)
    found = scan(flip(bytes(segment.data), bad + 50))
    assert found.known_durable == durable <= found.end == bad
    assert scan(bytes(segment.data[:bad]) + bytes(5000)).known_durable <= bad


def test_resealed_journal_speaks_of_the_segment_it_was_born_in() -> None:
    segment = SegmentBytes(SEQUENCE)
    segment.add_journal(durable_size=5_000_000, birth=(SEQUENCE - 1, 40))
    found = scan(bytes(segment.data))
    assert (found.fault, found.known_durable) == (None, HEADER_SIZE)
    assert [journal.position for journal in found.journals] == [frame_id(SEQUENCE - 1, 40)]


def test_unfinished_commit_is_cut_away() -> None:
    segment = SegmentBytes()
    segment.add_journal()
    end = len(segment.data)
    segment.add_journal(continues=True)
    assert cut_of(scan(bytes(segment.data))) == end
    segment.add_journal()
    assert cut_of(scan(bytes(segment.data))) == len(segment.data)


@pytest.mark.parametrize(
    ("stream", "kind"),
    [
        (Stream.MAIN, Kind.CHECKPOINT),
        (Stream.MAIN, Kind.ROOT),
        (Stream.CHECKPOINT, Kind.DATA),
        (Stream.RELOCATED, Kind.JOURNAL),
        (Stream.RELOCATED, Kind.CHECKPOINT),
    ],
)
def test_kinds_belong_to_streams(stream: Stream, kind: Kind) -> None:
    segment = SegmentBytes(stream=stream)
    segment.frame(make_body(kind, b"payload"))
    found = scan(bytes(segment.data))
    assert (found.end, found.fault is not None) == (HEADER_SIZE, True)


@pytest.mark.parametrize("birth", [(SEQUENCE + 1, 0), (SEQUENCE, 1)])
def test_impossible_births(birth: tuple[int, int]) -> None:
    segment = SegmentBytes(SEQUENCE)
    segment.add_data(b"x", birth=birth)
    assert scan(bytes(segment.data)).end == HEADER_SIZE


def test_frames_keep_their_names_in_a_relocated_segment() -> None:
    """Its sequence has nothing to do with the segments in which they were born."""
    names = [(SEQUENCE + 9, 4), (SEQUENCE, 7), (0, 0)]
    segment = SegmentBytes(SEQUENCE, stream=Stream.RELOCATED)
    for name in names:
        segment.add_data(b"moved" * 20, birth=name)
    data = bytearray(segment.seal())
    found = scan(bytes(data))
    assert (found.fault, found.trailer is not None) == (None, True)
    assert [frame.frame for frame in found.rest] == [frame_id(*name) for name in names]
    data[segment.entries[1].offset + 50] ^= 1
    found = scan(bytes(data))
    assert [frame.frame for frame in found.bad] == [frame_id(*names[1])]
    assert [frame.frame for frame in found.rest] == [frame_id(*name) for name in names]


def test_frames_authentic_but_not_those_signed() -> None:
    """Somebody with the volume key, but not the writer's, put other frames in front of a genuine trailer."""
    segment = SegmentBytes()
    segment.add_journal([Forget(1)])
    data = segment.seal()
    other = SegmentBytes()
    other.add_journal([Forget(2)])
    forged = bytes(other.data) + data[len(other.data) :]
    found = scan(forged)
    assert (found.trailer, found.journal_whole) == (None, False)
    assert found.fault is not None


def test_frames_of_a_relocated_segment_were_born_in_the_log() -> None:
    """Whatever their numbers: those of its own stream name no frame."""
    births = [(900, 5), (7, 1), (2, 0), (2, 9)]
    segment = SegmentBytes(2, stream=Stream.RELOCATED)
    offsets = [segment.add_data(b"moved " * 10, birth=birth) for birth in births]
    data = segment.seal()
    found = scan(data)
    assert (found.fault, found.bad) == (None, ())
    assert [frame.frame for frame in found.rest] == [frame_id(*birth) for birth in births]
    # What is bad of it keeps its name.
    found = scan(flip(data, offsets[1] - 1))
    assert found.fault is not None
    assert [frame.frame for frame in found.bad] == [frame_id(900, 5)]


def test_a_frame_of_the_log_was_not_born_behind_it() -> None:
    for birth in ((SEQUENCE + 1, 0), (SEQUENCE, 7)):
        segment = SegmentBytes(SEQUENCE)
        segment.add_data(b"from the future", birth=birth)
        assert "birth" in str(scan(segment.seal()).fault)
