"""Reads a volume that was pruned and compacted, by docs/FORMAT.md alone (see independent_reader.py)."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any

from tests.golden.independent_log import DATA, JOURNAL, Frame, Reader, Segment, Wrong, check, sha
from tests.golden.independent_reader import State

Place = tuple[int, int, int, int]
"""Stream, sequence, ordinal, offset."""


def read_at(reader: Reader, position: int | None = None) -> dict[str, dict[str, Any]]:
    """Path -> what was there at a position; None: at the newest."""
    return state_at(reader, position).tree()


def state_at(reader: Reader, position: int | None = None) -> PastState:
    """The state at a position, its frames where they lie now."""
    newest = _newest(reader)
    if position is None:
        return newest
    if position >= newest.base:
        start = max(moment for moment in newest.moments if newest.base <= moment <= position)
        past = replayed(reader, newest.checkpoint_of(start), until=position)
    else:
        check(position in newest.moments, "moment that is not kept")
        past = PastState(reader)
        past.load(newest.checkpoint_of(position))
    check(past.position == position, "no commit of that position")
    past.relocations, past.relocated = newest.relocations, newest.relocated
    return past


def replayed(reader: Reader, checkpoint: str, until: int | None = None) -> PastState:
    """A checkpoint and the log behind it, up to a position or the end."""
    state = PastState(reader)
    state.load(checkpoint)
    check(state.position >= state.base, "checkpoint of before the base")
    pending: list[tuple[int, bytes]] = []
    start = sequence = state.position >> 20
    for segment in reader.follow(start):
        check(segment.sequence > start or segment.previous == state.before(start), "segment behind the base")
        sequence = segment.sequence
        for frame in segment.frames():
            if frame.kind == DATA:
                state.place(frame, segment)
            elif frame.kind == JOURNAL and state.position != until:
                state.journal(frame, pending)
        state.segments[sequence] = (segment.epoch, segment.writer)
    check(not pending, "unfinished commit")
    end = f"segments/{sequence + 1:016x}"
    beyond = [key for key in reader.objects if key.startswith("segments/") and key > end]
    if beyond:
        raise NotFollowed("segments that the log does not lead to")
    return state


def _newest(reader: Reader) -> PastState:
    """From the newest checkpoint that the log follows."""

    def age(key: str) -> tuple[str, str]:
        sequence, epoch, _ = key.removeprefix("checkpoints/").split("-")
        return epoch, sequence

    keys = [name for name in reader.objects if name.startswith("checkpoints/")]
    for key in sorted(keys, key=age, reverse=True):
        try:
            return replayed(reader, key)
        except NotFollowed:
            continue
    raise Wrong("no checkpoint that the log follows")


class NotFollowed(Wrong):
    """The log does not lead from a checkpoint to its end."""


class PastState(State):
    """What records 14 to 18 and tables 9 to 11 say besides."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader)
        self.deaths: dict[int, int] = {}
        self.births: dict[int, int] = {}
        """Frame -> its offset in its birth segment."""
        self.relocations: dict[int, Place] = {}
        self.segments: dict[int, tuple[int, bytes]] = {}
        self.moments: dict[int, tuple[int, int, bytes, bytes, int]] = {}
        """Position -> sequence, epoch, writer, digest, time."""
        self.base = 0
        self.relocated: dict[int, tuple[int, bytes, int, bytes]] = {}
        """Sequence -> epoch, writer, size, digest."""
        self.condemned: dict[tuple[int, int], tuple[int, bytes, int]] = {}
        """Stream and sequence -> epoch, writer, time."""

    def before(self, sequence: int) -> tuple[int, int, bytes] | None:
        """What the header of a segment has to name as the one before it."""
        if not sequence:
            return None
        epoch, writer = self.segments[sequence - 1]
        return epoch, sequence - 1, writer

    def checkpoint_of(self, moment: int) -> str:
        """The object with the checkpoint of a moment."""
        sequence, epoch, writer, digest, _ = self.moments[moment]
        key = f"checkpoints/{sequence:016x}-{epoch:08x}-{writer.hex()}"
        check(key in self.reader.objects and sha(self.reader.objects[key]) == digest, "moment's checkpoint")
        return key

    # --- frames ------------------------------------------------------------------------------

    def place(self, frame: Frame, segment: Segment) -> None:
        """Remember a data frame, unless the checkpoint has it."""
        if frame.name not in self.deaths:
            self.deaths[frame.name] = 0
            self.births[frame.name] = frame.offset
            check(frame.birth == segment.sequence, "nothing was sealed again in this volume's log")

    def journal(self, frame: Frame, pending: list[tuple[int, bytes]]) -> None:
        """Besides what that does: frames die at the end of the commit."""
        before = self.sequence
        super().journal(frame, pending)
        if self.sequence > before and not pending:
            alive = self._alive()
            check(alive <= self.deaths.keys(), "extent of no frame")
            for name, death in self.deaths.items():
                self.deaths[name] = 0 if name in alive else death or self.position

    def _alive(self) -> set[int]:
        return {name for row in self.inodes.values() for name, _ in row["extents"].values()}

    def _lies_in(self, name: int) -> tuple[int, int]:
        return self.relocations[name][:2] if name in self.relocations else (1, name >> 20)

    def _is_needed(self, name: int) -> bool:
        death = self.deaths[name]
        at_moment = any(name < moment < death for moment in self.moments)
        return not death or death > self.base or at_moment or name in self._alive()

    def at(self, name: int) -> tuple[Segment, int, int]:
        """Where a frame lies: segment, offset, ordinal."""
        stream, sequence, ordinal, offset = self.relocations.get(
            name, (1, name >> 20, name & 0xFFFFF, self.births[name])
        )
        if stream == 1:
            (key,) = [key for key in self.reader.objects if key.startswith(f"segments/{sequence:016x}-")]
            return self.reader.segment(key), offset, ordinal
        epoch, writer, size, digest = self.relocated[sequence]
        data = self.reader.objects.get(key := f"relocated/{sequence:016x}-{epoch:08x}-{writer.hex()}", b"")
        check(len(data) == size and sha(data) == digest, "relocated segment")
        segment = self.reader.segment(key)
        check(segment.sealed and [frame.kind for frame in segment.frames()].count(DATA) == len(segment.rows),
              "kinds in a relocated segment")  # fmt: skip
        return segment, offset, ordinal

    # --- records -----------------------------------------------------------------------------

    def _do_14(
        self, position: int, time: int, sequence: int, epoch: int, writer: bytes, digest: bytes
    ) -> None:
        check(0 < position < self.position and _is_segment(sequence, writer, digest), "moment")
        self.moments[position] = (sequence, epoch, writer, digest, time)
        check(len(self.moments) <= 16384, "number of moments")

    def _do_15(self, base: int, dropped: bytes) -> None:
        gone = _numbers(dropped, least=0)
        check(base in self.moments and base >= self.base and base not in gone, "base")
        check(gone <= self.moments.keys(), "moment that is dropped")
        self.base = base
        for position in gone:
            del self.moments[position]

    def _do_16(
        self, sequence: int, epoch: int, size: int, writer: bytes, digest: bytes, places: bytes
    ) -> None:
        check(
            _is_segment(sequence, writer, digest) and (3, sequence) not in self.condemned,
            "segment to move to",
        )
        row = (epoch, writer, size, digest)
        check(self.relocated.setdefault(sequence, row) == row, "another segment to move to")
        listed = list(struct.iter_unpack("<QIII", places))
        check(0 < len(listed) <= 32768 and _rise(name for name, *_ in listed), "list of places")
        check(len({ordinal for _, ordinal, _, _ in listed}) == len(listed), "ordinals in a list of places")
        for name, ordinal, offset, length in listed:
            check(name in self.deaths and ordinal < 1 << 20, "frame that moves")
            check(offset >= 316 and length >= 60 and offset + length <= size <= 1 << 24, "place")
            self.relocations[name] = (3, sequence, ordinal, offset)

    def _do_17(self, stream: int, time: int, sequences: bytes) -> None:
        check(stream in (1, 3), "stream")
        for sequence in _numbers(sequences):
            if stream == 1:
                check(sequence + 1 < self.base >> 20 and sequence in self.segments, "segment of the log")
                epoch, writer = self.segments.pop(sequence)
            else:
                check(sequence in self.relocated, "segment that is not in use")
                epoch, writer, _, _ = self.relocated.pop(sequence)
            for name in [name for name in self.deaths if self._lies_in(name) == (stream, sequence)]:
                check(not self._is_needed(name), "frame that is needed")
                del self.deaths[name], self.births[name]
                self.relocations.pop(name, None)
            self.condemned[stream, sequence] = (epoch, writer, time)

    def _do_18(self, stream: int, sequences: bytes) -> None:
        check(stream in (1, 3), "stream")
        for sequence in _numbers(sequences):
            check(self.condemned.pop((stream, sequence), None), "segment that is not condemned")

    # --- rows --------------------------------------------------------------------------------

    def _row_5(self, frame: int, offset: int, _size: int, _length: int, _live: int, death: int) -> None:
        self.deaths[frame] = death
        self.births[frame] = offset

    def _row_6(self, frame: int, stream: int, sequence: int, ordinal: int, offset: int, _size: int) -> None:
        check(stream in (1, 3) and frame in self.deaths, "stream of a relocation")
        self.relocations[frame] = (stream, sequence, ordinal, offset)

    def _row_7(self, sequence: int, epoch: int, size: int, sealed: int, first: int, last: int, writer: bytes,
               digest: bytes) -> None:  # fmt: skip
        self.segments[sequence] = (epoch, writer)
        # One that an older checkpoint names may have been collected since.
        if f"segments/{sequence:016x}-{epoch:08x}-{writer.hex()}" in self.reader.objects:
            super()._row_7(sequence, epoch, size, sealed, first, last, writer, digest)

    def _row_9(self, position: int, sequence: int, epoch: int, time: int, base: int, writer: bytes,
               digest: bytes) -> None:  # fmt: skip
        check(0 < position < self.position and base < 2 and not (base and self.base), "row of a moment")
        check(_is_segment(sequence, writer, digest), "row of a moment")
        self.moments[position] = (sequence, epoch, writer, digest, time)
        self.base = position if base else self.base

    def _row_10(self, sequence: int, epoch: int, size: int, writer: bytes, digest: bytes) -> None:
        check(_is_segment(sequence, writer, digest) and 316 < size <= 1 << 24, "row of a relocated segment")
        self.relocated[sequence] = (epoch, writer, size, digest)

    def _row_11(self, stream: int, sequence: int, epoch: int, time: int, writer: bytes) -> None:
        check(stream in (1, 3) and _is_segment(sequence, writer, bytes(32)), "row of a condemned segment")
        self.condemned[stream, sequence] = (epoch, writer, time)


def _is_segment(sequence: int, writer: bytes, digest: bytes) -> bool:
    return sequence < 1 << 43 and len(writer) == 8 and len(digest) == 32


def _rise(numbers: Iterable[int]) -> bool:
    listed = list(numbers)
    return listed == sorted(set(listed))


def _numbers(packed: bytes, *, least: int = 1) -> set[int]:
    if len(packed) % 8:
        raise Wrong("list of numbers")
    numbers = [number for (number,) in struct.iter_unpack("<Q", packed)]
    check(least <= len(numbers) <= 32768 and _rise(numbers), "list of numbers")
    return set(numbers)
