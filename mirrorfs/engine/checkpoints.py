"""Checkpoints: writing an image of the index in the log's own form.

Chunk boundaries are those of the previous checkpoint where rows still fit, so a chunk whose rows did
not change has the same digest and is named again instead of written again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from mirrorfs.engine.segment_writer import LOCAL_PREFIX, SegmentWriter, WriterIdentity
from mirrorfs.errors import LimitError
from mirrorfs.format.checkpoint import (
    TABLES,
    ChunkRef,
    Key,
    Root,
    Row,
    Table,
    encode_chunk,
    encode_root,
    encode_row,
    row_key,
)
from mirrorfs.format.frame import Kind, make_body
from mirrorfs.format.ids import (
    STREAM_PREFIX,
    Previous,
    Stream,
)
from mirrorfs.format.limits import FRAME_LENGTH_MAX
from mirrorfs.ports import Disk, Entropy, IndexSnapshot

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
