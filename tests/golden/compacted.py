"""The fourth golden volume, which was pruned and compacted; expected_tree.py says what must come of it.

Main segments: 0 was collected and deleted; 1 was collected, and is still there; the base is in 3; 2 is kept
beside it. Checkpoints 2 (the base), 3 (newer than every compaction) and 4 (a snapshot before the base,
written long after it) hold moments; 0 was the first of that snapshot, 1 held a moment that was dropped.
Relocated segment 0 was collected and is gone, though no record says so yet; of number 1 there are two, and
one is what is left of a writer that did not come to name it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mirrorfs.engine.checkpoints import WrittenCheckpoint
from mirrorfs.engine.segment_writer import SegmentWriter
from mirrorfs.format.frame import Kind, make_body
from mirrorfs.format.ids import Stream, parse_segment_object_key
from mirrorfs.format.record import Create, Epoch, Forget, Record, Snapshot, Unlink
from mirrorfs.format.retention import (
    Checkpointed,
    Collected,
    Deleted,
    FramePlace,
    Relocated,
    Retain,
    pack_numbers,
    pack_places,
)
from tests.golden.material import Case
from tests.golden.story import (
    DIRECTORY,
    DRAFT_1,
    DRAFT_2,
    FILE,
    GONE,
    KEPT,
    LAST,
    LATER,
    OLD,
    PATCHED,
    Commit,
    Data,
    created,
    extent,
    frame,
    t,
)

if TYPE_CHECKING:
    from tests.golden.make_golden import Builder

SNAPSHOT, DROPPED, BASE, NEWEST = frame(0, 5), frame(2, 1), frame(3, 2), frame(5, 0)
"""Positions of the checkpoints."""
END = frame(6, 2)
Objects = dict[str, bytes]
WriteCheckpoint = Callable[[WrittenCheckpoint | None, int | None], WrittenCheckpoint]
"""Takes the one before it, and the number of one that is written again."""


class Compacted:
    """Plays the story, and keeps what its records have to name."""

    def __init__(
        self,
        builder: Builder,
        header: bytes,
        write_checkpoint: WriteCheckpoint,
    ) -> None:
        self.builder = builder
        self._header = header
        self._write_checkpoint = write_checkpoint
        self._written: WrittenCheckpoint | None = None
        self._bytes_of = {frame(0, 0): KEPT, frame(0, 2): OLD, frame(3, 1): LATER}

    def play(self) -> None:
        """All of it. Nothing is deleted here."""
        self._play(
            "mount",
            "open",
            Data((KEPT,)),
            Data((GONE,)),
            Data((OLD,)),
            Commit(
                t(4),
                (
                    Epoch(1, t(0), bytes(8)),
                    Create(1, 1, 1, 0, DIRECTORY, 1000, 1000, 0, t(0), b"", b""),
                    *_written(2, "kept", KEPT, frame(0, 0), at=1),
                    *_written(3, "gone", GONE, frame(0, 1), at=2),
                    *_written(4, "old", OLD, frame(0, 2), at=3),
                ),
            ),
            Commit(t(6), (Unlink(1, t(5), b"gone"), Forget(3))),
            Commit(t(8), (Snapshot(t(7), 1, b"old times"),)),
        )
        first = self._checkpoint(8)
        self._play(
            "seal",
            "open",
            Commit(t(10), (first,)),
            Data((DRAFT_1,)),
            Commit(t(12), _written(5, "draft", DRAFT_1, frame(1, 1), at=11)),
            "seal",
            "open",
            Data((DRAFT_2,)),
            Commit(
                t(14),
                (extent(5, 0, len(DRAFT_2), frame(2, 0)), Unlink(1, t(13), b"old"), Forget(4)),
            ),
        )
        second = self._checkpoint(14)
        self._play(
            "seal",
            "open",
            Commit(t(16), (second,)),
            Data((LATER,)),
            Commit(t(18), _written(6, "later", LATER, frame(3, 1), at=17)),
        )
        base = self._checkpoint(18)
        self._play("seal", "mount", "open")
        retain = Retain(BASE, pack_numbers([DROPPED]))
        self._play(Commit(t(20), (Epoch(2, t(19), bytes(8)), base, retain)))
        # A long list is cut into several records.
        moved, more = self._relocate(0, frame(0, 0), frame(0, 2))
        self._play(
            Commit(t(22), (moved, more, Collected(Stream.MAIN, t(21), pack_numbers([0, 1])))),
            Data((PATCHED,)),
            Commit(t(24), (extent(2, 1000, len(PATCHED), frame(4, 2)),)),
            "seal",
            "open",
        )
        # From one relocated segment to another, and from the log.
        moved, more, last = self._relocate(1, frame(0, 0), frame(0, 2), frame(3, 1))
        collected = Collected(Stream.RELOCATED, t(25), pack_numbers([0]))
        deleted = Deleted(Stream.MAIN, pack_numbers([0]))
        self._play(Commit(t(26), (moved, more, last, collected, deleted)))
        newest = self._checkpoint(26)
        again = self._checkpoint(8, again=0)
        self._play(
            "seal",
            "open",
            Commit(t(28), (newest, again)),
            Data((LAST,)),
            Commit(t(30), _written(7, "last", LAST, frame(6, 1), at=29)),
            "seal",
            "mount",
        )
        assert self.builder.position == END
        self._relocate(1, frame(0, 0))

    def _play(self, *steps: Any) -> None:
        self.builder.play(steps, self._header)

    def _checkpoint(self, at: int, again: int | None = None) -> Checkpointed:
        """A checkpoint of the position; the record that will say that it is complete."""
        self._written = written = self._write_checkpoint(self._written, again)
        assert len(written.keys) == 1
        assert written.root.position == (self.builder.position if again is None else SNAPSHOT)
        segment = written.previous.segment
        return Checkpointed(
            written.root.position, t(at), segment.sequence, segment.epoch, segment.writer,
            written.previous.digest,
        )  # fmt: skip

    def _relocate(self, sequence: int, *frames: int) -> list[Relocated]:
        """Seal frames again in a segment of the relocated stream, the last first; a record for each."""
        builder = self.builder
        writer = SegmentWriter(
            builder.disk, builder.identity, builder.entropy, stream=Stream.RELOCATED, sequence=sequence,
            previous=None,
        )  # fmt: skip
        places = []
        for name in reversed(frames):
            body = make_body(Kind.DATA, self._bytes_of[name])
            placed = writer.append(body, birth=(name >> 20, name & 0xFFFFF))
            places.append(FramePlace(name, placed.ordinal, placed.offset, placed.size))
        writer.seal()
        writer.sync()
        end = writer.previous()
        writer.close()
        named = end.segment
        return [
            Relocated(sequence, named.epoch, end.size, named.writer, end.digest, pack_places([place]))
            for place in places
        ]


def _written(inode: int, name: str, content: bytes, at_frame: int, *, at: int) -> tuple[Record, ...]:
    return created(inode, name, mode=FILE, at=at), extent(inode, 0, len(content), at_frame)


def in_a_store(objects: Objects) -> Objects:
    """What is left of the objects when the collected ones were deleted, as far as they were."""
    gone = ("segments/0000000000000000", "relocated/0000000000000000", "checkpoints/0000000000000000",
            "checkpoints/0000000000000001")  # fmt: skip
    return {key: data for key, data in objects.items() if not key.startswith(gone)}


# --- hostile variants --------------------------------------------------------------------------


def cases(objects: Objects, builder: Builder, header: bytes) -> list[Case]:
    """JSON files: what else lies in the store under which key, in hexadecimal; null for nothing.

    `at` is the position that is looked at, empty for the newest. Where `raises` says what replay of the log
    raises, the last segment is a forged one, by a holder of the keys.
    """
    used, other = sorted(key for key in objects if key.startswith("relocated/"))
    assert parse_segment_object_key(used)[1].epoch == 2
    roots = sorted(key for key in objects if key.startswith("checkpoints/"))
    rotten = bytearray(objects[used])
    rotten[-200] ^= 1

    def case(name: str, why: str, changes: dict[str, bytes | None], at: int = 0, **expect: str) -> Case:
        hexed = {key: None if data is None else data.hex() for key, data in changes.items()}
        data = json.dumps(hexed, indent=1, sort_keys=True).encode() + b"\n"
        position = f"{at >> 20}.{at & 0xFFFFF}" if at else ""
        return Case(f"kept-{name}.json", "kept", why, data, {"at": position, **expect})

    def forged(name: str, why: str, *records: Record) -> Case:
        last, sequence = builder.last, builder.last.segment.sequence + 1
        steps: Sequence[Any] = ("open", Commit(t(40), records), "seal")
        with builder.branch():
            builder.play(steps, header)
            key, data = builder.last_key, (builder.root / "objects" / builder.last_key).read_bytes()
        assert builder.last == last and parse_segment_object_key(key)[1].sequence == sequence
        return case(f"log-{name}", why, {key: data}, raises="DamagedError")

    places = {place: _place_in(objects[used], place) for place in (frame(0, 0), frame(0, 2), frame(3, 1))}
    segment = parse_segment_object_key(used)[1]
    whole = Relocated(
        1, segment.epoch, len(objects[used]), segment.writer, hashlib.sha256(objects[used]).digest(), b""
    )
    kept = pack_places([places[frame(0, 0)]])
    return [
        case("relocated-missing", "a segment that frames were moved to is gone", {used: None}),
        case("relocated-other", "under its name lies one of another writer", {used: objects[other]}),
        case("relocated-stream", "under its name lies one of the main stream", {used: _main(objects, 3)}),
        case("relocated-rotten", "a bit of it flipped", {used: bytes(rotten)}),
        case("base-missing", "the checkpoint of the base is gone", {roots[0]: None}, BASE),
        case(
            "base-and-newer-missing",
            "only a checkpoint from before the base is left: the log does not follow it",
            {roots[0]: None, roots[1]: None},
        ),
        case("moment-missing", "the checkpoint of a snapshot is gone", {roots[2]: None}, SNAPSHOT),
        case("moment-dropped", "a moment that was dropped", {}, DROPPED),
        case("moment-between", "a commit before the base that is no moment", {}, frame(1, 2)),
        forged("collects-log", "collects the base's own segment", _collected(1, 3)),
        forged("collects-predecessor", "collects the segment before the base's", _collected(1, 2)),
        forged("collects-alive", "collects a segment with frames that are alive", _collected(3, 1)),
        forged("collects-twice", "collects what was collected", _collected(1, 1)),
        forged("deletes-alive", "deletes what is not condemned", Deleted(3, pack_numbers([1]))),
        forged("base-falls", "a base before the base", Retain(SNAPSHOT, b"")),
        forged("base-nowhere", "a base that is no moment", Retain(frame(5, 1), b"")),
        forged("drops-nothing", "drops what is no moment", Retain(BASE, pack_numbers([DROPPED]))),
        forged(
            "moves-unknown",
            "moves a frame that there is not",
            whole._replace(frames=pack_places([places[frame(0, 0)]._replace(frame=frame(0, 1))])),
        ),
        forged("moves-elsewhere", "another segment of that number", whole._replace(epoch=9, frames=kept)),
        forged("moves-bytes", "to other bytes", whole._replace(digest=bytes(32), frames=kept)),
        forged("moves-to-condemned", "to one that may be deleted", whole._replace(sequence=0, frames=kept)),
    ]  # fmt: skip


def _collected(stream: int, sequence: int) -> Collected:
    return Collected(stream, t(40), pack_numbers([sequence]))


def _main(objects: Objects, sequence: int) -> bytes:
    (key,) = (key for key in objects if key.startswith(f"segments/{sequence:016x}-"))
    return objects[key]


def _place_in(data: bytes, name: int) -> FramePlace:
    """Where a segment has a frame, going by the plain headers."""
    offset = 316
    while True:
        size, ordinal, _, sequence, birth_ordinal = struct.unpack_from("<II12sQI", data, offset)
        if sequence << 20 | birth_ordinal == name:
            return FramePlace(name, ordinal, offset, 32 + size)
        offset += 32 + size


def build(
    builder: Builder,
    header: bytes,
    write_checkpoint: WriteCheckpoint,
    objects_of: Callable[[Path], Objects],
) -> tuple[Objects, list[Case]]:
    """All objects of the volume but its header, and the hostile variants."""
    Compacted(builder, header, write_checkpoint).play()
    objects = in_a_store(objects_of(builder.root))
    return objects, cases(objects, builder, header)
