"""Which frames are loaded ahead of a sequential reader, and in which runs."""

from __future__ import annotations

from collections.abc import Sequence

from mirrorfs.core.extents import Extent, pack_extents
from mirrorfs.engine.read_ahead import (
    FIRST_WINDOW,
    GAP_MAX,
    READERS_MAX,
    RUN_BYTES_MAX,
    WINDOW,
    Place,
    ReadAhead,
    runs,
)
from mirrorfs.format.ids import Stream
from mirrorfs.format.limits import CHUNK_SIZE

CHUNKS = 40


class Extents:
    """The part of an index that read-ahead asks: one frame per chunk, numbered by it."""

    def get_extents(self, inode: int, chunk: int) -> bytes | None:
        return pack_extents([Extent(0, CHUNK_SIZE, chunk, 0)]) if chunk < CHUNKS else None


class Rig:
    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.have: set[int] = set()
        self.ahead = ReadAhead(
            Extents(),  # type: ignore[arg-type]  # the one method that is called
            is_wanted=lambda frame: frame not in self.have,
            start=self._start,
        )

    def _start(self, frames: Sequence[int]) -> None:
        self.asked.append(list(frames))
        self.have.update(frames)


def test_a_single_read_loads_nothing_ahead() -> None:
    rig = Rig()
    rig.ahead.note(1, 0, CHUNK_SIZE)
    rig.ahead.note(1, 5 * CHUNK_SIZE, CHUNK_SIZE)
    rig.ahead.note(1, 3 * CHUNK_SIZE, CHUNK_SIZE)
    assert rig.asked == []


def test_a_sequential_reader_finds_everything_loaded_and_each_frame_is_asked_for_once() -> None:
    rig = Rig()
    for chunk in range(CHUNKS):
        if chunk > 1:
            assert chunk in rig.have
        rig.ahead.note(1, chunk * CHUNK_SIZE, CHUNK_SIZE)
        assert len(rig.have) <= chunk + 1 + (WINDOW * 3 // 2) // CHUNK_SIZE + 1
    frames = [frame for run in rig.asked for frame in run]
    assert frames == list(range(frames[0], CHUNKS))
    assert frames[0] == 2
    assert len(rig.asked) < CHUNKS // 3  # windows, not frames


def test_windows_grow() -> None:
    rig = Rig()
    rig.ahead.note(1, 0, CHUNK_SIZE)
    rig.ahead.note(1, CHUNK_SIZE, CHUNK_SIZE)
    assert len(rig.asked[0]) == FIRST_WINDOW // CHUNK_SIZE
    for chunk in range(2, 5):
        rig.ahead.note(1, chunk * CHUNK_SIZE, CHUNK_SIZE)
    assert max(len(run) for run in rig.asked) > FIRST_WINDOW // CHUNK_SIZE


def test_readers_are_told_apart_and_their_number_is_bounded() -> None:
    rig = Rig()
    for inode in range(3 * READERS_MAX):
        rig.ahead.note(inode, 0, CHUNK_SIZE)
    rig.ahead.note(3 * READERS_MAX - 1, CHUNK_SIZE, CHUNK_SIZE)
    assert rig.asked == [[2, 3]]
    assert len(rig.ahead._readers) <= READERS_MAX


def test_what_is_there_already_is_not_asked_for() -> None:
    rig = Rig()
    rig.have = set(range(CHUNKS))
    for chunk in range(4):
        rig.ahead.note(1, chunk * CHUNK_SIZE, CHUNK_SIZE)
    assert rig.asked == []


def place(
    frame: int, offset: int, *, size: int = 1000, sequence: int = 7, stream: int = Stream.MAIN
) -> Place:
    return Place(frame, stream, sequence, frame, offset, size)


def test_neighbours_form_a_run() -> None:
    one, two, three = place(1, 0), place(2, 1000), place(3, 2000 + GAP_MAX)
    assert runs([one, two, three]) == [[one, two, three]]


def test_a_run_ends_at_a_gap_at_another_segment_and_backwards() -> None:
    one, far = place(1, 0), place(2, 1001 + GAP_MAX)
    assert runs([one, far]) == [[one], [far]]
    for elsewhere in (place(2, 1000, sequence=8), place(2, 1000, stream=Stream.RELOCATED)):
        assert runs([one, elsewhere]) == [[one], [elsewhere]]
    later, earlier = place(1, 5000), place(2, 1000)
    assert runs([later, earlier]) == [[later], [earlier]]
    assert runs([]) == []


def test_a_run_is_bounded() -> None:
    places = [place(number, number * CHUNK_SIZE, size=CHUNK_SIZE) for number in range(10)]
    found = runs(places)
    assert [one for run in found for one in run] == places
    assert all(run[-1].offset + run[-1].size - run[0].offset <= RUN_BYTES_MAX for run in found)
    assert len(found) == 3
