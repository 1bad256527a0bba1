"""Checkpoints: writing an image of the index in the log's own form, and loading one.

Chunk boundaries are those of the previous checkpoint where rows still fit, so a chunk whose rows did
not change has the same digest and is named again instead of written again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from mirrorfs.engine.checkpoint_loader import CheckpointLoader, OnLoaded
from mirrorfs.engine.giving_way import Pause
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, SegmentWriter, WriterIdentity
from mirrorfs.engine.sources import Segments
from mirrorfs.errors import AuthenticationError, DamagedError, LimitError
from mirrorfs.format.checkpoint import (
    TABLES,
    ChunkRef,
    Key,
    Root,
    Row,
    Table,
    decode_root,
    encode_chunk,
    encode_root,
    encode_row,
    row_key,
)
from mirrorfs.format.frame import Kind, make_body, unpack
from mirrorfs.format.ids import STREAM_PREFIX, Previous, SegmentId, Stream, segment_object_key
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import FRAME_LENGTH_MAX
from mirrorfs.format.segment import FOOTER, SegmentHeader, decode_header, open_trailer, read_footer, signer_of
from mirrorfs.format.signing import WriterPublicKey
from mirrorfs.ports import Disk, Entropy, Index, IndexSnapshot

logger = logging.getLogger(__name__)

CHUNK_TARGET = 512 * 1024
"""Plaintext bytes at which a new chunk begins."""
_DIRECTORY = LOCAL_PREFIX + STREAM_PREFIX[Stream.CHECKPOINT].rstrip("/")


@dataclass(frozen=True, slots=True)
class WrittenCheckpoint:
    """What a finished checkpoint left on the local disk."""

    root: Root
    keys: tuple[str, ...]
    """Object keys of its segments, in order; the last holds the root."""
    size: int
    """Plaintext bytes of all its chunks, reused ones too."""
    new_bytes: int
    """Bytes written for it."""
    previous: Previous
    """What the next checkpoint segment attests."""
    next_sequence: int


class CheckpointWriter:
    """Writes one checkpoint from a snapshot of the index. Blocking: runs in a worker thread."""

    def __init__(
        self,
        disk: Disk,
        identity: WriterIdentity,
        entropy: Entropy,
        *,
        sequence: int,
        previous: Previous | None,
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._entropy = entropy
        self._sequence = sequence
        self._previous = previous
        self._writer: SegmentWriter | None = None
        self._keys: list[str] = []
        self._new_bytes = 0

    def write(self, snapshot: IndexSnapshot, old: Root | None) -> WrittenCheckpoint:
        """Write chunks and root, sealed and synced. `old` is the root whose chunks may be named again.

        Raises DiskError, DiskFull: what was written so far is removed.
        """
        try:
            return self._write(snapshot, old)
        except BaseException:
            if self._writer is not None:
                self._writer.close()
                self._keys.append(self._writer.key)
            for key in self._keys:
                self._disk.remove(LOCAL_PREFIX + key)
            raise

    def _write(self, snapshot: IndexSnapshot, old: Root | None) -> WrittenCheckpoint:
        known: dict[tuple[int, Key], ChunkRef] = (
            {(ref.table, ref.first): ref for ref in old.chunks} if old else {}
        )
        refs: list[ChunkRef] = []
        total = 0
        for table in TABLES:
            boundaries = {ref.first for ref in old.chunks if ref.table == table.code} if old else set()
            for first, rows in _chunks(table, snapshot, boundaries):
                payload = encode_chunk(table, rows)
                total += len(payload)
                digest = hashlib.sha256(payload).digest()
                same = known.get((table.code, first))
                if same is not None and same.digest == digest:
                    refs.append(same)
                else:
                    refs.append(self._append_chunk(table, first, payload, digest, len(rows)))
        root = Root(
            position=_int(snapshot, "position"),
            journal_sequence=_int(snapshot, "journal_sequence"),
            journal_hash=_bytes(snapshot, "journal_hash"),
            time_ns=_int(snapshot, "time_ns"),
            next_inode=_int(snapshot, "next_inode"),
            next_generation=_int(snapshot, "next_generation"),
            next_cookie=_int(snapshot, "next_cookie"),
            epoch=_int(snapshot, "epoch"),
            chunks=refs,
        )
        data = encode_root(root)
        # All root frames lie together at the end of one segment: a reader needs its tail alone.
        parts = [data[at : at + FRAME_LENGTH_MAX] for at in range(0, len(data), FRAME_LENGTH_MAX)]
        bodies = [make_body(Kind.ROOT, part, level=3) for part in parts]
        writer = self._segment()
        if not writer.fits(bodies):
            self._finish()
            writer = self._segment()
            if not writer.fits(bodies):
                raise LimitError("the checkpoint's root does not fit a segment.")
        for body in bodies:
            writer.append(body)
        self._finish()
        self._disk.sync_directory(_DIRECTORY)
        assert self._previous is not None
        return WrittenCheckpoint(
            root, tuple(self._keys), total, self._new_bytes, self._previous, self._sequence
        )

    def _append_chunk(self, table: Table, first: Key, payload: bytes, digest: bytes, rows: int) -> ChunkRef:
        body = make_body(Kind.CHECKPOINT, payload, level=3)
        writer = self._segment()
        if not writer.fits([body]):
            self._finish()
            writer = self._segment()
        placed = writer.append(body)
        return ChunkRef(
            table.code, first, writer.segment, placed.ordinal, placed.offset, placed.size, digest, rows
        )

    def _segment(self) -> SegmentWriter:
        if self._writer is None:
            self._writer = SegmentWriter(
                self._disk,
                self._identity,
                self._entropy,
                stream=Stream.CHECKPOINT,
                sequence=self._sequence,
                previous=self._previous,
            )
            self._sequence += 1
        return self._writer

    def _finish(self) -> None:
        writer = self._writer
        assert writer is not None
        writer.seal()
        writer.sync()
        self._keys.append(writer.key)
        self._new_bytes += writer.size
        self._previous = writer.previous()
        writer.close()
        self._writer = None


def _chunks(table: Table, snapshot: IndexSnapshot, boundaries: set[Key]) -> Iterator[tuple[Key, list[bytes]]]:
    rows: list[bytes] = []
    first: Key = ()
    size = 0
    for fields in snapshot.rows(table.name, first=()):
        row: Row = table.row(*fields)
        key = row_key(table, row)
        data = encode_row(table, row)
        if rows and (key in boundaries or size + len(data) > CHUNK_TARGET):
            yield first, rows
            rows, size = [], 0
        if not rows:
            first = key
        rows.append(data)
        size += len(data)
    if rows:
        yield first, rows


def _int(snapshot: IndexSnapshot, key: str) -> int:
    value = snapshot.get_meta(key)
    return value if isinstance(value, int) else 0


def _bytes(snapshot: IndexSnapshot, key: str) -> bytes:
    value = snapshot.get_meta(key)
    return value if isinstance(value, bytes) else bytes(32)


# --- loading -----------------------------------------------------------------------------------


class CheckpointReader:
    """Finds and loads checkpoints from the local disk or the stores."""

    def __init__(
        self, segments: Segments, keys: VolumeKeys, writer: WriterPublicKey, *, pause: Pause | None = None
    ) -> None:
        """`segments` is the checkpoint stream, already looked at. `pause`: for loading beside a mount."""
        self._segments = segments
        self._keys = keys
        self._writer = writer
        self._pause = pause
        self._vouched: dict[int, list[Previous | None]] = {}
        """By key generation out of use: its checkpoint segments from the newest back, as far as was asked."""
        self._read: dict[SegmentId, bytes] = {}
        """The segment whose root was found last: many of the checkpoint's chunks may lie in it."""

    async def newest(
        self, accept: Callable[[Root], bool] = lambda root: True, *, but: Collection[SegmentId] = ()
    ) -> tuple[Root, SegmentId] | None:
        """The newest readable checkpoint that `accept` takes, with the segment that holds its root.

        That is the last of the last writer: each numbers its own, and one that was fenced may have come far.
        """
        for segment in self._segments.by_writer():
            root = None if segment in but else await self._root(segment)
            if root is not None and accept(root):
                return root, segment
        return None

    async def root_of(self, segment: SegmentId) -> Root | None:
        """The root in a segment; None: there is none, or no copy of it is good."""
        return await self._root(segment)

    async def _root(self, segment: SegmentId) -> Root | None:
        async for where, data in self._segments.copies(segment):
            try:
                header, cipher = decode_header(data, self._keys, self._writer)
                offset = read_footer(data)
                if header.segment != segment or header.stream is not Stream.CHECKPOINT or offset is None:
                    continue
                trailer = open_trailer(
                    memoryview(data)[offset : len(data) - FOOTER.size],
                    offset=offset, header=header, cipher=cipher,
                    writer=signer_of(header, self._keys, self._writer),
                )  # fmt: skip
                parts = []
                for ordinal, entry in enumerate(trailer.frames):
                    if entry.kind == Kind.ROOT:
                        _, body = cipher.open_body(
                            memoryview(data)[entry.offset :], offset=entry.offset, ordinal=ordinal
                        )
                        parts.append(unpack(body))
                if not parts:
                    return None
                root = decode_root(b"".join(parts))
                if not await self._is_vouched(header, data):
                    raise AuthenticationError("checkpoint is sealed with keys that are out of use.")
                self._read = {segment: data}
                return root
            except DamagedError as exc:
                key = segment_object_key(Stream.CHECKPOINT, segment)
                logger.warning("%s, object %s: %s", where, key, exc)
        return None

    async def _is_vouched(self, header: SegmentHeader, data: bytes) -> bool:
        """Whether a checkpoint is of the keys in use; or was, when the last keys went out of use.

        Of those the volume header names the newest, and each segment attests the one before it.
        """
        past = self._keys.past_of(header.key_generation)
        if past is None:
            return True
        line = self._vouched.setdefault(header.key_generation, [past.checkpoint])
        found = Previous(header.segment, len(data), hashlib.sha256(data).digest())
        while found not in line and (last := line[-1]) is not None:
            line.append(await self._before(last))
        return found in line

    async def _before(self, attested: Previous) -> Previous | None:
        """What an attested segment attests of the one before it; None when it cannot be had."""
        async for _, data in self._segments.copies(attested.segment):
            if (len(data), hashlib.sha256(data).digest()) == attested[1:]:
                return decode_header(data, self._keys, self._writer)[0].previous
        return None

    async def attest(self, segment: SegmentId) -> Previous | None:
        """What the next checkpoint segment attests of this one; None when no copy can be read."""
        async for _, data in self._segments.copies(segment):
            return Previous(segment, len(data), hashlib.sha256(data).digest())
        return None

    async def load(self, root: Root, index: Index, on_loaded: OnLoaded | None = None) -> None:
        """Fill an empty index with a checkpoint that `newest` found.

        Raises: DamagedError: a chunk has no good copy, and the index is of no use.
        """
        loader = CheckpointLoader(
            self._segments, self._keys, self._writer, read_before=self._read, pause=self._pause
        )
        self._read = {}
        await loader.load(root, index, on_loaded)
