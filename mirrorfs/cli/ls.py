"""`mirrorfs ls` and `mirrorfs find`: names in a volume as they are, or as they were at a moment.

JSON: docs/history-json.md.
"""

from __future__ import annotations

import argparse
import json
import os
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Final

from mirrorfs.cli.failures import one_line
from mirrorfs.cli.past_session import (
    WHEN_HELP,
    Opened,
    Past,
    add_past_arguments,
    look_back,
    moment_of,
    operands_of,
)
from mirrorfs.cli.progress import format_bytes
from mirrorfs.cli.restore_report import date_of
from mirrorfs.engine.tree_walk import entries, find_row, split_path, walk
from mirrorfs.errors import NoEntry
from mirrorfs.format.ids import format_position
from mirrorfs.format.limits import ROOT_INODE
from mirrorfs.format.rows import InodeRow
from mirrorfs.ports import Index

SCHEMA: Final = 1

Named = tuple[bytes, InodeRow]
"""(path below the root, what it names)"""


def add_arguments(parser: argparse.ArgumentParser, *, finds: bool) -> None:
    """The options of `ls`, or those of `find`."""
    add_past_arguments(parser, "[PATH]")
    parser.add_argument("--at", metavar="WHEN", help=f"as it was then; default: now ({WHEN_HELP})")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable, as docs/history-json.md says")
    if finds:
        form.add_argument("-0", "--null", action="store_true", help="end each path with NUL, for xargs -0")
        parser.add_argument("--name", metavar="GLOB", help="only what is called so, as in '*.pdf'")
    parser.set_defaults(finds=finds)


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `ls` or `find`. Raises: MirrorfsError; NoEntry: there was no such path."""
    operands = operands_of(arguments, least=0, most=1)
    names = split_path(os.fsencode(operands[0])) if operands else []
    moment = moment_of(arguments.at)

    async def work(past: Past) -> int:
        async with past.at(moment) as then:
            found = _found(then.index, names, arguments)
            if arguments.json:
                print(json.dumps(_as_json(past.name, then, found), indent=2))
            elif arguments.finds:
                _print_paths(found, end=b"\0" if arguments.null else b"\n")
            else:
                _print_rows(found)
        return 0

    return look_back(arguments, environment, work)


def row_at(index: Index, names: list[bytes]) -> InodeRow:
    """What a path names. Raises: NoEntry."""
    row = find_row(index, names)
    if row is None:
        raise NoEntry(
            "The volume has no such path at that moment; `mirrorfs history` shows when it had, and paths"
            " begin below its root."
        )
    return row


def _found(index: Index, names: list[bytes], arguments: argparse.Namespace) -> Iterator[Named]:
    row, path = row_at(index, names), b"/".join(names)
    if not arguments.finds:
        if not stat.S_ISDIR(row.mode):
            yield path, row
            return
        yield from sorted(entries(index, row.inode), key=lambda entry: entry[0])
        return
    if row.inode != ROOT_INODE and _is_called(path, arguments.name):
        yield path, row
    if stat.S_ISDIR(row.mode):
        for below, _, found in walk(index, row.inode, path):
            if _is_called(below, arguments.name):
                yield below, found


def _is_called(path: bytes, glob: str | None) -> bool:
    return glob is None or fnmatchcase(os.fsdecode(path.rpartition(b"/")[2]), glob)


# --- showing ---------------------------------------------------------------------------------


def shown(path: bytes) -> str:
    """A path for a person: what could move the cursor, and bytes that are no text, become spaces."""
    return one_line(os.fsdecode(path))


def _print_paths(found: Iterable[Named], *, end: bytes) -> None:
    # A terminal may not be moved about by names; a program gets them as they are.
    is_tty = sys.stdout.isatty() and end == b"\n"
    for path, _ in found:
        sys.stdout.buffer.write((shown(path).encode() if is_tty else path) + end)
    sys.stdout.buffer.flush()


def _print_rows(found: Iterable[Named]) -> None:
    rows = list(found)
    sizes = [format_bytes(row.size) if stat.S_ISREG(row.mode) else "-" for _, row in rows]
    width = max(map(len, sizes), default=0)
    for (path, row), size in zip(rows, sizes, strict=True):
        target = f" -> {shown(row.target)}" if stat.S_ISLNK(row.mode) else ""
        time = date_of(row.mtime_ns)[:19]
        print(f"{stat.filemode(row.mode)}  {size:>{width}}  {time}  {shown(path)}{target}")


def _as_json(name: str, then: Opened, found: Iterable[Named]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "volume": name,
        "moment": {"position": format_position(then.plan.position), "time_ns": then.plan.time_ns},
        "entries": [
            {
                "path": os.fsdecode(path),
                "mode": row.mode,
                "uid": row.uid,
                "gid": row.gid,
                "nlink": row.nlink,
                "size_bytes": row.size,
                "mtime_ns": row.mtime_ns,
                "ctime_ns": row.ctime_ns,
                "target": os.fsdecode(row.target) if stat.S_ISLNK(row.mode) else None,
            }
            for path, row in found
        ],
    }
