"""Segments: header, frames, trailer, footer (docs/FORMAT.md, "Segments").

A segment is appended to only by the process that created it, under a salt drawn for it. Its header
names its predecessor by id, size and digest, so the chain of headers covers every byte that came
before; header and trailer are signed by the writer (a MAC alone would prove only that somebody held
the volume key, as every follower does).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from cryptography.exceptions import InvalidSignature

from mirrorfs.errors import AuthenticationError, ChainError, FormatError, StoreTooNew
from mirrorfs.format.document import DOCUMENT_MAGIC
from mirrorfs.format.frame import (
    FRAME_SIZE_MIN,
    Body,
    FrameCipher,
    Kind,
    make_body,
    parse_frame_header,
    unpack,
)
from mirrorfs.format.ids import Previous, SegmentId, Stream
from mirrorfs.format.kdf import VolumeKeys, segment_key
from mirrorfs.format.limits import FORMAT_VERSION, SEGMENT_SIZE_MAX, SEQUENCE_MAX
from mirrorfs.format.signing import WriterPublicKey, WriterSigner, load_public_key

MAGIC = b"MFSSEG1\n"
FOOTER_MAGIC = b"MFSE"
# magic, version, header size, stream, reserved x3, volume, key generation, header generation,
# sequence, epoch, writer, salt, commitment,
# previous: present, reserved x3, epoch, sequence, writer, size, digest; reserved
_FIELDS = struct.Struct("<8sHHB3s16sIIQI8s32s32sB3sIQ8sQ32s32s")
SIGNATURE_SIZE = 64
MAC_SIZE = 32
HEADER_SIZE = _FIELDS.size + SIGNATURE_SIZE + MAC_SIZE
FOOTER = struct.Struct("<I4s")
_KEY_GENERATION_OFFSET = 32
_SIGN_HEADER = b"mirrorfs v1 segment header"
_SIGN_TRAILER = b"mirrorfs v1 trailer"
_TRAILER = struct.Struct("<IQQqqI32s")
_TRAILER_ROW = struct.Struct("<IB")
_IDENTITY = struct.Struct("<16sIBQI8s")
TRAILER_ROOM = 1024
KINDS_OF_STREAM = {
    Stream.MAIN: frozenset((Kind.DATA, Kind.JOURNAL)),
    Stream.CHECKPOINT: frozenset((Kind.CHECKPOINT, Kind.ROOT)),
    Stream.RELOCATED: frozenset((Kind.DATA,)),
}
"""What a stream's segments hold beside their trailers; anything else is refused."""


_NO_PREVIOUS = Previous(SegmentId(0, 0, bytes(8)), 0, bytes(32))


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The plain, authenticated start of a segment."""

    volume: bytes
    stream: Stream
    key_generation: int
    header_generation: int
    """Generation of the volume header the writer had seen."""
    segment: SegmentId
    salt: bytes
    previous: Previous | None

    @property
    def identity(self) -> bytes:
        """What the AAD of every frame binds of the segment."""
        return _IDENTITY.pack(
            self.volume,
            self.key_generation,
            self.stream,
            self.segment.sequence,
            self.segment.epoch,
            self.segment.writer,
        )


class FrameEntry(NamedTuple):
    """One row of a trailer: where a frame starts, and what it is."""

    offset: int
    kind: int


@dataclass(frozen=True, slots=True)
class Trailer:
    """The last frame of a sealed segment."""

    first_journal: int
    last_journal: int
    """Journal sequence numbers in the segment; 0 and 0 when it has none."""
    first_ns: int
    last_ns: int
    size: int
    """Bytes before the trailer frame."""
    digest: bytes
    """SHA-256 of those bytes."""
    frames: Sequence[FrameEntry]


def encode_header(header: SegmentHeader, keys: VolumeKeys, signer: WriterSigner) -> bytes:
    """HEADER_SIZE bytes."""
    _, commitment = segment_key(keys, header.salt)
    previous = header.previous or _NO_PREVIOUS
    fields = _FIELDS.pack(
        MAGIC,
        FORMAT_VERSION,
        HEADER_SIZE,
        header.stream,
        bytes(3),
        header.volume,
        header.key_generation,
        header.header_generation,
        header.segment.sequence,
        header.segment.epoch,
        header.segment.writer,
        header.salt,
        commitment,
        header.previous is not None,
        bytes(3),
        previous.segment.epoch,
        previous.segment.sequence,
        previous.segment.writer,
        previous.size,
        previous.digest,
        bytes(32),
    )
    signed = fields + signer.sign(_SIGN_HEADER + fields)
    return signed + hmac.digest(keys.segment_header_mac_key, signed, "sha256")


def decode_header(
    data: bytes | memoryview, keys: VolumeKeys, writer: WriterPublicKey
) -> tuple[SegmentHeader, FrameCipher]:
    """Authenticate the header that starts a segment.

    Raises: FormatError, AuthenticationError; StoreTooNew for an authentic header of a later version.
    """
    raw = bytes(data[:HEADER_SIZE])
    if len(raw) < HEADER_SIZE or raw[:8] != MAGIC:
        raise FormatError("segment header is cut short or not one.")
    # Which keys it claims to be of; the MAC of those decides.
    (claimed,) = struct.unpack_from("<I", raw, _KEY_GENERATION_OFFSET)
    past = keys.past_of(claimed)
    first, until = keys.from_sequence, SEQUENCE_MAX + 1
    epochs = keys.epochs_of(claimed)
    if past is not None:
        keys, writer = past.keys, load_public_key(past.writer)
        first, until = keys.from_sequence, past.until_sequence
    signed, mac = raw[:-MAC_SIZE], raw[-MAC_SIZE:]
    # Before the version: a rotten version number must not stop a reader who has other copies.
    if not hmac.compare_digest(hmac.digest(keys.segment_header_mac_key, signed, "sha256"), mac):
        raise AuthenticationError(
            "segment header does not verify."
            if claimed <= keys.generation
            else "segment header does not verify: it names keys made later; mount again to have them."
        )
    if struct.unpack_from("<H", raw, 8)[0] > FORMAT_VERSION:
        raise StoreTooNew(
            "segment was written by a newer MirrorFS; install that version to read this volume."
        )
    fields = raw[: _FIELDS.size]
    try:
        writer.verify(signed[_FIELDS.size :], _SIGN_HEADER + fields)
    except InvalidSignature:
        raise AuthenticationError("segment header was not signed by the volume's writer.") from None
    header, commitment = _parse_fields(fields)
    if header.volume != keys.volume or header.key_generation != keys.generation:
        raise AuthenticationError("segment belongs to another volume or key generation.")
    if header.stream is Stream.MAIN and not first <= header.segment.sequence < until:
        raise AuthenticationError("segment is sealed with keys that are not in use for its place.")
    if header.stream is Stream.RELOCATED and header.segment.epoch not in epochs:
        raise AuthenticationError("segment is sealed with keys that are not in use in its epoch.")
    key, expected = segment_key(keys, header.salt)
    if not hmac.compare_digest(expected, commitment):
        raise AuthenticationError("segment key commitment does not match.")
    return header, FrameCipher(key, identity=header.identity)


def signer_of(header: SegmentHeader, keys: VolumeKeys, writer: WriterPublicKey) -> WriterPublicKey:
    """Who signed a segment: `writer`, or the one of the earlier generation it was sealed in."""
    past = keys.past_of(header.key_generation)
    return writer if past is None else load_public_key(past.writer)


def _parse_fields(fields: bytes) -> tuple[SegmentHeader, bytes]:
    """The authentic fields of a header, and the commitment. Raises FormatError."""
    (
        _, version, size, stream, r1, volume, generation, header_generation, sequence, epoch, name, salt,
        commitment, present, r2, p_epoch, p_sequence, p_writer, p_size, p_digest, r3,
    ) = _FIELDS.unpack(fields)  # fmt: skip
    if version != FORMAT_VERSION or size != HEADER_SIZE or any(r1) or any(r2) or any(r3) or present > 1:
        raise FormatError("segment header has reserved values.")
    if stream not in Stream.__members__.values() or sequence > SEQUENCE_MAX:
        raise FormatError("segment header names an unknown stream or an impossible sequence.")
    previous = Previous(SegmentId(p_sequence, p_epoch, p_writer), p_size, p_digest)
    if not present:
        if previous != _NO_PREVIOUS:
            raise FormatError("segment header describes a predecessor that it says it has not.")
        parsed = None
    else:
        # A relocated segment stands alone: what counts is that the log names it, and with which bytes.
        if stream == Stream.RELOCATED:
            raise FormatError("segment of the relocated stream names a predecessor.")
        if p_sequence >= sequence or not HEADER_SIZE <= p_size <= SEGMENT_SIZE_MAX:
            raise FormatError("segment header names an impossible predecessor.")
        parsed = previous
    header = SegmentHeader(
        volume,
        Stream(stream),
        generation,
        header_generation,
        SegmentId(sequence, epoch, name),
        salt,
        parsed,
    )
    return header, commitment


def cipher_for(header: SegmentHeader, keys: VolumeKeys) -> FrameCipher:
    """The cipher of a segment this process creates."""
    key, _ = segment_key(keys, header.salt)
    return FrameCipher(key, identity=header.identity)


def trailer_body(trailer: Trailer, header: SegmentHeader, signer: WriterSigner) -> Body:
    """The body of the trailer frame, signed: the signature covers all of it and all bytes before it."""
    head, table = _encode_trailer(trailer)
    return make_body(Kind.TRAILER, head + signer.sign(_signed_of(head + table, header)) + table)


def _encode_trailer(trailer: Trailer) -> tuple[bytes, bytes]:
    head = _TRAILER.pack(
        len(trailer.frames),
        trailer.first_journal,
        trailer.last_journal,
        trailer.first_ns,
        trailer.last_ns,
        trailer.size,
        trailer.digest,
    )
    return head, b"".join([_TRAILER_ROW.pack(*entry) for entry in trailer.frames])


def _signed_of(unsigned: bytes, header: SegmentHeader) -> bytes:
    return _SIGN_TRAILER + header.identity + unsigned


def read_footer(data: bytes | memoryview) -> int | None:
    """Where the trailer frame starts, as the last 8 bytes of an object hint; None when they do not."""
    if len(data) < FOOTER.size:
        return None
    offset, magic = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    return int(offset) if magic == FOOTER_MAGIC and HEADER_SIZE <= offset < SEGMENT_SIZE_MAX else None


def open_trailer(
    frame: bytes | memoryview,
    *,
    offset: int,
    header: SegmentHeader,
    cipher: FrameCipher,
    writer: WriterPublicKey,
) -> Trailer:
    """Authenticate the trailer frame at `offset`.

    Whether its digest is that of the bytes before it is for the caller to check.
    Raises: FormatError, AuthenticationError.
    """
    plain, body = cipher.open_body(frame, offset=offset)
    if body.kind is not Kind.TRAILER:
        raise FormatError("segment does not end with a trailer.")
    payload = unpack(body)
    start = _TRAILER.size + SIGNATURE_SIZE
    if len(payload) < start:
        raise FormatError("trailer is cut short.")
    count, first, last, first_ns, last_ns, size, digest = _TRAILER.unpack_from(payload)
    if len(payload) != start + count * _TRAILER_ROW.size or size != offset or plain.ordinal != count:
        raise FormatError("trailer does not describe its segment.")
    frames = [FrameEntry._make(row) for row in _TRAILER_ROW.iter_unpack(memoryview(payload)[start:])]
    _check_table(frames, size, header.stream)
    unsigned = payload[: _TRAILER.size] + payload[start:]
    try:
        writer.verify(payload[_TRAILER.size : start], _signed_of(unsigned, header))
    except InvalidSignature:
        raise AuthenticationError("trailer was not signed by the volume's writer.") from None
    return Trailer(first, last, first_ns, last_ns, size, digest, frames)


def _check_table(frames: Sequence[FrameEntry], size: int, stream: Stream) -> None:
    kinds = KINDS_OF_STREAM[stream]
    starts = [entry.offset for entry in frames] + [size]
    if starts[0] != HEADER_SIZE or any(b - a < FRAME_SIZE_MIN for a, b in pairwise(starts)):
        raise FormatError("trailer lists frames that do not follow one another.")
    if any(entry.kind not in kinds for entry in frames):
        raise FormatError("trailer lists a frame of a kind that does not belong in the stream.")


def check_sealed(
    data: bytes | memoryview, keys: VolumeKeys, writer: WriterPublicKey
) -> tuple[SegmentHeader, FrameCipher, Trailer]:
    """Check a whole sealed segment: header, trailer, footer and the digest of every byte between.

    Raises: FormatError, AuthenticationError, ChainError.
    """
    header, cipher = decode_header(data, keys, writer)
    offset = read_footer(data)
    if offset is None:
        raise FormatError("segment has no footer: it is not sealed, or was cut short.")
    frame = memoryview(data)[offset : len(data) - FOOTER.size]
    signer = signer_of(header, keys, writer)
    trailer = open_trailer(frame, offset=offset, header=header, cipher=cipher, writer=signer)
    if hashlib.sha256(memoryview(data)[:offset]).digest() != trailer.digest:
        raise ChainError("segment bytes are not those its trailer names.")
    header_copy(data, offset=offset, stream=header.stream)
    return header, cipher, trailer


def header_copy(data: bytes | memoryview, *, offset: int, stream: Stream) -> bytes:
    """The copy of a volume header between the trailer frame at `offset` and the footer; empty for none.

    It lies in the clear, for it is needed when the header objects are lost and nothing can be opened. It
    proves itself (format/header.py); nothing here authenticates it.
    Raises FormatError: bytes that are not one, or a copy outside the checkpoint stream.
    """
    end = offset + parse_frame_header(data, position=offset).size
    copy = bytes(memoryview(data)[end : len(data) - FOOTER.size])
    belongs = stream is Stream.CHECKPOINT and copy.startswith(DOCUMENT_MAGIC)
    if end > len(data) - FOOTER.size or (copy and not belongs):
        raise FormatError("segment has bytes between trailer and footer that do not belong there.")
    return copy


def check_follows(header: SegmentHeader, previous: Previous | None) -> None:
    """Raises ChainError unless header names exactly `previous` as its predecessor."""
    if header.previous != previous:
        raise ChainError("segment does not continue the one before it.")
