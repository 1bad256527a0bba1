"""Any bytes give a value or a MirrorfsError; extents and dirty ranges equal a bytearray model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs.core.dirty import DirtyRanges
from mirrorfs.core.extents import Extent, overlay, pack_extents, trim, unpack_extents
from mirrorfs.core.scan import cut_of, scan_segment
from mirrorfs.errors import MirrorfsError
from mirrorfs.format.checkpoint import decode_chunk, decode_root, encode_chunk, encode_root, encode_row
from mirrorfs.format.frame import Body, Codec, Kind, make_body, parse_frame_header, unpack
from mirrorfs.format.ids import Stream, parse_position, parse_segment_object_key
from mirrorfs.format.journal import decode_journal, encode_journal
from mirrorfs.format.limits import CHUNK_SIZE
from mirrorfs.format.record import Forget, count_records, decode_records, encode_record, unpack_pieces
from mirrorfs.format.retention import pack_numbers, pack_places, unpack_numbers, unpack_places
from mirrorfs.format.segment import HEADER_SIZE, check_sealed, decode_header, header_copy, read_footer
from tests.support.segment_bytes import PUBLIC, SegmentBytes
from tests.support.volumes import KEYS
from tests.unit.test_checkpoint_format import ROOT, ROWS
from tests.unit.test_checkpoint_format import chunk as valid_chunk
from tests.unit.test_journal import FIRST
from tests.unit.test_record import RECORDS


def _segment() -> SegmentBytes:
    segment = SegmentBytes(3)
    segment.add_data(b"some data " * 20)
    segment.add_journal([Forget(1), Forget(2)])
    segment.add_data(b"more data " * 20)
    segment.add_journal(durable_size=500)
    return segment


OPEN = bytes(_segment().data)
SEALED = _segment().seal()


def _relocated() -> bytes:
    segment = SegmentBytes(3, stream=Stream.RELOCATED)
    for birth in ((9, 5), (0, 0)):
        segment.add_data(b"moved data " * 20, birth=birth)
    return segment.seal()


# Valid values to damage: far more of a parser is reached from them than from random bytes.
VALID = [
    OPEN,
    SEALED,
    _relocated(),
    encode_root(ROOT),
    encode_journal(FIRST),
    b"".join(encode_record(record) for record, _ in RECORDS),
    *(valid_chunk(name) for name in ROWS),
]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Random bytes, or something valid with pieces replaced, removed or repeated."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.binary(max_size=600))
    data = bytearray(draw(st.sampled_from(VALID)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        data[at : at + size] = draw(st.binary(max_size=12))
    return bytes(data)


def _body(codec: Codec) -> Callable[[bytes], object]:
    return lambda data: unpack(Body(Kind.DATA, codec, data, 1000))


PARSERS: dict[str, Callable[[bytes], object]] = {
    "segment header": lambda data: decode_header(data, KEYS, PUBLIC),
    "sealed segment": lambda data: check_sealed(data, KEYS, PUBLIC),
    "scan": lambda data: cut_of(scan_segment(data, KEYS, PUBLIC)),
    "footer": read_footer,
    "header copy": lambda data: header_copy(data, offset=HEADER_SIZE, stream=_segment().header.stream),
    "frame header": parse_frame_header,
    "frame": lambda data: _segment().cipher.open_body(data[HEADER_SIZE:], offset=HEADER_SIZE),
    "zstd": _body(Codec.ZSTD),
    "journal": decode_journal,
    "records": lambda data: list(decode_records(data)),
    "count": count_records,
    "pieces": unpack_pieces,
    "places": unpack_places,
    "numbers": unpack_numbers,
    "chunk": decode_chunk,
    "root": decode_root,
    "extents": unpack_extents,
    "key": lambda data: parse_segment_object_key(data.decode("latin-1")),
    "position": lambda data: parse_position(data.decode("latin-1")),
}


@pytest.mark.parametrize("name", PARSERS)
@settings(max_examples=150)
@given(data=damaged())
def test_value_or_error(name: str, data: bytes) -> None:
    try:
        PARSERS[name](data)
    except MirrorfsError:
        pass


@given(data=damaged())
def test_what_parses_is_canonical(data: bytes) -> None:
    """One value has one encoding, or two readers could disagree about the same bytes."""
    codecs: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes]]] = [
        (decode_journal, encode_journal),
        (decode_root, encode_root),
        (decode_chunk, lambda found: encode_chunk(found[0], [encode_row(found[0], row) for row in found[1]])),
        (lambda raw: list(decode_records(raw)), lambda found: b"".join(map(encode_record, found))),
        (unpack_extents, pack_extents),
        (unpack_places, pack_places),
        (unpack_numbers, pack_numbers),
    ]
    for decode, encode in codecs:
        try:
            value = decode(data)
        except MirrorfsError:
            continue
        assert encode(value) == data


@given(at=st.integers(0, len(SEALED) - 1), value=st.binary(min_size=1, max_size=20))
def test_sealed_segment_notices_any_change(at: int, value: bytes) -> None:
    changed = SEALED[:at] + value + SEALED[at + len(value) :]
    if changed == SEALED:
        return
    with pytest.raises(MirrorfsError):
        check_sealed(changed, KEYS, PUBLIC)
    try:
        assert scan_segment(changed, KEYS, PUBLIC).fault is not None
    except MirrorfsError:
        assert at < HEADER_SIZE


@given(payload=st.binary(max_size=5000), repeat=st.integers(1, 50))
def test_bodies_unpack_to_what_they_were(payload: bytes, repeat: int) -> None:
    body = make_body(Kind.JOURNAL, payload * repeat)
    assert unpack(body) == payload * repeat


# --- models ------------------------------------------------------------------------------------

OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 90), st.integers(1, 30)),
        st.tuples(st.just("truncate"), st.integers(0, 110), st.just(0)),
    ),
    max_size=25,
)


@given(operations=OPERATIONS)
def test_extents_against_a_model(operations: list[tuple[str, int, int]]) -> None:
    """Each byte of the model is (frame, offset in it), or None for a hole."""
    model: list[tuple[int, int] | None] = [None] * 128
    extents: list[Extent] = []
    live: dict[int, int] = {}
    for frame, (what, at, size) in enumerate(operations, start=1):
        if what == "write":
            extents, freed = overlay(extents, Extent(at, size, frame, 5))
            live[frame] = size
            model[at : at + size] = [(frame, 5 + n) for n in range(size)]
        else:
            extents, freed = trim(extents, at)
            model[at:] = [None] * (128 - at)
        for dead, length in freed:
            live[dead] -= length
        assert unpack_extents(pack_extents(extents)) == extents
    found: list[tuple[int, int] | None] = [None] * 128
    for start, length, frame, inner in extents:
        found[start : start + length] = [(frame, inner + n) for n in range(length)]
    assert found == model
    for frame, count in live.items():
        assert count == sum(1 for byte in model if byte is not None and byte[0] == frame)


def test_extents_may_fill_the_chunk() -> None:
    extents, _ = overlay([], Extent(0, CHUNK_SIZE, 1, 0))
    assert unpack_extents(pack_extents(extents)) == extents


@given(operations=OPERATIONS, window=st.tuples(st.integers(0, 120), st.integers(0, 60)))
def test_dirty_ranges_against_a_model(
    operations: list[tuple[str, int, int]], window: tuple[int, int]
) -> None:
    model: dict[int, int] = {}
    ranges = DirtyRanges()
    for number, (what, at, size) in enumerate(operations, start=1):
        if what == "write":
            ranges.write(at, bytes((number,)) * size)
            model.update((at + n, number) for n in range(size))
        else:
            ranges.truncate(at)
            model = {offset: byte for offset, byte in model.items() if offset < at}
        assert ranges.size_bytes == len(model)
        assert ranges.end == (max(model) + 1 if model else 0)
    offset, size = window
    buffer = bytearray(size)
    ranges.read_into(buffer, offset)
    assert bytes(buffer) == bytes(model.get(offset + n, 0) for n in range(size))
    taken = ranges.take(1 << 20)
    assert {at + n: byte for at, data in taken for n, byte in enumerate(bytes(data))} == model
    assert [at for at, _ in taken] == sorted({at for at, _ in taken})
