"""What the filesystem promises, said a second time: a tree of dictionaries and the history of one mount.

The prefix rule, as `History.check` holds the engine to it after a crash:
1. Operations on names and attributes (truncates included) have one order. The recovered tree is the one
   after some first k of them: never a later one without an earlier one.
2. k covers all that came before the call of any fsync or sync that returned.
3. Of each file the recovered bytes are those after the truncates among the k, and the first j of its own
   writes, where j covers
   - the writes before any returned fsync of that file, or sync;
   - the writes before any rename, link or exchange of it among the k (save-by-rename never shows an
     empty or partial file);
   - if it was truncated while open for writing: the writes before its last close, once the k reach
     beyond that close;
   and none that came after an operation beyond the k: data does not overtake names.
4. Without faults nothing older than LAG_MAX_S is lost.
With `whole_files` False the j is drawn per piece of the file: its data was sealed in several batches,
which a commit for another file may have come between.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

ROOT = 1
LAG_MAX_S = 15.0
"""Commits are at most 5 s apart; the rest is what the simulated disk takes."""
CHUNK = 1 << 20


class Violation(AssertionError):
    """A promise was broken."""


class Node(NamedTuple):
    mode: int
    uid: int
    gid: int
    nlink: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: int
    target: bytes


class Made(NamedTuple):
    parent: int
    name: bytes
    inode: int
    mode: int
    uid: int
    gid: int
    target: bytes
    time_ns: int


class Linked(NamedTuple):
    inode: int
    parent: int
    name: bytes
    time_ns: int


class Unlinked(NamedTuple):
    parent: int
    name: bytes
    time_ns: int


class Renamed(NamedTuple):
    parent: int
    name: bytes
    new_parent: int
    new_name: bytes
    exchange: bool
    time_ns: int


class Changed(NamedTuple):
    """setattr; None leaves a field. A size counts as a change of mtime."""

    inode: int
    mode: int | None
    uid: int | None
    atime_ns: int | None
    mtime_ns: int | None
    size: int | None
    time_ns: int


class XattrSet(NamedTuple):
    inode: int
    name: bytes
    value: bytes
    time_ns: int


class XattrRemoved(NamedTuple):
    inode: int
    name: bytes
    time_ns: int


class Forgotten(NamedTuple):
    """The last user of an inode without names has gone."""

    inode: int


Operation = Made | Linked | Unlinked | Renamed | Changed | XattrSet | XattrRemoved | Forgotten


@dataclass(slots=True)
class Tree:
    """Names and attributes; no contents, no sizes."""

    nodes: dict[int, Node] = field(default_factory=dict)
    entries: dict[tuple[int, bytes], int] = field(default_factory=dict)
    xattrs: dict[tuple[int, bytes], bytes] = field(default_factory=dict)

    def copy(self) -> Tree:
        return Tree(dict(self.nodes), dict(self.entries), dict(self.xattrs))

    def directories(self) -> list[int]:
        return [inode for inode, node in self.nodes.items() if stat.S_ISDIR(node.mode) and node.nlink]

    def files(self) -> list[int]:
        return [inode for inode, node in self.nodes.items() if stat.S_ISREG(node.mode)]

    def apply(self, op: Operation) -> None:
        match op:
            case Made():
                self._make(op)
            case Linked(inode, parent, name, time_ns):
                self._change(inode, nlink=self.nodes[inode].nlink + 1, ctime_ns=time_ns)
                self.entries[parent, name] = inode
                self._touch(parent, time_ns)
            case Unlinked(parent, name, time_ns):
                self._drop(self.entries.pop((parent, name)), parent, time_ns)
                self._touch(parent, time_ns)
            case Renamed():
                self._rename(op)
            case Changed():
                self._setattr(op)
            case XattrSet(inode, name, value, time_ns):
                self.xattrs[inode, name] = value
                self._change(inode, ctime_ns=time_ns)
            case XattrRemoved(inode, name, time_ns):
                del self.xattrs[inode, name]
                self._change(inode, ctime_ns=time_ns)
            case Forgotten(inode):
                del self.nodes[inode]
                for key in [key for key in self.xattrs if key[0] == inode]:
                    del self.xattrs[key]

    def _make(self, op: Made) -> None:
        is_directory = stat.S_ISDIR(op.mode)
        self.nodes[op.inode] = Node(
            op.mode,
            op.uid,
            op.gid,
            2 if is_directory else 1,
            op.time_ns,
            op.time_ns,
            op.time_ns,
            op.parent if is_directory else 0,
            op.target,
        )
        self.entries[op.parent, op.name] = op.inode
        self._touch(op.parent, op.time_ns)
        if is_directory:
            self._change(op.parent, nlink=self.nodes[op.parent].nlink + 1)

    def _rename(self, op: Renamed) -> None:
        source, target = (op.parent, op.name), (op.new_parent, op.new_name)
        moved, replaced = self.entries[source], self.entries.get(target)
        if op.exchange:
            assert replaced is not None
            self.entries[source], self.entries[target] = replaced, moved
            self._move(replaced, op.new_parent, op.parent, op.time_ns)
        else:
            if replaced is not None:
                self._drop(replaced, op.new_parent, op.time_ns)
            del self.entries[source]
            self.entries[target] = moved
        self._move(moved, op.parent, op.new_parent, op.time_ns)
        self._touch(op.parent, op.time_ns)
        self._touch(op.new_parent, op.time_ns)

    def _move(self, inode: int, source: int, target: int, time_ns: int) -> None:
        self._change(inode, ctime_ns=time_ns)
        if stat.S_ISDIR(self.nodes[inode].mode):
            self._change(inode, parent=target)
            self._change(source, nlink=self.nodes[source].nlink - 1)
            self._change(target, nlink=self.nodes[target].nlink + 1)

    def _setattr(self, op: Changed) -> None:
        wanted: dict[str, int | None] = {
            "uid": op.uid,
            "atime_ns": op.atime_ns,
            "mtime_ns": op.time_ns if op.size is not None and op.mtime_ns is None else op.mtime_ns,
            "ctime_ns": op.time_ns,
        }
        if op.mode is not None:
            wanted["mode"] = stat.S_IFMT(self.nodes[op.inode].mode) | op.mode
        self._change(op.inode, **{name: value for name, value in wanted.items() if value is not None})

    def _drop(self, inode: int, parent: int, time_ns: int) -> None:
        node = self.nodes[inode]
        if stat.S_ISDIR(node.mode):
            self._change(inode, nlink=0, ctime_ns=time_ns)
            self._change(parent, nlink=self.nodes[parent].nlink - 1)
        else:
            self._change(inode, nlink=node.nlink - 1, ctime_ns=time_ns)

    def _touch(self, directory: int, time_ns: int) -> None:
        self._change(directory, mtime_ns=time_ns, ctime_ns=time_ns)

    def _change(self, inode: int, **values: int) -> None:
        self.nodes[inode] = self.nodes[inode]._replace(**values)  # type: ignore[arg-type]  # ints only

    def difference(self, other: Tree) -> str:
        """Where two trees differ, for a person."""
        lines = []
        for name in ("nodes", "entries", "xattrs"):
            one: Mapping[object, object] = getattr(self, name)
            two: Mapping[object, object] = getattr(other, name)
            for key in one.keys() | two.keys():
                if one.get(key) != two.get(key):
                    lines.append(f"  {name} {key!r}: {one.get(key)} is {two.get(key)}")
        return "\n".join(sorted(lines))


class Write(NamedTuple):
    done: int
    """Operations on names before it."""
    at_s: float
    offset: int
    data: bytes


class Cut(NamedTuple):
    operation: int
    """Its index among the operations on names."""
    size: int


@dataclass(slots=True)
class FileHistory:
    """Data operations of one file, and what must not be lost of them."""

    base: bytes = b""
    events: list[Write | Cut] = field(default_factory=list)
    count: int = 0
    """Writes so far."""
    promises: list[tuple[int, int]] = field(default_factory=list)
    """(operations, writes): when more than so many operations are kept, so many writes are."""
    cut_while_open: bool = False

    def promise(self, operations: int) -> None:
        """All writes so far must be there once more than so many operations are (-1: always)."""
        self.promises.append((operations, self.count))

    def promised(self, operations: int) -> int:
        return max((count for more, count in self.promises if operations > more), default=0)

    def content(self, *, operations: int, writes: int) -> bytes:
        """The bytes after so many operations on names and so many of the file's writes."""
        data = bytearray(self.base)
        for event in self.events:
            if isinstance(event, Cut):
                if event.operation < operations:
                    _resize(data, event.size)
            elif writes:
                writes -= 1
                _overlay(data, event.offset, event.data)
        return bytes(data)

    def live(self) -> bytes:
        """The bytes now."""
        return self.content(operations=1 << 60, writes=self.count)

    def admissible(self, operations: int) -> int:
        """How many writes may be there after so many operations."""
        return sum(isinstance(event, Write) and event.done <= operations for event in self.events)

    def explains(self, found: bytes, operations: int, *, whole: bool) -> str | None:
        """Why `found` cannot be the file after so many operations; None when it can."""
        least, most = self.promised(operations), self.admissible(operations)
        for writes in range(most, least - 1, -1):
            if self.content(operations=operations, writes=writes) == found:
                return None
        if not whole and least <= most:
            return self._explains_pieces(found, operations, least, most)
        return f"{len(found)} bytes are none of the states after {least} to {most} of {self.count} writes"

    def _explains_pieces(self, found: bytes, operations: int, least: int, most: int) -> str | None:
        edges = {0, len(found)} | set(range(0, len(found), CHUNK)) | {len(self.base)}
        for event in self.events:
            edges |= (
                {event.size} if isinstance(event, Cut) else {event.offset, event.offset + len(event.data)}
            )
        states = [self.content(operations=operations, writes=count) for count in range(least, most + 1)]
        if len(found) < len(states[0]) and len(found) < min(map(len, states)):
            return f"size {len(found)} is below what was promised"
        if len(found) not in edges:
            return f"size {len(found)} is the end of no write"
        cuts = sorted(edge for edge in edges if edge <= len(found))
        for start, end in pairwise(cuts):
            piece = found[start:end]
            # A state that ends before the piece leaves zeros there, once another piece makes the file longer.
            if not any(state[start:end].ljust(end - start, b"\0") == piece for state in states):
                return f"bytes {start} to {end} are none that {least} to {most} writes leave"
        return None


def _overlay(target: bytearray, offset: int, data: bytes) -> None:
    if len(target) < offset:
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _resize(target: bytearray, size: int) -> None:
    del target[size:]
    target.extend(bytes(size - len(target)))


class History:
    """What was done in one mount since a known state, in order, and what was promised of it.

    Note each operation in the same step as it was done: no await in between.
    """

    def __init__(self, tree: Tree, contents: Mapping[int, bytes]) -> None:
        self.base = tree
        self.tree = tree.copy()
        """The tree now."""
        self.operations: list[Operation] = []
        self.times_s: list[float] = []
        self.kept = 0
        """Operations that must survive."""
        self.files: dict[int, FileHistory] = {inode: FileHistory(data) for inode, data in contents.items()}

    def note(self, op: Operation, *, at_s: float) -> None:
        """An operation on names or attributes succeeded."""
        index = len(self.operations)
        match op:
            case Made(inode=inode, mode=mode) if stat.S_ISREG(mode):
                self.files[inode] = FileHistory()
            case Linked(inode=inode):
                self.files[inode].promise(index)
            case Renamed():
                self._promise(self.tree.entries[op.parent, op.name], index)
                if op.exchange:
                    self._promise(self.tree.entries[op.new_parent, op.new_name], index)
            case Changed(inode=inode, size=int(size)):
                self.files[inode].events.append(Cut(index, size))
            case _:
                pass
        self.operations.append(op)
        self.times_s.append(at_s)
        self.tree.apply(op)

    def _promise(self, inode: int, operations: int) -> None:
        if inode in self.files:
            self.files[inode].promise(operations)

    def wrote(self, inode: int, offset: int, data: bytes, *, at_s: float) -> None:
        """A write was taken."""
        file = self.files[inode]
        file.events.append(Write(len(self.operations), at_s, offset, data))
        file.count += 1

    def closed(self, inode: int) -> None:
        """The last handle for writing was closed."""
        file = self.files[inode]
        if file.cut_while_open:
            file.promise(len(self.operations))
            file.cut_while_open = False

    def before_sync(self, inode: int | None) -> tuple[int, list[tuple[int, int]]]:
        """What an fsync (None: a sync) that is called now promises when it returns."""
        inodes = list(self.files) if inode is None else [inode]
        return len(self.operations), [(each, self.files[each].count) for each in inodes]

    def synced(self, promise: tuple[int, list[tuple[int, int]]]) -> None:
        """That call returned."""
        self.kept = max(self.kept, promise[0])
        for inode, count in promise[1]:
            self.files[inode].promises.append((-1, count))

    def age(self, now_s: float) -> None:
        """No fault was injected: what is older than LAG_MAX_S is durable."""
        old = sum(at_s < now_s - LAG_MAX_S for at_s in self.times_s)
        self.kept = max(self.kept, old)
        for file in self.files.values():
            count = sum(isinstance(e, Write) and e.at_s < now_s - LAG_MAX_S for e in file.events)
            file.promises.append((-1, count))

    def check(self, tree: Tree, contents: Mapping[int, bytes], *, whole_files: bool) -> int:
        """Whether a recovered tree and the bytes of its files follow the prefix rule.

        Returns k, of several the largest. Raises Violation.
        """
        state = self.base.copy()
        found: list[int] = []
        for k in range(len(self.operations) + 1):
            if k:
                state.apply(self.operations[k - 1])
            if state == tree:
                found.append(k)
        if not found:
            raise Violation(
                f"the tree is that after no prefix of {len(self.operations)} operations; "
                f"model after all of them, recovered:\n{state.difference(tree)}"
            )
        if found[-1] < self.kept:
            raise Violation(f"{self.kept} operations were durable, only {found[-1]} are left")
        reason = ""
        for k in reversed(found):
            if k < self.kept:
                break
            reason = self._explain(tree, contents, k, whole=whole_files)
            if not reason:
                return k
        raise Violation(reason)

    def _explain(self, tree: Tree, contents: Mapping[int, bytes], k: int, *, whole: bool) -> str:
        for inode in tree.files():
            reason = self.files[inode].explains(contents[inode], k, whole=whole)
            if reason is not None:
                return f"inode {inode} after {k} of {len(self.operations)} operations: {reason}"
        return ""
