"""Writes the golden volume and the hostile files: `python -m tests.golden.make_golden DIRECTORY`.

Entropy and times are fixed, so the same program writes the same bytes (given the same zstd, whose
version is in manifest.json). Golden files are added, never edited: a new format writes volume-2 beside
volume-1. What the tree must be is stated in expected_tree.py by hand, not taken from the program.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import trio
import zstandard
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirrorfs.drivers.index_files import SqliteIndexFiles
from mirrorfs.drivers.local_disk import LocalDisk
from mirrorfs.engine.checkpoints import CheckpointWriter, WrittenCheckpoint
from mirrorfs.engine.replay import Replayer
from mirrorfs.engine.segment_writer import SegmentWriter, WriterIdentity
from mirrorfs.format.control import (
    INSTANCE_KEY,
    LEASE_KEY,
    Head,
    Instance,
    Lease,
    LeaseHolder,
    head_key,
    seal_control,
    seal_lease_box,
)
from mirrorfs.format.document import canonical_json
from mirrorfs.format.frame import Body, Kind, make_body
from mirrorfs.format.header import (
    KeyGeneration,
    StoreEntry,
    VolumeHeader,
    header_key,
    parse_header,
    seal_header,
    verify_header,
)
from mirrorfs.format.ids import Previous, SegmentId, Stream, parse_segment_object_key, segment_object_key
from mirrorfs.format.journal import GENESIS_HASH, Journal, encode_journal, journal_hash
from mirrorfs.format.kdf import VolumeKeys, hkdf
from mirrorfs.format.record import Epoch, encode_record
from mirrorfs.format.slot import KdfParameters, KeySet, Role, Slot
from mirrorfs.format.slot_token import Pkcs11Fields, TokenMechanism
from mirrorfs.keys.rotation import rotate_keys
from mirrorfs.keys.slots import make_slot, stretch_password
from mirrorfs.keys.token import Enrolment
from tests.golden import compacted, deletion, drill, hostile
from tests.golden.expected_tree import TREE
from tests.golden.material import Case, Material
from tests.golden.story import AFTER_ROTATION, NAMED, STORY, Commit, Data, Step, t

HERE = Path(__file__).parent
VOLUME = bytes.fromhex("6d6972726f7266732d676f6c64656e31")
PASSWORD = "Größe & Würde 42"
TOKEN_SECRET = bytes(range(0x40, 0x60))
P256_GENERATOR = bytes.fromhex(
    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
)


FIELDS = Pkcs11Fields(
    mechanism=TokenMechanism.ECDH_P256,
    spki_sha256=hashlib.sha256(b"golden spki").digest(),
    key_id=b"\x01",
    challenge=P256_GENERATOR,
    label="golden card",
    serial="0001",
)


class FixedEntropy:
    """The same bytes every time: SHA-256 of a label and a counter."""

    def __init__(self, label: str) -> None:
        self._label = label.encode()
        self._count = 0

    def __call__(self, size_bytes: int) -> bytes:
        self._count += 1
        blocks = [
            hashlib.sha256(self._label + self._count.to_bytes(8, "big") + bytes((block,))).digest()
            for block in range(-(-size_bytes // 32))
        ]
        return b"".join(blocks)[:size_bytes]


class OneCopy:
    """An asynchronous iterator over copies, which a reader may drop half-way without a complaint."""

    def __init__(self, *copies: bytes) -> None:
        self._left = list(reversed(copies))

    def __aiter__(self) -> OneCopy:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        if not self._left:
            raise StopAsyncIteration
        return "golden", self._left.pop()


class FileSource:
    """Segments of the main stream from a mapping of object keys to bytes."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    async def candidates(self, sequence: int) -> list[SegmentId]:
        found = [parse_segment_object_key(key)[1] for key in self._objects if key.startswith("segments/")]
        same = [segment for segment in found if segment.sequence == sequence]
        return sorted(same, key=lambda segment: (segment.epoch, segment.writer), reverse=True)

    def copies(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        return OneCopy(self._objects[segment_object_key(Stream.MAIN, segment)])

    def beginnings(self, segment: SegmentId) -> AsyncIterator[tuple[str, bytes]]:
        return self.copies(segment)


class Builder:
    """Plays the story: appends frames, fails and crashes where it says so."""

    def __init__(self, root: Path, keys: VolumeKeys, key_set: KeySet, entropy: FixedEntropy) -> None:
        self.root = root
        self.disk = LocalDisk(root)
        self.keys = keys
        self.entropy = entropy
        self._signer = Ed25519PrivateKey.from_private_bytes(key_set.writer)
        self._header_generation = 1
        self._previous: Previous | None = None
        self._sequence = 0
        self._journal = 0
        self._hash = GENESIS_HASH
        self._writer: SegmentWriter | None = None
        self._identity = self._new_identity(0, b"")
        self._lost: list[tuple[tuple[int, int], Body, Journal | None]] = []
        self.torn = b""
        """Segment 1 as the crash left it, before recovery cut it."""
        self.position = 0
        self.last_key = ""
        self.last_size = 0
        self.last_digest = b""

    def _new_identity(self, epoch: int, header: bytes) -> WriterIdentity:
        generation = self._header_generation
        return WriterIdentity(self.keys, self._signer, generation, epoch, self.entropy(8), True, header)

    @property
    def identity(self) -> WriterIdentity:
        return self._identity

    @property
    def journal(self) -> int:
        return self._journal

    @property
    def current(self) -> SegmentWriter:
        assert self._writer is not None
        return self._writer

    @property
    def last(self) -> Previous:
        """The last segment, as the next header has to attest it."""
        assert self._previous is not None
        return self._previous

    def rotate(self, keys: VolumeKeys, key_set: KeySet, header_generation: int) -> None:
        """Seal with other keys from the next mount on."""
        self.keys = keys
        self._signer = Ed25519PrivateKey.from_private_bytes(key_set.writer)
        self._header_generation = header_generation

    def play(self, steps: Sequence[Step], header: bytes) -> None:
        """Carry out steps of the story."""
        for step in steps:
            if isinstance(step, Data):
                self._append(make_body(Kind.DATA, b"".join(step.parts)), None)
            elif isinstance(step, Commit):
                self._commit(step)
            elif step == "mount":
                self._identity = self._new_identity(self._identity.epoch + 1, header)
            elif step == "open":
                self._open()
            elif step == "seal":
                self.current.seal()
                self._close()
            elif step == "crash":
                self._crash()
            elif step == "fail":
                self._fail()

    @contextmanager
    def branch(self) -> Iterator[None]:
        """What is played inside never happened afterwards; the last segment is removed again."""
        before = dict(vars(self))
        yield
        (self.root / "objects" / self.last_key).unlink()
        vars(self).update(before)

    def _open(self) -> None:
        self._writer = SegmentWriter(
            self.disk,
            self._identity,
            self.entropy,
            stream=Stream.MAIN,
            sequence=self._sequence,
            previous=self._previous,
        )
        self._sequence += 1
        self._writer.sync()

    def _append(self, body: Body, journal: Journal | None) -> None:
        placed = self.current.append(body)
        self._lost.append(((placed.frame >> 20, placed.frame & 0xFFFFF), body, journal))
        if journal is not None:
            self.current.note_journal(journal)
            self.position = placed.frame

    def _commit(self, commit: Commit) -> None:
        self._journal += 1
        records = [
            record._replace(writer=self._identity.writer) if isinstance(record, Epoch) else record
            for record in commit.records
        ]
        encoded = b"".join(map(encode_record, records))
        durable, count = self.current.durable_size, len(records)
        journal = Journal(
            self._journal, commit.time_ns, durable, commit.continues, count, self._hash, encoded
        )
        payload = encode_journal(journal)
        self._hash = journal_hash(payload)
        self._append(make_body(Kind.JOURNAL, payload), journal)
        if commit.synced and not commit.continues:
            self.current.sync()
            self._lost.clear()

    def _close(self, *, size: int | None = None) -> None:
        writer = self.current
        writer.sync()
        path = self.root / "objects" / writer.key
        writer.close()
        path.write_bytes(path.read_bytes()[: writer.size if size is None else size])
        data = path.read_bytes()
        self._previous = Previous(writer.segment, len(data), hashlib.sha256(data).digest())
        self.last_key, self.last_size, self.last_digest = writer.key, len(data), self._previous.digest
        self._writer = None

    def _crash(self) -> None:
        """A commit was under way: its data frame is whole, its journal frame half written."""
        cut = self.current.size
        self._append(make_body(Kind.DATA, b"never named by anyone"), None)
        start = self.current.size
        journal = Journal(self._journal + 1, t(50), cut, False, 0, self._hash, b"")
        self._append(make_body(Kind.JOURNAL, encode_journal(journal)), journal)
        # Behind the frames the writer keeps zeros, for the next ones to overwrite.
        data = (self.root / "objects" / self.current.key).read_bytes()[: self.current.size]
        self.torn = data[: (start + len(data)) // 2]
        self._lost.clear()
        self._close(size=cut)

    def _fail(self) -> None:
        """The disk refused to sync: what came after the last sync is sealed again in a new segment."""
        lost, self._lost = self._lost, []
        self._close(size=self.current.durable_size)
        self._open()
        for birth, body, journal in lost:
            self.current.append(body, birth=birth)
            if journal is not None:
                self.current.note_journal(journal)
        self.current.sync()


def make_header(key_set: KeySet, keys: VolumeKeys, entropy: FixedEntropy) -> bytes:
    """The volume header, with one slot that PASSWORD and TOKEN_SECRET open."""
    return sealed_header(key_set, keys, first_slot(key_set, FIELDS, entropy), entropy)


def sealed_header(key_set: KeySet, keys: VolumeKeys, slot: Slot, entropy: FixedEntropy) -> bytes:
    """The first generation of the volume header."""
    header = VolumeHeader(
        volume=VOLUME,
        generation=1,
        previous=b"",
        fingerprint=keys.fingerprint,
        created_ns=t(0),
        key_generation=1,
        generations=(KeyGeneration(1, 0, b""),),
        public_keys=key_set.public_keys(),
        stores=(StoreEntry("home", entropy(16)), StoreEntry("away", entropy(16))),
        pad_data=True,
        slots=(slot,),
    )
    return seal_header(header, keys=keys, seed=key_set.writer)


def first_slot(key_set: KeySet, fields: Pkcs11Fields, entropy: FixedEntropy) -> Slot:
    """A slot of version 1, which this program reads and makes no more."""
    kdf = KdfParameters(iterations=2, memory_kib=64 * 1024, lanes=1, salt=entropy(16))
    kek = hkdf(
        stretch_password(PASSWORD.encode(), kdf) + TOKEN_SECRET, salt=kdf.salt, info=b"mirrorfs v1 kek"
    )
    nonce = entropy(12)
    slot = Slot(
        slot_id=entropy(16),
        name="carte n°1",
        roles=tuple(Role),
        created_ns=t(0),
        kdf=kdf,
        token=fields,
        token_check=hkdf(TOKEN_SECRET, salt=kdf.salt, info=b"mirrorfs v1 token check")[:8],
        commitment=hkdf(kek, salt=kdf.salt, info=b"mirrorfs v1 kek commitment"),
        wrap_nonce=nonce,
        wrapped=bytes(144),
    )
    body = slot.to_body()
    del body["wrapped"]
    aad = b"mirrorfs v1 slot" + VOLUME + b"\1\0\0\0" + canonical_json(body)
    return replace(slot, wrapped=AESGCM(kek).encrypt(nonce, key_set.encode(), aad))


def checkpoint(
    builder: Builder,
    objects: dict[str, bytes],
    scratch: Path,
    last: WrittenCheckpoint | None = None,
    again: int | None = None,
) -> WrittenCheckpoint:
    """Write a checkpoint of what the log says up to now; `last` is the one before it, if there is one.

    With `again`, one of the same as that of this number.
    """
    keys = builder.keys
    sequence = last.next_sequence if last is not None else 0
    index = SqliteIndexFiles(
        str(scratch / f"index-{sequence if again is None else again}.db"),
        keys.index_key,
        digest_key=keys.dedup_key,
    ).open()
    if again is None:
        writer = builder.identity.signer.public_key()
        replayer = Replayer(index, FileSource(objects), builder.keys, writer)
        end = trio.run(lambda: replayer.run(keep_tail=True))
        assert end.damage is None and end.position == builder.position
    snapshot = index.snapshot()
    written = CheckpointWriter(
        builder.disk, builder.identity, builder.entropy, sequence=sequence,
        previous=last.previous if last is not None else None,
    ).write(snapshot, None)  # fmt: skip
    snapshot.close()
    index.close()
    return written


def objects_of(root: Path) -> dict[str, bytes]:
    """Object keys and bytes under a directory."""
    base = root / "objects"
    return {
        str(path.relative_to(base)): path.read_bytes() for path in sorted(base.rglob("*")) if path.is_file()
    }


def build(scratch: Path) -> tuple[dict[str, bytes], Material]:
    """All objects of the golden volume, and what hostile files are made from."""
    entropy = FixedEntropy("golden volume 1")
    key_set = KeySet(root=entropy(32), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    keys = VolumeKeys.derive(key_set.root, volume=VOLUME, generation=1)
    header = make_header(key_set, keys, entropy)
    builder = Builder(scratch, keys, key_set, entropy)
    before, after = STORY
    builder.play(before, header)
    written = checkpoint(builder, objects_of(scratch), scratch)
    builder.play(after, header)
    seed = key_set.writer
    head = Head(
        counter=1,
        previous=b"",
        epoch=builder.identity.epoch,
        writer=builder.identity.writer,
        created_ns=t(100),
        sequence=parse_segment_object_key(builder.last_key)[1].sequence,
        segment_key=builder.last_key,
        segment_size=builder.last_size,
        segment_digest=builder.last_digest,
        position=builder.position,
        journal_sequence=builder.journal,
        checkpoint=written.keys[-1],
        checkpoint_digest=written.previous.digest,
        relocation_digest=b"",
        header_generation=1,
        header_hash=hashlib.sha256(header).digest(),
    )
    box = seal_lease_box(LeaseHolder("golden", t(0)), keys=keys, nonce=entropy(12))
    lease = Lease(builder.identity.writer, builder.identity.epoch, bytes(range(32)), 7, False, 30_000, box)
    documents = {
        header_key(1, header): header,
        head_key(counter=1, epoch=head.epoch, writer=head.writer): seal_control(head, keys=keys, seed=seed),
        LEASE_KEY: seal_control(lease, keys=keys, seed=seed),
        INSTANCE_KEY: seal_control(Instance("home", entropy(16)), keys=keys, seed=seed),
    }
    objects = objects_of(scratch) | documents
    return objects, Material(objects, keys, key_set, header, builder.torn)


def build_rotated(scratch: Path) -> dict[str, bytes]:
    """All objects of the second golden volume: the story, a rotation of the keys, a file under the new ones.

    Its slot was made with the old keys, and has the new ones in its box.
    """
    entropy = FixedEntropy("golden volume 2")
    key_set = KeySet(root=entropy(32), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    keys = VolumeKeys.derive(key_set.root, volume=VOLUME, generation=1)
    kdf = KdfParameters(iterations=2, memory_kib=64 * 1024, lanes=1, salt=entropy(16))
    slot = make_slot(
        key_set, volume=VOLUME, key_generation=1, name="carte n°1", roles=tuple(Role),
        stretched=stretch_password(PASSWORD.encode(), kdf), enrolment=Enrolment(FIELDS, TOKEN_SECRET),
        kdf=kdf, created_ns=t(0), entropy=entropy,
    )  # fmt: skip
    first = sealed_header(key_set, keys, slot, entropy)
    builder = Builder(scratch, keys, key_set, entropy)
    before, after = STORY
    builder.play(before, first)
    written = checkpoint(builder, objects_of(scratch), scratch)
    builder.play(after, first)
    data, new_set = rotate_keys(
        parse_header(first), first, keys, key_set, slots=(slot,),
        log_end=builder.last, checkpoint=written.previous, entropy=entropy,
    )  # fmt: skip
    header, new_keys = verify_header(data, new_set)
    builder.rotate(new_keys, new_set, header.generation)
    builder.play(AFTER_ROTATION, data)
    return objects_of(scratch) | {header_key(1, first): first, header_key(header.generation, data): data}


def build_named(scratch: Path) -> dict[str, bytes]:
    """All objects of the third golden volume, which has snapshots."""
    entropy = FixedEntropy("golden volume 3")
    key_set = KeySet(root=entropy(32), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    keys = VolumeKeys.derive(key_set.root, volume=VOLUME, generation=1)
    header = make_header(key_set, keys, entropy)
    builder = Builder(scratch, keys, key_set, entropy)
    before, after = NAMED
    builder.play(before, header)
    checkpoint(builder, objects_of(scratch), scratch)
    builder.play(after, header)
    return objects_of(scratch) | {header_key(1, header): header}


def build_compacted(scratch: Path) -> tuple[dict[str, bytes], list[Case]]:
    """All objects of the fourth golden volume, and hostile variants of it."""
    entropy = FixedEntropy("golden volume 4")
    key_set = KeySet(root=entropy(32), writer=entropy(32), pruner=entropy(32), drill=entropy(32))
    keys = VolumeKeys.derive(key_set.root, volume=VOLUME, generation=1)
    header = make_header(key_set, keys, entropy)
    builder = Builder(scratch, keys, key_set, entropy)

    def write_checkpoint(last: WrittenCheckpoint | None, again: int | None) -> WrittenCheckpoint:
        return checkpoint(builder, objects_of(scratch), scratch, last, again)

    objects, variants = compacted.build(builder, header, write_checkpoint, objects_of)
    return objects | {header_key(1, header): header}, variants


def write(directory: Path) -> None:
    """Write volume-1 to volume-4, the two documents alone, hostile and the JSON files that describe them."""
    with tempfile.TemporaryDirectory() as scratch:
        objects, material = build(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        rotated = build_rotated(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        named = build_named(Path(scratch))
    with tempfile.TemporaryDirectory() as scratch:
        kept, variants = build_compacted(Path(scratch))
    volumes = {"volume-1": objects, "volume-2": rotated, "volume-3": named, "volume-4": kept}
    for name, volume in volumes.items():
        for key, data in volume.items():
            path = directory / name / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    (directory / "drill-report").write_bytes(drill.report(material))
    (directory / "deletion-manifest").write_bytes(deletion.manifest(material))
    cases = [*hostile.cases(material), *variants]
    (directory / "hostile").mkdir(parents=True, exist_ok=True)
    table = []
    for case in cases:
        (directory / "hostile" / case.name).write_bytes(case.data)
        table.append({"file": case.name, "what": case.what, "why": case.why, **case.expect})
    documents = {
        "manifest.json": {
            "password": PASSWORD,
            "token_secret": TOKEN_SECRET.hex(),
            "zstd": ".".join(map(str, zstandard.ZSTD_VERSION)),
            "sha256": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(objects.items())},
            "sha256-2": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(rotated.items())},
            "sha256-3": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(named.items())},
            "sha256-4": {key: hashlib.sha256(data).hexdigest() for key, data in sorted(kept.items())},
        },
        "expected_tree.json": TREE,
        "hostile.json": table,
    }
    for name, value in documents.items():
        text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True)
        (directory / name).write_text(text + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
