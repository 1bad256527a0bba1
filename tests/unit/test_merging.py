"""Which chunks are merged."""

from __future__ import annotations

from mirrorfs.core.extents import Extent, pack_extents
from mirrorfs.core.merging import Fragmented, fragmented, gain_of, old_runs
from mirrorfs.format.rows import ExtentRow

HORIZON = 1000


def pages(*frames: int, start: int = 0) -> list[Extent]:
    """Extents of 10 bytes, each behind the one before."""
    return [Extent(start + 10 * at, 10, frame, 0) for at, frame in enumerate(frames)]


def test_old_bytes_that_touch_are_one_run() -> None:
    extents = [*pages(1, 2, 5000, 3, 4, 5), *pages(6, 7, start=70), *pages(8, start=100)]
    runs = old_runs(pack_extents(extents), HORIZON)
    # The young one, a hole, and one that is alone in between end a run.
    assert [(run.start, run.length) for run in runs] == [(0, 20), (30, 30), (70, 20)]
    assert [part.frame for run in runs for part in run.parts] == [1, 2, 3, 4, 5, 6, 7]
    assert gain_of(runs) == 4
    shared = old_runs(pack_extents(extents), HORIZON, is_shared=lambda frame: frame == 4)
    assert [(run.start, run.length) for run in shared] == [(0, 20), (70, 20)]
    assert old_runs(pack_extents(extents), 0) == []


def test_the_most_to_save_first_and_no_more_than_may_be() -> None:
    rows = [
        ExtentRow(2, chunk, pack_extents(pages(*range(1, count + 1))))
        for chunk, count in enumerate((3, 9, 6, 2))
    ]

    def chosen(bytes_max: int, gain_min: int = 1) -> list[int]:
        found = fragmented(rows, HORIZON, bytes_max=bytes_max, gain_min=gain_min)
        assert all(one == Fragmented(2, one.chunk, rows[one.chunk].packed, one.size) for one in found)
        assert sum(one.size for one in found[1:]) <= bytes_max
        return [one.chunk for one in found]

    assert chosen(1000) == [0, 1, 2, 3]
    assert chosen(150) == [1, 2]
    assert chosen(1) == [1]
    assert chosen(1000, gain_min=5) == [1, 2]
    assert chosen(1000, gain_min=9) == []
