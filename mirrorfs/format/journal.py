"""Journal payloads: records in order, chained through the whole volume (docs/FORMAT.md, "Journal")."""

from __future__ import annotations

import hashlib
import struct
from typing import NamedTuple

from mirrorfs.errors import FormatError
from mirrorfs.format.limits import INTEGER_MAX, SEGMENT_SIZE_MAX
from mirrorfs.format.record import count_records

_HEADER = struct.Struct("<QqQBBHI32s")
JOURNAL_HEADER_SIZE = _HEADER.size
FLAG_CONTINUES = 1
"""The commit goes on in the next journal frame; a reader applies all of a commit or nothing."""

GENESIS_HASH = bytes(32)


class Journal(NamedTuple):
    """The payload of one journal frame."""

    sequence: int
    """Volume-wide number of the journal frame; the first is 1."""
    time_ns: int
    durable_size: int
    """Bytes of this segment known durable when the frame was written: damage below is no torn tail."""
    continues: bool
    records_count: int
    previous: bytes
    """SHA-256 of the payload of the preceding journal frame; zeros for the first."""
    records: bytes
    """`records_count` encoded records."""


def encode_journal(journal: Journal) -> bytes:
    """Bytes of the payload."""
    flags = FLAG_CONTINUES if journal.continues else 0
    return (
        _HEADER.pack(
            journal.sequence,
            journal.time_ns,
            journal.durable_size,
            flags,
            0,
            0,
            journal.records_count,
            journal.previous,
        )
        + journal.records
    )


def decode_journal(payload: bytes) -> Journal:
    """The inverse. Raises FormatError; of the records inside only the heads are looked at."""
    if len(payload) < _HEADER.size:
        raise FormatError("journal frame is cut short.")
    sequence, time_ns, durable, flags, zero, zero2, count, previous = _HEADER.unpack_from(payload)
    if flags & ~FLAG_CONTINUES or zero or zero2:
        raise FormatError("journal frame has reserved bits set; a newer program wrote it.")
    if not 1 <= sequence <= INTEGER_MAX or (sequence == 1) != (previous == GENESIS_HASH):
        raise FormatError("journal frame has an impossible number or predecessor.")
    if durable > SEGMENT_SIZE_MAX:
        raise FormatError("journal frame says that more is durable than fits a segment.")
    records = payload[_HEADER.size :]
    if count_records(records) != count:
        raise FormatError("journal frame holds another number of records than it says.")
    return Journal(sequence, time_ns, durable, bool(flags), count, previous, records)


def journal_hash(payload: bytes) -> bytes:
    """What the next journal frame names as `previous`."""
    return hashlib.sha256(payload).digest()
