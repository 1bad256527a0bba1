"""Which frames are needed, and which segments are rewritten, against one who tries everything."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.core.compaction import (
    GAIN_MIN,
    JOINED_MIN,
    SHARE_MIN,
    SMALL_MAX,
    Kept,
    Place,
    Usage,
    Victim,
    joined,
    placed,
    survey,
    victims,
)
from mirrorfs.format.ids import Stream, frame_id
from mirrorfs.format.limits import SEGMENT_SIZE_MAX
from mirrorfs.format.rows import FrameRow, MomentRow, RelocationRow

MAIN, RELOCATED = Stream.MAIN, Stream.RELOCATED


def moment(position: int, *, base: int = 0) -> MomentRow:
    return MomentRow(position, 0, 0, bytes(8), bytes(32), 0, base)


@given(
    st.integers(0, 40), st.integers(0, 40), st.lists(st.integers(1, 40), max_size=6, unique=True),
    st.integers(0, 40), st.booleans(),
)  # fmt: skip
def test_needed_is_what_some_kept_position_refers_to(
    frame: int, lives: int, moments: list[int], base: int, is_live: bool
) -> None:
    death = 0 if is_live else frame + 2 + lives  # at least one position lies within its life
    kept = Kept.of([*map(moment, sorted(moments)), moment(base, base=1)])
    positions = {*(at for at in moments if at < base), *range(base, 100)}
    # The commit that named the frame ended after it, and the one that freed it at its death.
    expected = any(frame < at and (not death or at < death) for at in positions)
    assert kept.needs(frame, live=int(is_live), death=death) == expected


def test_without_a_base_all_of_the_log_is_kept() -> None:
    kept = Kept.of([moment(5), moment(9)])
    assert kept == Kept(0, [])
    assert kept.needs(1, live=0, death=2) and kept.is_log(0)


def test_the_segment_before_the_bases_is_log() -> None:
    kept = Kept.of([moment(frame_id(7, 12), base=1)])
    assert [number for number in range(10) if not kept.is_log(number)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("seed", range(20))
def test_survey(seed: int) -> None:
    rng = random.Random(seed)
    frames, relocations = [], []
    expected: dict[Place, list[int]] = {}
    kept = Kept(frame_id(12, 3), sorted(frame_id(rng.randrange(12), rng.randrange(9)) for _ in range(4)))
    for sequence in range(15):
        for ordinal in range(rng.randrange(8)):
            frame = frame_id(sequence, ordinal)
            death = rng.choice((0, frame_id(sequence + rng.randrange(1, 9), rng.randrange(9))))
            frames.append(FrameRow(frame, 0, rng.randrange(100, 200), 9, 0 if death else 1, death))
            place, size = (int(MAIN), sequence), frames[-1].size
            if rng.random() < 0.4:
                place, size = (int(RELOCATED), rng.randrange(3)), rng.randrange(100, 200)
                relocations.append(RelocationRow(frame, *place, 0, 0, size))
            needed = any(frame < at and (not death or at < death) for at in [*kept.moments, *range(
                kept.base, kept.base + 2)]) or not death or death > kept.base  # fmt: skip
            expected.setdefault(place, [0, 0])[0 if needed else 1] += size
    # A relocation of a frame that nobody knows (any more) changes nothing.
    strays = [RelocationRow(frame_id(sequence, 700), RELOCATED, 1, 0, 0, 9) for sequence in (0, 3, 99)]
    found = survey(frames, sorted([*relocations, *strays]), kept)
    assert found == {place: Usage(*totals) for place, totals in expected.items()}
    moved = {row.frame: row for row in relocations}
    assert [row.frame for _, row, _ in placed(frames, sorted(relocations))] == [row.frame for row in frames]
    assert all(where == moved.get(row.frame) for _, row, where in placed(frames, sorted(relocations)))


places = st.tuples(st.sampled_from([int(MAIN), int(RELOCATED)]), st.integers(0, 30))
sizes = st.integers(1, 1_000_000)


@given(
    st.dictionaries(places, st.tuples(sizes, st.floats(0, 1)), max_size=12), st.integers(0, 3_000_000), places
)
def test_victims(segments: dict[Place, tuple[int, float]], most: int, forced: Place) -> None:
    usage = {place: Usage(int(size * share), 0) for place, (size, share) in segments.items()}
    asked = [(place, size) for place, (size, _) in segments.items()]
    # Fewer than are joined where all of them is needed.
    assert len(segments) < JOINED_MIN
    taken = victims(asked, usage, copy_bytes_max=most, forced=lambda place: place == forced)
    worth = {
        place for place, size in asked if usage[place].needed_bytes < SHARE_MIN * size or place == forced
    }
    assert {one.place for one in taken} <= worth
    assert all((one.size, one.needed_bytes) == (segments[one.place][0], usage[one.place][0]) for one in taken)
    # The emptiest first, and no more is copied than may be, but for one.
    order = [(one.needed_bytes / one.size, one.place) for one in taken]
    assert order == sorted(order)
    assert sum(one.needed_bytes for one in taken[1:]) <= max(
        0, most - (taken[0].needed_bytes if taken else 0)
    )
    for before, after in pairwise(taken):
        assert before.place != after.place
    left = worth - {one.place for one in taken}
    gain = sum(segments[place][0] - usage[place].needed_bytes for place in worth)
    if not taken:
        assert not worth or (gain < GAIN_MIN and all(place[0] == RELOCATED for place in worth))
    elif left:
        share = min((usage[place].needed_bytes / segments[place][0], place) for place in left)
        assert share > order[-1]
        assert usage[share[1]].needed_bytes > most - sum(one.needed_bytes for one in taken)


def test_what_was_rewritten_is_not_rewritten_for_its_header() -> None:
    """A segment with one small frame is mostly header and trailer, and would be again."""
    tiny = {(int(RELOCATED), 4): Usage(100, 0)}
    assert victims([((RELOCATED, 4), 900)], tiny, copy_bytes_max=1 << 30) == []
    # With others it is joined; and with nothing needed in it it goes.
    both = victims([((RELOCATED, 4), 900), ((MAIN, 1), 900)], tiny, copy_bytes_max=1 << 30)
    assert [one.place for one in both] == [(MAIN, 1), (RELOCATED, 4)]
    assert [one.place for one in victims([((RELOCATED, 5), 900)], tiny, copy_bytes_max=0)] == [(RELOCATED, 5)]


def test_small_segments_are_joined_each_byte_a_few_times() -> None:
    """A volume that is written a little every minute, and pruned every day."""
    rng = random.Random(1)
    segments: dict[Place, int] = {}
    made = written = copied = 0
    for day in range(60):
        for minute in range(50):
            segments[int(MAIN), day * 50 + minute] = size = rng.randrange(1000, 60_000)
            written += size
        usage = {place: Usage(size, 0) for place, size in segments.items()}
        taken = victims(segments.items(), usage, copy_bytes_max=1 << 30)
        total = sum(one.needed_bytes for one in taken)
        copied += total
        for one in taken:
            del segments[one.place]
        while total:
            segments[int(RELOCATED), made] = min(total, SEGMENT_SIZE_MAX)
            total -= segments[int(RELOCATED), made]
            made += 1
        # Fewer than are joined of each size up to those that are left alone.
        assert sum(size < SMALL_MAX for size in segments.values()) <= 4 * JOINED_MIN
    assert sum(segments.values()) == written
    assert copied < 3 * written


def test_few_small_segments_are_left_alone() -> None:
    few = [Victim((int(MAIN), number), 5000, 4900) for number in range(JOINED_MIN)]
    assert joined(few, copy_bytes_max=1 << 30) == few
    assert joined(reversed(few), copy_bytes_max=JOINED_MIN * 4900) == few
    assert joined(few[1:], copy_bytes_max=1 << 30) == []
    # Nor is a part of them joined where no more may be copied.
    assert joined(few, copy_bytes_max=JOINED_MIN * 4900 - 1) == []
    large = [one._replace(size=SMALL_MAX, needed_bytes=SMALL_MAX) for one in few]
    assert joined(large, copy_bytes_max=1 << 40) == []
