"""Since when a segment may hold changes: what the protection clock says of stores rests on it."""

from __future__ import annotations

from mirrorfs.engine.objects import SegmentAges


def test_changes_are_as_old_as_the_commit_before_the_segment() -> None:
    ages = SegmentAges(100)
    assert ages.open_since_ns(130) == 100
    assert ages.closed(first_ns=130, last_ns=150) == 100
    assert ages.open_since_ns(170) == 150
    assert ages.closed(first_ns=170, last_ns=170) == 150


def test_segments_of_data_only_are_as_old_as_the_last_commit() -> None:
    ages = SegmentAges(100)
    assert ages.closed(first_ns=0, last_ns=0) == 100
    assert ages.closed(first_ns=0, last_ns=0) == 100
    assert ages.closed(first_ns=140, last_ns=160) == 100
    assert ages.closed(first_ns=0, last_ns=0) == 160


def test_the_first_segment_of_a_volume_begins_with_its_first_commit() -> None:
    ages = SegmentAges()
    assert ages.open_since_ns(50) == 50
    assert ages.closed(first_ns=50, last_ns=60) == 50


def test_a_clock_set_back_does_not_make_anything_newer() -> None:
    ages = SegmentAges(100)
    assert ages.closed(first_ns=40, last_ns=50) == 100
    assert ages.open_since_ns(60) == 100
