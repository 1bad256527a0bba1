"""A filesystem that keeps names and attributes in dicts, discards what is written and reads zeros.

It is the ceiling of every benchmark: what the kernel, pyfuse3 and mirrorfs.fuse cost by themselves. It
also stands in for the engine where tests look at fuse/ alone.

    python scripts/null_filesystem.py MOUNTPOINT [--no-busy-poll] [--workers N]
"""

from __future__ import annotations

import argparse
import json
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

import trio

from mirrorfs import errors
from mirrorfs.drivers.process import keep_freed_memory
from mirrorfs.fuse.mount import WORKERS, serve
from mirrorfs.fuse.operations import MirrorOperations

ROOT = 1
NAME_MAX = 255
FIRST_COOKIE = 16


class Dentry(NamedTuple):
    """One name; cookies only grow, so that the dict of a directory is in cookie order."""

    cookie: int
    name: bytes
    inode: int


@dataclass(slots=True)
class Node:
    """One inode."""

    inode: int
    generation: int
    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    allocated: int
    rdev: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    parent: int
    target: bytes
    names: dict[bytes, Dentry]
    xattrs: dict[bytes, bytes]

    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


@dataclass(frozen=True, slots=True)
class Space:
    """What statfs tells."""

    block_size: int = 4096
    blocks: int = 1 << 28
    blocks_free: int = 1 << 27
    blocks_available: int = 1 << 27
    files: int = 1 << 20
    files_free: int = 1 << 19
    name_max: int = NAME_MAX


class NullFileSystem:
    """mirrorfs.fuse.filesystem_port.FileSystemPort in memory. Bytes are not kept.

    Args:
        fault_name: creating this name raises an exception that nobody foresaw.
        hold_reads: reads wait until `may_read` is set.
    """

    read_only = False

    def __init__(self, *, fault_name: bytes = b"", hold_reads: bool = False) -> None:
        self._fault_name = fault_name
        self.may_read = trio.Event()
        if not hold_reads:
            self.may_read.set()
        self.waiting_reads = 0
        self._nodes: dict[int, Node] = {}
        self._last_cookie = FIRST_COOKIE - 1
        self._any_xattr = False
        self.removed = 0
        """Inodes removed because nothing referred to them any more."""
        self.written_bytes = 0
        self.attribute_requests = 0
        """Looks at extended attributes: how often the kernel asks, be there any or not."""
        root = self._new(mode=stat.S_IFDIR | 0o755, uid=0, gid=0, rdev=0, target=b"", parent=ROOT)
        root.nlink = 2

    def is_working(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self._nodes)

    # --- names -------------------------------------------------------------------------------

    def _new(self, *, mode: int, uid: int, gid: int, rdev: int, target: bytes, parent: int) -> Node:
        inode, now_ns = len(self._nodes) + self.removed + ROOT, time.time_ns()
        node = Node(
            inode, 1, mode, uid, gid, 0, len(target), 0, rdev, now_ns, now_ns, now_ns, parent, target, {}, {}
        )
        self._nodes[inode] = node
        return node

    def getattr(self, inode: int) -> Node:
        node = self._nodes.get(inode)
        if node is None:
            raise errors.NoEntry("No such inode.")
        return node

    def _directory(self, inode: int) -> Node:
        node = self.getattr(inode)
        if not node.is_directory():
            raise errors.NotADirectory("Not a directory.")
        return node

    def _find(self, directory: Node, name: bytes) -> Node:
        dentry = directory.names.get(name)
        if dentry is None:
            raise errors.NoEntry("No such name.")
        return self._nodes[dentry.inode]

    def lookup(self, parent: int, name: bytes) -> Node:
        if name == b".":
            return self.getattr(parent)  # of a file, too: a file handle
        directory = self._directory(parent)
        if name == b"..":
            return self._nodes[directory.parent]
        if len(name) > NAME_MAX:
            raise errors.NameTooLong("The name is too long.")
        return self._find(directory, name)

    def _touch(self, *nodes: Node, content: bool = False) -> None:
        now_ns = time.time_ns()
        for node in nodes:
            node.ctime_ns = now_ns
            if content:
                node.mtime_ns = now_ns

    def _add(self, directory: Node, name: bytes, node: Node) -> None:
        self._last_cookie += 1
        directory.names[name] = Dentry(self._last_cookie, name, node.inode)
        if node.is_directory():
            node.parent = directory.inode
            directory.nlink += 1
        self._touch(directory, content=True)

    def _take(self, directory: Node, name: bytes) -> None:
        node = self._nodes[directory.names.pop(name).inode]
        if node.is_directory():
            directory.nlink -= 1
        self._touch(directory, content=True)
        self._touch(node)

    def _check_free(self, directory: Node, name: bytes) -> None:
        if len(name) > NAME_MAX:
            raise errors.NameTooLong("The name is too long.")
        if directory.nlink == 0:
            raise errors.NoEntry("The directory was removed.")
        if name in directory.names:
            raise errors.EntryExists("The name exists.")

    def create(
        self,
        parent: int,
        name: bytes,
        *,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes = b"",
        umask: int = 0,
    ) -> Node:
        directory = self._directory(parent)
        self._check_free(directory, name)
        if self._fault_name and name == self._fault_name:
            raise ZeroDivisionError("secret text")
        if directory.mode & stat.S_ISGID:
            gid = directory.gid
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID
        mode &= ~(0 if stat.S_ISLNK(mode) else umask)
        node = self._new(mode=mode, uid=uid, gid=gid, rdev=rdev, target=target, parent=0)
        node.nlink = 2 if stat.S_ISDIR(mode) else 1
        self._add(directory, name, node)
        return node

    def link(self, inode: int, parent: int, name: bytes) -> Node:
        node, directory = self.getattr(inode), self._directory(parent)
        if node.is_directory():
            raise errors.NotPermitted("Directories have one name.")
        self._check_free(directory, name)
        node.nlink += 1
        self._add(directory, name, node)
        self._touch(node)
        return node

    def unlink(self, parent: int, name: bytes) -> Node:
        directory = self._directory(parent)
        node = self._find(directory, name)
        if node.is_directory():
            raise errors.IsADirectory("It is a directory.")
        self._take(directory, name)
        node.nlink -= 1
        return node

    def rmdir(self, parent: int, name: bytes) -> Node:
        directory = self._directory(parent)
        node = self._directory(self._find(directory, name).inode)
        if node.names:
            raise errors.DirectoryNotEmpty("The directory is not empty.")
        self._take(directory, name)
        node.nlink = 0
        return node

    def rename(
        self,
        parent: int,
        name: bytes,
        *,
        new_parent: int,
        new_name: bytes,
        no_replace: bool = False,
        exchange: bool = False,
    ) -> None:
        source, target = self._directory(parent), self._directory(new_parent)
        node = self._find(source, name)
        self._check_not_below(node, target)
        if exchange:
            other = self._find(target, new_name)
            self._check_not_below(other, source)
            self._take(source, name)
            self._take(target, new_name)
            self._add(target, new_name, node)
            self._add(source, name, other)
            return
        if new_name in target.names:
            other = self._find(target, new_name)
            if no_replace:
                raise errors.EntryExists("The name exists.")
            if other is node:
                return
            if other.is_directory() and not node.is_directory():
                raise errors.IsADirectory("It is a directory.")
            if node.is_directory():
                self.rmdir(new_parent, new_name)
            else:
                self.unlink(new_parent, new_name)
        elif len(new_name) > NAME_MAX:
            raise errors.NameTooLong("The name is too long.")
        self._take(source, name)
        self._add(target, new_name, node)

    def _check_not_below(self, node: Node, directory: Node) -> None:
        """A directory cannot move into itself."""
        while node.is_directory():
            if directory is node:
                raise errors.InvalidCall("A directory cannot move below itself.")
            if directory.inode == ROOT:
                return
            directory = self._nodes[directory.parent]

    def readlink(self, inode: int) -> bytes:
        return self.getattr(inode).target

    def readdir(self, inode: int, *, after_cookie: int, limit: int) -> list[Dentry]:
        # Linear: the benchmark's directories are small, and this is no place for an index.
        batch = []
        for dentry in self._directory(inode).names.values():
            if dentry.cookie > after_cookie:
                batch.append(dentry)
                if len(batch) == limit:
                    break
        return batch

    def forgotten(self, inode: int) -> None:
        if self.getattr(inode).nlink == 0:
            del self._nodes[inode]
            self.removed += 1

    # --- attributes --------------------------------------------------------------------------

    def setattr(
        self,
        inode: int,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
        ctime_ns: int | None = None,
    ) -> Node:
        node = self.getattr(inode)
        if mode is not None:
            node.mode = stat.S_IFMT(node.mode) | mode
        if uid is not None:
            node.uid = uid
        if gid is not None:
            node.gid = gid
        if size is not None:
            node.size = size
            node.mtime_ns = time.time_ns()
        if atime_ns is not None:
            node.atime_ns = atime_ns
        if mtime_ns is not None:
            node.mtime_ns = mtime_ns
        node.ctime_ns = time.time_ns() if ctime_ns is None else ctime_ns
        return node

    def accessed(self, inode: int) -> None:
        return

    def has_xattrs(self) -> bool:
        self.attribute_requests += 1
        return self._any_xattr

    def getxattr(self, inode: int, name: bytes) -> bytes:
        value = self.getattr(inode).xattrs.get(name)
        if value is None:
            raise errors.NoAttribute("No such attribute.")
        return value

    def setxattr(
        self,
        inode: int,
        name: bytes,
        value: bytes,
        *,
        create_only: bool = False,
        replace_only: bool = False,
        drop_setgid: bool = False,
    ) -> None:
        xattrs = self.getattr(inode).xattrs
        if create_only and name in xattrs:
            raise errors.EntryExists("The attribute exists.")
        if replace_only and name not in xattrs:
            raise errors.NoAttribute("No such attribute.")
        xattrs[name] = value
        self._any_xattr = True

    def listxattr(self, inode: int) -> list[bytes]:
        return list(self.getattr(inode).xattrs)

    def removexattr(self, inode: int, name: bytes) -> None:
        if self.getattr(inode).xattrs.pop(name, None) is None:
            raise errors.NoAttribute("No such attribute.")

    def statfs(self) -> Space:
        return Space()

    # --- bytes -------------------------------------------------------------------------------

    def opened(self, inode: int, *, writable: bool) -> None:
        self.getattr(inode)

    def released(self, inode: int, *, writable: bool) -> None:
        self.getattr(inode)

    async def read(self, inode: int, offset: int, size: int) -> bytes:
        if not self.may_read.is_set():
            self.waiting_reads += 1
            await self.may_read.wait()
            self.waiting_reads -= 1
        return bytes(max(0, min(size, self.getattr(inode).size - offset)))

    async def write(self, inode: int, offset: int, data: bytes) -> int:
        node = self.getattr(inode)
        node.size = max(node.size, offset + len(data))
        node.allocated = node.size
        self.written_bytes += len(data)
        return len(data)

    async def fsync(self, inode: int) -> None:
        return


async def run(
    filesystem: NullFileSystem,
    mountpoint: str,
    *,
    busy_poll: bool,
    read_only: bool,
    others: bool,
    workers: int,
    say: Callable[[str], None],
) -> None:
    """Mount and serve until unmounted, SIGTERM or SIGINT; then say what was left behind as JSON.

    SIGUSR1 makes it say the same at once, SIGUSR2 lets held reads go on.
    """
    operations = MirrorOperations(filesystem)

    async def report_on_request() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            async for number in signals:
                if number == signal.SIGUSR1:
                    report("counts")
                else:
                    filesystem.may_read.set()

    def report(state: str) -> None:
        references = operations.references
        values = {
            "state": state,
            "inodes": len(filesystem),
            "removed": filesystem.removed,
            "written_bytes": filesystem.written_bytes,
            "lookups": len(references.lookups),
            "opens": len(references.opens),
            "waiting_reads": filesystem.waiting_reads,
            "attribute_requests": filesystem.attribute_requests,
        }
        say(json.dumps(values))

    async with trio.open_nursery() as nursery:

        async def stop_on_signal() -> None:
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

        nursery.start_soon(report_on_request)
        nursery.start_soon(stop_on_signal)
        await serve(
            operations,
            mountpoint,
            allow_other=others,
            read_only=read_only,
            fsname="mirrorfs:null",
            workers=workers,
            on_ready=lambda: report("ready"),
            busy_poll=busy_poll,
            allow_suid=True,
            allow_devices=True,
        )
        nursery.cancel_scope.cancel()
    report("ended")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mountpoint")
    parser.add_argument("--no-busy-poll", action="store_true")
    parser.add_argument("--workers", type=int, default=WORKERS)
    parser.add_argument("--fault-name", default="")
    parser.add_argument("--hold-reads", action="store_true")
    parser.add_argument("--read-only", action="store_true")
    parser.add_argument("--not-others", action="store_true")
    arguments = parser.parse_args()
    keep_freed_memory()  # as the daemon of a volume does
    filesystem = NullFileSystem(fault_name=arguments.fault_name.encode(), hold_reads=arguments.hold_reads)
    trio.run(
        lambda: run(
            filesystem,
            arguments.mountpoint,
            busy_poll=not arguments.no_busy_poll,
            read_only=arguments.read_only,
            others=not arguments.not_others,
            workers=arguments.workers,
            say=lambda line: print(line, flush=True),
        )
    )


if __name__ == "__main__":
    main()
