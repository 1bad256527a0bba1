"""What a segment's bytes hold: frames and commits, up to the first byte that does not verify.

Pure: bytes in, values out. Used alike on local files after a crash and on objects of a store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mirrorfs.errors import AuthenticationError, ChainError, FormatError
from mirrorfs.format.frame import Kind, parse_frame_header, unpack
from mirrorfs.format.ids import frame_id
from mirrorfs.format.journal import Journal, decode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import (
    FOOTER,
    HEADER_SIZE,
    SegmentHeader,
    Trailer,
    decode_header,
    open_trailer,
)
from mirrorfs.format.signing import WriterPublicKey


class ScannedFrame(NamedTuple):
    """One data frame as it lies in a segment."""

    frame: int
    """Stable id, from its birth name."""
    ordinal: int
    offset: int
    size: int
    length: int


class ScannedJournal(NamedTuple):
    """One journal frame, with the data frames between it and the journal frame before, or the header."""

    position: int
    """Stable id of the journal frame."""
    end: int
    """Offset after the frame."""
    journal: Journal
    digest: bytes
    """SHA-256 of the payload: what the next one names."""
    frames: Sequence[ScannedFrame]


@dataclass(frozen=True, slots=True)
class ScannedSegment:
    """Everything replay needs of a segment."""

    header: SegmentHeader
    journals: Sequence[ScannedJournal]
    trailer: Trailer | None
    """None when the segment is not sealed."""
    end: int
    """Offset after the last good frame (after the footer when sealed)."""
    digest: bytes
    """SHA-256 of the bytes up to `end`."""
    fault: str | None
    """Why the scan stopped before the end of the bytes; None when it did not."""
    known_durable: int
    """Highest offset that a good journal frame says was durable: a fault below it is damage, not a tail."""
    rest: Sequence[ScannedFrame]
    """Data frames behind the last journal frame: a commit in a later segment may name them."""


def scan_segment(data: bytes, keys: VolumeKeys, writer: WriterPublicKey) -> ScannedSegment:
    """Read a segment front to back, authenticating every frame.

    Raises: FormatError, AuthenticationError: the header itself is bad. Later faults end the scan.
    """
    header, cipher = decode_header(data, keys, writer)
    view = memoryview(data)
    journals: list[ScannedJournal] = []
    frames: list[ScannedFrame] = []
    trailer: Trailer | None = None
    fault: str | None = None
    offset, ordinal, durable = HEADER_SIZE, 0, HEADER_SIZE
    while offset < len(data):
        try:
            plain = parse_frame_header(view, position=offset)
            _, body = cipher.open_body(view[offset : offset + plain.size], offset=offset, ordinal=ordinal)
            end = offset + plain.size
            if body.kind is Kind.TRAILER:
                trailer = open_trailer(
                    view[offset:end], offset=offset, header=header, cipher=cipher, writer=writer
                )
                if hashlib.sha256(view[:offset]).digest() != trailer.digest:
                    raise ChainError("segment bytes are not those its trailer names.")
                if bytes(view[end:]) != FOOTER.pack(offset, b"MFSE"):
                    raise FormatError("segment footer is damaged.")
                offset = len(data)
                break
            name = frame_id(plain.birth_sequence, plain.birth_ordinal)
            if body.kind is Kind.JOURNAL:
                payload = unpack(body)
                journal = decode_journal(payload)
                durable = max(durable, journal.durable_size)
                journals.append(ScannedJournal(name, end, journal, journal_hash(payload), tuple(frames)))
                frames = []
            else:
                frames.append(ScannedFrame(name, ordinal, offset, plain.size, body.length))
        except (FormatError, AuthenticationError, ChainError) as exc:
            trailer = None
            fault = f"{exc} (offset {offset})"
            break
        offset, ordinal = end, ordinal + 1
    digest = hashlib.sha256(view[:offset]).digest()
    return ScannedSegment(header, journals, trailer, offset, digest, fault, durable, tuple(frames))


def cut_of(scan: ScannedSegment) -> int:
    """Where an unsealed segment is cut after a crash: after the last journal frame that ends a commit.

    Data frames behind it are named by no record; a commit whose last journal frame is missing never
    happened.
    """
    cut = HEADER_SIZE
    for found in scan.journals:
        if not found.journal.continues:
            cut = found.end
    return cut
