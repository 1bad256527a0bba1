"""Copying what is needed out of segments that are to go, into segments of the relocated stream.

A frame is copied whole, under its birth name: what refers to it stays as it is. Until a record says so
nobody looks for it in its new place; a segment that was made in vain is garbage that nothing refers to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mirrorfs.core.compaction import Kept, Place, Victim, placed
from mirrorfs.engine.objects import ObjectSource
from mirrorfs.engine.segment_writer import LOCAL_PREFIX, SegmentWriter, WriterIdentity
from mirrorfs.errors import DamagedError, DiskError, FormatError
from mirrorfs.format.frame import Body, Kind
from mirrorfs.format.ids import STREAM_PREFIX, SegmentId, Stream, frame_id, segment_object_key, split_frame_id
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.format.retention import LISTED_MAX, FramePlace, Relocated, pack_places
from mirrorfs.format.segment import decode_header
from mirrorfs.format.signing import load_public_key
from mirrorfs.ports import Disk, Entropy, Index, IndexSnapshot, Offload

logger = logging.getLogger(__name__)

_DIRECTORY = LOCAL_PREFIX + STREAM_PREFIX[Stream.RELOCATED].rstrip("/")


@dataclass(slots=True)
class Copied:
    """A segment of the relocated stream that was written, and is named by no record yet."""

    key: str
    size: int
    digest: bytes
    segment: SegmentId
    places: list[FramePlace] = field(default_factory=list)

    def records(self) -> Iterable[Relocated]:
        """What makes it the place of its frames."""
        places = sorted(self.places)
        for at in range(0, len(places), LISTED_MAX):
            packed = pack_places(places[at : at + LISTED_MAX])
            yield Relocated(*self.segment[:2], self.size, self.segment.writer, self.digest, packed)


@dataclass(frozen=True, slots=True)
class WantedFrame:
    """A frame to copy, and where it lies."""

    frame: int
    ordinal: int
    offset: int
    size: int


def wanted_frames(
    snapshot: IndexSnapshot, places: Iterable[Place], kept: Kept
) -> dict[Place, list[WantedFrame]]:
    """The frames in some segments that are needed. Blocking: runs over all frames."""
    found: dict[Place, list[WantedFrame]] = {place: [] for place in places}
    frames, relocations = snapshot.rows("frames", first=()), snapshot.rows("relocations", first=())
    for place, row, moved in placed(frames, relocations):  # type: ignore[arg-type]  # all are numbers
        frames_there = found.get(place)
        if frames_there is None or not kept.needs(row.frame, live=row.live, death=row.death):
            continue
        # One that was lost to damage is among them: where it lies nothing can be done without.
        ordinal = moved.ordinal if moved is not None else split_frame_id(row.frame)[1]
        offset = moved.offset if moved is not None else row.offset
        frames_there.append(WantedFrame(row.frame, ordinal, offset, row.size))
    return found


class Compactor:
    """Writes relocated segments on the local disk; one run at a time."""

    def __init__(
        self,
        disk: Disk,
        entropy: Entropy,
        offload: Offload,
        index: Index,
        source: ObjectSource,
        keys: VolumeKeys,
        public_key: bytes,
        *,
        identity: Callable[[], WriterIdentity],
    ) -> None:
        """`public_key`: Ed25519 of the writer role, 32 bytes. `identity`: who writes now."""
        self._disk = disk
        self._entropy = entropy
        self._offload = offload
        self._index = index
        self._source = source
        self._keys = keys
        self._writer = load_public_key(public_key)
        self._identity = identity
        self._next_sequence = 0
        self._open: SegmentWriter | None = None
        self._places: list[FramePlace] = []
        self.written: list[Copied] = []
        """What was written since `begin`."""

    def begin(self) -> None:
        """Start over; what a run before wrote and did not use is removed by whoever sweeps."""
        self._next_sequence = max(self._next_sequence, self._index.last_relocated() + 1)
        self.written = []
        self._drop_open()

    async def copy(self, victim: Victim, frames: Sequence[WantedFrame]) -> None:
        """Copy the frames of one segment.

        Raises: DamagedError, StoreError: it cannot be read, and must stay. DiskError, DiskFull.
        """
        if not frames:
            return
        key = self.key_of(victim.place)
        data = await self._source.read(key)
        bodies = await self._offload.run(lambda: self._opened(key, data, frames))
        await self._offload.run(lambda: self._append(bodies))

    async def finish(self) -> list[Copied]:
        """Close the last segment. Returns all that were written. Raises: DiskError, DiskFull."""
        await self._offload.run(self._close_open)
        if self.written:
            await self._offload.sync(lambda: self._disk.sync_directory(_DIRECTORY))
        return self.written

    async def abandon(self) -> None:
        """Remove what was written: it is not going to be used."""
        self._drop_open()
        for copied in self.written:
            path = LOCAL_PREFIX + copied.key
            await self._offload.run(lambda path=path: self._disk.remove(path))  # type: ignore[misc]
        self.written = []

    def key_of(self, place: Place) -> str:
        """Key of a segment that is in use. Raises: DamagedError: it is not."""
        stream, sequence = place
        main = stream == Stream.MAIN
        row = self._index.get_segment(sequence) if main else self._index.get_relocated(sequence)
        if row is None:
            raise DamagedError("the index names a segment that it does not know.")
        return segment_object_key(Stream(stream), SegmentId(sequence, row.epoch, row.writer))

    # --- in a worker thread --------------------------------------------------------------------

    def _opened(self, key: str, data: bytes, frames: Sequence[WantedFrame]) -> list[tuple[int, Body]]:
        header, cipher = decode_header(data, self._keys, self._writer)
        if segment_object_key(header.stream, header.segment) != key:
            raise FormatError("the object holds another segment.")
        view, bodies = memoryview(data), []
        for wanted in frames:
            sealed = view[wanted.offset : wanted.offset + wanted.size]
            found, body = cipher.open_body(sealed, offset=wanted.offset, ordinal=wanted.ordinal)
            if (
                body.kind is not Kind.DATA
                or frame_id(found.birth_sequence, found.birth_ordinal) != wanted.frame
            ):
                raise FormatError("another frame lies there.")
            bodies.append((wanted.frame, body))
        return bodies

    def _append(self, bodies: Sequence[tuple[int, Body]]) -> None:
        for frame, body in bodies:
            if self._open is not None and not self._open.fits([body]):
                self._close_open()
            if self._open is None:
                self._open = self._new()
            placed_at = self._open.append(body, birth=split_frame_id(frame))
            self._places.append(FramePlace(frame, placed_at.ordinal, placed_at.offset, placed_at.size))

    def _new(self) -> SegmentWriter:
        sequence = self._next_sequence
        self._next_sequence += 1  # spent, whatever comes of it: no name is used for other bytes
        return SegmentWriter(
            self._disk,
            self._identity(),
            self._entropy,
            stream=Stream.RELOCATED,
            sequence=sequence,
            previous=None,
        )

    def _close_open(self) -> None:
        writer = self._open
        if writer is None:
            return
        writer.seal()
        writer.sync()
        _, size, digest = writer.previous()
        self.written.append(Copied(writer.key, size, digest, writer.segment, self._places))
        self._open, self._places = None, []
        writer.close()

    def _drop_open(self) -> None:
        writer, self._open, self._places = self._open, None, []
        if writer is not None:
            writer.close()
            try:
                self._disk.remove(LOCAL_PREFIX + writer.key)
            except DiskError as exc:
                logger.warning("A segment that is not used could not be removed: %s", exc)
