"""Journal payloads."""

from __future__ import annotations

import hashlib

import pytest

from mirrorfs.errors import FormatError
from mirrorfs.format.journal import (
    GENESIS_HASH,
    JOURNAL_HEADER_SIZE,
    Journal,
    decode_journal,
    encode_journal,
    journal_hash,
)
from mirrorfs.format.record import Forget, encode_record

RECORDS = encode_record(Forget(5)) * 2
FIRST = Journal(1, -5, 316, False, 2, GENESIS_HASH, RECORDS)
LATER = Journal(2, 5, 0, True, 0, b"\x07" * 32, b"")


@pytest.mark.parametrize("journal", [FIRST, LATER])
def test_round_trip(journal: Journal) -> None:
    payload = encode_journal(journal)
    assert len(payload) == JOURNAL_HEADER_SIZE + len(journal.records)
    assert decode_journal(payload) == journal
    assert journal_hash(payload) == hashlib.sha256(payload).digest()


def test_layout() -> None:
    head = "0100000000000000 fbffffffffffffff 3c01000000000000 00 00 0000 02000000"
    assert encode_journal(FIRST) == bytes.fromhex(head) + bytes(32) + RECORDS
    assert encode_journal(LATER)[24] == 1


def test_every_cut() -> None:
    payload = encode_journal(FIRST)
    for size in range(len(payload)):
        with pytest.raises(FormatError):
            decode_journal(payload[:size])
    with pytest.raises(FormatError):
        decode_journal(payload + b"\0")


@pytest.mark.parametrize("at", [24, 25, 26, 27])
def test_reserved(at: int) -> None:
    payload = bytearray(encode_journal(FIRST))
    payload[at] |= 0x80
    with pytest.raises(FormatError):
        decode_journal(bytes(payload))


@pytest.mark.parametrize(
    "wrong",
    [
        FIRST._replace(sequence=0),
        FIRST._replace(sequence=2),
        FIRST._replace(sequence=2**63, previous=b"\x01" * 32),
        FIRST._replace(previous=b"\x01" * 32),
        FIRST._replace(records_count=1),
        FIRST._replace(records_count=3),
        FIRST._replace(durable_size=(16 << 20) + 1),
    ],
)
def test_values_that_cannot_be(wrong: Journal) -> None:
    with pytest.raises(FormatError):
        decode_journal(encode_journal(wrong))
