"""What the records of retention do to the index, and what they cannot do: each is checked on replay too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mirrorfs.core.compaction import Kept
from mirrorfs.drivers.index_schema import TABLES
from mirrorfs.drivers.index_sqlite import SqliteIndex
from mirrorfs.engine import apply_retention
from mirrorfs.engine.apply import Applier
from mirrorfs.errors import DamagedError
from mirrorfs.format.ids import frame_id
from mirrorfs.format.record import Record, decode_records, encode_record
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
from mirrorfs.format.rows import CondemnedRow, FrameRow, MomentRow, RelocatedRow, RelocationRow, SegmentRow

WRITER, DIGEST = b"w" * 8, b"d" * 32
EARLY, BASE, LATE = frame_id(2, 5), frame_id(5, 5), frame_id(9, 5)
"""Moments."""
ALIVE, DEAD, SEEN, YOUNG, UNKNOWN = (frame_id(1, number) for number in range(5))
"""Frames of segment 1: alive; dead before every moment; dead after EARLY; after BASE; nobody knows yet."""
DEATHS = {DEAD: EARLY, SEEN: EARLY + 1, YOUNG: BASE + 1}


def moment(position: int, *, base: int = 0) -> MomentRow:
    return MomentRow(position, 7, 2, WRITER, DIGEST, -3, base)


def checkpointed(position: int) -> Checkpointed:
    return Checkpointed(position, -3, 7, 2, WRITER, DIGEST)


def relocated(*frames: int, sequence: int = 4) -> Relocated:
    places = [FramePlace(frame, at, 316 + 60 * at, 60) for at, frame in enumerate(frames)]
    return Relocated(sequence, 3, 1000, WRITER, DIGEST, pack_places(places))


def collected(stream: int, *sequences: int) -> Collected:
    return Collected(stream, -9, pack_numbers(sequences))


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SqliteIndex]:
    """Segments 0 to 9 are closed; the frames are in number 1."""
    index = SqliteIndex.open(str(tmp_path / "index.db"), bytes(32))
    for sequence in range(10):
        index.put_segment(SegmentRow(sequence, 1, WRITER, 400, 1, DIGEST, 1, 2))
    for frame in (ALIVE, DEAD, SEEN, YOUNG, UNKNOWN):
        index.put_frame(FrameRow(frame, 316, 60, 3, 3 * (frame == ALIVE), DEATHS.get(frame, 0)))
    yield index
    index.close()


def apply(index: SqliteIndex, *records: Record) -> None:
    """As replay does it: from bytes."""
    applier = Applier(index)
    for record in decode_records(b"".join(map(encode_record, records))):
        applier.apply(record)


def rows_of(index: SqliteIndex) -> dict[str, list[tuple[object, ...]]]:
    """All rows of the index."""
    index.commit()
    snapshot = index.snapshot()
    found = {table: list(snapshot.rows(table, first=())) for table in TABLES}
    snapshot.close()
    return found


def apply_base(index: SqliteIndex, *moments: int) -> None:
    apply(index, *map(checkpointed, (*moments, BASE)), Retain(BASE, b""))


def test_a_base_rises_and_moments_go(index: SqliteIndex) -> None:
    apply(index, *map(checkpointed, (EARLY, BASE, LATE)))
    assert index.list_moments() == [moment(EARLY), moment(BASE), moment(LATE)]
    assert index.base_moment() is None
    apply(index, Retain(EARLY, b""), Retain(BASE, b""))
    assert index.list_moments() == [moment(EARLY), moment(BASE, base=1), moment(LATE)]
    apply(index, Retain(BASE, pack_numbers([EARLY])))
    assert index.list_moments() == [moment(BASE, base=1), moment(LATE)]
    # The base that was may go with the record that names another.
    apply(index, Retain(LATE, pack_numbers([BASE])))
    assert index.list_moments() == [moment(LATE, base=1)]


def test_a_checkpoint_that_is_written_again(index: SqliteIndex) -> None:
    apply_base(index)
    again = checkpointed(BASE)._replace(sequence=9, digest=b"e" * 32)
    apply(index, again)
    assert index.list_moments() == [moment(BASE, base=1)._replace(sequence=9, digest=b"e" * 32)]


def test_frames_move_and_segments_go(index: SqliteIndex) -> None:
    apply_base(index, EARLY)
    # In two records, as long lists are.
    first, second = relocated(ALIVE, SEEN), relocated(YOUNG, UNKNOWN)
    apply(index, first, second, collected(1, 1))
    assert index.get_segment(1) is None and index.get_segment(0) is not None
    assert index.get_relocated(4) == RelocatedRow(4, 3, WRITER, 1000, DIGEST)
    assert index.list_condemned(after=(0, 0), limit=9) == [CondemnedRow(1, 1, 1, WRITER, -9)]
    assert [row.frame for row in index.frames_in(3, 4)] == [ALIVE, SEEN, YOUNG, UNKNOWN]
    assert index.get_relocation(SEEN) == RelocationRow(SEEN, 3, 4, 1, 376, 60)
    assert index.get_frame(DEAD) is None
    # They move on; what nothing needs any more goes with the segment.
    apply(index, Retain(BASE, pack_numbers([EARLY])), relocated(ALIVE, YOUNG, UNKNOWN, sequence=6))
    apply(index, collected(3, 4), Deleted(1, pack_numbers([1])))
    assert index.get_frame(SEEN) is None and index.get_relocation(SEEN) is None
    assert [row.frame for row in index.frames_in(3, 6)] == [ALIVE, YOUNG, UNKNOWN]
    assert index.list_condemned(after=(0, 0), limit=9) == [CondemnedRow(3, 4, 3, WRITER, -9)]
    assert index.get_relocated(4) is None
    apply(index, Deleted(3, pack_numbers([4])))
    assert index.list_condemned(after=(0, 0), limit=9) == []


def test_a_frame_that_was_sealed_again_is_in_that_segment(index: SqliteIndex) -> None:
    apply_base(index)
    index.put_relocation(RelocationRow(DEAD, 1, 2, 0, 316, 60))
    apply(index, relocated(ALIVE, SEEN, YOUNG, UNKNOWN), collected(1, 1))
    assert index.get_frame(DEAD) is not None
    apply(index, collected(1, 2))
    assert index.get_frame(DEAD) is None


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([Retain(LATE, b"")], "begins at a moment that has no checkpoint"),
        ([Retain(EARLY, b"")], "or is gone"),
        ([Retain(BASE, pack_numbers([LATE]))], "drops a moment"),
        ([relocated(frame_id(1, 99))], "in no segment"),
        ([relocated(ALIVE), relocated(SEEN)._replace(epoch=9)], "another one"),
        ([relocated(ALIVE), relocated(SEEN)._replace(digest=bytes(32))], "another one"),
        (
            [relocated(DEAD), relocated(DEAD, sequence=6), collected(3, 4), relocated(DEAD)],
            "another one",
        ),
        ([collected(1, 1)], "needed"),
        ([relocated(SEEN, YOUNG, UNKNOWN), collected(1, 1)], "needed"),  # one is alive
        ([relocated(ALIVE, YOUNG, UNKNOWN), collected(1, 1)], "needed"),  # a moment has one
        ([relocated(ALIVE, SEEN, UNKNOWN), collected(1, 1)], "needed"),  # a commit after the base has one
        ([relocated(ALIVE, SEEN, YOUNG), collected(1, 1)], "needed"),  # of one nobody knows
        ([relocated(ALIVE), collected(3, 4)], "needed"),
        ([collected(1, 4)], "a part of it"),
        ([collected(1, 5)], "a part of it"),
        ([collected(1, 3), collected(1, 3)], "not in use"),
        ([collected(3, 4)], "not in use"),
        ([Deleted(1, pack_numbers([3]))], "not condemned"),
        ([collected(1, 3), Deleted(3, pack_numbers([3]))], "not condemned"),
        ([collected(1, 3), Deleted(1, pack_numbers([3])), Deleted(1, pack_numbers([3]))], "not condemned"),
    ],
)
def test_what_does_not_fit(index: SqliteIndex, records: Sequence[Record], why: str) -> None:
    apply_base(index, EARLY)
    apply(index, *records[:-1])
    before = rows_of(index)
    with pytest.raises(DamagedError, match=why):
        apply(index, records[-1])
    assert rows_of(index) == before


def test_without_a_base_all_is_log(index: SqliteIndex) -> None:
    apply(index, *map(checkpointed, (EARLY, BASE)))
    for sequence in (0, 9):
        with pytest.raises(DamagedError, match="a part of it"):
            apply(index, collected(1, sequence))


def test_so_many_moments(index: SqliteIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apply_retention, "MOMENTS_MAX", 2)
    apply(index, *map(checkpointed, (EARLY, BASE, EARLY)))
    with pytest.raises(DamagedError, match="more moments"):
        apply(index, checkpointed(LATE))


def test_what_is_needed_by_trying_every_state() -> None:
    """Against the definition: some state that can be returned to refers to the frame."""
    positions = [3, 6, 7, 9]
    for base in (0, *positions):
        kept = Kept.of([moment(position, base=int(position == base)) for position in positions])
        assert kept.base == base
        for birth in range(12):
            assert kept.needs(birth, live=1, death=0)
            assert kept.needs(birth, live=0, death=0)
            for death in range(birth + 2, 14):
                states = [*positions, *range(max(base, birth + 1), 14)]
                referring = any(birth < state < death for state in states)
                assert kept.needs(birth, live=0, death=death) == referring
