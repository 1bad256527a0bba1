"""Segments as bytes in memory, made with the program's own encoders, for tests that take them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from mirrorfs.format.frame import Body, Kind, make_body
from mirrorfs.format.ids import Previous, SegmentId, Stream
from mirrorfs.format.journal import GENESIS_HASH, Journal, encode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.record import Record, encode_record
from mirrorfs.format.segment import (
    FOOTER,
    FOOTER_MAGIC,
    FrameEntry,
    SegmentHeader,
    Trailer,
    cipher_for,
    encode_header,
    trailer_body,
)
from mirrorfs.format.signing import load_signer
from tests.support.volumes import KEY_SET, KEYS, WRITER

SIGNER = load_signer(KEY_SET.writer)
PUBLIC = SIGNER.public_key()


class SegmentBytes:
    """One segment under construction. Nonces are counted: good enough where nothing is secret."""

    def __init__(
        self,
        sequence: int = 0,
        *,
        stream: Stream = Stream.MAIN,
        previous: Previous | None = None,
        journal_sequence: int = 0,
        journal_hash: bytes = GENESIS_HASH,
        keys: VolumeKeys = KEYS,
        segment: SegmentId | None = None,
    ) -> None:
        """`segment`: instead of the one of that sequence number by the writer of all others here."""
        segment = segment or SegmentId(sequence, 1, WRITER)
        self.header = SegmentHeader(
            volume=keys.volume,
            stream=stream,
            key_generation=keys.generation,
            header_generation=1,
            segment=segment,
            salt=hashlib.sha256(repr(segment).encode()).digest(),
            previous=previous,
        )
        self.cipher = cipher_for(self.header, keys)
        self.data = bytearray(encode_header(self.header, keys, SIGNER))
        self.entries: list[FrameEntry] = []
        self.journal_sequence = journal_sequence
        self.journal_hash = journal_hash

    def frame(self, body: Body, *, birth: tuple[int, int] | None = None) -> int:
        """Append a frame. Returns its offset."""
        offset, ordinal = len(self.data), len(self.entries)
        self.data += self.cipher.seal(
            body,
            offset=offset,
            ordinal=ordinal,
            nonce=ordinal.to_bytes(12, "little"),
            birth=birth or (self.header.segment.sequence, ordinal),
            pad_data=True,
        )
        self.entries.append(FrameEntry(offset, body.kind))
        return offset

    def add_data(self, payload: bytes, *, birth: tuple[int, int] | None = None) -> int:
        """Append a data frame. Returns its offset."""
        return self.frame(make_body(Kind.DATA, payload), birth=birth)

    def add_journal(
        self,
        records: Sequence[Record] = (),
        *,
        continues: bool = False,
        durable_size: int = 0,
        birth: tuple[int, int] | None = None,
    ) -> int:
        """Append the next journal frame of the chain. Returns its offset."""
        self.journal_sequence += 1
        encoded = b"".join(map(encode_record, records))
        payload = encode_journal(
            Journal(
                self.journal_sequence, 0, durable_size, continues, len(records), self.journal_hash, encoded
            )
        )
        self.journal_hash = journal_hash(payload)
        return self.frame(make_body(Kind.JOURNAL, payload), birth=birth)

    def seal(self, appendix: bytes = b"") -> bytes:
        """Append trailer, appendix and footer. Returns all bytes."""
        offset = len(self.data)
        trailer = Trailer(0, 0, 0, 0, offset, hashlib.sha256(self.data).digest(), tuple(self.entries))
        self.frame(trailer_body(trailer, self.header, SIGNER))
        self.data += appendix + FOOTER.pack(offset, FOOTER_MAGIC)
        return bytes(self.data)

    def previous(self) -> Previous:
        """What the next header attests."""
        return Previous(self.header.segment, len(self.data), hashlib.sha256(self.data).digest())
