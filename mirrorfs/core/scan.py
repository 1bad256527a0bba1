"""What a segment's bytes hold: frames and commits, up to the first byte that does not verify.

Pure: bytes in, values out. Used alike on local files after a crash and on objects of a store.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mirrorfs.errors import AuthenticationError, FormatError
from mirrorfs.format.frame import FrameCipher, Kind, parse_frame_header, unpack
from mirrorfs.format.ids import Stream, frame_id
from mirrorfs.format.journal import Journal, decode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import SEGMENT_SIZE_MAX, SEQUENCE_MAX
from mirrorfs.format.segment import (
    HEADER_SIZE,
    KINDS_OF_STREAM,
    SegmentHeader,
    Trailer,
    decode_header,
    header_copy,
    open_trailer,
    read_footer,
    signer_of,
)
from mirrorfs.format.signing import WriterPublicKey

_FAULTS_NAMED = 4
_TRIES_MAX = 4096
_TRIED_MAX_BYTES = 4 * SEGMENT_SIZE_MAX
"""Behind a bad frame: headers that claim each other's bytes would have a byte decrypted once per header."""
_ZEROS_FIRST = 4
"""The size of a frame, which is never zero."""
_NAME_AT = 20
"""Offset of the birth sequence in a frame header."""


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
    """What is wrong with the bytes; None when every one of them verifies."""
    known_durable: int
    """Highest offset that a good journal frame says was durable: a fault below it is damage, not a tail."""
    rest: Sequence[ScannedFrame]
    """Data frames behind the last journal frame: a commit in a later segment may name them."""
    bad: Sequence[ScannedFrame] = ()
    """Data frames of a sealed segment that do not verify. They are among the journals' frames too, with
    length 0, under the name they were most likely born with."""
    journal_whole: bool = True
    """No journal frame of a sealed segment is bad."""


class _Collector:
    """Frames in order, sorted into commits."""

    def __init__(self, header: SegmentHeader, cipher: FrameCipher, view: memoryview) -> None:
        self.journals: list[ScannedJournal] = []
        self.frames: list[ScannedFrame] = []
        self.durable = HEADER_SIZE
        self._header = header
        self._cipher = cipher
        self._view = view
        # In the relocated stream no frame is born: all were numbered in the main stream.
        relocated = header.stream is Stream.RELOCATED
        self._home = SEQUENCE_MAX + 1 if relocated else header.segment.sequence

    def add(self, offset: int, ordinal: int) -> tuple[int, Kind]:
        """Authenticate the frame at an offset and keep it. Returns its end and kind; a trailer is not kept.

        Raises: FormatError, AuthenticationError.
        """
        plain, body = self._cipher.open_body(self._view[offset:], offset=offset, ordinal=ordinal)
        end = offset + plain.size
        if body.kind is Kind.TRAILER:
            return end, body.kind
        if body.kind not in KINDS_OF_STREAM[self._header.stream]:
            raise FormatError("frame is of a kind that does not belong in its stream.")
        name = frame_id(plain.birth_sequence, plain.birth_ordinal)
        home = self._home
        if plain.birth_sequence > home or (plain.birth_sequence == home and plain.birth_ordinal != ordinal):
            raise FormatError("frame claims a birth that it cannot have had.")
        if body.kind is Kind.JOURNAL:
            payload = unpack(body)
            journal = decode_journal(payload)
            self.note_durable(plain.birth_sequence, journal)
            found = ScannedJournal(name, end, journal, journal_hash(payload), tuple(self.frames))
            self.journals.append(found)
            self.frames = []
        else:
            self.frames.append(ScannedFrame(name, ordinal, offset, plain.size, body.length))
        return end, body.kind

    def note_durable(self, birth_sequence: int, journal: Journal) -> None:
        """A journal frame that was sealed again speaks of the segment it was born in, not of this one."""
        if birth_sequence == self._home:
            self.durable = max(self.durable, journal.durable_size)

    def add_bad(self, offset: int, ordinal: int, *, size: int) -> ScannedFrame:
        """Keep a data frame that does not verify, by name only."""
        birth = self._header.segment.sequence, ordinal
        try:
            plain = parse_frame_header(self._view, position=offset)
            if plain.size == size and plain.ordinal == ordinal and plain.birth_sequence < self._home:
                birth = plain.birth_sequence, plain.birth_ordinal
        except FormatError:
            pass  # the plain header is what is damaged: nearly every frame was born where it lies
        frame = ScannedFrame(frame_id(*birth), ordinal, offset, size, 0)
        self.frames.append(frame)
        return frame


def scan_segment(data: bytes, keys: VolumeKeys, writer: WriterPublicKey) -> ScannedSegment:
    """Read a segment front to back, authenticating every frame.

    Where its trailer verifies, the segment was whole once: a bad data frame is then reported and passed
    over by the trailer's table, and only a bad journal frame ends the journal. Without a trailer the
    first bad frame ends the scan, for after a crash what follows it never happened; what lies behind is
    only looked through for a journal frame that knows better (`known_durable`).
    Raises: FormatError, AuthenticationError: the header itself is bad. Later faults are in the result.
    """
    header, cipher = decode_header(data, keys, writer)
    view = memoryview(data)
    collector = _Collector(header, cipher, view)
    offset = read_footer(data)
    if offset is not None:
        try:
            signer = signer_of(header, keys, writer)
            trailer = open_trailer(view[offset:], offset=offset, header=header, cipher=cipher, writer=signer)
            header_copy(data, offset=offset, stream=header.stream)
        except (FormatError, AuthenticationError):
            pass  # cut, or damaged at its end: what is before that may be good
        else:
            return _scan_sealed(collector, header, trailer, view)
    return _scan_open(collector, header, cipher, view)


def _scan_sealed(
    collector: _Collector, header: SegmentHeader, trailer: Trailer, view: memoryview
) -> ScannedSegment:
    faults: list[str] = []
    bad: list[ScannedFrame] = []
    whole = True
    ends = [*(entry.offset for entry in trailer.frames), trailer.size][1:]
    for ordinal, (entry, end) in enumerate(zip(trailer.frames, ends, strict=True)):
        try:
            found = collector.add(entry.offset, ordinal)
            if found != (end, entry.kind):
                raise FormatError("frame is not the one that the trailer lists.")
        except (FormatError, AuthenticationError) as exc:
            faults.append(f"{exc} (offset {entry.offset})")
            if entry.kind == Kind.JOURNAL:
                whole = False
                break
            bad.append(collector.add_bad(entry.offset, ordinal, size=end - entry.offset))
    good: Trailer | None = trailer
    if not faults and hashlib.sha256(view[: trailer.size]).digest() != trailer.digest:
        # Every frame verifies under the volume key, but these are not the frames the writer signed.
        faults.append("segment bytes are not those its trailer names.")
        good, whole = None, False
    fault = "; ".join(faults[:_FAULTS_NAMED]) or None
    return ScannedSegment(
        header,
        collector.journals,
        good,
        len(view),
        hashlib.sha256(view).digest(),
        fault,
        collector.durable,
        tuple(collector.frames),
        tuple(bad),
        whole,
    )


def _scan_open(
    collector: _Collector, header: SegmentHeader, cipher: FrameCipher, view: memoryview
) -> ScannedSegment:
    fault: str | None = None
    offset, ordinal = HEADER_SIZE, 0
    while offset < len(view) and not _only_zeros(view, offset):
        try:
            end, kind = collector.add(offset, ordinal)
            if kind is Kind.TRAILER:
                raise FormatError("segment has a trailer but no good footer.")
        except (FormatError, AuthenticationError) as exc:
            fault = f"{exc} (offset {offset})"
            for birth_sequence, journal in _journals_behind(header, cipher, view, offset, ordinal):
                collector.note_durable(birth_sequence, journal)
            break
        offset, ordinal = end, ordinal + 1
    digest = hashlib.sha256(view[:offset]).digest()
    return ScannedSegment(
        header, collector.journals, None, offset, digest, fault, collector.durable, tuple(collector.frames)
    )


def _only_zeros(view: memoryview, offset: int) -> bool:
    """Whether the writer's frames end here: it keeps zeros behind them, for the next ones to overwrite."""
    first = view[offset : offset + _ZEROS_FIRST]
    return not any(first) and bytes(len(view) - offset) == view[offset:]


def _journals_behind(
    header: SegmentHeader, cipher: FrameCipher, view: memoryview, offset: int, ordinal: int
) -> Iterator[tuple[int, Journal]]:
    """Authentic journal frames behind a bad frame: (birth sequence, journal).

    Frame headers are found by their lengths, and where a header itself is bad, by the birth name that
    nearly every frame carries. Both searches are bounded.
    """
    name = struct.pack("<Q", header.segment.sequence)
    data = bytes(view)
    tries = tried_bytes = 0
    while offset < len(view) and tries < _TRIES_MAX and tried_bytes < _TRIED_MAX_BYTES:
        tries += 1
        try:
            plain = parse_frame_header(view, position=offset)
            if plain.ordinal < ordinal or offset + plain.size > len(view):
                raise FormatError("not plausibly a frame header.")
        except FormatError:
            offset = data.find(name, offset + _NAME_AT + 1) - _NAME_AT
            if offset < 0:
                return
            continue
        tried_bytes += plain.size
        try:
            _, body = cipher.open_body(view[offset:], offset=offset)
            if body.kind is Kind.JOURNAL:
                yield plain.birth_sequence, decode_journal(unpack(body))
        except (FormatError, AuthenticationError):
            if plain.ordinal != ordinal:
                # Not the bad frame itself: its length says nothing.
                offset += 1
                continue
        offset, ordinal = offset + plain.size, plain.ordinal + 1


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
