"""What `mirrorfs restore` says: what it is about to restore, and what became of it."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import Final

from mirrorfs.cli.failures import one_line
from mirrorfs.cli.progress import format_bytes
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.restore import NEWEST, Moment, RestorePlan, RestoreReport
from mirrorfs.format.ids import format_position

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 4
EXIT_DAMAGED: Final = 5
PATHS_SHOWN_MAX: Final = 50
_NS_PER_S: Final = 1_000_000_000


def say(sentence: str) -> None:
    """A sentence for the person, beside what programs read."""
    print(f"mirrorfs: {one_line(sentence)}", file=sys.stderr)


def date_of(time_ns: int) -> str:
    """A moment as this machine's local time."""
    moment = datetime.fromtimestamp(time_ns // _NS_PER_S).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S %z")


def gap_of(shown: RestorePlan | ReadOnlyVolume) -> str | None:
    """Of a moment where only single ones are kept, that it stands for others; None for one that does not."""
    if shown.next_ns is None:
        return None
    position = format_position(shown.position)
    return (
        f"This is the kept moment of {date_of(shown.time_ns)} (position {position}); the"
        f" next one is of {date_of(shown.next_ns)}, and those in between are not kept any more."
    )


def print_plan(plan: RestorePlan, moment: Moment, *, has_one_store: bool) -> None:
    """What is about to be restored, before a person is asked."""
    what = "Newest state" if moment == NEWEST else "State then  "
    if plan.journal_sequence:
        print(f"{what}: position {format_position(plan.position)} of {date_of(plan.time_ns)}")
        print(f"Contents:     {plan.inodes} files and directories, {format_bytes(plan.size_bytes)}")
    else:
        print(f"{what}: the volume is empty; nothing was ever written to it")
    print(f"Stores:       {', '.join(plan.stores)}")
    if (gap := gap_of(plan)) is not None:
        say(gap)
    for name in plan.silent:
        say(f"Store {name} could not be listed; going on without it.")
    if plan.damage is not None:
        say(f"There are newer commits that cannot be restored: {plan.damage}.")
    if moment == NEWEST and has_one_store:
        print("A single store cannot prove that nothing newer exists: compare the date with what you know.")


def print_report(
    report: RestoreReport,
    plan: RestorePlan,
    *,
    globs: bool,
    duration_s: float,
    warnings: int,
    repairs: bool = False,
) -> int:
    """What became of it.

    Args:
        globs: whether only some names were asked for.
        warnings: how many there were.
        repairs: whether what is bad is written anew afterwards.
    Returns: the exit code of `restore`.
    """
    print(
        f"Restored {report.files} files in {report.directories} directories,"
        f" {format_bytes(report.written_bytes)}, in {duration_s:.0f} s; {warnings} warnings."
    )
    for store, count in sorted(report.bad_copies.items()):
        copies = "1 segment is" if count == 1 else f"{count} segments are"
        print(f"Store {store}: {copies} damaged or missing there.")
    if report.bad_copies and not repairs:
        print(
            "`mirrorfs restore --repair` writes them anew, as `mirrorfs repair` on a PC of the volume does."
        )
    for what, count in sorted(report.left_out.items()):
        print(f"Not restored: {count} {what}")
    refused = [f"{path}: {why}" for path, why in report.refused]
    _print_paths("not made", report.refused_count, refused)
    _print_paths(
        f"incomplete, for no store has a good copy of {format_bytes(report.lost_bytes)} of them",
        report.incomplete_count,
        list(report.incomplete),
    )
    stores = " and store ".join(report.unreached)
    _print_paths(
        f"incomplete, for store {stores} did not answer when asked for {format_bytes(report.unread_bytes)} of"
        " them; run it again, into another directory, when it does",
        report.unread_count,
        list(report.unread),
    )
    if report.incomplete_count or (plan.damage is not None and not plan.unreached):
        return EXIT_DAMAGED
    if report.unread_count or plan.damage is not None:
        return EXIT_UNAVAILABLE
    if globs and not report.made_names:
        say("Nothing in the volume matches --path; patterns are for whole paths below the root.")
        return EXIT_FAILED
    return EXIT_FAILED if report.refused_count else 0


def _print_paths(what: str, count: int, paths: list[str]) -> None:
    if not count:
        return
    print(f"{count} {'file' if count == 1 else 'files'} {what}:", file=sys.stderr)
    for path in paths[:PATHS_SHOWN_MAX]:
        print(f"  {one_line(path)}", file=sys.stderr)
    if count > PATHS_SHOWN_MAX:
        print(f"  and {count - PATHS_SHOWN_MAX} more", file=sys.stderr)
