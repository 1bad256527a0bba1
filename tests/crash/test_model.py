"""The checker of crashes, fed by hand: it accepts what is allowed and notices what is not."""

from __future__ import annotations

from typing import Any

import pytest

from tests.crash.model import CELL, DIRECTORY, Operation, Snapshot, Violation, cells, check

A, B = 10, 11


def history(*lines: tuple[str, dict[str, Any]], unfinished: bool = False) -> list[Operation]:
    made = [Operation(number, kind, values, True) for number, (kind, values) in enumerate(lines, 1)]
    made[-1].done = not unfinished
    return made


def data(number: int, first: int, count: int) -> bytes:
    return cells(0, number, first, count)


CREATE = ("create", {"path": "a~", "inode": A})
WRITE = ("write", {"inode": A, "first": 0, "count": 3})
FSYNC = ("fsync", {"inode": A})
RENAME = ("rename", {"path": "a~", "to": "a", "inode": A})
MKDIR = ("mkdir", {"path": "d", "inode": B})
OLD = data(77, 0, 2)
SAVED = history(CREATE, WRITE, RENAME)
SYNCED = history(CREATE, WRITE, FSYNC, MKDIR)


@pytest.mark.parametrize(
    ("operations", "names", "contents", "cut"),
    [
        (SAVED, {}, {}, -1),
        (SAVED, {"a~": A}, {A: b""}, 1),
        (SAVED, {"a~": A}, {A: data(2, 0, 1)}, 1),
        (SAVED, {"a~": A}, {A: data(2, 0, 1) + bytes(CELL) + data(2, 2, 1)}, 1),
        (SAVED, {"a": A}, {A: data(2, 0, 3)}, 3),
        (SYNCED, {"a~": A}, {A: data(2, 0, 3)}, 1),
        (SYNCED, {"a~": A, "d": B}, {A: data(2, 0, 3), B: DIRECTORY}, 4),
        (history(CREATE, unfinished=True), {}, {}, -1),
    ],
)
def test_allowed(
    operations: list[Operation], names: dict[str, int], contents: dict[int, bytes | str], cut: int
) -> None:
    assert check(Snapshot(), operations, Snapshot(names, contents), round_number=0) == cut


@pytest.mark.parametrize(
    ("operations", "names", "contents"),
    [
        pytest.param(SAVED, {"a": A}, {A: b""}, id="saved-but-empty"),
        pytest.param(SAVED, {"a": A}, {A: data(2, 0, 2)}, id="saved-but-short"),
        pytest.param(SAVED, {"a": A}, {A: data(2, 0, 2) + bytes(CELL)}, id="saved-but-mixed"),
        pytest.param(SAVED, {"a": A, "a~": A}, {A: data(2, 0, 3)}, id="both-names"),
        pytest.param(SAVED, {"a": B}, {B: data(2, 0, 3)}, id="another-inode"),
        pytest.param(SYNCED, {}, {}, id="name-synced-and-lost"),
        pytest.param(SYNCED, {"a~": A}, {A: data(2, 0, 2)}, id="data-synced-and-lost"),
        pytest.param(SYNCED, {"d": B}, {B: DIRECTORY}, id="no-prefix"),
        pytest.param(SYNCED, {"a~": A}, {A: data(9, 0, 3)}, id="bytes-of-nobody"),
        pytest.param(
            history(CREATE, MKDIR, WRITE), {"a~": A}, {A: data(3, 0, 3)}, id="data-from-after-the-prefix"
        ),
        pytest.param(
            history(CREATE, WRITE, FSYNC, ("truncate", {"inode": A, "size": 0}), ("fsyncdir", {})),
            {"a~": A},
            {A: data(2, 0, 3)},
            id="truncate-undone",
        ),
    ],
)
def test_noticed(
    operations: list[Operation], names: dict[str, int], contents: dict[int, bytes | str]
) -> None:
    with pytest.raises(Violation):
        check(Snapshot(), operations, Snapshot(names, contents), round_number=0)


def test_what_was_there_before_stays() -> None:
    before = Snapshot({"a": A}, {A: OLD})
    write = history(("write", {"inode": A, "first": 1, "count": 1}))
    for found in (OLD, OLD[:CELL] + data(1, 1, 1)):
        check(before, write, Snapshot({"a": A}, {A: found}), round_number=0)
    for found in (b"", OLD[CELL:], data(1, 0, 2)):
        with pytest.raises(Violation):
            check(before, write, Snapshot({"a": A}, {A: found}), round_number=0)
