"""Reading on behind damage: what several bad copies of one segment still hold together.

Every frame verifies by itself, and the journal is a chain of its own; so a bad frame costs what is in
that frame, not what follows it. `scan_segment` stops at the first fault, because after a crash what
follows a fault never happened; here the segment is known to have been whole once (its trailer, or the
header that follows it, says so).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from mirrorfs.core.scan import ScannedFrame, ScannedJournal, ScannedSegment
from mirrorfs.errors import AuthenticationError, FormatError
from mirrorfs.format.frame import (
    FRAME_HEADER_SIZE,
    Body,
    FrameCipher,
    FrameHeader,
    Kind,
    parse_frame_header,
    unpack,
)
from mirrorfs.format.ids import frame_id
from mirrorfs.format.journal import decode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.segment import (
    HEADER_SIZE,
    FrameEntry,
    SegmentHeader,
    Trailer,
    decode_header,
    open_trailer,
    read_footer,
)
from mirrorfs.format.signing import WriterPublicKey


@dataclass(frozen=True, slots=True)
class SalvagedSegment:
    """A segment put together from its copies."""

    data: bytes
    """Bytes with each frame from a copy in which it is good."""
    scan: ScannedSegment
    """As if the whole segment were good; `trailer` is None when no copy's verifies."""
    lost: tuple[int, ...]
    """Offsets of the frames that are good in no copy."""


def salvage_segment(
    copies: Sequence[bytes], keys: VolumeKeys, writer: WriterPublicKey
) -> SalvagedSegment | None:
    """Put one segment together from copies of it, good or bad; None when no copy's header verifies.

    A lost data frame is listed under the name it was most likely born with, so that the journal can be
    applied: what refers to it cannot be read, everything else can. A lost journal frame is left out:
    replay notices the gap.
    """
    opened = _open_header(copies, keys, writer)
    if opened is None:
        return None
    header, cipher, length = opened
    whole = [copy for copy in copies if len(copy) == length]
    trailer = _find_trailer(whole, header, cipher, writer)
    data = bytearray(whole[0])
    entries = trailer.frames if trailer is not None else _walk(whole)
    ends = [entry.offset for entry in entries[1:]] + [trailer.size if trailer is not None else length]
    journals: list[ScannedJournal] = []
    frames: list[ScannedFrame] = []
    lost: list[int] = []
    for ordinal, (entry, end) in enumerate(zip(entries, ends, strict=True)):
        good = _good_frame(whole, cipher, entry.offset, ordinal)
        if good is None:
            lost.append(entry.offset)
            if entry.kind != Kind.JOURNAL:
                frames += _lost_frames(whole, header, entry.offset, ordinal, size=end - entry.offset)
            continue
        source, plain, body = good
        data[entry.offset : entry.offset + plain.size] = source[entry.offset : entry.offset + plain.size]
        name = frame_id(plain.birth_sequence, plain.birth_ordinal)
        if body.kind is Kind.JOURNAL:
            payload = unpack(body)
            journal = decode_journal(payload)
            journals.append(
                ScannedJournal(name, entry.offset + plain.size, journal, journal_hash(payload), tuple(frames))
            )
            frames = []
        else:
            frames.append(ScannedFrame(name, ordinal, entry.offset, plain.size, body.length))
    merged = bytes(data)
    if trailer is not None:
        merged = merged[: trailer.size] + _good_tail(whole, trailer, header, cipher, writer)
    digest = hashlib.sha256(merged).digest()
    scan = ScannedSegment(header, journals, trailer, len(merged), digest, None, HEADER_SIZE, tuple(frames))
    return SalvagedSegment(merged, scan, tuple(lost))


def _open_header(
    copies: Sequence[bytes], keys: VolumeKeys, writer: WriterPublicKey
) -> tuple[SegmentHeader, FrameCipher, int] | None:
    """The header, and the length of the longest copy: a copy that was cut short is of no use beside it."""
    for copy in copies:
        try:
            header, cipher = decode_header(copy, keys, writer)
        except (FormatError, AuthenticationError):
            continue
        return header, cipher, max(map(len, copies))
    return None


def _find_trailer(
    copies: Sequence[bytes], header: SegmentHeader, cipher: FrameCipher, writer: WriterPublicKey
) -> Trailer | None:
    for copy in copies:
        # The footer only hints at the trailer; walking finds it when the footer itself is damaged.
        walked = _walk([copy])
        for offset in (read_footer(copy), walked[-1].offset if walked else None):
            if offset is None:
                continue
            try:
                return open_trailer(
                    memoryview(copy)[offset:], offset=offset, header=header, cipher=cipher, writer=writer
                )
            except (FormatError, AuthenticationError):
                continue
    return None


def _good_tail(
    copies: Sequence[bytes],
    trailer: Trailer,
    header: SegmentHeader,
    cipher: FrameCipher,
    writer: WriterPublicKey,
) -> bytes:
    """Trailer frame and footer as the writer left them."""
    for copy in copies:
        try:
            open_trailer(
                memoryview(copy)[trailer.size :],
                offset=trailer.size,
                header=header,
                cipher=cipher,
                writer=writer,
            )
        except (FormatError, AuthenticationError):
            continue
        end = trailer.size + parse_frame_header(copy, position=trailer.size).size
        return copy[trailer.size : end] + trailer.size.to_bytes(4, "little") + b"MFSE"
    raise AssertionError("the trailer came from one of the copies")


def _walk(copies: Sequence[bytes]) -> list[FrameEntry]:
    """Where frames start by their plain headers, in the copy that gets furthest; kinds are unknown (0)."""
    best: list[FrameEntry] = []
    for copy in copies:
        entries: list[FrameEntry] = []
        offset = HEADER_SIZE
        while offset + FRAME_HEADER_SIZE <= len(copy):
            try:
                size = parse_frame_header(copy, position=offset).size
            except FormatError:
                break
            entries.append(FrameEntry(offset, 0))
            offset += size
        if len(entries) > len(best):
            best = entries
    return best


def _good_frame(
    copies: Sequence[bytes], cipher: FrameCipher, offset: int, ordinal: int
) -> tuple[bytes, FrameHeader, Body] | None:
    for copy in copies:
        try:
            plain, body = cipher.open_body(memoryview(copy)[offset:], offset=offset, ordinal=ordinal)
        except (FormatError, AuthenticationError):
            continue
        return copy, plain, body
    return None


def _lost_frames(
    copies: Sequence[bytes], header: SegmentHeader, offset: int, ordinal: int, *, size: int
) -> list[ScannedFrame]:
    # Nearly every frame was born where it lies. One that was sealed again after a failed append carries
    # its birth name in its plain header, which may be what is damaged: so it is listed under both.
    names = {frame_id(header.segment.sequence, ordinal)}
    for copy in copies:
        try:
            plain = parse_frame_header(copy, position=offset)
        except FormatError:
            continue
        if plain.birth_sequence < header.segment.sequence:
            names.add(frame_id(plain.birth_sequence, plain.birth_ordinal))
    return [ScannedFrame(name, ordinal, offset, size, 0) for name in sorted(names)]
