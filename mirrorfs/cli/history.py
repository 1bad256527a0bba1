"""`mirrorfs history`: the versions of one file, so that a person can pick the moment to go back to.

JSON: docs/history-json.md.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mirrorfs.cli.ls import shown
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
from mirrorfs.cli.restore_report import EXIT_DAMAGED, EXIT_FAILED, date_of, say
from mirrorfs.core.file_history import FileHistory, Version, What
from mirrorfs.engine.commits import Commit, CommitReader, Stretch
from mirrorfs.engine.moment import NEWEST, Moment
from mirrorfs.engine.tree_walk import split_path
from mirrorfs.errors import UsageError
from mirrorfs.format.ids import format_position
from mirrorfs.format.rows import MomentRow
from mirrorfs.format.signing import load_public_key

SCHEMA: Final = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `history`."""
    add_past_arguments(parser, "PATH")
    parser.add_argument(
        "--since", metavar="WHEN", help=f"from then on; default: the beginning of the log ({WHEN_HELP})"
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/history-json.md says")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `history`.

    Returns: 0; 1: the path never named anything; 5 or 4 where part of the log is damaged or not to be had.
    Raises: MirrorfsError.
    """
    (path,) = operands_of(arguments, least=1, most=1)
    names = split_path(os.fsencode(path))
    if not names:
        raise UsageError("The volume's root has no versions; name a file, or see `mirrorfs log`.")
    since = moment_of(arguments.since)

    async def work(past: Past) -> int:
        return await _show(past, arguments, names, since)

    return look_back(arguments, environment, work)


async def _show(past: Past, arguments: argparse.Namespace, names: list[bytes], since: Moment) -> int:
    async with past.at(NEWEST, needs_all=False) as newest:
        reader = CommitReader(
            newest.planner.main, newest.index, newest.plan, past.keys, load_public_key(past.writer_key)
        )
        history: FileHistory

        def visit(commit: Commit) -> None:
            history.add(commit.records(), position=commit.position, time_ns=commit.time_ns)

        async def follow(after: Moment) -> None:
            await reader.run(
                Stretch(after),
                visit,
                on_progress=lambda done, total: past.show("log", done, total, "segments"),
            )

        start, base = since.resolved(newest.index), reader.kept.base
        single = reader.single(Stretch(start))
        begins_later = base is not None and (since == NEWEST or reader.kept.is_before_base(start))
        if base is not None and begins_later:
            start = Moment(position=base.position)
        if start == NEWEST:
            history = FileHistory(names, None)
            await follow(start)
        else:
            async with past.at(start) as then:
                history = FileHistory(names, then.index)
                await follow(Moment(position=then.plan.position))
        past.end_progress()
    if arguments.json:
        print(json.dumps(_as_json(past.name, history, reader.lost, single), indent=2))
    else:
        if history.first is not None:
            print(f"there already{_size(history.first)}")
        for version in history.versions:
            print(f"{date_of(version.time_ns)[:19]}  {format_position(version.position)}: {_said(version)}")
    if base is not None and begins_later:
        count = len(reader.kept.single) - 1
        say(
            f"This begins on {date_of(base.time_ns)[:19]}; of what was before, {count} single"
            f" moment{' is' if count == 1 else 's are'} kept: `mirrorfs log` names them, and `mirrorfs ls` or"
            " `cat` with --at show a file in one."
        )
    for sequence in reader.lost:
        say(f"Segment {sequence} is damaged or in no store that answers: versions in it are missing here.")
    if not history.versions and history.first is None:
        ever = "since then" if begins_later else "ever"
        say(f"Nothing of that name was {ever} in the volume; paths begin below its root.")
        return EXIT_FAILED
    return exit_code_of(newest.plan) or (EXIT_DAMAGED if reader.lost else 0)


def _said(version: Version) -> str:
    other = "" if version.other is None else f" {shown(version.other)}"
    gone = (What.DELETED, What.RENAMED_TO, What.FOLDER_WENT)
    return f"{version.what}{other}{'' if version.what in gone else _size(version)}"


def _size(version: Version) -> str:
    return "" if version.size is None else f", {format_bytes(version.size)}"


def _as_json(name: str, history: FileHistory, lost: list[int], single: Sequence[MomentRow]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "volume": name,
        "there_before": history.first is not None,
        "lost_segments": lost,
        "kept": kept_as_json(single),
        "versions": [
            {
                "position": format_position(version.position),
                "time_ns": version.time_ns,
                "what": version.what,
                "size_bytes": version.size,
                "other": None if version.other is None else os.fsdecode(version.other),
            }
            for version in history.versions
        ],
    }
