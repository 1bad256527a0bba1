"""The exit code and the words of `restore`: what is damaged is told from what was not reached."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from mirrorfs.cli.restore_report import Duration, gap_of, print_plan, print_report
from mirrorfs.cli.restore_target import Pace
from mirrorfs.engine.restore import Moment, RestorePlan, RestoreReport
from mirrorfs.engine.restore_data import Fetched

PLAN = RestorePlan(
    position=1, time_ns=1, journal_sequence=1, inodes=2, size_bytes=9, damage=None, open_segment=None,
    stores=("a", "b"), silent=(), unreached=(), suspects=frozenset(), head=None,
)  # fmt: skip
WHOLE = RestoreReport(
    files=1, directories=1, made_names=2, written_bytes=9, lost_bytes=0, incomplete_count=0, incomplete=(),
    unread_bytes=0, unread_count=0, unread=(), unreached=(), refused_count=0, refused=(), bad_copies={},
    bad_objects=frozenset(), left_out={}, kept_count=0, fetched={"a": Fetched(2, 2048), "b": Fetched(1, 10)},
)  # fmt: skip
TOOK = Duration(whole_s=4.0, execute_s=2.0)
UNREAD = replace(WHOLE, unread_bytes=7, unread_count=1, unread=("away",), unreached=("b",))
LOST = replace(WHOLE, lost_bytes=7, incomplete_count=1, incomplete=("gone",))
BOTH = replace(UNREAD, lost_bytes=7, incomplete_count=1, incomplete=("gone",))
CUT = replace(PLAN, damage="segment 3 is damaged in every store")
UNREACHED = replace(PLAN, damage="store b did not answer", unreached=("b",))


@pytest.mark.parametrize(
    ("report", "plan", "exit_code"),
    [
        (WHOLE, PLAN, 0), (UNREAD, PLAN, 4), (LOST, PLAN, 5), (BOTH, PLAN, 5), (WHOLE, CUT, 5),
        (WHOLE, UNREACHED, 4), (UNREAD, UNREACHED, 4), (LOST, UNREACHED, 5),
        (WHOLE, replace(PLAN, unreached=("b",)), 0),
    ],
)  # fmt: skip
def test_exit_codes(report: RestoreReport, plan: RestorePlan, exit_code: int) -> None:
    assert print_report(report, plan, sys.stdout, globs=False, duration=TOOK, warnings=0) == exit_code


def test_what_was_not_reached_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(UNREAD, PLAN, sys.stdout, globs=False, duration=TOOK, warnings=0)
    said = capsys.readouterr().err
    assert "store b did not answer" in said and "run it again" in said and "  away\n" in said
    assert "good copy" not in said
    print_report(BOTH, PLAN, sys.stdout, globs=False, duration=TOOK, warnings=0)
    said = capsys.readouterr().err
    assert "no store has a good copy" in said and "  gone\n" in said and "store b did not answer" in said


def test_a_moment_that_stands_for_others_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gap_of(PLAN) is None
    print_plan(PLAN, Moment(position=1), sys.stdout, has_one_store=True)
    assert "kept" not in capsys.readouterr().err
    plan = replace(PLAN, position=5 << 20 | 2, next_ns=86_400_000_000_000)
    print_plan(plan, Moment(time_ns=9), sys.stdout, has_one_store=True)
    said = capsys.readouterr().err
    assert "(position 5.2)" in said and "those in between are not kept any more" in said


def test_where_from_and_how_fast(capsys: pytest.CaptureFixture[str]) -> None:
    report = replace(WHOLE, written_bytes=4096, kept_count=3)
    assert print_report(report, PLAN, sys.stdout, globs=True, duration=TOOK, warnings=0) == 0
    said = capsys.readouterr().out
    assert "Restored 1 files in 1 directories, 4.0 KiB, in 4 s; 0 warnings." in said
    assert "1 names/s, 2.0 KiB/s" in said and "3 names that stood there before" in said
    assert "Read from a: 2.0 KiB in 2 requests" in said and "Read from b: 10 B in 1 request\n" in said


def test_nothing_matched_or_all_was_there(capsys: pytest.CaptureFixture[str]) -> None:
    none = replace(WHOLE, made_names=0)
    assert print_report(none, PLAN, sys.stdout, globs=True, duration=TOOK, warnings=0) == 1
    assert "Nothing in the volume matches" in capsys.readouterr().err
    there = replace(none, kept_count=1)
    assert print_report(there, PLAN, sys.stdout, globs=True, duration=TOOK, warnings=0) == 0


def test_pace() -> None:
    now_s = 0.0
    pace = Pace(now_s=lambda: now_s)
    assert pace.note(0, 1000 << 20) == ""
    now_s = 2.0
    assert pace.note(20 << 20, 1000 << 20) == "10.0 MiB/s, 1:38 left"
    # Within a second nothing is measured anew.
    now_s = 2.5
    assert pace.note(40 << 20, 1000 << 20) == "10.0 MiB/s, 1:36 left"
    # One slow second does not turn all over.
    now_s = 3.0
    assert pace.note(20 << 20, 1000 << 20) == "8.0 MiB/s, 2:02 left"
    assert pace.note(1000 << 20, 1000 << 20) == ""
