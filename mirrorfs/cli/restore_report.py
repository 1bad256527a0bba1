"""What `mirrorfs restore` says: what it is about to restore, and what became of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple, TextIO

from mirrorfs.cli.failures import one_line
from mirrorfs.cli.progress import format_bytes
from mirrorfs.engine.past import ReadOnlyVolume
from mirrorfs.engine.restore import NEWEST, Moment, Rehearsal, RestorePlan, RestoreReport
from mirrorfs.format.ids import format_position

EXIT_FAILED: Final = 1
EXIT_UNAVAILABLE: Final = 4
EXIT_DAMAGED: Final = 5
PATHS_SHOWN_MAX: Final = 50
_NS_PER_S: Final = 1_000_000_000


class Duration(NamedTuple):
    """What a restore took."""

    whole_s: float
    """With unlocking, planning and asking."""
    execute_s: float
    """From the plan on."""


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


def print_plan(plan: RestorePlan, moment: Moment, out: TextIO, *, has_one_store: bool) -> None:
    """What is about to be restored, before a person is asked."""
    what = "Newest state" if moment == NEWEST else "State then  "
    if plan.journal_sequence:
        print(f"{what}: position {format_position(plan.position)} of {date_of(plan.time_ns)}", file=out)
        print(f"Contents:     {plan.inodes} files and directories, {format_bytes(plan.size_bytes)}", file=out)
    else:
        print(f"{what}: the volume is empty; nothing was ever written to it", file=out)
    print(f"Stores:       {', '.join(plan.stores)}", file=out)
    if (gap := gap_of(plan)) is not None:
        say(gap)
    for name in plan.silent:
        say(f"Store {name} could not be listed; going on without it.")
    if plan.damage is not None:
        say(f"There are newer commits that cannot be restored: {plan.damage}.")
    if moment == NEWEST and has_one_store:
        print(
            "A single store cannot prove that nothing newer exists: compare the date with what you know.",
            file=out,
        )


def print_report(
    report: RestoreReport,
    plan: RestorePlan,
    out: TextIO,
    *,
    globs: bool,
    duration: Duration,
    warnings: int,
    repairs: bool = False,
) -> int:
    """What became of it.

    Args:
        out: where what is not about damage goes.
        globs: whether only some names were asked for.
        warnings: how many there were.
        repairs: whether what is bad is written anew afterwards.
    Returns: the exit code of `restore`.
    """
    took_s = max(duration.execute_s, 0.001)
    print(
        f"Restored {report.files} files in {report.directories} directories,"
        f" {format_bytes(report.written_bytes)}, in {duration.whole_s:.0f} s; {warnings} warnings.",
        file=out,
    )
    rate = f"{report.made_names / took_s:.0f} names/s, {format_bytes(int(report.written_bytes / took_s))}/s"
    print(f"Rate:         {rate}, from the plan on ({took_s:.1f} s)", file=out)
    for store, (requests, size_bytes) in sorted(report.fetched.items()):
        print(f"Read from {store}: {format_bytes(size_bytes)} in {_counted(requests, 'request')}", file=out)
    if report.kept_count:
        print(f"Kept:         {_counted(report.kept_count, 'name')} that stood there before", file=out)
    for store, count in sorted(report.bad_copies.items()):
        copies = "1 segment is" if count == 1 else f"{count} segments are"
        print(f"Store {store}: {copies} damaged or missing there.", file=out)
    if report.bad_copies and not repairs:
        print(
            "`mirrorfs restore --repair` writes them anew, as `mirrorfs repair` on a PC of the volume does.",
            file=out,
        )
    for what, count in sorted(report.left_out.items()):
        print(f"Not restored: {count} {what}", file=out)
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
    if globs and not report.made_names and not report.kept_count:
        say("Nothing in the volume matches --path; patterns are for whole paths below the root.")
        return EXIT_FAILED
    return EXIT_FAILED if report.refused_count else 0


def print_rehearsal(
    found: Rehearsal,
    *,
    kept: int,
    replaced: int,
    refused: Sequence[tuple[str, str]],
    refused_count: int,
    may_begin: bool,
) -> None:
    """What a restore would do."""
    print(
        f"Would restore {found.files} files in {found.directories} directories,"
        f" {format_bytes(found.size_bytes)}."
    )
    requests, size_bytes = found.fetched
    print(f"Would fetch   {format_bytes(size_bytes)} in {_counted(requests, 'request')}.")
    if kept:
        print(f"Would keep    {_counted(kept, 'name')} that are there already.")
    if replaced:
        print(f"Would replace {_counted(replaced, 'name')} that are there already.")
    _print_paths("cannot be made", refused_count, [f"{path}: {why}" for path, why in refused])
    if not may_begin:
        say("DEST is not empty: say with --overwrite which files may be replaced, or name another one.")
    print("Nothing was changed.")


def _counted(count: int, noun: str) -> str:
    return f"1 {noun}" if count == 1 else f"{count} {noun}s"


def _print_paths(what: str, count: int, paths: list[str]) -> None:
    if not count:
        return
    print(f"{count} {'file' if count == 1 else 'files'} {what}:", file=sys.stderr)
    for path in paths[:PATHS_SHOWN_MAX]:
        print(f"  {one_line(path)}", file=sys.stderr)
    if count > PATHS_SHOWN_MAX:
        print(f"  and {count - PATHS_SHOWN_MAX} more", file=sys.stderr)
