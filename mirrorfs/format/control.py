"""The control documents beside the header: instance, lease and head (FORMAT.md, "Control objects").

A lease that does not verify is a fault of its store and fences nobody; a head is immutable and
names the hash of the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from mirrorfs.errors import AuthenticationError, FormatError, LimitError
from mirrorfs.format.body import BodyReader
from mirrorfs.format.document import (
    DocumentKind,
    canonical_json,
    open_document,
    parse_canonical_json,
    seal_document,
)
from mirrorfs.format.header import (
    HASH_SIZE_BYTES,
    HEADER_GENERATION_MAX,
    INSTANCE_SIZE_BYTES,
    check_store_name,
)
from mirrorfs.format.ids import Stream, parse_segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import EPOCH_MAX, INTEGER_MAX, SEGMENT_SIZE_MAX
from mirrorfs.format.slot import NONCE_SIZE_BYTES, TAG_SIZE_BYTES

INSTANCE_KEY = "instance"
LEASE_KEY = "lease"
WRITER_SIZE_BYTES = 8
PERIOD_MAX_MS = 24 * 60 * 60 * 1000
HOST_SIZE_MAX_BYTES = 255

_BOX_SIZE_MAX_BYTES = NONCE_SIZE_BYTES + 2048 + TAG_SIZE_BYTES
_BOX_CONTEXT = b"mirrorfs v1 lease box"
_HEAD_KEY = re.compile(r"heads/([0-9a-f]{16})-([0-9a-f]{8})-([0-9a-f]{16})")
_LEASE_FIELDS = ("writer", "epoch", "parent", "counter", "released", "period_ms", "box")
_HEAD_FIELDS = (
    "counter", "previous", "epoch", "writer", "created_ns", "sequence", "segment_key", "segment_size",
    "segment_digest", "position", "journal_sequence", "checkpoint", "checkpoint_digest",
    "relocation_digest", "header_generation", "header_hash",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Instance:
    """Says which volume and store an instance of a store belongs to; written once, at init."""

    store: str
    instance: bytes
    """UUID, 16 bytes."""

    def to_body(self) -> dict[str, object]:
        """Raises: FormatError, LimitError."""
        body: dict[str, object] = {"store": self.store, "instance": self.instance.hex()}
        Instance.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Instance:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="store instance", names=("store", "instance"))
        store = read.string("store")
        check_store_name(store)
        return cls(store=store, instance=read.hexadecimal("instance", low=INSTANCE_SIZE_BYTES))


@dataclass(frozen=True, slots=True)
class LeaseHolder:
    """Who holds a lease, for people; the stores see it sealed."""

    host: str
    since_ns: int
    """CLOCK_REALTIME at which the epoch began; shown, never compared."""


@dataclass(frozen=True, slots=True)
class Lease:
    """The right of one writer to one store, renewed by counting up."""

    writer: bytes
    """Random per mount, 8 bytes."""
    epoch: int
    """1-based; a take-over writes the next."""
    parent: bytes
    """SHA-256 of the last lease document of the epoch before; empty where there was none."""
    counter: int
    """Renewals since the epoch began."""
    released: bool
    period_ms: int
    """A lease watched unchanged for this long has expired."""
    box: bytes
    """The holder, sealed (`seal_lease_box`)."""

    def to_body(self) -> dict[str, object]:
        """Raises: FormatError, LimitError."""
        body: dict[str, object] = {
            "writer": self.writer.hex(),
            "epoch": self.epoch,
            "parent": self.parent.hex(),
            "counter": self.counter,
            "released": int(self.released),
            "period_ms": self.period_ms,
            "box": self.box.hex(),
        }
        Lease.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Lease:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="lease", names=_LEASE_FIELDS)
        return cls(
            writer=read.hexadecimal("writer", low=WRITER_SIZE_BYTES),
            epoch=read.integer("epoch", low=1, high=EPOCH_MAX),
            parent=read.hexadecimal("parent", low=HASH_SIZE_BYTES, empty=True),
            counter=read.integer("counter"),
            released=read.flag("released"),
            period_ms=read.integer("period_ms", low=1, high=PERIOD_MAX_MS),
            box=read.hexadecimal("box", low=NONCE_SIZE_BYTES + TAG_SIZE_BYTES, high=_BOX_SIZE_MAX_BYTES),
        )


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the log as its writer last published it. Digests are 32 bytes, or empty for none."""

    counter: int
    """1-based, volume-wide."""
    previous: bytes
    """SHA-256 of the bytes of the head before; empty in the first."""
    epoch: int
    writer: bytes
    created_ns: int
    sequence: int
    """The newest sealed segment; 0 with an empty segment_key when there is none."""
    segment_key: str
    segment_size: int
    segment_digest: bytes
    position: int
    journal_sequence: int
    checkpoint: str
    """Object key of the checkpoint segment that holds the root; empty for none."""
    checkpoint_digest: bytes
    relocation_digest: bytes
    header_generation: int
    header_hash: bytes
    """SHA-256 of the bytes of the newest volume header."""

    def to_body(self) -> dict[str, object]:
        """Raises: FormatError, LimitError."""
        body: dict[str, object] = {
            "counter": self.counter,
            "previous": self.previous.hex(),
            "epoch": self.epoch,
            "writer": self.writer.hex(),
            "created_ns": self.created_ns,
            "sequence": self.sequence,
            "segment_key": self.segment_key,
            "segment_size": self.segment_size,
            "segment_digest": self.segment_digest.hex(),
            "position": self.position,
            "journal_sequence": self.journal_sequence,
            "checkpoint": self.checkpoint,
            "checkpoint_digest": self.checkpoint_digest.hex(),
            "relocation_digest": self.relocation_digest.hex(),
            "header_generation": self.header_generation,
            "header_hash": self.header_hash.hex(),
        }
        Head.from_body(body)
        return body

    @classmethod
    def from_body(cls, body: object) -> Head:
        """Raises: FormatError, LimitError."""
        read = BodyReader(body, what="head", names=_HEAD_FIELDS)
        head = cls(
            counter=read.integer("counter", low=1),
            previous=read.hexadecimal("previous", low=HASH_SIZE_BYTES, empty=True),
            epoch=read.integer("epoch", low=1, high=EPOCH_MAX),
            writer=read.hexadecimal("writer", low=WRITER_SIZE_BYTES),
            created_ns=read.integer("created_ns"),
            sequence=read.integer("sequence"),
            segment_key=read.string("segment_key"),
            segment_size=read.integer("segment_size", high=SEGMENT_SIZE_MAX),
            segment_digest=read.hexadecimal("segment_digest", low=HASH_SIZE_BYTES, empty=True),
            position=read.integer("position"),
            journal_sequence=read.integer("journal_sequence"),
            checkpoint=read.string("checkpoint"),
            checkpoint_digest=read.hexadecimal("checkpoint_digest", low=HASH_SIZE_BYTES, empty=True),
            relocation_digest=read.hexadecimal("relocation_digest", low=HASH_SIZE_BYTES, empty=True),
            header_generation=read.integer("header_generation", low=1, high=HEADER_GENERATION_MAX),
            header_hash=read.hexadecimal("header_hash", low=HASH_SIZE_BYTES),
        )
        head._check_relations()
        return head

    def _check_relations(self) -> None:
        if (self.counter == 1) != (self.previous == b""):
            raise FormatError("The first head has no previous one, and every other has.")
        if self.segment_key:
            stream, segment = parse_segment_object_key(self.segment_key)
            if stream is not Stream.MAIN or segment.sequence != self.sequence:
                raise FormatError("A head names a segment whose key is not that of its sequence.")
            if not self.segment_digest or not self.segment_size:
                raise FormatError("A head names a segment without its size and digest.")
        elif self.sequence or self.segment_size or self.segment_digest:
            raise FormatError("A head describes a segment that it does not name.")
        if bool(self.checkpoint) != bool(self.checkpoint_digest):
            raise FormatError("A head names a checkpoint and its digest, or neither.")
        if self.checkpoint:
            stream, _ = parse_segment_object_key(self.checkpoint)
            if stream is not Stream.CHECKPOINT:
                raise FormatError("A head names a checkpoint by a key that is not a checkpoint's.")


# --- keys of heads ---------------------------------------------------------------------------


def head_key(*, counter: int, epoch: int, writer: bytes) -> str:
    """The object key of a head; keys sort by counter. Raises: LimitError."""
    if not (1 <= counter <= INTEGER_MAX and 1 <= epoch <= EPOCH_MAX and len(writer) == WRITER_SIZE_BYTES):
        raise LimitError("A head's counter, epoch or writer is out of range.")
    return f"heads/{counter:016x}-{epoch:08x}-{writer.hex()}"


def parse_head_key(key: str) -> tuple[int, int, bytes]:
    """Return (counter, epoch, writer). Raises: FormatError: not a key that `head_key` makes."""
    match = _HEAD_KEY.fullmatch(key)
    if match is None:
        raise FormatError("An object under heads/ has a key that is not a head's.")
    counter, epoch = int(match[1], 16), int(match[2], 16)
    if not 1 <= counter <= INTEGER_MAX or epoch < 1:
        raise FormatError("An object under heads/ has a key that is not a head's.")
    return counter, epoch, bytes.fromhex(match[3])


# --- sealing and opening ---------------------------------------------------------------------


def seal_lease_box(holder: LeaseHolder, *, keys: VolumeKeys, nonce: bytes) -> bytes:
    """Seal who holds a lease. Renewals repeat the box: it changes only with its holder.

    Args:
        nonce: 12 random bytes, never used for a second box.
    Raises: LimitError: the nonce, host or time is out of range.
    """
    if len(nonce) != NONCE_SIZE_BYTES:
        raise LimitError("A nonce has 12 bytes.")
    body = {"host": holder.host, "since_ns": holder.since_ns}
    _holder_from_body(body)
    aad = _BOX_CONTEXT + keys.volume
    return nonce + AESGCM(keys.lease_box_key).encrypt(nonce, canonical_json(body), aad)


def open_lease_box(box: bytes, *, keys: VolumeKeys) -> LeaseHolder:
    """Raises: AuthenticationError: the box is not of this volume. FormatError, LimitError."""
    if not NONCE_SIZE_BYTES + TAG_SIZE_BYTES <= len(box) <= _BOX_SIZE_MAX_BYTES:
        raise LimitError("The box of a lease has a wrong length.")
    nonce, sealed = box[:NONCE_SIZE_BYTES], box[NONCE_SIZE_BYTES:]
    try:
        plain = AESGCM(keys.lease_box_key).decrypt(nonce, sealed, _BOX_CONTEXT + keys.volume)
    except InvalidTag as exc:
        raise AuthenticationError("The box of a lease does not verify.") from exc
    return _holder_from_body(parse_canonical_json(plain))


def _holder_from_body(body: object) -> LeaseHolder:
    read = BodyReader(body, what="lease holder", names=("host", "since_ns"))
    host = read.text("host", size_max_bytes=HOST_SIZE_MAX_BYTES)
    return LeaseHolder(host=host, since_ns=read.integer("since_ns"))


def seal_control(value: Instance | Lease | Head, *, keys: VolumeKeys, seed: bytes) -> bytes:
    """Sign and authenticate a control document with the writer's seed. Raises: FormatError, LimitError."""
    kinds = {Instance: DocumentKind.INSTANCE, Lease: DocumentKind.LEASE, Head: DocumentKind.HEAD}
    return seal_document(kinds[type(value)], value.to_body(), volume=keys.volume, keys=keys, seed=seed)


def open_instance(data: bytes, *, keys: VolumeKeys, public_key: bytes) -> Instance:
    """It was made once, at init, and outlives the keys of then.

    Raises: FormatError, LimitError, AuthenticationError.
    """
    body = open_document(
        data,
        DocumentKind.INSTANCE,
        volume=keys.volume,
        keys=keys,
        public_key=public_key,
        with_past=True,
    )
    return Instance.from_body(body)


def open_lease(data: bytes, *, keys: VolumeKeys, public_key: bytes, own: Collection[bytes] = ()) -> Lease:
    """One under keys that are out of use counts only if it was given back: nobody holds a volume with them.

    Args:
        own: writer ids of earlier mounts of this machine, whose leases count all the same: they are gone.
    Raises: FormatError, LimitError, AuthenticationError.
    """
    try:
        body = open_document(data, DocumentKind.LEASE, volume=keys.volume, keys=keys, public_key=public_key)
        return Lease.from_body(body)
    except AuthenticationError:
        if not keys.past:
            raise
    lease = Lease.from_body(
        open_document(
            data,
            DocumentKind.LEASE,
            volume=keys.volume,
            keys=keys,
            public_key=public_key,
            with_past=True,
        )
    )
    if not lease.released and lease.writer not in own:
        raise AuthenticationError("A lease is held with keys that are out of use.")
    end = keys.past[-1].log_end
    if end is not None and lease.epoch > end.segment.epoch:
        raise AuthenticationError("A lease was taken with keys that were out of use.")
    return lease


def open_head(data: bytes, *, key: str, keys: VolumeKeys, public_key: bytes, with_past: bool = False) -> Head:
    """Verify a head and that it lies under its own key.

    Args:
        with_past: one of an earlier key generation will do, for it is asked whether it is damaged, not
            where the log ends.
    Raises: FormatError, LimitError, AuthenticationError.
    """
    body = open_document(
        data,
        DocumentKind.HEAD,
        volume=keys.volume,
        keys=keys,
        public_key=public_key,
        with_past=with_past,
    )
    head = Head.from_body(body)
    if parse_head_key(key) != (head.counter, head.epoch, head.writer):
        raise FormatError("A head lies under a key that is not its own.")
    return head
