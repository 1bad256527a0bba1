"""core/signatures.py: how files begin."""

from __future__ import annotations

import gzip
import random
import zlib

import pytest

from mirrorfs.core.signatures import START_BYTES, Start, start_of

RANDOM = random.Random(7)
JPEG = bytes.fromhex("ffd8ffe000104a46494600010101004800480000ffdb0043")
STARTS = [
    (JPEG + RANDOM.randbytes(100), Start.KNOWN),
    (b"PK\x03\x04" + RANDOM.randbytes(100), Start.KNOWN),
    (bytes(128) + b"DICM" + RANDOM.randbytes(20), Start.KNOWN),
    (b"\0\0\0\x18ftypheic" + RANDOM.randbytes(100), Start.KNOWN),
    (gzip.compress(b"x"), Start.KNOWN),
    (zlib.compress(RANDOM.randbytes(100)), Start.KNOWN),
    ("Sehr geehrte Frau Kollegin, vielen Dank für die Überweisung.\n".encode(), Start.STRUCTURED),
    (b"Dear colleague, thank you for referring this patient.\n", Start.KNOWN),
    (b"\x01\0\0\0\x20\0\0\0" * 16, Start.STRUCTURED),
    (b"Salted__" + RANDOM.randbytes(100), Start.OPAQUE),
    (b"age-encryption.org/v1\n-> X25519 abc\n" * 4, Start.OPAQUE),
    (b"WANACRY!\0\x01\0\0" + RANDOM.randbytes(256), Start.OPAQUE),
    (b"", Start.UNSEEN),
    (b"short", Start.UNSEEN),
    (bytes(START_BYTES), Start.UNSEEN),
]


@pytest.mark.parametrize(("data", "start"), STARTS)
def test_start(data: bytes, start: Start) -> None:
    assert start_of(data[:START_BYTES]) is start


def test_random_bytes_are_opaque() -> None:
    """But for the two in a million that begin as a format does."""
    draw = random.Random(1)
    for size in (16, 24, 32, 64, START_BYTES):
        starts = [start_of(draw.randbytes(size)) for _ in range(2000)]
        assert starts.count(Start.OPAQUE) >= 1990, size
