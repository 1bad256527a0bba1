"""The worked example of docs/FORMAT.md: `python -m tests.golden.example` prints it; a test compares."""

from __future__ import annotations

from mirrorfs.format.frame import Body, Codec, Kind
from mirrorfs.format.ids import SegmentId, Stream
from mirrorfs.format.journal import Journal, encode_journal
from mirrorfs.format.kdf import VolumeKeys, segment_key
from mirrorfs.format.record import Forget, encode_record
from mirrorfs.format.segment import HEADER_SIZE, SegmentHeader, cipher_for, encode_header
from mirrorfs.format.signing import load_signer

VOLUME = bytes(range(16))
ROOT = b"\x01" * 32
WRITER_SEED = b"\x02" * 32
KEYS = VolumeKeys.derive(ROOT, volume=VOLUME, generation=1)


def example() -> tuple[bytes, bytes]:
    """(the segment, the plaintext of its only frame)."""
    header = SegmentHeader(
        volume=VOLUME,
        stream=Stream.MAIN,
        key_generation=1,
        header_generation=1,
        segment=SegmentId(0, 1, b"\xaa" * 8),
        salt=b"\x55" * 32,
        previous=None,
    )
    records = encode_record(Forget(5))
    payload = encode_journal(Journal(1, 1_700_000_000_000_000_000, 316, False, 1, bytes(32), records))
    frame = cipher_for(header, KEYS).seal(
        Body(Kind.JOURNAL, Codec.RAW, payload, len(payload)),
        offset=HEADER_SIZE,
        ordinal=0,
        nonce=b"\x99" * 12,
        birth=(0, 0),
        pad_data=True,
    )
    return encode_header(header, KEYS, load_signer(WRITER_SEED)) + frame, payload


def _dump(data: bytes) -> list[str]:
    return [f"{at:04x}  {data[at : at + 32].hex(' ', -4)}" for at in range(0, len(data), 32)]


def lines() -> list[str]:
    """The lines that stand in docs/FORMAT.md."""
    segment, payload = example()
    key, _ = segment_key(KEYS, b"\x55" * 32)
    return [
        f"fingerprint  {KEYS.fingerprint.hex()}",
        f"segment key  {key.hex()}",
        f"public key   {load_signer(WRITER_SEED).public_key().public_bytes_raw().hex()}",
        "the segment:",
        *_dump(segment),
        "the plaintext of its frame:",
        *_dump(payload),
    ]


if __name__ == "__main__":
    print("\n".join(lines()))
