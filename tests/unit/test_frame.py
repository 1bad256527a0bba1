"""Frames: sealed for one place, and refused at any other or when a bit is wrong."""

from __future__ import annotations

import os
import struct

import pytest
import zstandard

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format import frame
from mirrorfs.format.frame import (
    FRAME_HEADER_SIZE,
    Body,
    Codec,
    FrameCipher,
    Kind,
    frame_size,
    make_body,
    parse_frame_header,
    unpack,
)
from mirrorfs.format.limits import FRAME_LENGTH_MAX, PAYLOAD_MAX

CIPHER = FrameCipher(b"\x01" * 32, identity=b"a segment")
NONCE = bytes(range(12))


def sealed(body: Body, *, offset: int = 316, ordinal: int = 3, birth: tuple[int, int] = (7, 3)) -> bytes:
    return bytes(CIPHER.seal(body, offset=offset, ordinal=ordinal, nonce=NONCE, birth=birth, pad_data=True))


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("payload", [b"", b"x", b"compressible " * 500, os.urandom(5000)])
def test_round_trip(kind: Kind, payload: bytes) -> None:
    body = make_body(kind, payload)
    data = sealed(body)
    assert len(data) == frame_size(body, pad_data=True)
    header, opened = CIPHER.open_body(data + b"what follows", offset=316, ordinal=3)
    assert (header.size, header.ordinal, header.birth_sequence, header.birth_ordinal) == (len(data), 3, 7, 3)
    assert (opened.kind, opened.length, unpack(opened)) == (kind, len(payload), payload)


def test_codec_is_what_pays() -> None:
    assert make_body(Kind.DATA, b"a" * 1000).codec is Codec.ZSTD
    assert make_body(Kind.DATA, os.urandom(1000)).codec is Codec.RAW


@pytest.mark.parametrize("size", [64 * 1024, 256 * 1024, FRAME_LENGTH_MAX])
def test_long_payloads_that_do_not_shrink_are_kept_as_they_are(size: int) -> None:
    noise = os.urandom(size)
    body = make_body(Kind.DATA, noise)
    assert (body.codec, body.data, body.length) == (Codec.RAW, noise, size)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_long_payload_that_shrinks_at_one_of_the_samples_is_compressed(place: int) -> None:
    size, part = 256 * 1024, 64 * 1024
    payload = bytearray(os.urandom(size))
    payload[place * part : (place + 1) * part] = bytes(part)
    assert make_body(Kind.DATA, payload).codec is Codec.ZSTD


def test_a_frame_sealed_in_place_has_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (0, 1, 4000, 100_000):
        for pad_data in (True, False):
            body = make_body(Kind.DATA, os.urandom(size))
            made = []
            for threshold in (0, 1 << 30):
                monkeypatch.setattr(frame, "_IN_PLACE_FROM", threshold)
                made.append(
                    CIPHER.seal(body, offset=1, ordinal=2, nonce=NONCE, birth=(3, 4), pad_data=pad_data)
                )
            assert made[0] == made[1]
            assert unpack(CIPHER.open_body(made[0], offset=1, ordinal=2)[1]) == body.data


def test_every_flipped_bit_is_noticed() -> None:
    data = sealed(make_body(Kind.JOURNAL, b"payload"))
    for at in range(len(data)):
        for bit in range(8):
            wrong = data[:at] + bytes((data[at] ^ 1 << bit,)) + data[at + 1 :]
            with pytest.raises((FormatError, AuthenticationError)):
                CIPHER.open_body(wrong, offset=316, ordinal=3)


def test_every_cut_is_noticed() -> None:
    data = sealed(make_body(Kind.JOURNAL, b"payload"))
    for size in range(len(data)):
        with pytest.raises(FormatError):
            CIPHER.open_body(data[:size], offset=316)


def test_place_is_bound() -> None:
    data = sealed(make_body(Kind.DATA, b"payload"))
    with pytest.raises(AuthenticationError):
        CIPHER.open_body(data, offset=317)
    with pytest.raises(FormatError):
        CIPHER.open_body(data, offset=316, ordinal=4)
    for other in (
        FrameCipher(b"\x01" * 32, identity=b"another segment"),
        FrameCipher(b"\x02" * 32, identity=b"a segment"),
    ):
        with pytest.raises(AuthenticationError):
            other.open_body(data, offset=316)


@pytest.mark.parametrize(
    ("sealed_size", "ordinal", "birth_sequence", "birth_ordinal"),
    [(27, 0, 0, 0), ((1 << 24) + 1, 0, 0, 0), (28, 1 << 20, 0, 0), (28, 0, 1 << 43, 0), (28, 0, 0, 1 << 20)],
)
def test_plain_header_limits(sealed_size: int, ordinal: int, birth_sequence: int, birth_ordinal: int) -> None:
    with pytest.raises(FormatError):
        parse_frame_header(
            struct.pack("<II12sQI", sealed_size, ordinal, NONCE, birth_sequence, birth_ordinal)
        )


def test_plain_header_at_a_position() -> None:
    data = sealed(make_body(Kind.DATA, b"payload"))
    assert parse_frame_header(b"??" + data, position=2).size == len(data)
    with pytest.raises(FormatError):
        parse_frame_header(data[: FRAME_HEADER_SIZE - 1])


def test_lengths_have_limits() -> None:
    assert make_body(Kind.DATA, bytes(FRAME_LENGTH_MAX)).length == FRAME_LENGTH_MAX
    assert make_body(Kind.JOURNAL, bytes(PAYLOAD_MAX)).length == PAYLOAD_MAX
    with pytest.raises(LimitError):
        make_body(Kind.DATA, bytes(FRAME_LENGTH_MAX + 1))
    with pytest.raises(LimitError):
        make_body(Kind.JOURNAL, bytes(PAYLOAD_MAX + 1))
    with pytest.raises(LimitError):
        sealed(make_body(Kind.DATA, b"x"), ordinal=1 << 20)


@pytest.mark.parametrize(
    "body",
    [
        Body(Kind.DATA, Codec.RAW, b"four", 5),
        Body(Kind.DATA, Codec.ZSTD, b"", FRAME_LENGTH_MAX + 1),
        Body(Kind.JOURNAL, Codec.ZSTD, b"", PAYLOAD_MAX + 1),
    ],
)
def test_authentic_envelopes_that_lie(body: Body) -> None:
    with pytest.raises(FormatError):
        CIPHER.open_body(sealed(body), offset=316)


COMPRESSED = zstandard.ZstdCompressor().compress(b"a" * 1000)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        (COMPRESSED, 999),
        (COMPRESSED, 1001),
        (COMPRESSED[:-1], 1000),
        (COMPRESSED + b"more", 1000),
        (COMPRESSED + COMPRESSED, 1000),
        (b"", 0),
        (b"not zstd at all", 100),
        (zstandard.ZstdCompressor(write_content_size=False).compress(b"a" * 1000), 1000),
    ],
)
def test_bodies_that_do_not_unpack(data: bytes, length: int) -> None:
    with pytest.raises(FormatError):
        unpack(Body(Kind.DATA, Codec.ZSTD, data, length))


def test_bomb_allocates_nothing() -> None:
    # A content size of 2^60 bytes: the decompressor would try to allocate it, whatever limit it is given.
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 60).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(FormatError):
        unpack(Body(Kind.DATA, Codec.ZSTD, bomb, 100))
