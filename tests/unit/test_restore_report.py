"""The exit code and the words of `restore`: what is damaged is told from what was not reached."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mirrorfs.cli.restore_report import gap_of, print_plan, print_report
from mirrorfs.engine.restore import Moment, RestorePlan, RestoreReport

PLAN = RestorePlan(
    position=1, time_ns=1, journal_sequence=1, inodes=2, size_bytes=9, damage=None, open_segment=None,
    stores=("a", "b"), silent=(), unreached=(), suspects=frozenset(), head=None,
)  # fmt: skip
WHOLE = RestoreReport(
    files=1, directories=1, made_names=2, written_bytes=9, lost_bytes=0, incomplete_count=0, incomplete=(),
    unread_bytes=0, unread_count=0, unread=(), unreached=(), refused_count=0, refused=(), bad_copies={},
    bad_objects=frozenset(), left_out={},
)  # fmt: skip
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
    assert print_report(report, plan, globs=False, duration_s=1.0, warnings=0) == exit_code


def test_what_was_not_reached_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(UNREAD, PLAN, globs=False, duration_s=1.0, warnings=0)
    said = capsys.readouterr().err
    assert "store b did not answer" in said and "run it again" in said and "  away\n" in said
    assert "good copy" not in said
    print_report(BOTH, PLAN, globs=False, duration_s=1.0, warnings=0)
    said = capsys.readouterr().err
    assert "no store has a good copy" in said and "  gone\n" in said and "store b did not answer" in said


def test_a_moment_that_stands_for_others_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gap_of(PLAN) is None
    print_plan(PLAN, Moment(position=1), has_one_store=True)
    assert "kept" not in capsys.readouterr().err
    plan = replace(PLAN, position=5 << 20 | 2, next_ns=86_400_000_000_000)
    print_plan(plan, Moment(time_ns=9), has_one_store=True)
    said = capsys.readouterr().err
    assert "(position 5.2)" in said and "those in between are not kept any more" in said
