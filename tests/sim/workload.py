"""Random work on a FileSystem by several tasks at once, noted in a History as it succeeds.

Every change of names or attributes is one synchronous call, noted right after it; a write takes effect
when its `await` returns. So the order of the notes is the order of the records.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Awaitable, Callable

import trio

from mirrorfs.engine.filesystem import FileSystem
from mirrorfs.errors import (
    DirectoryNotEmpty,
    EntryExists,
    InvalidCall,
    IsADirectory,
    NoAttribute,
    NoEntry,
    NoSpaceLeft,
    NotADirectory,
    NotPermitted,
    WritesStopped,
)
from mirrorfs.ports import Clock
from tests.sim.disk import SimulatedDisk
from tests.sim.model import (
    ROOT,
    Changed,
    Forgotten,
    History,
    Linked,
    Made,
    Operation,
    Renamed,
    Unlinked,
    Violation,
    XattrRemoved,
    XattrSet,
)

REFUSALS = (
    DirectoryNotEmpty,
    EntryExists,
    InvalidCall,
    IsADirectory,
    NoAttribute,
    NoEntry,
    NotADirectory,
    NotPermitted,
)
"""What random work may be told without anything being wrong."""

_NAMES = tuple(b"%c" % letter for letter in b"abcdefgh")
_XATTRS = (b"user.one", b"user.two")
_FILE_MODE = stat.S_IFREG | 0o644
_DIRECTORY_MODE = stat.S_IFDIR | 0o755
_LINK_MODE = stat.S_IFLNK | 0o777


class Workload:
    """Tasks that share one filesystem, one history and one source of chance."""

    def __init__(
        self,
        filesystem: FileSystem,
        history: History,
        disk: SimulatedDisk,
        clock: Clock,
        rng: random.Random,
        *,
        tolerated: tuple[type[NoSpaceLeft | WritesStopped], ...],
        before_step: Callable[[], None],
    ) -> None:
        """`tolerated` are the errors that injected faults may cause; any other is a violation."""
        self._fs = filesystem
        self._history = history
        self._disk = disk
        self._clock = clock
        self._rng = rng
        self._tolerated = tolerated
        self._before_step = before_step
        self._open: dict[int, int] = {}
        self._steps: tuple[tuple[Callable[[], Awaitable[None]], int], ...] = (
            (self._new_file, 10),
            (self._session, 14),
            (self._save, 8),
            (self._rename, 8),
            (self._link, 4),
            (self._unlink, 6),
            (self._make_directory, 4),
            (self._remove_directory, 3),
            (self._symlink, 2),
            (self._attributes, 4),
            (self._truncate, 4),
            (self._xattr, 4),
            (self._fsync, 5),
            (self._sync, 3),
            (self._read, 8),
            (self._sleep, 5),
        )

    async def run(self, *, tasks: int, steps: int) -> None:
        """All tasks, to their end."""
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(self._task, steps // tasks)

    async def _task(self, steps: int) -> None:
        works, weights = zip(*self._steps, strict=True)
        for _ in range(steps):
            self._before_step()
            step = self._rng.choices(works, weights)[0]
            try:
                await step()
            except REFUSALS:
                pass
            except (NoSpaceLeft, WritesStopped) as exc:
                self._disk.check_alive()
                if not isinstance(exc, self._tolerated):
                    raise Violation(f"{type(exc).__name__} without a fault that explains it") from exc
            # Right after a crash nothing counts: the history ends with the machine.
            self._disk.check_alive()
            await self._pause()

    async def _pause(self) -> None:
        rng = self._rng
        if rng.random() < 0.4:
            await trio.lowlevel.checkpoint()
        else:
            await trio.sleep(rng.choice((0.0, 0.001, 0.01, 0.3)) * rng.random())

    # --- notes -------------------------------------------------------------------------------

    def _note(self, op: Operation) -> None:
        self._history.note(op, at_s=trio.current_time())

    def _now(self) -> int:
        return self._clock.now_ns()

    # --- choices -----------------------------------------------------------------------------

    def _directory(self) -> int:
        return self._rng.choice([ROOT, ROOT, *self._history.tree.directories()])

    def _entry(self, *, regular: bool = False) -> tuple[int, bytes]:
        tree = self._history.tree
        keys = [
            key for key, inode in tree.entries.items() if not regular or stat.S_ISREG(tree.nodes[inode].mode)
        ]
        if not keys:
            raise NoEntry("nothing there yet")
        return self._rng.choice(keys)

    def _file(self) -> int:
        return self._history.tree.entries[self._entry(regular=True)]

    def _name(self) -> bytes:
        return self._rng.choice(_NAMES)

    def _data(self) -> bytes:
        rng = self._rng
        size = rng.choice((1, 100, 700, 4096, 4096, 9000, rng.randrange(1, 3000)))
        if rng.random() < 0.05:
            size = rng.randrange(20_000, 60_000)
        if rng.random() < 0.2:
            return (b"%08x " % rng.getrandbits(32)) * (size // 9 + 1)
        return rng.randbytes(size)

    # --- files -------------------------------------------------------------------------------

    def _create(self, parent: int, name: bytes, mode: int, target: bytes = b"") -> int:
        uid = self._rng.choice((0, 1000))
        row = self._fs.create(parent, name, mode=mode, uid=uid, gid=uid, target=target)
        self._note(Made(parent, name, row.inode, mode, uid, uid, target, self._now()))
        return row.inode

    def _opened(self, inode: int) -> None:
        self._fs.opened(inode, writable=True)
        self._open[inode] = self._open.get(inode, 0) + 1

    def _released(self, inode: int) -> None:
        self._fs.released(inode, writable=True)
        self._open[inode] -= 1
        if not self._open[inode]:
            self._history.closed(inode)
            self._forget(inode)

    def _forget(self, inode: int) -> None:
        if self._open.get(inode):
            return
        node = self._history.tree.nodes.get(inode)
        if node is not None and not node.nlink:
            self._fs.forgotten(inode)
            if self._fs.fatal is None:
                self._note(Forgotten(inode))

    async def _write(self, inode: int, offset: int, data: bytes) -> None:
        await self._fs.write(inode, offset, data)
        self._disk.check_alive()
        self._history.wrote(inode, offset, data, at_s=trio.current_time())

    async def _write_some(self, inode: int) -> None:
        rng = self._rng
        for _ in range(rng.choice((1, 1, 2, 4))):
            size = len(self._history.files[inode].live())
            offset = rng.choice((0, size, size, rng.randrange(size + 1), size + rng.randrange(5000)))
            await self._write(inode, offset, self._data())
            if rng.random() < 0.4:
                await self._pause()

    async def _new_file(self) -> None:
        inode = self._create(self._directory(), self._name(), _FILE_MODE)
        await self._use(inode)

    async def _session(self) -> None:
        await self._use(self._file())

    async def _use(self, inode: int) -> None:
        rng = self._rng
        self._opened(inode)
        try:
            if rng.random() < 0.3:
                self._cut(inode, 0 if rng.random() < 0.7 else rng.randrange(5000))
            await self._write_some(inode)
            if rng.random() < 0.3:
                await self._sync_one(inode)
            if rng.random() < 0.3:
                await self._pause()
        finally:
            if not self._disk.crashed:
                self._released(inode)

    async def _save(self) -> None:
        """As editors do: a new file beside the old one, then renamed over it."""
        rng = self._rng
        parent, temporary, name = self._directory(), b".tmp%d" % rng.randrange(3), self._name()
        inode = self._create(parent, temporary, _FILE_MODE)
        self._opened(inode)
        try:
            await self._write(inode, 0, self._data())
            if rng.random() < 0.3:
                await self._pause()
                await self._write(inode, len(self._history.files[inode].live()), self._data())
            if rng.random() < 0.2:
                await self._sync_one(inode)
        finally:
            if not self._disk.crashed:
                self._released(inode)
        self._do_rename(parent, temporary, parent, name)

    def _cut(self, inode: int, size: int) -> None:
        file = self._history.files[inode]
        changes = len(file.live()) != size
        self._fs.setattr(inode, size=size)
        if not changes:
            return  # no change of the size is no change at all
        self._note(Changed(inode, None, None, None, None, size, self._now()))
        if self._open.get(inode):
            file.cut_while_open = True

    async def _truncate(self) -> None:
        inode = self._file()
        self._cut(inode, self._rng.choice((0, 10, self._rng.randrange(20_000))))

    async def _sync_one(self, inode: int) -> None:
        promise = self._history.before_sync(inode)
        await self._fs.fsync(inode)
        self._disk.check_alive()
        self._history.synced(promise)

    async def _fsync(self) -> None:
        await self._sync_one(self._file())

    async def _sync(self) -> None:
        await self.sync()

    async def sync(self) -> None:
        """Everything, noted."""
        promise = self._history.before_sync(None)
        await self._fs.sync()
        self._disk.check_alive()
        self._history.synced(promise)

    async def _read(self) -> None:
        inode = self._file()
        file = self._history.files[inode]
        size, events = len(file.live()), len(file.events)
        if self._fs.getattr(inode).size != size:
            raise Violation(f"inode {inode} has size {self._fs.getattr(inode).size}, not {size}")
        found = await self._fs.read(inode, 0, size + 10)
        # Changed meanwhile: the answer may be of any moment in between.
        if len(file.events) == events and found != file.live():
            raise Violation(f"inode {inode} does not read as written")

    # --- names -------------------------------------------------------------------------------

    async def _rename(self) -> None:
        parent, name = self._entry()
        if self._rng.random() < 0.5:
            new_parent, new_name = self._entry()
        else:
            new_parent, new_name = self._directory(), self._name()
        self._do_rename(parent, name, new_parent, new_name)

    def _do_rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        entries = self._history.tree.entries
        replaced = entries.get((new_parent, new_name))
        flags = self._rng.choice(("", "", "", "no_replace", "exchange"))
        self._fs.rename(
            parent,
            name,
            new_parent=new_parent,
            new_name=new_name,
            no_replace=flags == "no_replace",
            exchange=flags == "exchange",
        )
        if replaced == entries[parent, name]:
            return  # Two names of one inode: nothing happens.
        exchange = flags == "exchange"
        self._note(Renamed(parent, name, new_parent, new_name, exchange, self._now()))
        if replaced is not None and not exchange:
            self._forget(replaced)

    async def _link(self) -> None:
        inode, parent, name = self._file(), self._directory(), self._name()
        self._fs.link(inode, parent, name)
        self._note(Linked(inode, parent, name, self._now()))

    async def _unlink(self) -> None:
        parent, name = self._entry()
        inode = self._history.tree.entries[parent, name]
        self._fs.unlink(parent, name)
        self._note(Unlinked(parent, name, self._now()))
        if self._rng.random() < 0.5:
            await self._pause()
        self._forget(inode)

    async def _make_directory(self) -> None:
        self._create(self._directory(), self._name(), _DIRECTORY_MODE)

    async def _remove_directory(self) -> None:
        parent, name = self._entry()
        inode = self._history.tree.entries[parent, name]
        self._fs.rmdir(parent, name)
        self._note(Unlinked(parent, name, self._now()))
        self._forget(inode)

    async def _symlink(self) -> None:
        self._create(self._directory(), self._name(), _LINK_MODE, self._rng.randbytes(5))

    # --- attributes --------------------------------------------------------------------------

    async def _attributes(self) -> None:
        rng, now = self._rng, self._now()
        inode = self._history.tree.entries[self._entry()]
        mode = rng.choice((None, 0o600, 0o4755))
        uid = rng.choice((None, 7))
        atime_ns = rng.choice((None, now - 5, -(10**18)))
        mtime_ns = rng.choice((None, now + 10**9))
        self._fs.setattr(inode, mode=mode, uid=uid, atime_ns=atime_ns, mtime_ns=mtime_ns)
        self._note(Changed(inode, mode, uid, atime_ns, mtime_ns, None, now))

    async def _xattr(self) -> None:
        rng = self._rng
        inode, name = self._history.tree.entries[self._entry()], rng.choice(_XATTRS)
        if rng.random() < 0.3:
            self._fs.removexattr(inode, name)
            self._note(XattrRemoved(inode, name, self._now()))
        else:
            value = rng.randbytes(rng.choice((0, 10, 900)))
            self._fs.setxattr(inode, name, value)
            self._note(XattrSet(inode, name, value, self._now()))

    async def _sleep(self) -> None:
        await trio.sleep(self._rng.choice((0.1, 1.0, 6.0, 12.0)) * self._rng.random())
