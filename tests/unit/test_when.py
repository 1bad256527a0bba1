"""Moments for --at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime

import pytest

from mirrorfs.cli.when import parse_moment, parse_when, snapshot_name
from mirrorfs.engine.moment import Moment
from mirrorfs.errors import UsageError
from mirrorfs.format.ids import format_position, frame_id

NS = 1_000_000_000


@pytest.fixture(autouse=True)
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def at(text: str) -> int:
    """Nanoseconds of an ISO time with an offset."""
    return int(datetime.fromisoformat(text).timestamp() * 1000) * 1_000_000


# Ten in the morning of the day after the clocks went forward.
NOW = at("2026-03-30T10:00:00+02:00")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-01", "2026-03-01T00:00:00+01:00"),
        ("2026-03-01 14:05", "2026-03-01T14:05:00+01:00"),
        ("2026-03-29T14:05:30", "2026-03-29T14:05:30+02:00"),
        ("2026-03-01T14:05:30.25", "2026-03-01T14:05:30.250+01:00"),
        ("2026-03-01T14:05:30Z", "2026-03-01T14:05:30+00:00"),
        ("2026-03-01T14:05:30-05:00", "2026-03-01T14:05:30-05:00"),
        ("today", "2026-03-30T00:00:00+02:00"),
        ("today 09:30", "2026-03-30T09:30:00+02:00"),
        ("Today 9:30", "2026-03-30T09:30:00+02:00"),
        ("yesterday 18:00", "2026-03-29T18:00:00+02:00"),
        ("yesterday 01:30", "2026-03-29T01:30:00+01:00"),
        ("yesterday 18:00:05", "2026-03-29T18:00:05+02:00"),
        ("  yesterday", "2026-03-29T00:00:00+01:00"),
        ("90s", "2026-03-30T09:58:30+02:00"),
        ("15m", "2026-03-30T09:45:00+02:00"),
        ("15 min ago", "2026-03-30T09:45:00+02:00"),
        ("2h", "2026-03-30T08:00:00+02:00"),
        ("3d", "2026-03-27T09:00:00+01:00"),
        ("1w", "2026-03-23T09:00:00+01:00"),
        ("3 days ago", "2026-03-27T09:00:00+01:00"),
        ("1 Hour", "2026-03-30T09:00:00+02:00"),
        ("90 seconds ago", "2026-03-30T09:58:30+02:00"),
        ("2 weeks ago", "2026-03-16T09:00:00+01:00"),
        ("09:30", "2026-03-30T09:30:00+02:00"),
        ("9:30:15", "2026-03-30T09:30:15+02:00"),
        ("00:00", "2026-03-30T00:00:00+02:00"),
    ],
)
def test_times(text: str, expected: str) -> None:
    assert parse_when(text, now_ns=NOW) == at(expected)
    assert parse_moment(text, now_ns=NOW) == Moment(time_ns=at(expected))


@pytest.mark.parametrize(
    "text",
    ["", "now", "tomorrow", "2026-13-01", "2026-02-30", "yesterday 25:00", "yesterday 18:60",
     "2026/03/01", "today 10:01", "Yesterday evening", "2027-01-01T00:00Z", "some time ago", "a/b", "-x",
     "n" * 65, "a\nb", "2026-03-30 10:00:01", "2027-01-01", "18:00", "25:00", "3 months ago",
     "-1.2", "1.2.3", "1.99999999"],
)  # fmt: skip
def test_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_moment(text, now_ns=NOW)


@pytest.mark.parametrize(
    ("text", "sequence", "ordinal"),
    [("17.203", 17, 203), ("17:203", 17, 203), ("0.1", 0, 1), ("123:4", 123, 4), (" 17.20 ", 17, 20)],
)
def test_positions(text: str, sequence: int, ordinal: int) -> None:
    assert parse_moment(text, now_ns=NOW) == Moment(position=frame_id(sequence, ordinal))


def test_shown_positions_are_read_back() -> None:
    position = frame_id(4711, 1_000_000)
    assert parse_moment(format_position(position), now_ns=NOW) == Moment(position=position)


@pytest.mark.parametrize(
    "name",
    ["before the update", "avant 2026", "2026-11-26 before", "v1.2", "nowhere", "todays", "yesterdays",
     "é" * 32, "a3d", "3dd", "Q1", "17.203a", "0001-01-01x"],
)  # fmt: skip
def test_names_of_snapshots(name: str) -> None:
    assert snapshot_name(name) == name.encode()
    assert parse_moment(f" {name} ", now_ns=NOW) == Moment(snapshot=name.encode())


def test_names_are_one_however_they_are_typed() -> None:
    assert snapshot_name("e\u0301te\u0301") == "été".encode()
    assert parse_moment("e\u0301te\u0301", now_ns=NOW) == Moment(snapshot="été".encode())


@pytest.mark.parametrize(
    "text",
    ["", " ", "now", "Today", "yesterday 18:00", "tomorrow", "yesterday evening", "2h", "3 days ago", "1w",
     "years ago", "2026-03-01", "2026-03-01T14:05Z", "2099-01-01", "20260301", "2026-W10", "17:20", "17.203",
     "7", "2026-13-01T10:00", "1.2.3", "---", "-x", " x", "x ", "a/b", "n" * 65, "é" * 33,
     "a\nb", "a\x1b[2Jb", "\udcff"],
)  # fmt: skip
def test_no_names_of_snapshots(text: str) -> None:
    """What is a moment, or may have been meant for one, is never a name."""
    with pytest.raises(UsageError):
        snapshot_name(text)


def test_moment_bounds() -> None:
    assert Moment().has(position=1, time_ns=1)
    assert Moment(time_ns=5).has(position=9, time_ns=5)
    assert not Moment(time_ns=5).has(position=9, time_ns=6)
    assert Moment(position=9).has(position=9, time_ns=6)
    assert not Moment(position=9).has(position=10, time_ns=6)
