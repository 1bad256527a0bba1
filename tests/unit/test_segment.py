"""Segment headers, trailers and what a sealed segment must be."""

from __future__ import annotations

import hashlib

import pytest

from mirrorfs.errors import (
    AuthenticationError,
    ChainError,
    DamagedError,
    FormatError,
    MirrorfsError,
    StoreTooNew,
)
from mirrorfs.format.frame import Kind, make_body
from mirrorfs.format.ids import Previous, SegmentId, Stream
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.record import Forget
from mirrorfs.format.segment import (
    FOOTER,
    HEADER_SIZE,
    FrameEntry,
    SegmentHeader,
    check_follows,
    check_sealed,
    decode_header,
    encode_header,
    header_copy,
    read_footer,
)
from mirrorfs.format.signing import load_signer
from tests.golden.forge import reseal_header
from tests.support.segment_bytes import PUBLIC, SIGNER, SegmentBytes
from tests.support.volumes import KEY_SET, KEYS, VOLUME, WRITER

PREVIOUS = Previous(SegmentId(4, 1, WRITER), 1000, b"\x05" * 32)


def small() -> SegmentBytes:
    segment = SegmentBytes(5, previous=PREVIOUS)
    segment.add_data(b"some bytes of a file")
    segment.add_journal([Forget(5)])
    return segment


@pytest.mark.parametrize("previous", [None, PREVIOUS])
@pytest.mark.parametrize("stream", Stream)
def test_header_round_trip(stream: Stream, previous: Previous | None) -> None:
    header = SegmentHeader(VOLUME, stream, 1, 2**32 - 1, SegmentId(5, 3, WRITER), b"\x09" * 32, previous)
    data = encode_header(header, KEYS, SIGNER)
    assert len(data) == HEADER_SIZE == 316
    if stream is Stream.RELOCATED and previous is not None:
        with pytest.raises(FormatError, match="names a predecessor"):
            decode_header(data, KEYS, PUBLIC)
        return
    assert decode_header(data + b"frames", KEYS, PUBLIC)[0] == header
    check_follows(header, previous)
    with pytest.raises(ChainError):
        check_follows(header, Previous(SegmentId(4, 1, WRITER), 1001, b"\x05" * 32))


def test_every_bit_of_the_header() -> None:
    data = bytes(small().data[:HEADER_SIZE])
    for at in range(HEADER_SIZE):
        wrong = data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]
        with pytest.raises((FormatError, AuthenticationError)):
            decode_header(wrong, KEYS, PUBLIC)
    for size in range(HEADER_SIZE):
        with pytest.raises(FormatError):
            decode_header(data[:size], KEYS, PUBLIC)


def test_header_of_another_volume_key_or_signer() -> None:
    data = bytes(small().data)
    other_root = VolumeKeys.derive(b"\x09" * 32, volume=VOLUME, generation=1)
    other_volume = VolumeKeys.derive(KEY_SET.root, volume=bytes(16), generation=1)
    for keys in (other_root, other_volume):
        with pytest.raises(AuthenticationError):
            decode_header(data, keys, PUBLIC)
    with pytest.raises(AuthenticationError, match="not signed"):
        decode_header(data, KEYS, load_signer(KEY_SET.pruner).public_key())


@pytest.mark.parametrize(
    ("at", "value", "error"),
    [
        (8, b"\x02", StoreTooNew),
        (8, b"\x00", FormatError),
        (10, b"\x3d", FormatError),
        (12, b"\x00", FormatError),
        (12, b"\x04", FormatError),
        (13, b"\x01", FormatError),
        (16, b"\xff", AuthenticationError),
        (32, b"\x02", AuthenticationError),
        (45, b"\x08", FormatError),
        (92, b"\x00", AuthenticationError),
        (124, b"\x00", FormatError),
        (124, b"\x02", FormatError),
        (125, b"\x01", FormatError),
        (132, b"\x05", FormatError),
        (148, b"\x00\x00", FormatError),
        (151, b"\x01", FormatError),
        (219, b"\x01", FormatError),
    ],
)
def test_authentic_header_with_wrong_values(at: int, value: bytes, error: type[MirrorfsError]) -> None:
    data = bytes(small().data)
    forged = reseal_header(data[:at] + value + data[at + len(value) :], KEYS, KEY_SET.writer)
    with pytest.raises(error) as found:
        decode_header(forged, KEYS, PUBLIC)
    assert type(found.value) is error


def test_sealed() -> None:
    segment = small()
    entries = tuple(segment.entries)
    size = len(segment.data)
    digest = hashlib.sha256(segment.data).digest()
    data = segment.seal()
    header, cipher, trailer = check_sealed(data, KEYS, PUBLIC)
    assert (header, trailer.frames, trailer.size, trailer.digest) == (
        segment.header,
        list(entries),
        size,
        digest,
    )
    assert read_footer(data) == size
    for ordinal, entry in enumerate(trailer.frames):
        _, body = cipher.open_body(data[entry.offset :], offset=entry.offset, ordinal=ordinal)
        assert body.kind == entry.kind


def test_sealed_and_empty() -> None:
    _, _, trailer = check_sealed(SegmentBytes().seal(), KEYS, PUBLIC)
    assert (list(trailer.frames), trailer.size) == ([], HEADER_SIZE)


def test_every_bit_and_every_cut_of_a_sealed_segment() -> None:
    data = small().seal()
    for at in range(len(data)):
        wrong = data[:at] + bytes((data[at] ^ 1 << at % 8,)) + data[at + 1 :]
        with pytest.raises(DamagedError):
            check_sealed(wrong, KEYS, PUBLIC)
        with pytest.raises(DamagedError):
            check_sealed(data[:at], KEYS, PUBLIC)
    with pytest.raises(DamagedError):
        check_sealed(data + data[-8:], KEYS, PUBLIC)


def test_trailer_of_another_signer() -> None:
    segment = small()
    genuine = segment.seal()
    entries = segment.entries[:-1]
    other = small()
    other.entries = list(entries)
    assert other.seal() == genuine
    forged = small()
    forged.entries[1] = FrameEntry(forged.entries[1].offset, Kind.DATA)
    # A table that lies is signed only by a writer that lies: the frames themselves tell.
    data = forged.seal()
    assert check_sealed(data, KEYS, PUBLIC)[2].frames[1].kind == Kind.DATA
    with pytest.raises(AuthenticationError):
        check_sealed(genuine, KEYS, load_signer(KEY_SET.drill).public_key())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", None),
        (b"MFSE", None),
        (FOOTER.pack(316, b"MFSE"), 316),
        (FOOTER.pack(315, b"MFSE"), None),
        (FOOTER.pack(1 << 24, b"MFSE"), None),
        (FOOTER.pack(316, b"MFSF"), None),
    ],
)
def test_footer(data: bytes, expected: int | None) -> None:
    assert read_footer(data) == expected


def test_header_copy() -> None:
    document = b"MFSDOC1\n" + bytes(100)
    segment = SegmentBytes(stream=Stream.CHECKPOINT)
    segment.frame(make_body(Kind.CHECKPOINT, b"chunk"))
    data = segment.seal(document)
    check_sealed(data, KEYS, PUBLIC)
    offset = read_footer(data)
    assert offset is not None
    assert header_copy(data, offset=offset, stream=Stream.CHECKPOINT) == document
    for wrong in (small().seal(document), SegmentBytes(stream=Stream.CHECKPOINT).seal(b"something else")):
        with pytest.raises(FormatError):
            check_sealed(wrong, KEYS, PUBLIC)


def test_commitment_binds_the_key() -> None:
    data = bytes(small().data)
    forged = reseal_header(data[:60] + b"\x0a" * 32 + data[92:], KEYS, KEY_SET.writer)
    with pytest.raises(AuthenticationError, match="commitment"):
        decode_header(forged, KEYS, PUBLIC)
