"""What a volume may look like after its daemon was killed, from the journal that the load kept.

The load is one process that does one operation after the other and numbers them. What holds afterwards:
- Names form a prefix: for some K, exactly the operations on names up to number K have happened, and K is
  not below the last operation that an fsync (of a file or a directory) acknowledged.
- Data that an fsync acknowledged is there. So is data that was closed before a rename or link of its file,
  if that is within the prefix: saving by rename never yields an empty or mixed file.
- Other data may be there or not, per page, but only if it was written before operation K + 1 on names.

Files are made of cells of 64 bytes that say which operation wrote them; no cell is ever torn, as the kernel
writes back whole pages. Inode numbers tell files apart, whatever their names are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CELL = 64
ZERO = bytes(CELL)
NAME_KINDS = ("create", "mkdir", "unlink", "rmdir", "rename", "link", "truncate")
DIRECTORY = "directory"


def cell(round_number: int, number: int, index: int) -> bytes:
    """What operation `number` writes into the cell with that index."""
    return (
        f"{round_number:08d} {number:010d} {index:010d} {number * 2654435761 % 2**64:020d} end!".ljust(
            CELL - 1, "."
        ).encode()
        + b"\n"
    )


def cells(round_number: int, number: int, first: int, count: int) -> bytes:
    """What it writes into several."""
    return b"".join(cell(round_number, number, index) for index in range(first, first + count))


class Violation(Exception):
    """What was found is not allowed; the message says what and where."""


@dataclass(slots=True)
class Operation:
    """One line of intent of the journal, and whether its end was reached."""

    number: int
    kind: str
    values: dict[str, Any]
    done: bool = False


def read_journal(path: Path) -> list[Operation]:
    """The operations of one round in order; only the last may be without an end."""
    operations: list[Operation] = []
    for line in path.read_text().splitlines():
        values = json.loads(line)
        number, kind = values.pop("number"), values.pop("kind")
        if kind == "done":
            assert operations[-1].number == number
            operations[-1].values |= values
            operations[-1].done = True
        else:
            operations.append(Operation(number, kind, values))
    assert all(operation.done for operation in operations[:-1])
    return operations


@dataclass(slots=True)
class Snapshot:
    """Everything seen on a volume: path -> inode; inode -> contents, or DIRECTORY."""

    names: dict[str, int] = field(default_factory=dict)
    contents: dict[int, bytes | str] = field(default_factory=dict)


def look(root: Path) -> Snapshot:
    """Read everything below a directory."""
    found = Snapshot()
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        found.names[str(path.relative_to(root))] = status.st_ino
        found.contents[status.st_ino] = DIRECTORY if path.is_dir() else path.read_bytes()
    return found


# --- names -----------------------------------------------------------------------------------


def _names_after(names: dict[str, int | None], operation: Operation) -> None:
    """Carry out one operation on names."""
    values = operation.values
    if operation.kind in ("create", "mkdir"):
        names[values["path"]] = values.get("inode")  # not known when the daemon died before it answered
    elif operation.kind == "link":
        names[values["to"]] = names[values["path"]]
    elif operation.kind in ("unlink", "rmdir"):
        del names[values["path"]]
    elif operation.kind == "rename":
        source, target = values["path"], values["to"]
        for path in [path for path in names if path == source or path.startswith(source + "/")]:
            names[target + path[len(source) :]] = names.pop(path)


def _prefixes(
    before: Snapshot, operations: Sequence[Operation]
) -> Iterator[tuple[int, int, dict[str, int | None]]]:
    """Each possible cut: (number of the last operation on names, that of the next, names)."""
    names: dict[str, int | None] = dict(before.names)
    on_names = [operation for operation in operations if operation.kind in NAME_KINDS]
    end = operations[-1].number + 1 if operations else 0
    for at in range(len(on_names) + 1):
        if at:
            _names_after(names, on_names[at - 1])
        following = on_names[at].number if at < len(on_names) else end
        yield (on_names[at - 1].number if at else -1), following, names


def _same_names(expected: dict[str, int | None], found: dict[str, int], known: set[int]) -> bool:
    if expected.keys() != found.keys():
        return False
    return all(
        inode == found[path] if inode is not None else found[path] not in known
        for path, inode in expected.items()
    )


# --- contents --------------------------------------------------------------------------------


class _File:
    """What one file must and may hold."""

    def __init__(self, data: bytes) -> None:
        self.sure = {index: data[index * CELL : (index + 1) * CELL] for index in range(len(data) // CELL)}
        self.sure_size = self.size = len(data)
        self.perhaps: dict[int, list[bytes]] = {}

    def write(self, first: int, count: int, *, round_number: int, number: int) -> None:
        for index in range(first, first + count):
            self.perhaps.setdefault(index, []).append(cell(round_number, number, index))
        self.size = max(self.size, (first + count) * CELL)

    def truncate(self, size: int) -> None:
        self.sure = {index: data for index, data in self.sure.items() if index * CELL < size}
        self.perhaps = {index: data for index, data in self.perhaps.items() if index * CELL < size}
        self.sure_size = self.size = size

    def durable(self) -> None:
        for index, written in self.perhaps.items():
            self.sure[index] = written[-1]
        self.perhaps.clear()
        self.sure_size = self.size

    def fault(self, data: bytes) -> str | None:
        """Why these contents are not allowed, or None."""
        if not self.sure_size <= len(data) <= self.size:
            return f"size {len(data)} instead of {self.sure_size} to {self.size}"
        for index in range(len(data) // CELL):
            found = data[index * CELL : (index + 1) * CELL]
            sure = self.sure.get(index, ZERO)
            others = self.perhaps.get(index, ())
            if found != sure and found not in others:
                return f"cell {index} is {found!r}, expected {sure!r} or one of {len(others)} others"
        return None


def _contents_fault(
    before: Snapshot,
    operations: Sequence[Operation],
    found: Snapshot,
    *,
    cut: int,
    following: int,
    round_number: int,
) -> str | None:
    """Why the contents do not fit a prefix of names that ends at operation `cut`, or None."""
    files = {inode: _File(data) for inode, data in before.contents.items() if isinstance(data, bytes)}
    for operation in operations:
        values, number = operation.values, operation.number
        if number >= following:
            break
        inode: Any = values.get("inode")
        if operation.kind == "create" and inode is not None:
            files[inode] = _File(b"")
        elif operation.kind == "write":
            files[inode].write(values["first"], values["count"], round_number=round_number, number=number)
        elif operation.kind == "truncate":
            files[inode].truncate(values["size"])
        elif inode in files and (
            (operation.kind == "fsync" and operation.done) or operation.kind in ("rename", "link")
        ):
            files[inode].durable()
    for path, inode in found.names.items():
        data = found.contents[inode]
        if isinstance(data, bytes):
            file = files.get(inode) or _File(b"")
            if len(data) % CELL:
                return f"{path}: size {len(data)} is not of whole cells"
            if (fault := file.fault(data)) is not None:
                return f"{path} (inode {inode}, prefix to {cut}): {fault}"
    return None


def check(before: Snapshot, operations: Sequence[Operation], found: Snapshot, *, round_number: int) -> int:
    """Return the number of the last operation on names that survived. Raises: Violation."""
    acknowledged = max(
        (one.number for one in operations if one.done and one.kind in ("fsync", "fsyncdir")), default=-1
    )
    known = set(before.contents) | {one.values["inode"] for one in operations if "inode" in one.values}
    faults = []
    for cut, following, names in _prefixes(before, operations):
        # All operations on names before the acknowledging fsync are in: the next one comes after it.
        if following <= acknowledged or not _same_names(names, found.names, known):
            continue
        fault = _contents_fault(
            before, operations, found, cut=cut, following=following, round_number=round_number
        )
        if fault is None:
            return cut
        faults.append(fault)
    if faults:
        raise Violation("contents: " + "; ".join(faults[:3]))
    raise Violation(
        f"names are no prefix from operation {acknowledged} on: found {sorted(found.names)};"
        f" the last of {len(operations)} operations: {operations[-6:]}"
    )
