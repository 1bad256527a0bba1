"""Writing one segment file: header, frames, trailer, footer. Blocking; used from one task at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mirrorfs.engine.running_digest import RunningDigest
from mirrorfs.errors import DiskError, DiskFull
from mirrorfs.format.frame import NONCE_SIZE, Body, frame_size
from mirrorfs.format.ids import Previous, SegmentId, Stream, frame_id, segment_object_key
from mirrorfs.format.journal import Journal
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.segment import (
    FOOTER,
    FOOTER_MAGIC,
    TRAILER_ROOM,
    FrameEntry,
    SegmentHeader,
    Trailer,
    cipher_for,
    encode_header,
    trailer_body,
)
from mirrorfs.format.signing import WriterSigner
from mirrorfs.ports import Disk, Entropy, OpenFile

LOCAL_PREFIX = "objects/"
PREPARED_MIN = 32 * 1024
PREPARED_MAX = 1024 * 1024
"""Bytes of zeros written ahead at a time, for small commits to overwrite."""
SMALL_COMMIT = 64 * 1024
"""A sync of more bytes than this is not worth preparing for."""
_TRAILER_BYTES_PER_FRAME = 6


@dataclass(frozen=True, slots=True)
class WriterIdentity:
    """Who writes: drawn anew at each mount, so that no clone of a machine repeats it."""

    keys: VolumeKeys
    signer: WriterSigner
    header_generation: int
    epoch: int
    writer: bytes
    pad_data: bool
    header_bytes: bytes = b""
    """Bytes of the newest volume header: each checkpoint segment carries a copy; empty for none."""


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a frame came to lie."""

    frame: int
    """Stable id (birth name)."""
    ordinal: int
    offset: int
    size: int
    length: int


class SegmentWriter:
    """An open segment. Only the process that created it appends, and it never reopens one.

    Invariant: `size`, `ordinal` and the running digest describe exactly the bytes written so far; a
    failed write leaves them as they were, and the file is not written again after it.

    To sync what made the file longer costs a commit of the journal of the filesystem below, two to four
    times as much as to sync an overwrite. So while commits are small the file is kept longer than the
    segment, by zeros that an earlier sync made durable; the frames then overwrite them. A frame never
    begins with a zero size, so that recovery sees the end of the segment there, as it sees a torn tail.
    """

    def __init__(
        self,
        disk: Disk,
        identity: WriterIdentity,
        entropy: Entropy,
        *,
        stream: Stream,
        sequence: int,
        previous: Previous | None,
    ) -> None:
        """Create the file and write its header; nothing is synced yet. Raises DiskError, DiskFull."""
        self.segment = SegmentId(sequence, identity.epoch, identity.writer)
        self.key = segment_object_key(stream, self.segment)
        self.header = SegmentHeader(
            volume=identity.keys.volume,
            stream=stream,
            key_generation=identity.keys.generation,
            header_generation=identity.header_generation,
            segment=self.segment,
            salt=entropy(32),
            previous=previous,
        )
        self._identity = identity
        self._entropy = entropy
        self._cipher = cipher_for(self.header, identity.keys)
        self.entries: list[FrameEntry] = []
        self._digest = RunningDigest()
        self.size = 0
        self.first_journal = self.last_journal = 0
        self.first_ns = self.last_ns = 0
        # A header is the one object whose loss makes history undecryptable, so it travels with checkpoints.
        self._appendix = identity.header_bytes if stream is Stream.CHECKPOINT else b""
        self._file: OpenFile = disk.create(LOCAL_PREFIX + self.key)
        try:
            self._write(encode_header(self.header, identity.keys, identity.signer))
        except DiskError:
            # Its name must be free for the next try.
            self._file.close()
            disk.remove(LOCAL_PREFIX + self.key)
            raise
        self.durable_size = 0
        self.durable_times = (0, 0)
        """Commit times of the first and last journal frame within the durable bytes."""
        self.sealed = False
        self._prepared = self.size
        """The file's length: behind `size` it holds zeros."""
        self._step = PREPARED_MIN

    def _write(self, data: bytes | bytearray) -> None:
        self._file.write(data, offset=self.size)
        self._digest.add(data)
        self.size += len(data)

    @property
    def empty(self) -> bool:
        """Whether no frame was appended."""
        return not self.entries

    def room(self) -> int:
        """Bytes of frames that still fit, with the trailer's share kept back."""
        kept = TRAILER_ROOM + len(self._appendix) + _TRAILER_BYTES_PER_FRAME * len(self.entries)
        return SEGMENT_SIZE_MAX - kept - self.size

    def count_fitting(self, bodies: Sequence[Body]) -> int:
        """How many of these frames, from the first on, still fit."""
        pad, room = self._identity.pad_data, self.room()
        for count, body in enumerate(bodies):
            room -= frame_size(body, pad_data=pad) + _TRAILER_BYTES_PER_FRAME
            if room < 0:
                return count
        return len(bodies)

    def fits(self, bodies: Sequence[Body]) -> bool:
        """Whether all these frames fit."""
        return self.count_fitting(bodies) == len(bodies)

    def append(self, body: Body, *, birth: tuple[int, int] | None = None) -> Placed:
        """Seal a frame and write it at the end. `birth` is given only for a frame born elsewhere."""
        ordinal, offset = len(self.entries), self.size
        name = birth or (self.segment.sequence, ordinal)
        data = self._cipher.seal(
            body,
            offset=offset,
            ordinal=ordinal,
            nonce=self._entropy(NONCE_SIZE),
            birth=name,
            pad_data=self._identity.pad_data,
        )
        self._write(data)
        self.entries.append(FrameEntry(offset, body.kind))
        return Placed(frame_id(*name), ordinal, offset, len(data), body.length)

    def note_journal(self, journal: Journal) -> None:
        """Remember what the trailer says of the journal frames."""
        if not self.first_journal:
            self.first_journal, self.first_ns = journal.sequence, journal.time_ns
        self.last_journal, self.last_ns = journal.sequence, journal.time_ns

    def read(self, *, offset: int, size_bytes: int) -> bytes:
        """Bytes of the file, written ones only."""
        return self._file.read(offset=offset, size_bytes=size_bytes)

    def sync(self) -> None:
        """fdatasync; everything written before the call is durable after it."""
        size, times = self.size, (self.first_ns, self.last_ns)
        if size > self._prepared:
            self._prepared = size
            if not self.sealed and size - self.durable_size <= SMALL_COMMIT:
                self._prepare()
        self._file.sync()
        self.durable_size, self.durable_times = size, times
        self._digest.mark()

    def write_out(self) -> None:
        """Have what was appended go to the disk already."""
        self._file.write_out()

    @property
    def unhashed_bytes(self) -> int:
        """Bytes that `hash_written` has to do."""
        return self._digest.waiting_bytes

    def hash_written(self) -> None:
        """Hash what was written. Heavy; the one method that may run in a thread beside another."""
        self._digest.catch_up()

    def _prepare(self) -> None:
        """Write zeros behind the frames; this sync has to make a longer file durable anyway."""
        step = min(self._step, SEGMENT_SIZE_MAX - self._prepared)
        try:
            self._file.write(bytes(step), offset=self._prepared)
        except DiskFull:
            return  # it only saves time; `seal` cuts what part of them may be there
        self._prepared += step
        self._step = min(2 * self._step, PREPARED_MAX)

    def seal(self) -> None:
        """Append trailer and footer. The file is then immutable; sync it before anything follows it."""
        offset = self.size
        # Cut before the trailer grows the file again: a sync that makes the trailer readable has then made
        # the cut durable too. The footer is found from the end of the file.
        self._file.truncate(offset)
        trailer = Trailer(
            self.first_journal,
            self.last_journal,
            self.first_ns,
            self.last_ns,
            offset,
            self._digest.digest(),
            tuple(self.entries),
        )
        self.append(trailer_body(trailer, self.header, self._identity.signer))
        self._write(self._appendix + FOOTER.pack(offset, FOOTER_MAGIC))
        self.sealed = True

    def previous(self) -> Previous:
        """What the next header attests of this segment: all of it once sealed, else up to the durable cut."""
        if self.sealed:
            return Previous(self.segment, self.size, self._digest.digest())
        return Previous(self.segment, self.durable_size, self._digest.marked_digest())

    def close(self) -> None:
        """Close the descriptor."""
        self._file.close()
