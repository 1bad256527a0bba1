"""Frames: the smallest sealed unit (docs/FORMAT.md, "Frames").

A frame verifies only at its own place: volume, generation, segment, offset, ordinal, birth name and
length are bound as AAD, kind and plaintext length are inside. Nothing is decompressed before its tag
verified. Nonces are random and stored (a clone of the machine repeats none), and every segment has a
key of its own, so 2^20 frames under one key stay far below the limit of random 96-bit nonces.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import zstandard
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.limits import (
    FORMAT_VERSION,
    FRAME_LENGTH_MAX,
    ORDINAL_MAX,
    PAYLOAD_MAX,
    SEGMENT_SIZE_MAX,
    SEQUENCE_MAX,
)
from mirrorfs.format.padding import bucket, padme

FRAME_HEADER = struct.Struct("<II12sQI")
_ENVELOPE = struct.Struct("<BBHII")
_AAD = struct.Struct("<Q")
TAG_SIZE = 16
NONCE_SIZE = 12
FRAME_HEADER_SIZE = FRAME_HEADER.size
FRAME_SIZE_MIN = FRAME_HEADER_SIZE + _ENVELOPE.size + TAG_SIZE
_AAD_LABEL = b"mirrorfs v1 frame"

_WINDOW_MAX = 1 << 23
# Compressing is kept only when it saves at least one part in 16: less is not worth a decompression
# at each read.
_WORTH_SHIFT = 4
# Long payloads are first tried in part: images and archives, which do not shrink, then cost nearly nothing.
_PROBE_FROM = 256 * 1024
_PROBES = 4
_PROBE_SIZE = 16 * 1024
_IN_PLACE_FROM = 32 * 1024
"""Envelopes from this size on are encrypted piece by piece into the frame: that saves copies of them, and
costs some microseconds."""


class Kind(IntEnum):
    """What a frame holds. Other values are reserved and refused."""

    DATA = 1
    JOURNAL = 2
    CHECKPOINT = 3
    TRAILER = 4
    ROOT = 5


class Codec(IntEnum):
    """How the body is compressed. Other values are reserved and refused."""

    RAW = 0
    ZSTD = 1


class Body(NamedTuple):
    """A payload made ready for sealing: it can be sealed again, elsewhere, without the plaintext."""

    kind: Kind
    codec: Codec
    data: bytes | memoryview
    length: int
    """Bytes of plaintext."""


class FrameHeader(NamedTuple):
    """The plain header of a frame, as parsed; nothing in it is trusted before the tag verified."""

    sealed_size: int
    """Bytes that follow the header: envelope, padding and tag."""
    ordinal: int
    nonce: bytes
    birth_sequence: int
    birth_ordinal: int

    @property
    def size(self) -> int:
        """Bytes of header and sealed envelope."""
        return FRAME_HEADER_SIZE + self.sealed_size


# Compressor objects may not be shared by threads.
_local = threading.local()


def _compressor(level: int) -> zstandard.ZstdCompressor:
    cache: dict[int, zstandard.ZstdCompressor] | None = getattr(_local, "compressors", None)
    if cache is None:
        cache = _local.compressors = {}
    found = cache.get(level)
    if found is None:
        found = cache[level] = zstandard.ZstdCompressor(level=level, write_content_size=True)
    return found


def _decompressor() -> zstandard.ZstdDecompressor:
    found: zstandard.ZstdDecompressor | None = getattr(_local, "decompressor", None)
    if found is None:
        found = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=_WINDOW_MAX)
    return found


def length_max(kind: Kind) -> int:
    """Most bytes of plaintext that a frame of a kind may hold."""
    return FRAME_LENGTH_MAX if kind is Kind.DATA else PAYLOAD_MAX


def make_body(kind: Kind, payload: bytes | bytearray | memoryview, *, level: int = 1) -> Body:
    """Compress a payload where that pays. Heavy: call it in a worker thread for large payloads.

    Raises LimitError: the payload exceeds `length_max`.
    """
    length = len(payload)
    if length > length_max(kind):
        raise LimitError("frame payload is too long.")
    if length < _PROBE_FROM or _shrinks(payload, level):
        packed = _compressor(level).compress(payload)
        if len(packed) < length - (length >> _WORTH_SHIFT):
            return Body(kind, Codec.ZSTD, packed, length)
    return Body(kind, Codec.RAW, bytes(payload), length)


def _shrinks(payload: bytes | bytearray | memoryview, level: int) -> bool:
    """Whether any of a few samples, from the first byte to the last, is worth compressing."""
    view, compress = memoryview(payload), _compressor(level).compress
    step = (len(view) - _PROBE_SIZE) // (_PROBES - 1)
    for start in range(0, step * _PROBES, step):
        if len(compress(view[start : start + _PROBE_SIZE])) < _PROBE_SIZE - (_PROBE_SIZE >> _WORTH_SHIFT):
            return True
    return False


def padded_size(kind: Kind, size: int, *, pad_data: bool) -> int:
    """Bytes of envelope and padding for an envelope of `size` bytes."""
    if kind is Kind.JOURNAL:
        return bucket(size)
    if kind is Kind.DATA:
        return padme(size) if pad_data else size
    return padme(size)


def frame_size(body: Body, *, pad_data: bool) -> int:
    """Bytes the sealed frame will take in the segment."""
    envelope = padded_size(body.kind, _ENVELOPE.size + len(body.data), pad_data=pad_data)
    return FRAME_HEADER_SIZE + envelope + TAG_SIZE


def parse_frame_header(data: bytes | memoryview, *, position: int = 0) -> FrameHeader:
    """Parse the plain header at a position. Raises FormatError when it cannot be one."""
    if len(data) - position < FRAME_HEADER_SIZE:
        raise FormatError("frame header is cut short.")
    header = FrameHeader._make(FRAME_HEADER.unpack_from(data, position))
    if not FRAME_SIZE_MIN - FRAME_HEADER_SIZE <= header.sealed_size <= SEGMENT_SIZE_MAX:
        raise FormatError("frame size is out of range.")
    if header.ordinal > ORDINAL_MAX or header.birth_ordinal > ORDINAL_MAX:
        raise FormatError("frame ordinal is out of range.")
    if header.birth_sequence > SEQUENCE_MAX:
        raise FormatError("frame birth sequence is out of range.")
    return header


class FrameCipher:
    """Seals and opens the frames of one segment. Thread-safe: it keeps no state but the key."""

    __slots__ = ("_aead", "_aes", "_prefix")

    def __init__(self, key: bytes, *, identity: bytes) -> None:
        """`identity` is the segment's identity block (segment.py), bound into every AAD."""
        self._aead = AESGCM(key)
        self._aes = AES(key)
        self._prefix = _AAD_LABEL + bytes((FORMAT_VERSION,)) + identity

    def seal(
        self,
        body: Body,
        *,
        offset: int,
        ordinal: int,
        nonce: bytes,
        birth: tuple[int, int],
        pad_data: bool,
    ) -> bytes | bytearray:
        """Seal one frame for its place.

        Args:
            offset: of the frame header in the segment.
            ordinal: 0-based number of the frame in the segment.
            nonce: 12 random bytes, fresh for every call.
            birth: (sequence, ordinal) under which extents know the frame.
        Returns: frame_size(body) bytes.
        """
        if ordinal > ORDINAL_MAX:
            raise LimitError("segment holds too many frames.")
        used = _ENVELOPE.size + len(body.data)
        padded = padded_size(body.kind, used, pad_data=pad_data)
        header = FRAME_HEADER.pack(padded + TAG_SIZE, ordinal, nonce, *birth)
        aad = self._prefix + _AAD.pack(offset) + header
        pieces = (
            _ENVELOPE.pack(body.kind, body.codec, 0, len(body.data), body.length),
            body.data,
            bytes(padded - used),
        )
        if padded < _IN_PLACE_FROM:
            return header + self._aead.encrypt(nonce, b"".join(pieces), aad)
        return self._seal_in_place(header, pieces, padded, nonce=nonce, aad=aad)

    def _seal_in_place(
        self, header: bytes, pieces: Sequence[bytes | memoryview], size: int, *, nonce: bytes, aad: bytes
    ) -> bytearray:
        """The same bytes, without a copy of the envelope or of the frame."""
        frame = bytearray(len(header) + size + TAG_SIZE)
        frame[: len(header)] = header
        encryptor = Cipher(self._aes, GCM(nonce)).encryptor()
        encryptor.authenticate_additional_data(aad)
        rest = memoryview(frame)[len(header) :]
        for piece in pieces:
            # Every piece is followed by at least the tag: update_into wants a block more than it fills.
            rest = rest[encryptor.update_into(piece, rest) :]
        encryptor.finalize()
        rest[:] = encryptor.tag
        return frame

    def open_body(
        self, data: bytes | memoryview, *, offset: int, ordinal: int | None = None
    ) -> tuple[FrameHeader, Body]:
        """Authenticate the frame that starts `data` and lies at `offset` of its segment.

        Raises: FormatError, AuthenticationError: this is not the frame that was sealed there.
        """
        header = parse_frame_header(data)
        if len(data) < header.size:
            raise FormatError("frame is cut short.")
        if ordinal is not None and header.ordinal != ordinal:
            raise FormatError("frame carries another ordinal.")
        plain_header = bytes(data[:FRAME_HEADER_SIZE])
        try:
            envelope = self._aead.decrypt(
                header.nonce,
                data[FRAME_HEADER_SIZE : header.size],
                self._prefix + _AAD.pack(offset) + plain_header,
            )
        except InvalidTag:
            raise AuthenticationError("frame does not verify.") from None
        kind, codec, reserved, size, length = _ENVELOPE.unpack_from(envelope)
        try:
            known = Body(
                Kind(kind), Codec(codec), memoryview(envelope)[_ENVELOPE.size : _ENVELOPE.size + size], length
            )
        except ValueError:
            raise FormatError("frame kind or codec is reserved; a newer program wrote it.") from None
        if reserved or length > length_max(known.kind) or _ENVELOPE.size + size > len(envelope):
            raise FormatError("frame envelope is out of range.")
        if known.codec is Codec.RAW and size != length:
            raise FormatError("frame envelope lengths disagree.")
        return header, known


def unpack(body: Body) -> bytes:
    """The plaintext of an authenticated body.

    Raises FormatError: it does not decompress to its length.
    """
    if body.codec is Codec.RAW:
        return bytes(body.data)
    try:
        # The decompressor sizes its output by what the zstd frame says of itself, whatever limit it is
        # given: so that is compared first, and a frame that does not say it is refused.
        if zstandard.get_frame_parameters(body.data).content_size != body.length:
            raise FormatError("frame body has another length than it says.")
        plain = _decompressor().decompress(
            body.data, max_output_size=max(body.length, 1), allow_extra_data=False
        )
    except zstandard.ZstdError:
        raise FormatError("frame body does not decompress.") from None
    if len(plain) != body.length:
        raise FormatError("frame body has another length than it says.")
    return plain
