"""`mirrorfs log`: the moments that a volume can be returned to, and how much changed in each.

By the hour or the day, for a practice makes thousands of commits a day. JSON: docs/history-json.md.
"""

from __future__ import annotations

import argparse
import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from mirrorfs.cli.past_session import (
    WHEN_HELP,
    Past,
    add_past_arguments,
    exit_code_of,
    kept_as_json,
    look_back,
    moment_of,
    operands_of,
)
from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.restore_report import EXIT_DAMAGED, date_of, say
from mirrorfs.core.tally import Tally
from mirrorfs.engine.bursts import KnownBurst
from mirrorfs.engine.commits import Commit, CommitReader, Stretch
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.format.ids import format_position
from mirrorfs.format.rows import MomentRow, SnapshotRow
from mirrorfs.format.signing import load_public_key

SCHEMA: Final = 1
SHOWN_DAYS: Final = 7
"""Without --since, counted back from the last moment that is shown."""
HOURS_SHOWN_DAYS: Final = 8
"""A longer time is shown by the day."""
_NS_PER_S: Final = 1_000_000_000
_NS_PER_DAY: Final = 24 * 3600 * _NS_PER_S


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `log`."""
    add_past_arguments(parser, "")
    parser.add_argument(
        "--since", metavar="WHEN", help=f"from then on; default: the last {SHOWN_DAYS} days ({WHEN_HELP})"
    )
    parser.add_argument("--until", metavar="WHEN", help="up to then; default: the newest moment")
    grouping = parser.add_mutually_exclusive_group()
    grouping.add_argument("--all", action="store_true", help="every moment by itself")
    grouping.add_argument(
        "--by", choices=("hour", "day"), help=f"default: by the hour up to {HOURS_SHOWN_DAYS} days"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/history-json.md says")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `log`.

    Returns: 0; 5 or 4 where part of the log is damaged or not to be had.
    Raises: MirrorfsError.
    """
    operands_of(arguments, least=0, most=0)
    since, until = moment_of(arguments.since), moment_of(arguments.until)

    async def work(past: Past) -> int:
        return await _show(past, arguments, since, until)

    return look_back(arguments, environment, work)


async def _show(past: Past, arguments: argparse.Namespace, since: Moment, until: Moment) -> int:
    async with past.at(NEWEST, needs_all=False) as opened:
        plan, until = opened.plan, until.resolved(opened.index)
        end_ns = plan.time_ns if until.time_ns is None else min(until.time_ns, plan.time_ns)
        if since == NEWEST:
            # By a position nothing is known of the time; then of the newest moment.
            since = Moment(time_ns=end_ns - SHOWN_DAYS * _NS_PER_DAY)
        reader = CommitReader(
            opened.planner.main, opened.index, plan, past.keys, load_public_key(past.writer_key)
        )
        by = None if arguments.all else _grouping(arguments.by, since, end_ns)
        stretch = Stretch(since.resolved(opened.index), until)
        timeline = _Timeline(by=by, bursts=past.bursts(), single=reader.single(stretch))
        await reader.run(
            stretch, timeline.add,
            on_progress=lambda done, total: past.show("log", done, total, "segments"),
        )  # fmt: skip
        past.end_progress()
        timeline.mark(opened.index.list_snapshots())
        first = opened.index.list_segments(from_sequence=0, limit=1)
        oldest = [row.time_ns for row in reader.kept.single[:1]] or [row.first_ns for row in first]
        has_older = since.time_ns is not None and any(time_ns < since.time_ns for time_ns in oldest)
    if arguments.json:
        print(json.dumps(timeline.as_json(past.name, plan.position, plan.time_ns, reader.lost), indent=2))
    else:
        timeline.print()
        if not timeline.tallies and not timeline.single:
            say(f"There is no moment in that time; the newest one is of {date_of(plan.time_ns)}.")
        elif arguments.since is None and has_older:
            say(f"These are the last {SHOWN_DAYS} days; --since shows more.")
        if timeline.single:
            say(
                f"Up to {date_of(reader.kept.single[-1].time_ns)[:19]} only single moments are kept; from"
                " then on every one can be returned to."
            )
        for known in timeline.shown_bursts():
            say(_about(known))
    for sequence in reader.lost:
        say(f"Segment {sequence} is damaged or in no store that answers: moments in it may be missing here.")
    return exit_code_of(plan) or (EXIT_DAMAGED if reader.lost else 0)


def _grouping(by: str | None, since: Moment, end_ns: int) -> str:
    if by is not None:
        return by
    is_long = since.time_ns is None or end_ns - since.time_ns > HOURS_SHOWN_DAYS * _NS_PER_DAY
    return "day" if is_long else "hour"


class _Timeline:
    """Moments as they come in, counted by the hour, by the day, or each."""

    def __init__(self, *, by: str | None, bursts: Sequence[KnownBurst], single: Sequence[MomentRow]) -> None:
        """`single`: moments before all others, of which is not known what changed in them."""
        self._by = by
        self.single = single
        self._bursts = bursts
        self._last_key: object = None
        self.tallies: list[Tally] = []
        self._snapshots: dict[int, list[str]] = {}
        """Names of those that there are, by the number of the tally."""
        self._named: dict[int, list[str]] = {}
        """The same by the position of a single moment."""

    def add(self, commit: Commit) -> None:
        key: object = commit.position
        if self._by is not None:
            moment = datetime.fromtimestamp(commit.time_ns // _NS_PER_S).astimezone()
            # With the offset: an hour that a change to winter time repeats is two.
            key = moment.date() if self._by == "day" else (moment.date(), moment.hour, moment.utcoffset())
        if not self.tallies or key != self._last_key:
            self._last_key = key
            self.tallies.append(Tally())
        self.tallies[-1].add(commit.records(), position=commit.position, time_ns=commit.time_ns)

    def _bursts_in(self, tally: Tally) -> list[KnownBurst]:
        return [
            known
            for known in self._bursts
            if tally.first_position <= known.burst.last_position
            and tally.last_position > known.burst.clean_position
        ]

    def shown_bursts(self) -> list[KnownBurst]:
        """Those of which something is among what is shown."""
        return [known for known in self._bursts if any(known in self._bursts_in(one) for one in self.tallies)]

    def mark(self, snapshots: Sequence[SnapshotRow]) -> None:
        """Show where the snapshots are."""
        ends = [tally.last_position for tally in self.tallies]
        single = {row.position for row in self.single}
        for row in snapshots:
            if row.position in single:
                self._named.setdefault(row.position, []).append(row.name.decode())
                continue
            number = bisect_left(ends, row.position)
            if number < len(ends) and self.tallies[number].first_position <= row.position:
                self._snapshots.setdefault(number, []).append(row.name.decode())

    def print(self) -> None:
        for row in self.single:
            moment = datetime.fromtimestamp(row.time_ns // _NS_PER_S).astimezone()
            names = "".join(f", snapshot {name}" for name in self._named.get(row.position, ()))
            print(f"{moment:%Y-%m-%d %H:%M:%S}  {format_position(row.position)}: kept{names}")
        for number, tally in enumerate(self.tallies):
            changes = _changes(tally, self._snapshots.get(number, ()))
            moment = datetime.fromtimestamp(tally.first_ns // _NS_PER_S).astimezone()
            position = format_position(tally.last_position)
            mark = "; SUSPICIOUS" if self._bursts_in(tally) else ""
            if self._by is None:
                print(f"{moment:%Y-%m-%d %H:%M:%S}  {position}: {changes}{mark}")
                continue
            start = f"{moment:%Y-%m-%d}" if self._by == "day" else f"{moment:%Y-%m-%d %H}:00"
            count = f"{tally.moments} moment{'' if tally.moments == 1 else 's'} up to {position}"
            print(f"{start}  {count}: {changes}{mark}")

    def as_json(self, name: str, position: int, time_ns: int, lost: list[int]) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "volume": name,
            "newest": {"position": format_position(position), "time_ns": time_ns},
            "by": self._by or "moment",
            "lost_segments": lost,
            "bursts": [_burst(known) for known in self.shown_bursts()],
            "kept": [
                {**entry, "snapshots": self._named.get(row.position, [])}
                for row, entry in zip(self.single, kept_as_json(self.single), strict=True)
            ],
            "entries": [
                {
                    **_entry(tally, self._snapshots.get(number, ())),
                    "suspicious": bool(self._bursts_in(tally)),
                }
                for number, tally in enumerate(self.tallies)
            ],
        }


def _burst(known: KnownBurst) -> dict[str, Any]:
    burst = known.burst
    return {
        "files": burst.files,
        "clean": {"position": format_position(burst.clean_position), "time_ns": burst.clean_ns},
        "last": {"position": format_position(burst.last_position), "time_ns": burst.last_ns},
        "cleared_ns": known.cleared_ns,
    }


def _about(known: KnownBurst) -> str:
    burst = known.burst
    clean = f"{format_position(burst.clean_position)} of {date_of(burst.clean_ns)}"
    cleared = "" if known.cleared_ns is None else f" The alarm was cleared on {date_of(known.cleared_ns)}."
    return (
        f"SUSPICIOUS: {burst.files} files were replaced by what looks encrypted, until"
        f" {date_of(burst.last_ns)}; the last clean moment is {clean}.{cleared}"
    )


def _entry(tally: Tally, snapshots: Sequence[str]) -> dict[str, Any]:
    return {
        "moments": tally.moments,
        "first": {"position": format_position(tally.first_position), "time_ns": tally.first_ns},
        "last": {"position": format_position(tally.last_position), "time_ns": tally.last_ns},
        "created": tally.created,
        "changed": tally.changed,
        "deleted": tally.deleted,
        "renamed": tally.renamed,
        "linked": tally.linked,
        "attributes_changed": tally.attributes_changed,
        "written_bytes": tally.written_bytes,
        "mounts": tally.mounts,
        "snapshots": list(snapshots),
        "snapshots_deleted": tally.snapshots_deleted,
    }


def _changes(tally: Tally, snapshots: Sequence[str]) -> str:
    counts = [
        (tally.created, "created"),
        (tally.changed, "changed"),
        (tally.deleted, "deleted"),
        (tally.renamed, "renamed"),
        (tally.linked, "linked"),
        (tally.attributes_changed, "with new attributes"),
    ]
    parts = [f"{count} {what}" for count, what in counts if count]
    if tally.written_bytes:
        parts.append(f"{format_bytes(tally.written_bytes)} written")
    if tally.mounts:
        parts.append("mounted" if tally.mounts == 1 else f"mounted {tally.mounts} times")
    parts += [f"snapshot {name}" for name in snapshots]
    parts += [f"snapshot {name} deleted" for name in tally.snapshots_deleted]
    return ", ".join(parts) or "nothing changed"
