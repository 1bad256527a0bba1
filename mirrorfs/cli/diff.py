"""`mirrorfs diff`: what differs between two moments of a volume. JSON: docs/history-json.md."""

from __future__ import annotations

import argparse
import json
import os
import stat
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import trio

from mirrorfs.cli.ls import shown
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
from mirrorfs.engine.merged_files import without_merged
from mirrorfs.engine.moment import NEWEST
from mirrorfs.engine.past import reader_of
from mirrorfs.engine.state import VolumeState
from mirrorfs.engine.tree_diff import Difference, How, TreeDiff
from mirrorfs.format.ids import format_position
from mirrorfs.format.rows import InodeRow
from mirrorfs.format.signing import load_public_key

SCHEMA: Final = 1
_MARKS: Final = {
    How.CREATED: "+",
    How.DELETED: "-",
    How.CHANGED: "M",
    How.RENAMED: "R",
    How.RENAMED_CHANGED: "RM",
    How.ATTRIBUTES: "a",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `diff`."""
    add_past_arguments(parser, "A [B]")
    parser.epilog = f"A and B: {WHEN_HELP}; without B the newest state. Marks: " + ", ".join(
        f"{mark} {how}" for how, mark in _MARKS.items()
    )
    parser.add_argument("--json", action="store_true", help="machine-readable, as docs/history-json.md says")


def run(arguments: argparse.Namespace, environment: Mapping[str, str]) -> int:
    """Carry out `diff`. Returns: 0, whether there are differences or not. Raises: MirrorfsError."""
    operands = operands_of(arguments, least=1, most=2)
    first = moment_of(operands[0])
    second = moment_of(operands[1]) if len(operands) > 1 else NEWEST

    async def work(past: Past) -> int:
        async with past.at(first) as old, past.at(second) as new:
            compared = TreeDiff(old.index, new.index, on_names=lambda count: past.show_count("diff", count))
            found = await _without_merged(past, compared)
            past.end_progress()
            if arguments.json:
                print(json.dumps(_as_json(past.name, old, new, found), indent=2))
            else:
                _print(old, new, found)
        return 0

    return look_back(arguments, environment, work)


async def _without_merged(past: Past, compared: TreeDiff) -> list[Difference]:
    world, writer = past.world, load_public_key(past.writer_key)
    found = compared.run()
    async with trio.open_nursery() as nursery:
        old, new = (
            reader_of(
                VolumeState(index, world.clock, read_only=True),
                world,
                past.keys,
                writer,
                past.stores,
                nursery,
            )
            for index in (compared.old, compared.new)
        )
        found = await without_merged(compared, found, old, new)
        old.close()
        new.close()
        nursery.cancel_scope.cancel()
    return found


def _print(old: Opened, new: Opened, found: Sequence[Difference]) -> None:
    for mark, opened in (("A", old), ("B", new)):
        plan = opened.plan
        print(f"{mark}: position {format_position(plan.position)} of {date_of(plan.time_ns)}")
    for one in found:
        path = shown(one.path)
        if one.old_path is not None:
            path = f"{shown(one.old_path)} -> {path}"
        print(f"{_MARKS[one.how]:<2} {path}{_sizes(one)}")
    counts = Counter(one.how for one in found)
    print(", ".join(f"{counts[how]} {how}" for how in How if counts[how]) or "No differences.")


def _sizes(one: Difference) -> str:
    old, new = _size(one.old), _size(one.new)
    if old is not None and new is not None:
        if one.how not in (How.CHANGED, How.RENAMED_CHANGED):
            return ""
        return f"  ({format_bytes(old)} -> {format_bytes(new)})"
    size = new if new is not None else old
    return "" if size is None else f"  ({format_bytes(size)})"


def _size(row: InodeRow | None) -> int | None:
    return row.size if row is not None and stat.S_ISREG(row.mode) else None


def _as_json(name: str, old: Opened, new: Opened, found: Sequence[Difference]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "volume": name,
        "a": {"position": format_position(old.plan.position), "time_ns": old.plan.time_ns},
        "b": {"position": format_position(new.plan.position), "time_ns": new.plan.time_ns},
        "differences": [
            {
                "what": one.how,
                "path": os.fsdecode(one.path),
                "old_path": None if one.old_path is None else os.fsdecode(one.old_path),
                "old_size_bytes": _size(one.old),
                "size_bytes": _size(one.new),
            }
            for one in found
        ],
    }
