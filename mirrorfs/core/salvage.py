"""One good segment out of several damaged copies of it.

Every frame verifies by itself, so each can be taken from a copy in which it is good. Stores rot in
different places: what none of them still has whole, all of them together mostly have.
"""

from __future__ import annotations

from collections.abc import Sequence

from mirrorfs.errors import AuthenticationError, FormatError
from mirrorfs.format.frame import FrameCipher
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import (
    HEADER_SIZE,
    SegmentHeader,
    Trailer,
    decode_header,
    header_copy,
    open_trailer,
    read_footer,
    signer_of,
)
from mirrorfs.format.signing import WriterPublicKey


def combine_copies(copies: Sequence[bytes], keys: VolumeKeys, writer: WriterPublicKey) -> bytes | None:
    """Put a sealed segment together from copies of it.

    Frames that are good in no copy stay as they are in the first: the caller scans what it gets.
    Returns None when no copy has a good header, or none a good trailer of it.
    """
    for start in copies:
        try:
            header, cipher = decode_header(start, keys, writer)
        except (FormatError, AuthenticationError):
            continue
        for end in copies:
            trailer = _trailer(end, header, cipher, signer_of(header, keys, writer))
            if trailer is not None:
                return _combined(copies, cipher, start=start, end=end, trailer=trailer)
    return None


def _trailer(
    copy: bytes, header: SegmentHeader, cipher: FrameCipher, writer: WriterPublicKey
) -> Trailer | None:
    offset = read_footer(copy)
    if offset is None:
        return None
    try:
        trailer = open_trailer(
            memoryview(copy)[offset:], offset=offset, header=header, cipher=cipher, writer=writer
        )
        header_copy(copy, offset=offset, stream=header.stream)
    except (FormatError, AuthenticationError):
        return None
    return trailer


def _combined(
    copies: Sequence[bytes], cipher: FrameCipher, *, start: bytes, end: bytes, trailer: Trailer
) -> bytes:
    data = bytearray(start[:HEADER_SIZE] + end[HEADER_SIZE:])
    ends = [*(entry.offset for entry in trailer.frames), trailer.size][1:]
    for ordinal, (entry, frame_end) in enumerate(zip(trailer.frames, ends, strict=True)):
        for copy in copies:
            part = memoryview(copy)[entry.offset : frame_end]
            try:
                cipher.open_body(part, offset=entry.offset, ordinal=ordinal)
            except (FormatError, AuthenticationError):
                continue
            data[entry.offset : frame_end] = part
            break
    return bytes(data)
