"""Values of a made-up volume: keys, slot, header, head and lease, all fixed, none secret."""

from __future__ import annotations

import hashlib

from mirrorfs.format.control import Head, Instance, Lease
from mirrorfs.format.drill import DrillReport
from mirrorfs.format.header import KeyGeneration, StoreEntry, VolumeHeader
from mirrorfs.format.ids import Previous, SegmentId
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.format.slot_token import Pkcs11Fields, TokenMechanism

VOLUME = bytes(range(16))
KEY_SET = KeySet(root=b"\x01" * 32, writer=b"\x02" * 32, pruner=b"\x03" * 32, drill=b"\x04" * 32)
KEYS = VolumeKeys.derive(KEY_SET.root, volume=VOLUME, generation=1)
WRITER = bytes.fromhex("00112233445566ff")

SLOT = Slot(
    slot_id=b"\x10" * 16,
    name="carte n°1",
    roles=tuple(Role),
    created_ns=1_700_000_000_000_000_000,
    kdf=KdfParameters(iterations=2, memory_kib=65536, lanes=1, salt=b"\x11" * 16),
    token=Pkcs11Fields(
        mechanism=TokenMechanism.ECDH_P256,
        spki_sha256=b"\x12" * 32,
        key_id=b"\x01\x02",
        challenge=b"\x04" + b"\x13" * 64,
        label="card",
        serial="0011223344556677",
    ),
    token_check=b"\x14" * 8,
    commitment=b"\x15" * 32,
    wrap_nonce=b"\x16" * 12,
    wrapped=b"\x17" * 144,
    box_key=b"\x18" * 32,
)

HEADER = VolumeHeader(
    volume=VOLUME,
    generation=1,
    previous=b"",
    fingerprint=KEYS.fingerprint,
    created_ns=1_700_000_000_000_000_000,
    key_generation=1,
    generations=(KeyGeneration(generation=1, from_sequence=0, wrapped=b""),),
    public_keys=KEY_SET.public_keys(),
    stores=(StoreEntry(name="home", instance=b"\x20" * 16), StoreEntry(name="s3", instance=b"\x21" * 16)),
    pad_data=True,
    slots=(SLOT,),
)

INSTANCE = Instance(store="home", instance=b"\x20" * 16)


def ended(before: int) -> Previous:
    """A last segment of a key generation: the next begins with this number."""
    return Previous(SegmentId(before - 1, 5, WRITER), 5000, hashlib.sha256(b"last segment").digest())


LEASE = Lease(
    writer=WRITER,
    epoch=3,
    parent=hashlib.sha256(b"before").digest(),
    counter=17,
    released=False,
    period_ms=30_000,
    box=b"\x30" * 60,
)

HEAD = Head(
    counter=2,
    previous=hashlib.sha256(b"head 1").digest(),
    epoch=3,
    writer=WRITER,
    created_ns=1_700_000_000_000_000_000,
    sequence=0x2A,
    segment_key="segments/000000000000002a-00000003-00112233445566ff",
    segment_size=16 * 1024 * 1024,
    segment_digest=hashlib.sha256(b"segment").digest(),
    position=0x2A << 20 | 7,
    journal_sequence=99,
    checkpoint="checkpoints/0000000000000003-00000002-ffeeddccbbaa9988",
    checkpoint_digest=hashlib.sha256(b"checkpoint").digest(),
    relocation_digest=b"",
    header_generation=1,
    header_hash=hashlib.sha256(b"header").digest(),
)

DRILL = DrillReport(
    store="home",
    instance=b"\x20" * 16,
    host="accueil",
    program="1.0",
    started_ns=1_700_000_100_000_000_000,
    ended_ns=1_700_000_200_000_000_000,
    previous=hashlib.sha256(b"report before").digest(),
    header_generation=1,
    header_hash=hashlib.sha256(b"header").digest(),
    position=0x2A << 20 | 7,
    time_ns=1_700_000_000_000_000_000,
    journal_sequence=99,
    journal_hash=hashlib.sha256(b"journal").digest(),
    missing_since_ns=1_700_000_090_000_000_000,
    names=12,
    files=8,
    size_bytes=5000,
    drilled_files=4,
    drilled_bytes=3000,
    compared_files=3,
    differing_names=0,
    damaged_files=0,
    differing_files=0,
    object_count=0,
    objects=(),
    faults=(),
)
